"""Tables of random pictures, and the Parquet files and folders that hold them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

CLASSES = ("dog", "cat", "10", "9")
FEATURES: dict[str, Any] = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}


def picture(number: int) -> bytes:
    """Return a random picture of 8 × 12 pixels as a file."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 12, 3), np.uint8)
    content = io.BytesIO()
    PIL.Image.fromarray(pixels).save(content, "JPEG" if number % 2 else "PNG")
    return content.getvalue()


def pictures(count: int, features: dict[str, Any] | None = FEATURES, **columns: Any) -> pa.Table:
    """Return a table of pictures and their classes, as `datasets` writes it; `columns` are more, or None for fewer."""
    image = [{"bytes": picture(number), "path": f"{number % 3}/{number}.png"} for number in range(count)]
    given = {"image": image, "label": [number % 4 for number in range(count)], **columns}
    table = pa.table({name: values for name, values in given.items() if values is not None})
    if features is None:
        return table
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(table: pa.Table, folder: Path, each: int = 8, group: int = 3, names: Sequence[str] = ()) -> Path:
    """Write a table as Parquet files of `each` rows, in row groups of `group` rows, and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(table), each)):
        name = names[number] if names else f"{number:03}"
        pq.write_table(table.slice(start, each), folder / f"{name}.parquet", row_group_size=group)
    return folder


def write_saved(table: pa.Table, folder: Path, split: str | None = None) -> Path:
    """Write a table as `save_to_disk` of `datasets` does, in two files, and return its folder."""
    folder.mkdir(parents=True)
    names = [f"data-0000{number}-of-00002.arrow" for number in range(2)]
    half = len(table) // 2
    for name, part in zip(names, (table.slice(0, half), table.slice(half)), strict=True):
        with pa.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(part, max_chunksize=4)
    state = {"_data_files": [{"filename": name} for name in names], "_split": split, "_format_type": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder
