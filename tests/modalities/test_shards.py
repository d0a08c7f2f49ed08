"""Shards of latents return the rows that were encoded, scaled; unfinished, damaged or forged folders are refused."""

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modalities import shards as module
from modalities.autoencoders import Identity
from modalities.base import split
from modalities.image import Image
from modalities.latent import STATISTICS, Latent
from modalities.reading import UnreadableFilesError
from modalities.shard_index import Index, grid_facts, measured_scale, shard_name, write_shard, write_whole
from modalities.shards import LatentShards

EXAMPLES, PASSES, SIZE = 10, 3, 4
LATENT = Latent(Image(size=4), Identity())


def raw(dtype: torch.dtype = torch.float32) -> Tensor:
    """All rows: of three passes of ten examples, every channel with its own mean and deviation."""
    noise = torch.randn(EXAMPLES * PASSES, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    deviation, mean = torch.tensor([1.0, 3.0, 0.1]), torch.tensor([0.0, 5.0, -2.0])
    return (noise * deviation.view(3, 1, 1) + mean.view(3, 1, 1)).to(dtype)


def masks() -> Tensor:
    mask = torch.ones(EXAMPLES * PASSES, 1, 4, 4, dtype=torch.bool)
    mask[::3, :, 2:] = False
    return mask


def write(root: Path, *, masked: bool = False, labels: bool = True, dtype: torch.dtype = torch.float32) -> Latent:
    """Write a folder as the recipe does, each row's text its number, and return the modality that goes with it."""
    root.mkdir(exist_ok=True)
    index = Index(
        encoding=LATENT.encoding(), config={}, source={}, classes=["cat", "dog"] if labels else None,
        channels=3, grid=grid_facts(LATENT), dtype="float32", examples=EXAMPLES, passes=PASSES, shard_size=SIZE,
    )  # fmt: skip
    rows = torch.arange(EXAMPLES * PASSES)
    every = {"x0": raw(dtype)}
    every |= {"labels": rows % EXAMPLES % 2} if labels else {}
    every |= {"mask": masks()} if masked else {}
    for number in range(index.count):
        part = slice(number * SIZE, (number + 1) * SIZE)
        tensors = {name: tensor[part].contiguous() for name, tensor in every.items()}
        index.shards.append(write_shard(root, number, tensors, [f"“{n}”" for n in rows[part].tolist()]))
    index.save(root)
    write_whole(root / STATISTICS, lambda partial: partial.write_text(measured_scale(index).text()))
    return dataclasses.replace(LATENT, statistics=root)


def test_measured_scale_is_of_all_rows_without_padding(tmp_path: Path) -> None:
    values = raw().double().movedim(1, 0)
    for masked, expected in ((False, values.flatten(1)), (True, values[:, masks()[:, 0]])):
        write(tmp_path, masked=masked)
        record = json.loads((tmp_path / STATISTICS).read_text())
        np.testing.assert_allclose(record["mean"], expected.mean(1), rtol=1e-12)
        np.testing.assert_allclose(record["std"], expected.std(1, correction=0), rtol=1e-12)


def test_measured_scale_centres_constant_channels_and_refuses_all_padding(tmp_path: Path) -> None:
    x0 = torch.full((2, 3, 4, 4), 7.0)
    facts = write_shard(tmp_path, 0, {"x0": x0}, None)
    index = Index({}, {}, {}, None, 3, [], "float32", 2, 1, 2, [facts])
    assert measured_scale(index).mean == (7.0, 7.0, 7.0)
    assert measured_scale(index).std == (1.0, 1.0, 1.0)
    facts = write_shard(tmp_path, 0, {"x0": x0, "mask": torch.zeros(2, 1, 4, 4, dtype=torch.bool)}, None)
    with pytest.raises(ValueError, match="all latents are padding"):
        measured_scale(dataclasses.replace(index, shards=[facts]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_latent_shards_scale_rows_in_order(tmp_path: Path, dtype: torch.dtype) -> None:
    data = LatentShards(write(tmp_path, dtype=dtype), tmp_path)
    record = json.loads((tmp_path / STATISTICS).read_text())
    mean, std = (torch.tensor(record[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert (len(data), data.classes) == (EXAMPLES, ("cat", "dog"))
    batch = data.batch(range(EXAMPLES))
    assert batch.x0.dtype == torch.float32
    torch.testing.assert_close(batch.x0, (raw(dtype)[:EXAMPLES].float() - mean) / std)
    assert batch.labels.tolist() == [n % 2 for n in range(EXAMPLES)]
    assert batch.mask is None
    again = LatentShards(write(tmp_path / "again", dtype=dtype), tmp_path / "again")
    other = LatentShards(write(tmp_path / "other", masked=True), tmp_path / "other")
    assert data.fingerprint == again.fingerprint != other.fingerprint


def test_latent_shards_return_masks_and_texts_of_any_subset(tmp_path: Path) -> None:
    data = LatentShards(write(tmp_path, masked=True, labels=False), tmp_path)
    batch = data.batch([3, 4, 9])
    assert torch.equal(batch.mask, masks()[[3, 4, 9]])
    assert batch.texts == ("“3”", "“4”", "“9”")
    assert (batch.labels, data.classes) == (None, None)
    part = data.subset([7, 2]).subset([1])
    assert torch.equal(part.example(0).x0, data.example(2).x0)
    assert part.caption(0) == "“2”"
    for index in (-1, 1):
        with pytest.raises(IndexError, match="out of range for a dataset of 1"):
            part.example(index)
    # Values may be changed.
    before, changed = data.example(0), data.example(0)
    changed.x0.zero_()
    changed.mask.zero_()
    assert torch.equal(data.example(0).x0, before.x0)
    assert torch.equal(data.example(0).mask, before.mask)


def test_latent_shards_choose_the_pass_by_seed_and_split_by_example(tmp_path: Path) -> None:
    data = LatentShards(write(tmp_path), tmp_path)
    assert data.example(2).text == "“2”"
    seen = [data.example(2, seed).text for seed in range(60)]
    assert seen == [data.example(2, seed).text for seed in range(60)]
    assert min(seen.count(each) for each in ("“2”", "“12”", "“22”")) > 8
    parts = split(data, 3)
    texts = [{part.example(n, seed).text for n in range(len(part)) for seed in range(30)} for part in parts]
    training, held_out = ({int(text[1:-1]) % EXAMPLES for text in each} for each in texts)
    assert (len(training), len(held_out)) == (7, 3)
    assert not training & held_out
    assert parts[0].fingerprint != data.fingerprint


def test_latent_shards_keep_few_shards_open_in_any_number_of_threads(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "OPEN_SHARDS", 2)
    data = LatentShards(write(tmp_path), tmp_path)
    whole = data.batch(range(EXAMPLES)).x0
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0)).remainder(EXAMPLES).tolist()
    with ThreadPoolExecutor(4) as pool:
        rows = pool.map(lambda index: data.example(index).x0, order)
        assert all(torch.equal(row, whole[index]) for index, row in zip(order, rows, strict=True))
    assert len(data._open._shards) == 2


def test_write_shard_keeps_the_file_if_it_fails(tmp_path: Path) -> None:
    def interrupted(partial: Path) -> None:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt

    write_shard(tmp_path, 0, {"x0": torch.zeros(1, 1, 2, 2)}, None)
    before = (tmp_path / shard_name(0)).read_bytes()
    with pytest.raises(ValueError, match=r"not finite as torch.float16: store them with dtype=bfloat16"):
        write_shard(tmp_path, 0, {"x0": torch.full((1, 1, 2, 2), 1e5).half()}, None)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / shard_name(0), interrupted)
    assert (tmp_path / shard_name(0)).read_bytes() == before


def test_latent_shards_name_missing_damaged_and_truncated_shards(tmp_path: Path) -> None:
    latent = write(tmp_path)
    path = tmp_path / shard_name(3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"000003.safetensors is damaged.*multisagd encode"):
        LatentShards(latent, tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"000003.safetensors is missing"):
        LatentShards(latent, tmp_path)
    # One changed bit is found by verification only.
    path.write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
    LatentShards(latent, tmp_path)
    with pytest.raises(ValueError, match=r"000003.safetensors is damaged"):
        LatentShards(latent, tmp_path, verify=True)
    # A broken header is found when the shard is read.
    path.write_bytes(b"\xff" * 8 + whole[8:])
    data = LatentShards(latent, tmp_path)
    with pytest.raises(UnreadableFilesError, match=r"000003.safetensors cannot be read"):
        data.batch([2] * 60, range(60))


def test_latent_shards_refuse_other_modalities_scales_and_unfinished_folders(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    latent = write(a)
    write(b, masked=True)
    for modality, message in (
        (Image(size=4), r"the modality is Image.*modality=latent_image"),
        (Latent(Image(size=8), Identity()), r"settings different from.*modality.size: \[4, 4\] -> \[8, 8\]"),
        (LATENT, r"does not scale latents by the statistics of .*a: set statistics"),
        (dataclasses.replace(LATENT, statistics=b), r"does not scale latents by the statistics of .*a: set statistics"),
    ):
        with pytest.raises(ValueError, match=message):
            LatentShards(modality, a)
    # An autoencoder whose answer changed under the same settings.
    index = Index.load(a)
    wider = [dataclasses.replace(each, mean=[0.0] * 4, squares=[1.0] * 4) for each in index.shards]
    dataclasses.replace(index, channels=4, shards=wider).save(a)
    with pytest.raises(ValueError, match=r"contains latents of 4 channels.*produces 3"):
        LatentShards(latent, a)
    dataclasses.replace(index, shards=index.shards[:5]).save(a)
    with pytest.raises(ValueError, match=r"has 5 of 8 shards.*finish encoding"):
        LatentShards(latent, a)


def test_index_that_is_missing_broken_or_leads_outside_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set root to a folder written by `multisagd encode`"):
        LatentShards(LATENT, tmp_path)
    latent = write(tmp_path)
    path = tmp_path / "index.json"
    outside = path.read_text().replace(shard_name(0), f"../{shard_name(0)}")
    for content in ("", "[]", "{}", '{"format_version": 9}', '{"format_version": 1, "shards": []}', outside):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"cannot read .*index.json"):
            LatentShards(latent, tmp_path)


INVALID: dict[str, list[Any]] = {
    "channels": ["3", 0, 3.0, True], "examples": [0, "10", None], "passes": [-1, 1.5], "shard_size": [0, "4"],
    "classes": ["cat", [1, 2], {"cat": 0}], "encoding": [None, []], "unreadable": [[]], "grid": [None, ["x"]],
    "dtype": ["float64", 32], "shards": [None, {}, [1], [[]]],
}  # fmt: skip
INVALID_SHARD = {"rows": ["4", 0], "bytes": [None], "samples": [1.5], "file": [7], "sha256": [None], "mean": [[1.0]],
                 "squares": [["a", "b", "c"]]}  # fmt: skip


@pytest.mark.parametrize("key", [*INVALID, *INVALID_SHARD])
def test_index_refuses_invalid_entries(tmp_path: Path, key: str) -> None:
    latent = write(tmp_path)
    path = tmp_path / "index.json"
    original = path.read_text()
    of_a_shard = key in INVALID_SHARD
    reason = f" .its {key} of a shard is invalid" if of_a_shard else " .*: set root to a folder"
    for value in (INVALID_SHARD if of_a_shard else INVALID)[key]:
        record = json.loads(original)
        (record["shards"][1] if of_a_shard else record)[key] = value
        path.write_text(json.dumps(record))
        with pytest.raises(ValueError, match=f"cannot read .*index.json{reason}"):
            LatentShards(latent, tmp_path)


def test_index_keeps_names_that_are_not_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"bad\xff.wav")
    x0 = {"x0": torch.zeros(1, 1, 2, 2)}
    index = Index({}, {}, {}, [name], 1, [], "float32", 1, 1, 1, [write_shard(tmp_path, 0, x0, [name])], {name: name})
    index.save(tmp_path)
    assert Index.load(tmp_path) == index
    assert module._Shard(tmp_path / shard_name(0), 1, [1, 2, 2], 0).texts == [name]
