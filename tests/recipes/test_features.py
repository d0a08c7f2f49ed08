"""The classifier whose features are compared: accurate, deterministic, cached by content, with clear refusals."""

import json
import os
from pathlib import Path

import pytest
import torch

from modalities.image import Image
from modalities.image_sets import MNIST, Digits, Pixels
from multisagd.metrics.feature_network import FeatureNetwork, read_samples
from recipes.evaluation.classifier import Training, cached_network, read_dataset, train_network
from recipes.evaluation.classifier import _shifted as shifted

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


def test_shifted_moves_without_wrapping() -> None:
    x0 = torch.arange(25.0).reshape(1, 1, 5, 5)
    offsets = set()
    for seed in range(60):
        moved = shifted(x0, 1, seed)
        assert moved.shape == x0.shape
        rows, columns = moved[0, 0, :, 2].div(5, rounding_mode="floor"), moved[0, 0, 2].remainder(5)
        assert (rows.diff() >= 0).all()  # a wrapped border would step back
        assert (columns.diff() >= 0).all()
        offsets.add(float(moved[0, 0, 2, 2]))
    assert len(offsets) == 9
    assert torch.equal(shifted(x0, 0, 0), x0)


@pytest.mark.slow
@pytest.mark.skipif("MULTISAGD_DATA" not in os.environ, reason="MULTISAGD_DATA is not set: no MNIST files")
def test_train_network_recognises_mnist() -> None:
    """With a quarter of the default two passes; evaluations require 98 %."""
    image = Image(size=32, channels=1, resize="pad")
    root = Path(os.environ["MULTISAGD_DATA"]) / "images" / "mnist"
    network = train_network(MNIST(image, root), Training(samples=30_000), silent)
    assert read_dataset(network, MNIST(image, root, train=False)).accuracy() > 0.98
