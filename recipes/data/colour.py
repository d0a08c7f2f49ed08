"""Whether pictures are learned in the colours that they have."""

from __future__ import annotations

import copy
from dataclasses import replace

from modalities.base import Dataset
from modalities.image import Image
from modalities.reading import FileReport, MediaFiles
from modalities.video import Video
from recipes.data.transformed import untouched

LOOKED_AT = 16
"""Examples that are looked at, evenly over the data."""

DIFFERENCE = 0.1
"""Difference of red, green and blue, in values from -1 to 1, from which a pixel has a colour; JPEG makes smaller."""

COLOURED = 0.01
"""Share of such pixels from which an example is in colour."""


def colour_note(dataset: Dataset) -> str | None:
    """Return what to say of pictures in colour that are taken as grey, or grey ones taken in colour; else None."""
    files = untouched(dataset)
    modality = files.modality
    if not isinstance(modality, Image | Video):
        return None
    count = min(LOOKED_AT, len(files))
    seen = copy.copy(files)
    seen.modality = replace(modality, channels=3)
    if isinstance(seen, MediaFiles):
        seen.report = FileReport(len(files), 1.0)  # what cannot be read is for those to count who need it
    try:
        x0 = seen.batch([number * len(files) // count for number in range(count)]).x0
    except Exception:  # whatever a decoder or a dataset of one's own raises: training will say what is wrong
        return None
    if x0.shape[1] != 3:
        return None
    coloured = ((x0.amax(1) - x0.amin(1)) > DIFFERENCE).flatten(1).float().mean(1) > COLOURED
    found = int(coloured.sum())
    if modality.channels == 1 and found:
        return f"{found} of {count} examples looked at are in colour, learned in grey: modality.channels=3 keeps it"
    if modality.channels == 3 and not found:
        return f"the {count} examples looked at are all grey: modality.channels=1 learns them in a third of the numbers"
    return None
