"""Mixtures are trained on in the given proportions, in an order that depends on the seed and the samples seen only."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from modalities.files import Folder
from modalities.image import Image
from modalities.image_sets import Digits
from modalities.mixture import Mixture
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.data.order import Order, order_of
from recipes.data.parts import check_kept, hold_out
from recipes.data.weighted_order import BLOCK, WeightedOrder
from recipes.evaluation.sets import fixed_order, real_data
from recipes.runs.run import Run
from recipes.runs.settings import TrainSettings
from tests.helpers.tiny import assert_same, tiny_config, tiny_run

IMAGE = Image(size=8, channels=1)


def weighted(*weights: tuple[int, float], seed: int = 0) -> WeightedOrder:
    return WeightedOrder(weights, [Order(length, number) for number, (length, _) in enumerate(weights)], seed)


@pytest.mark.parametrize("weights", [[(10, 3), (5, 1)], [(7, 0.1), (1000, 0.7), (3, 0.2)], [(4, 1e-3), (4, 1), (1, 2)]])
def test_weighted_order_keeps_the_proportions_and_the_order_of_each_source(weights: list[tuple[int, float]]) -> None:
    order, count = weighted(*weights), 20 * BLOCK
    items, total = order.indices(0, count), sum(share for _, share in weights)
    first = 0
    for number, (length, share) in enumerate(weights):
        stream = [item - first for item in items if first <= item < first + length]
        assert stream == Order(length, number).indices(0, len(stream))
        assert abs(len(stream) - count * share / total) <= len(weights)
        seen = sum(first <= item < first + length for item in items[: 3 * BLOCK + 7])
        assert abs(seen - (3 * BLOCK + 7) * share / total) < BLOCK / 4
        first += length
    assert order.indices(1000, 700) == items[1000:1700], "a function of the number of samples seen"
    assert weighted(*weights, seed=1).indices(0, count) != items
    far = 10**12
    assert order.indices(far, 3) == weighted(*weights).indices(far - 1, 4)[1:]
    assert set(order.indices(0, order.longest_pass)) == set(range(first))


def test_weighted_order_ends_before_a_repeated_item_and_refuses_empty_sources() -> None:
    order = weighted((6, 1), (100, 2))
    items = order.distinct(50)
    assert items == order.indices(0, len(items))
    assert len(set(items)) == len(items) >= 10
    assert order.distinct(4) == order.indices(0, 4)
    for weights in ([(0, 1.0)], [(1, 0.0)], [(1, float("inf"))]):
        with pytest.raises(ValueError, match="must have items and a share above 0"):
            weighted(*weights)


def test_order_of_repeats_examples_and_leaves_other_datasets_alone() -> None:
    digits = Digits(IMAGE)
    assert order_of(digits, 3).indices(5, 9) == Order(len(digits), 3).indices(5, 9)
    parts = {"a": digits.subset(range(64)), "b": digits.subset(range(64, 80))}
    data = Mixture(IMAGE, parts, repeats={"b": 4})
    counts = Counter(order_of(data, 0).indices(0, 8 * 128))
    assert {counts[index] for index in range(64)} == {8}
    assert {counts[index] for index in range(64, 80)} == {32}
    reference = fixed_order(Mixture(IMAGE, parts, {"a": 1, "b": 3}), 80)
    assert (len(set(reference)), sum(index >= 64 for index in reference)) == (len(reference), 16)


def pictures(root: Path, count: int, *names: str) -> None:
    for number in range(count):
        pixels = torch.randint(0, 256, (1, 8, 8), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        IMAGE.save(pixels, root / names[number % len(names)] / f"{number}.png")


WORDS = [
    "data=mixture", "data.sources.photos={data:folder,root:photos}", "data.sources.more={data:folder,root:more}",
    "data.weights={photos:1,more:3}", "validation.holdout=6", "training.samples=96",
]  # fmt: skip


def test_mixture_trains_continues_and_is_found_after_moving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    pictures(work / "photos", 30, "cat", "dog")
    pictures(work / "more", 9, "dog", "emu")
    monkeypatch.chdir(work)
    whole = tiny_run(Path("whole"), *WORDS)
    tiny_run(Path("parts"), *WORDS, "training.samples=48", "engine.workers=2")
    assert_same(tiny_run(Path("parts"), *WORDS), whole)
    assert json.loads((work / "whole" / "run.json").read_text())["classes"] == ["cat", "dog", "emu"]
    with pytest.raises(RecipeError, match=r"data\.weights\.more: 3 -> 1"):
        tiny_run(Path("parts"), *WORDS, "data.weights.more=1")
    (work / "more").rename(work / "elsewhere")
    assert_same(tiny_run(Path("parts"), *WORDS, "data.sources.more.root=elsewhere"), whole)
    moved = shutil.move(work, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    training, held_out = real_data(Path(moved) / "parts", Builder())
    assert isinstance(training, Mixture)
    assert held_out is not None
    assert (len(training), len(held_out)) == (33, 6)
    given = {"sources": {"more": {"root": str(tmp_path / "moved" / "elsewhere")}}}
    assert len(real_data(Path(moved) / "whole", Builder(), given)[0]) == 33
    assert isinstance(training.sources[0], Folder)


def test_mixture_holds_out_groups_across_its_sources(tmp_path: Path) -> None:
    for folder in ("photos", "more"):
        pictures(tmp_path / folder, 12, "ann", "bob", "cid")
    words = [
        "data=mixture", *(f"data.sources.{name}={{data:folder,root:{tmp_path / name}}}" for name in ("photos", "more")),
        r"validation.group='/(?P<group>[a-z]+)/\d'", "training.conditional=false", "data.repeats={more:2}",
        "validation.holdout=8",
    ]  # fmt: skip
    config = tiny_config(tmp_path / "run", *words)
    settings = Builder().settings(TrainSettings, config, "")
    data = Builder().build(config["data"], Mixture, "data", modality=IMAGE)
    parts = hold_out(data, settings, Builder())
    people = [{Path(part.path(index)).parent.name for index in range(len(part))} for part in parts[:2]]  # type: ignore
    assert not people[0] & people[1]
    assert people[0] | people[1] == {"ann", "bob", "cid"}
    with pytest.raises(RecipeError, match="latents do not keep the proportions of a mixture"):
        check_kept(data, "latents")


def test_sources_are_choices_with_their_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTISAGD_DATA", "/secret")
    words = ["run_dir=r", "data=mixture", "data.sources.a={data:mnist}", "data.sources.b={data:folder,root:x,match:y}"]
    config = configuration.load("train", words)
    alone = configuration.load("train", ["run_dir=r", "data=folder", "data.root=x", "data.match=y"])
    assert config["data"]["sources"]["b"] == alone["data"]
    assert config["data"]["sources"]["a"]["root"] == "/secret/images/mnist"
    assert config["environment"] == ["data.sources.a.root"]
    changed = {**config, "data": {**config["data"], "sources": {**config["data"]["sources"]}}}
    del changed["data"]["sources"]["b"]["missing_captions"]  # a run of an earlier version
    (tmp_path / "run").mkdir()
    configuration.write(changed, tmp_path / "run" / "config.yaml")
    assert Run(tmp_path / "run").config["data"]["sources"]["b"]["missing_captions"] == "error"
    for word, message in (
        (
            "data.sources.c={data:foldr}",
            r"data\.sources\.c\.data=foldr: there is no such choice; did you mean 'folder'",
        ),
        ("data.sources.c={data:latents,root:x}", "also sets other groups, so it cannot be a source"),
        ("data.sources.c={root:x}", r"data\.sources\.c does not say what kind of data it is: add data"),
        ("data.sources.c=photos", r"data\.sources\.c: expected the settings of a source"),
        ("data.sources.c={data:folder}", r"data\.sources\.c\.root has no value: add data\.sources\.c\.root=…"),
    ):
        with pytest.raises(RecipeError, match=message):
            configuration.load("train", [*words, word])
    node = {**config["data"], "sources": {"b": {**config["data"]["sources"]["b"], "rot": 1}}}
    with pytest.raises(RecipeError, match=r"unknown key data\.sources\.b\.rot: Folder has no .*'root'"):
        Builder().build(node, Mixture, "data", modality=IMAGE)
