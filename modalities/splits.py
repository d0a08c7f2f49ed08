"""The names of splits in folders, manifests, tables and array files."""

from __future__ import annotations

from modalities.base import Split

SPLITS: dict[str, Split] = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""The split that each name means, in lower case."""


def named_split(name: str) -> Split:
    """Return the split that a name means, in upper or lower case.

    Raises:
        ValueError: If it means none.
    """
    split = SPLITS.get(name.lower())
    if split is None:
        raise ValueError(f"a split is one of {', '.join(SPLITS)}, got {name!r:.100}")
    return split
