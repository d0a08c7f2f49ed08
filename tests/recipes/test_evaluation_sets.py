"""The sets that an evaluation compares are equal in classes and padding, disjoint, and the same each time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import pytest
import torch
from torch import Tensor

from modalities.base import Dataset, Example, Modality
from multisagd import Grid
from recipes.base.errors import RecipeError
from recipes.evaluation.sets import gather
from recipes.evaluation.task import Task


class Plain(Modality):
    """Tensors of eight numbers that are their own media."""

    channels = 1
    suffixes = (".pt",)

    def grid(self) -> Grid:
        return Grid.of(time=8)

    def load(self, path: Path, seed: int | None = None) -> Any:
        raise NotImplementedError

    def encode(self, media: Tensor) -> Tensor:
        return media

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def save(self, media: Tensor, path: Path) -> None:
        raise NotImplementedError


class Numbered(Dataset):
    """Example n holds n everywhere; those of class 1, every third, are padded with -n after four numbers."""

    def __init__(self, indices: Sequence[int], padded: bool = True) -> None:
        self.modality, self.classes = Plain(), ("a", "b")
        self.indices, self.padded = indices, padded

    def __len__(self) -> int:
        return len(self.indices)

    def example(self, index: int, seed: int | None = None) -> Example:
        number = self.indices[index]
        label = int(number % 3 == 0)
        x0, mask = torch.full((1, 8), float(number)), torch.ones(1, 8, dtype=torch.bool)
        if label and self.padded:
            x0[:, 4:], mask[:, 4:] = -number, False
        return Example(x0, label, mask if self.padded else None)

    def subset(self, indices: Sequence[int]) -> Self:
        return type(self)([self.indices[index] for index in indices], self.padded)


def numbers(x0: Tensor) -> list[int]:
    return [int(each) for each in x0[:, 0, 0]]


def test_gather_orders_by_class_and_halves_share_nothing() -> None:
    labels = torch.tensor([1, 0, 0, 1, 0, 1, 1])
    samples = 1000 + torch.arange(7.0).reshape(7, 1, 1).expand(7, 1, 8)
    sets = gather(Numbered(range(1, 100)), samples, labels)
    assert sets.sizes == (3, 4)
    assert numbers(sets.samples) == [1001, 1002, 1004, 1000, 1003, 1005, 1006]
    assert sets.labels is not None
    assert sets.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    real = numbers(sets.real)
    assert len(set(real)) == 14
    for number in range(4):
        one, other = sets.halves(number)
        assert sorted([*one.tolist(), *other.tolist()]) == list(range(14))
        for half in (one, other):
            assert [int(real[place] % 3 == 0) for place in half] == sets.labels.tolist()
    assert sets.halves(0)[0].tolist() == list(range(7))
    assert not torch.equal(sets.halves(1)[0], sets.halves(2)[0])
    assert torch.equal(sets.halves(1)[0], sets.halves(1)[0])


def test_gather_takes_a_disjoint_reference_in_the_proportions_of_the_samples() -> None:
    labels = torch.tensor([1, 0, 0, 1, 0, 0])
    sets = gather(Numbered(range(1, 100)), torch.zeros(6, 1, 8), labels, reference=15)
    assert (sets.sizes, sets.references, sets.count, sets.reference_count) == ((4, 2), (10, 5), 6, 15)
    for number in range(3):
        reference, others = sets.halves(number)
        assert sorted([*reference.tolist(), *others.tolist()]) == list(range(21))
        for places, sizes in ((reference, (10, 5)), (others, (4, 2))):
            classes = [each % 3 == 0 for each in numbers(sets.real[places])]
            assert classes == [False] * sizes[0] + [True] * sizes[1]
    sizes, own, theirs = sets.alike()
    assert (sizes, own.tolist(), theirs.tolist()) == ((4, 2), [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 10, 11])
    fewer = gather(Numbered(range(1, 100)), torch.zeros(12, 1, 8), labels.repeat(2), reference=6)
    assert (fewer.references, fewer.alike()[0]) == ((4, 2), (4, 2))
    assert fewer.alike()[1].tolist() == [0, 1, 2, 3, 8, 9]
    # Each sample has the padding of one of the others, not of the reference.
    assert torch.equal(sets.samples[sets.mask[15:]], torch.zeros(int(sets.mask[15:].sum())))
    assert torch.equal(sets.samples[~sets.mask[15:]], sets.real[15:][~sets.mask[15:]])
    beyond = gather(Numbered(range(30), padded=False), torch.zeros(10, 1, 8), None, reference=1000)
    assert (beyond.count, beyond.reference_count) == (10, 20)


def test_gather_pads_samples_like_real_examples_of_their_class() -> None:
    labels = torch.tensor([0, 1, 1])
    sets = gather(Numbered(range(1, 100)), torch.full((3, 1, 8), 7.0).repeat(2, 1, 1), labels.repeat(2))
    assert sets.mask is not None
    for place, (sample, example) in enumerate(zip(sets.samples, sets.real[6:], strict=True)):
        expected = torch.full((1, 8), 7.0)
        if place >= sets.sizes[0]:
            expected[:, 4:] = example[:, 4:]
        assert torch.equal(sample, expected)
    assert torch.equal(sets.batches(real=False)[0][1], sets.mask[6:])
    assert gather(Numbered(range(99), padded=False), torch.zeros(6, 1, 8), None).mask is None


def test_gather_without_labels_makes_one_group() -> None:
    sets = gather(Numbered(range(1, 30)), torch.zeros(40, 1, 8), None)
    assert sets.sizes == (14,)
    assert sets.labels is None
    assert sorted(sets.scattered(5, "x").tolist()) == sets.scattered(5, "x").tolist()
    assert len(sets.scattered(99, "x")) == 14


def test_gather_combines_masks_of_one_channel_and_of_all() -> None:
    class Two(Plain):
        channels = 2

    class Mixed(Numbered):
        def example(self, index: int, seed: int | None = None) -> Example:
            number = self.indices[index]
            mask = torch.ones(2 if number % 2 else 1, 8, dtype=torch.bool)
            mask[-1, 4:] = False
            return Example(torch.full((2, 8), float(number)), 0, mask)

    dataset = Mixed(range(1, 40))
    dataset.modality = Two()
    sets = gather(dataset, torch.full((6, 2, 8), 1000.0), None)
    assert sets.mask is not None
    assert sets.mask.shape == (12, 2, 8)
    for x0, mask in zip(sets.real, sets.mask, strict=True):
        odd = int(x0[0, 0]) % 2
        assert mask.tolist() == [[True] * (8 if odd else 4) + [False] * (0 if odd else 4), [True] * 4 + [False] * 4]
    assert torch.equal(sets.samples == 1000, sets.mask[6:])


def test_gather_shrinks_to_scarce_classes_and_explains_too_few_examples() -> None:
    few = Numbered([*range(1, 90, 3), 3, 6, 9, 12, 15])
    sets = gather(few, torch.zeros(20, 1, 8), torch.tensor([0, 1] * 10))
    assert (sets.sizes, sets.count, sets.requested) == ((10, 2), 12, 20)
    with pytest.raises(RecipeError, match=r"only 2 of .+ but at least 4"):
        gather(few, torch.zeros(10, 1, 8), torch.ones(10, dtype=torch.int64))
    assert gather(Numbered(range(12), padded=False), torch.zeros(8, 1, 8), torch.arange(8) % 2).count >= 4
    zeros = torch.zeros(8, dtype=torch.int64)
    for examples, samples, labels, remedy in (
        (40, 3, None, "draw more samples"),
        (5, 8, None, "too small for an evaluation"),
        (5, 8, zeros, "too small for an evaluation"),
        (8, 8, zeros + 1, "labels=null"),
    ):
        with pytest.raises(RecipeError, match=remedy):
            gather(Numbered(range(examples), padded=False), torch.zeros(samples, 1, 8), labels)


def test_task_names_the_key_that_holds_examples_out() -> None:
    task = Task(cast(Any, None), cast(Any, None), Numbered(range(20)), None, cast(Any, None), Path())
    with pytest.raises(ValueError, match=r"has no held-out examples .*validation\.holdout=0\.05"):
        _ = task.held_out
