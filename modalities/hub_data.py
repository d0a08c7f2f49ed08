"""Datasets of the Hugging Face Hub, and folders that its library `datasets` has written with `save_to_disk`.

No code of a dataset is executed: `datasets` has no loading scripts since version 4. Folders written with `save_to_disk`
are read with pyarrow alone, because they may come from strangers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modalities.arrow_storage import ArrowStorage, read_arrow
from modalities.base import Modality, Split
from modalities.byte_ranges import Source, find
from modalities.parquet_storage import ParquetStorage
from modalities.tables import MissingCaptions, Storage, TableDataset
from multisagd.files import read_json
from multisagd.libraries import failed_import, importing

SPLITS_FILE, STATE_FILE = "dataset_dict.json", "state.json"
"""Files that `save_to_disk` writes: the first for several splits, the second for each split."""
PLAIN_NAME = re.compile(r"\w[\w.-]*")
"""A file name that is not a path."""


class _Options(NamedTuple):
    """Which dataset to read, and how much of it to keep in memory (see `HubData`)."""

    name: str
    config: str | None
    revision: str | None
    stream: bool
    window: int
    cache_bytes: int


class HubData(TableDataset):
    """A dataset of the Hugging Face Hub, or in a local folder; see `TableDataset` for the other arguments and errors.

    Args:
        modality: reads the media.
        name: its name on the Hub, a folder that `save_to_disk` has written, or a folder of Parquet files or the like.
        config: its configuration, if it has several.
        split: the split for training.
        validation_split: the split for validation, or None: some examples for training are held out.
        test_split: the split for testing, or None.
        revision: a branch, tag or commit on the Hub; None: the current one.
        stream: False: `datasets` downloads the dataset at first use and keeps it in its cache. True: its Parquet files
            are read by byte ranges, as in `ParquetFiles`, in an order that does not depend on the network either.
        media: see `TableDataset`, as for the arguments up to `group_column`.
        labels: the column of classes.
        captions: the column of captions.
        missing_captions: what happens to a row without a caption.
        group_column: the column of groups.
        window: as in `ParquetFiles`, with stream=True.
        cache_bytes: as in `ParquetFiles`, with stream=True.
        max_member_bytes: maximum size of media in bytes.
        max_unreadable: maximum fraction of rows with unreadable media.
        threads: number of threads that read a batch.
        trusted: False if the settings came with another person's run: then only a folder that `save_to_disk` has
            written is read, and nothing is downloaded.

    Raises:
        BrokenLibraryError: If pyarrow or `datasets` is missing.
        OSError: If the dataset does not exist, or cannot be reached.
        ValueError: If it has no such configuration or split, or its files are not in its repository or folder.
    """

    def __init__(
        self,
        modality: Modality,
        name: str,
        config: str | None = None,
        split: str = "train",
        validation_split: str | None = None,
        test_split: str | None = None,
        revision: str | None = None,
        stream: bool = False,
        media: str | None = None,
        labels: str = "auto",
        captions: str = "auto",
        missing_captions: MissingCaptions = "error",
        group_column: str = "auto",
        window: int = 16,
        cache_bytes: int = 2 << 30,
        max_member_bytes: int = 1 << 30,
        max_unreadable: float = 0.05,
        threads: int = 4,
        trusted: bool = True,
    ) -> None:
        wanted: dict[Split, str | None] = {"train": split, "validation": validation_split, "test": test_split}
        used: dict[Split, str] = {part: each for part, each in wanted.items() if each is not None}
        if len(set(used.values())) < len(used):
            raise ValueError(
                f"split, validation_split and test_split must differ, got {', '.join(used.values())}: a model is not "
                "judged by the examples that it was trained on"
            )
        options = _Options(name, config, revision, stream, window, cache_bytes)
        storage, counts = _opened(options, list(used.values()), trusted)
        splits = [part for part, count in zip(used, counts, strict=True) for _ in range(count)]
        super().__init__(
            modality, storage, media, labels, captions, missing_captions, "none" if len(used) == 1 else splits,
            group_column, max_member_bytes, max_unreadable, threads,
        )  # fmt: skip


def _opened(options: _Options, splits: Sequence[str], trusted: bool) -> tuple[Storage, list[int]]:
    """Return the rows of some splits of a dataset, and their number in each split."""
    folder = Path(options.name).expanduser()
    if (folder / SPLITS_FILE).is_file() or (folder / STATE_FILE).is_file():
        with importing("pyarrow", "folders of datasets"):
            import pyarrow  # noqa: F401 - to have one message if it is missing
        return _arrow(_saved(folder, splits))
    if folder.is_file():
        raise ValueError(f"{options.name!r:.200} is a file, but data=hub reads folders: use data=parquet data.urls=…")
    if not trusted:
        raise ValueError(
            f"{options.name!r:.200} is not a folder on this machine that save_to_disk of `datasets` has written, and a "
            f"run's configuration contacts no hub: if you trust it, repeat it in the command, such as "
            f"data.name={options.name:.200}"
        )
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", options.name) and not folder.is_dir():
        raise ValueError(
            f"{options.name!r} is neither a folder nor the name of a dataset on the Hugging Face Hub, such as "
            "ylecun/mnist; for addresses of Parquet files, use data=parquet"
        )
    # `datasets` names the files of a folder by absolute paths.
    return _from_hub(options._replace(name=str(folder.resolve())) if folder.is_dir() else options, splits)


def _saved(folder: Path, splits: Sequence[str]) -> list[list[Path]]:
    """Return the Arrow files of splits in a folder that `save_to_disk` has written."""
    if (folder / SPLITS_FILE).is_file():
        names = _names(folder / SPLITS_FILE, read_json(folder / SPLITS_FILE), "splits")
        folders = {name: folder / name for name in names}
    else:
        state = read_json(folder / STATE_FILE)
        # A single split need not know its name.
        own = state.get("_split") if isinstance(state, Mapping) else None
        folders = {own if isinstance(own, str) else splits[0]: folder}
    _check_splits(str(folder), splits, list(folders))
    return [_arrow_files(folders[split]) for split in splits]


def _arrow_files(folder: Path) -> list[Path]:
    state = read_json(folder / STATE_FILE)
    if isinstance(state, Mapping) and state.get("_indices_data_files"):
        raise ValueError(f"{folder} selects rows of its files: write it with save_to_disk of a current `datasets`")
    files = state.get("_data_files") if isinstance(state, Mapping) else None
    entries = files if isinstance(files, list) else []
    listed = {"files": [each.get("filename") if isinstance(each, Mapping) else None for each in entries]}
    return [folder / name for name in _names(folder / STATE_FILE, listed, "files")]


def _names(path: Path, content: Any, key: str) -> list[str]:
    """Return the file names in a list of a JSON file, after checking that none is a path."""
    names = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(names, list) or not names:
        raise ValueError(f"{path} names no {key}: write the folder again with save_to_disk")
    for name in names:
        if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
            raise ValueError(f"{path}: {str(name)[:100]!r} is not the name of a file in this folder: remove it")
    return names


def _arrow(files: Sequence[Sequence[Path]]) -> tuple[Storage, list[int]]:
    tables = [[read_arrow(path) for path in each] for each in files]
    counts = [sum(table.num_rows for table in each) for each in tables]
    return ArrowStorage([path for each in files for path in each], [table for each in tables for table in each]), counts


def _from_hub(options: _Options, splits: Sequence[str]) -> tuple[Storage, list[int]]:
    with importing("datasets", "datasets of the Hugging Face Hub"):
        import datasets
    try:
        builder = datasets.load_dataset_builder(options.name, options.config, revision=options.revision)
        files: Mapping[str, Sequence[str]] = {str(key): list(each) for key, each in _data_files(builder).items()}
        _check_splits(options.name, splits, list(files))
        _check_inside(options.name, [file for split in splits for file in files[split]])
        if options.stream:
            return _streamed(options, [files[split] for split in splits])
        builder.download_and_prepare()
        parts = [builder.as_dataset(split=split) for split in splits]
    except (OSError, ValueError) as error:
        if (failure := failed_import(error)) is not None:
            raise failure from error
        kind, reason = type(error).__name__, " ".join(str(error).split())
        if kind == "DatasetNotFoundError":
            raise FileNotFoundError(
                f"there is no dataset {options.name} on the Hugging Face Hub, or it needs an account ({reason:.300}): "
                "check the name, and for a private or gated dataset set HF_TOKEN"
            ) from error
        if isinstance(error, ConnectionError):
            raise OSError(
                f"the Hugging Face Hub cannot be reached for {options.name} ({reason:.300}): run the same command "
                "again with a network, or give a folder on this machine as data.name"
            ) from error
        raise
    paths = [[Path(file["filename"]) for file in part.cache_files] for part in parts]
    return _arrow(paths)


def _data_files(builder: Any) -> Mapping[str, Sequence[str]]:
    files = builder.config.data_files
    if not files:
        raise ValueError(
            f"{builder.dataset_name} has no data files, but a script, which is not run: use a dataset of Parquet files"
        )
    return dict(files)


def _check_splits(name: str, wanted: Sequence[str], present: Sequence[str]) -> None:
    for split in wanted:
        if split not in present:
            raise ValueError(f"{name} has no split {split!r}; its splits are {', '.join(map(str, present))[:500]}")


def _check_inside(name: str, files: Sequence[str]) -> None:
    """Check that the files that a dataset's description names are in its own repository or folder."""
    inside = f"{name}/" if Path(name).is_dir() else f"hf://datasets/{name}@"
    for file in files:
        if not file.startswith(inside) or ".." in Path(file).parts:
            raise ValueError(
                f"{name} names a file that is somewhere else ({file[:200]}), which is not read: use data=parquet or "
                "data=folder for files of your choice"
            )


def _streamed(options: _Options, files: Sequence[Sequence[str]]) -> tuple[Storage, list[int]]:
    if wrong := [file for each in files for file in each if not file.endswith(".parquet")]:
        raise ValueError(
            f"{options.name} has files that are not Parquet, such as {wrong[0][:200]}, so it cannot be streamed: set "
            "data.stream=false, or read the Hub's own conversion with data=parquet and "
            f"'data.urls=hf://datasets/{options.name}@~parquet/CONFIG/SPLIT/*.parquet'"
        )
    sources: list[list[Source]] = [find(each, ".parquet") for each in files]
    storage = ParquetStorage([source for each in sources for source in each], options.window, options.cache_bytes)
    rows = iter(file.metadata.num_rows for file in storage.files)
    return storage, [sum(next(rows) for _ in each) for each in sources]
