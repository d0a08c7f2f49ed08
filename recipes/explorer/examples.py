"""What is looked at: a built-in example or a file of one's own, and its spectrum.

Built-in examples need no files and no network: data sets that the package generates, whose spectrum is measured on
many of them, and a photograph that comes with scikit-learn. The spectrum of a single datum is estimated from it alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from modalities.audio import Audio
from modalities.base import Dataset, Modality
from modalities.representation import Stft, Waveform
from multisagd import DataStatistics, Grid
from multisagd.libraries import failed_import
from multisagd.multitaper import statistics_of_one
from recipes.config.build import Builder
from recipes.config.defaults import of_choice
from recipes.explorer.media import Medium, Sizes

MEASURED = 64
"""Examples of a built-in data set whose power spectrum is measured."""
SOUND_DEVIATION = 0.4
"""Standard deviation to which the values of sounds are scaled: noise has one of 1, and images have about this."""


@dataclass(frozen=True, eq=False)
class Example:
    """One datum `x0` (channels, *grid), the statistics of data like it, and where it comes from.

    `choices` are those of the groups `modality` and, for a built-in data set, `data`, which is None for a file; `note`
    says how its spectrum was found.
    """

    medium: Medium
    modality: Modality
    x0: Tensor
    statistics: DataStatistics
    choices: tuple[str, str | None]
    note: str

    @property
    def grid(self) -> Grid:
        """The grid of the datum."""
        return self.statistics.grid


def scaled(modality: Modality, x0: Tensor) -> tuple[Modality, Tensor]:
    """Return a modality and its data, those of sounds multiplied so that noise and data are of like size."""
    if not isinstance(modality, Audio) or not bool(x0.abs().max() > 0):
        return modality, x0
    representation = modality.representation
    assert isinstance(representation, Stft | Waveform)
    factor = float(f"{SOUND_DEVIATION / float(x0.std()):.2g}")
    return replace(modality, representation=replace(representation, scale=factor)), x0 * factor


@lru_cache(maxsize=16)
def built_in(medium: Medium, name: str, representation: str, sizes: Sizes) -> Example:
    """Return a built-in example.

    Raises:
        ValueError: for an example that the medium does not have.
    """
    if name not in medium.examples:
        choices = " or ".join(medium.examples)
        raise ValueError(f"there is no example {name!r} of a {medium.name}: choose {choices}")
    if (data := medium.examples[name]) is None:
        import sklearn.datasets  # importing scikit-learn takes a second

        path = Path(sklearn.datasets.__file__).with_name("images") / "flower.jpg"
        return own_file(medium, path, representation, sizes)
    modality = medium.modality(sizes, representation, 1)
    group = of_choice("data", data)
    dataset = Builder().build(group, Dataset, "data", modality=modality)  # type: ignore[type-abstract]
    modality, batch = scaled(modality, dataset.batch(range(MEASURED)).x0)
    statistics = DataStatistics.measure([batch], modality.grid())
    note = f"The spectrum of the data is measured on {MEASURED} examples of data={data}."
    return Example(medium, modality, batch[3], statistics, (medium.representations[representation], data), note)


@lru_cache(maxsize=16)
def own_file(medium: Medium, path: Path, representation: str, sizes: Sizes) -> Example:
    """Return the datum in a file; of one that is larger or longer than is shown, the middle.

    Raises:
        ValueError: saying what is wrong with the file.
    """
    modality = medium.modality(sizes, representation, 3)
    if path.suffix.lower() not in modality.suffixes:
        raise ValueError(f"{path.name} is no {medium.name} by its ending; read are {', '.join(modality.suffixes)}")
    try:
        modality, x0 = scaled(modality, modality.encode(modality.load(path)))
        statistics = statistics_of_one(x0, modality.grid())
    except Exception as error:  # whatever a decoder raises, as `Modality.load` says
        if (failure := failed_import(error)) is not None:
            raise ValueError(str(failure)) from error
        reason = str(error).replace(str(path), path.name)
        raise ValueError(f"{path.name} cannot be used: {reason}") from error
    note = (
        "The spectrum of the data is estimated from this one alone, so roughly; multisagd analyze measures that of a "
        "whole folder."
    )
    return Example(medium, modality, x0, statistics, (medium.representations[representation], None), note)
