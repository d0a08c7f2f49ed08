"""Sets that an evaluation compares are alike and disjoint; the classifier of its features is accurate and cached."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast

import pytest
import torch
from torch import Tensor

from modalities.base import Dataset, Example
from modalities.image import Image
from modalities.image_sets import MNIST, Digits, Pixels
from multisagd.metrics.feature_network import FeatureNetwork, read_samples
from recipes.base.errors import RecipeError
from recipes.evaluation.classifier import Training, cached_network, read_dataset, train_network
from recipes.evaluation.sets import gather
from recipes.evaluation.task import Task


def plain(channels: int) -> Any:
    """Return a modality of eight numbers that are their own media."""
    return SimpleNamespace(tensor_shape=(channels, 8), encode=lambda media: media, decode=lambda x0: x0)


class Numbered(Dataset):
    """Example n holds n everywhere; those of class 1, every third, are padded with -n after four numbers."""

    def __init__(self, indices: Sequence[int], padded: bool = True) -> None:
        self.modality, self.classes = plain(channels=1), ("a", "b")
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
    class Mixed(Numbered):
        def example(self, index: int, seed: int | None = None) -> Example:
            number = self.indices[index]
            mask = torch.ones(2 if number % 2 else 1, 8, dtype=torch.bool)
            mask[-1, 4:] = False
            return Example(torch.full((2, 8), float(number)), 0, mask)

    dataset = Mixed(range(1, 40))
    dataset.modality = plain(channels=2)
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
    assert gather(Numbered(range(12), padded=False), torch.zeros(8, 1, 8), torch.arange(8) % 2).count >= 4
    zeros = torch.zeros(8, dtype=torch.int64)
    for examples, samples, labels, reference, message in (
        (40, 3, None, None, "only 3 samples, .+ draw more"),
        (5, 8, None, None, "5 in this split, but at least 8 .+reference_split"),
        (5, 8, zeros, None, "5 in this split, but at least 8"),
        (40, 3, zeros[:3], None, "only 3 samples"),
        (8, 8, zeros + 1, None, "in total 3 in this split, and of 'b' 3, .+ labels=null .+ all 8 examples"),
        (40, 8, torch.arange(8) % 2, 2, "reference=8 or more"),
    ):
        with pytest.raises(RecipeError, match=message):
            gather(Numbered(range(examples), padded=False), torch.zeros(samples, 1, 8), labels, reference)


def test_task_names_the_key_that_holds_examples_out() -> None:
    task = Task(cast(Any, None), cast(Any, None), Numbered(range(20)), None, cast(Any, None), Path())
    with pytest.raises(ValueError, match=r"has no held-out examples .*validation\.holdout=0\.05"):
        _ = task.held_out


QUICK = Training(samples=640, batch=64, widths=(8, 16))
TINY = Training(samples=128, batch=64, widths=(4,))


def digits() -> tuple[Digits, Digits]:
    full = Digits(Image(size=16, channels=1))
    return full.subset(range(1400)), full.subset(range(1400, 1797))


def silent(_: str) -> None:
    pass


def test_feature_network_serves_every_number_of_dimensions() -> None:
    for dimensions in (1, 2, 3):
        network = FeatureNetwork(2, dimensions, 5, (8, 12)).eval()
        outputs = read_samples(network, torch.randn(7, 2, *[9] * dimensions), batch=3)
        assert outputs.features.shape == (7, 12)
        assert outputs.predictions.shape == (7,)


def test_train_network_learns_digits_and_is_deterministic() -> None:
    train, test = digits()
    training = Training(samples=6_400, batch=64, widths=(16, 32), shift=1)
    before = torch.get_rng_state()
    network, again = train_network(train, training, silent), train_network(train, training, silent)
    assert torch.equal(before, torch.get_rng_state())  # the caller's random numbers are left alone
    first, second = read_dataset(network, test), read_dataset(again, test)
    assert torch.equal(first.features, second.features)
    assert first.accuracy() > 0.95
    seen = read_dataset(network, train).features
    assert seen.mean(0).abs().max() < 0.5  # standardised: distances are in standard deviations
    assert seen.var(0).mean() == pytest.approx(1.0, abs=0.3)


def test_read_samples_does_not_depend_on_the_batch() -> None:
    train, test = digits()
    network = train_network(train, QUICK, silent)
    x0, labels = test.batch(range(60))[:2]
    whole, parts = read_samples(network, x0, labels), read_samples(network, x0, labels, batch=7)
    torch.testing.assert_close(whole.features, parts.features, atol=1e-5, rtol=1e-5)
    subset = read_dataset(network, test, range(10, 20))
    torch.testing.assert_close(subset.features, whole.features[10:20], atol=1e-5, rtol=1e-5)
    assert subset.labels is not None
    assert torch.equal(subset.labels, test.labels[10:20])


def test_cached_network_serves_the_same_data_and_no_other(tmp_path: Path) -> None:
    train, test = digits()
    lines: list[str] = []
    network, record = cached_network(train, test, tmp_path, QUICK, lines.append)
    assert lines
    assert record["test_count"] == 397
    assert 0 < record["accuracy"] <= 1
    lines.clear()
    again, same = cached_network(*digits(), tmp_path, QUICK, lines.append)
    assert not lines
    assert same == json.loads(json.dumps(record))
    assert torch.equal(read_dataset(network, test).features, read_dataset(again, test).features)
    train.images[0] = 0
    cached_network(train, test, tmp_path, QUICK, lines.append)
    assert lines  # other data: another network
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert not list(tmp_path.glob("*.part"))


def test_cached_network_holds_out_a_tenth_where_no_test_data_are_given(tmp_path: Path) -> None:
    _, record = cached_network(digits()[0].subset(range(100)), None, tmp_path, TINY, silent)
    assert (record["train_count"], record["test_count"]) == (90, 10)
    with pytest.raises(ValueError, match="others for testing, but this dataset has only 1"):
        cached_network(digits()[0].subset([0]), None, tmp_path, TINY, silent)
    unlabelled = Pixels(Image(size=8, channels=1), torch.zeros(10, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="each class into its own subfolder"):
        cached_network(unlabelled, unlabelled, tmp_path, TINY, silent)


def test_cached_network_names_damaged_files(tmp_path: Path) -> None:
    cached_network(*digits(), tmp_path, TINY, silent)
    (notes,), (weights,) = tmp_path.glob("*.json"), tmp_path.glob("*.safetensors")
    whole = notes.read_bytes()
    damages = [(notes, content) for content in (b"", b"{", b'{"format_version": 9}')]
    for file, content in [*damages, (weights, weights.read_bytes()[:100])]:
        notes.write_bytes(whole)
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"features-.*delete it"):
            cached_network(*digits(), tmp_path, TINY, silent)


@pytest.mark.slow
@pytest.mark.skipif("MULTISAGD_DATA" not in os.environ, reason="MULTISAGD_DATA is not set: no MNIST files")
def test_train_network_recognises_mnist() -> None:
    """With a quarter of the default two passes; evaluations require 98 %."""
    image = Image(size=32, channels=1, resize="pad")
    root = Path(os.environ["MULTISAGD_DATA"]) / "images" / "mnist"
    network = train_network(MNIST(image, root), Training(samples=30_000), silent)
    assert read_dataset(network, MNIST(image, root, train=False)).accuracy() > 0.98
