"""Captions of files: from a manifest, the names of classes, or small files next to the media (sidecars).

An example may have several captions, of which training draws one each time. What happens to an example without a
caption, or with an empty one, is a setting, because only the user knows whether the caption was forgotten.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from modalities.endings import ending_of
from multisagd.files import check_file, parse_json

CaptionSource = Literal["auto", "sidecar", "labels", "none"]
MissingCaptions = Literal["error", "empty", "skip"]
"""What happens to an example without a caption: an error, an empty caption, or the example is not used."""
Captions = tuple[str, ...]

SIDECARS = (".txt", ".caption", ".json")
"""Endings of files with captions; if there are several next to a file, the first of these is used."""
KEYS = ("caption", "text")
"""Keys of the captions in a JSON sidecar."""
LARGEST_SIDECAR = 1 << 20
"""Maximum size of a file with captions, in bytes."""
NOT_UNICODE = "half of a character (a surrogate such as \\ud83d) cannot be stored"
"""Message for text that `is_unicode` rejects."""
log = logging.getLogger("multisagd")


def is_unicode(text: str) -> bool:
    """Whether text can be written to files: the escapes of JSON can also denote half of a character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def as_captions(value: Any) -> Captions:
    """Return the captions in a value of a JSON file: one text or number, or a list of texts; null has none.

    Raises:
        ValueError: If the value is something else.
    """
    if value is None:
        return ()
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # a caption such as 7 is written without quotes
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"must be text or a list of texts, got {value!r:.100}")
    if not all(map(is_unicode, texts)):
        raise ValueError(f"{NOT_UNICODE}, got {value!r:.100}")
    return tuple(text.strip() for text in texts)


def of_classes(names: Sequence[str] | None) -> list[Captions]:
    """Return the names of the files' classes as their captions, with spaces for underscores.

    Raises:
        ValueError: If there are no classes.
    """
    if names is None:
        raise ValueError("captions=labels requires classes, but these files have none: set labels")
    return [(name.replace("_", " "),) for name in names]


def sidecars(root: Path, files: Sequence[str], suffixes: Sequence[str]) -> list[Captions]:
    """Return the captions in the sidecar of each file, or no captions for a file without one.

    The sidecar of photo.jpg is photo.txt or photo.caption, UTF-8 text that is one caption, or photo.json, an object
    with the key `caption` or `text`. `suffixes` are those of media, which are never sidecars.

    Raises:
        ValueError: If a sidecar cannot be read, is larger than 1 MiB, or has no valid captions under these keys.
    """
    stems = (root / file.removesuffix(ending_of(file, suffixes)) for file in files)
    endings = [ending for ending in SIDECARS if ending not in suffixes]
    return [_sidecar(stem, endings) for stem in stems]


def _sidecar(stem: Path, endings: Sequence[str]) -> Captions:
    for ending in endings:
        path = stem.with_name(stem.name + ending)
        try:
            check_file(path, LARGEST_SIDECAR)
            text = path.read_text(encoding="utf-8-sig").strip()
            return _in_json(text) if ending == ".json" else (text,)
        except FileNotFoundError:
            continue
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return ()


def _in_json(text: str) -> Captions:
    values = parse_json(text, finite=False)  # NaN under other keys is harmless
    if not isinstance(values, dict):
        raise ValueError(f'must be an object such as {{"caption": "a red circle"}}, got {text:.40}')
    key = next((key for key in KEYS if values.get(key) is not None), None)
    if key is None:
        return ()
    try:
        return as_captions(values[key])
    except ValueError as error:
        raise ValueError(f"{key} {error}") from error


def usable(
    stated: NDArray[np.bool_], filled: NDArray[np.bool_], missing: MissingCaptions, problem: Callable[[int], str]
) -> NDArray[np.int64]:
    """Return the indices of the examples to use, int64 (count,).

    Args:
        stated: whether each example has captions, (examples,); they may be empty.
        filled: whether each example has a caption that is not empty, (examples,).
        missing: what happens to examples without a caption; for "skip", empty captions count as none.
        problem: returns the error message for the example with this index.

    Raises:
        ValueError: If an example has no caption and `missing` is "error", or if no example has one.
    """
    if missing == "error" and not stated.all():
        raise ValueError(f"{problem(int(np.argmin(stated)))}, or set missing_captions=empty or skip")
    if missing != "error" and not filled.any():
        raise ValueError(f"missing_captions={missing}: none of the {len(filled)} examples has a caption")
    if missing != "skip" or filled.all():
        return np.arange(len(stated), dtype=np.int64)
    log.warning(
        "%d of %d examples have no caption and are not used (missing_captions=skip)", (~filled).sum(), len(filled)
    )
    return np.flatnonzero(filled)
