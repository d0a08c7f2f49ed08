"""Corrupted and restored datasets: an example keeps its corruption, whichever subset or batch it is read in."""

import torch

from modalities.image import Image
from modalities.image_sets import Digits
from modalities.wrapped import Corrupted, Restored
from multisagd import Band, Corruption
from multisagd.gaussian_restoration import GaussianRestoration


def corrupted(redrawn: bool = False) -> Corrupted:
    modality = Image(size=8, channels=1)
    return Corrupted(Digits(modality), Corruption(Band(0.2, 0.4), modality.grid(), 0.5), seed=3, redrawn=redrawn)


def test_corrupted_adds_the_same_noise_of_the_band_to_an_example() -> None:
    dataset = corrupted()
    together = dataset.batch([5, 9, 700], [1, 2, 3]).x0
    assert torch.equal(together[1], dataset.example(9, 8).x0)
    assert torch.equal(together[2], dataset.subset([3, 700, 5]).subset([1, 2]).example(0).x0)
    added = together - dataset.inner.batch([5, 9, 700], [1, 2, 3]).x0
    assert float(added.abs().max()) > 0.1
    torch.testing.assert_close(added, dataset.corruption.covariance.project(added), rtol=0, atol=1e-5)
    assert not torch.allclose(added[0], added[1])
    redrawn = corrupted(redrawn=True)
    one, again, other = (redrawn.example(5, seed).x0 for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    assert torch.equal(redrawn.example(5).x0, redrawn.example(5).x0)


def test_corrupted_has_the_labels_texts_and_names_of_the_clean_set() -> None:
    dataset = corrupted()
    assert dataset.classes == dataset.inner.classes
    assert dataset.fingerprint == dataset.inner.fingerprint
    assert torch.equal(dataset.batch([1, 2]).labels, dataset.inner.batch([1, 2]).labels)  # type: ignore[arg-type]
    assert (dataset.groups, dataset.unreadable, dataset.caption(0)) == (None, {}, None)


def test_restored_examples_are_nearer_to_the_clean_ones_and_keep_their_sample() -> None:
    dataset = corrupted()
    fitted = GaussianRestoration.fit([dataset.batch(range(1500)).x0], dataset.corruption)
    clean, dirty = dataset.inner.batch(range(1500, 1700)).x0, dataset.batch(range(1500, 1700)).x0
    for drawn in (False, True):
        restored = Restored(dataset, fitted, seed=3, drawn=drawn)
        x0 = restored.batch(range(1500, 1700), range(200)).x0
        assert float((x0 - clean).square().mean()) < 0.5 * float((dirty - clean).square().mean())
        assert torch.equal(restored.subset([1600]).example(0, 4).x0, x0[100])
