"""Embeddings of the noise level are distinct and exact, and labels are checked."""

import pytest
import torch

from multisagd.networks import Conditioning, NoiseLevelFeatures


def test_noise_level_features_differ_for_all_levels():
    levels = torch.arange(-20.0, 20.05, 0.1)
    distances = torch.cdist(NoiseLevelFeatures(64)(levels), NoiseLevelFeatures(64)(levels))
    apart = distances + 100 * torch.eye(len(levels))
    # Features have norm √32; the closest pair of all must be a pair of neighbours, and still well apart.
    assert apart.min() > 0.5
    assert apart.min() == pytest.approx(distances.diagonal(1).min().item(), rel=1e-3)


def test_noise_level_features_stay_exact_in_half_precision():
    levels = torch.tensor([12.0, 12.01])
    features = NoiseLevelFeatures(64).to(torch.bfloat16)(levels)
    assert features.dtype == torch.float32
    assert torch.equal(features, NoiseLevelFeatures(64)(levels))
    assert (features[0] - features[1]).abs().max() > 0.01
    assert Conditioning(8).double()(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64


def test_conditioning_without_labels_uses_the_null_label():
    conditioning = Conditioning(8, classes=3)
    level = torch.tensor([0.0, 1.0])
    assert torch.equal(conditioning(level, None), conditioning(level, torch.tensor([3, 3])))
    assert not torch.equal(conditioning(level, None), conditioning(level, torch.tensor([0, 3])))


def test_conditioning_refuses_labels_levels_and_sizes_that_do_not_fit():
    level, with_classes = torch.zeros(2), Conditioning(8, classes=3)
    for conditioning, arguments, message in (
        (Conditioning(8), (level, torch.tensor([0, 1])), "classes=N"),
        (with_classes, (level, torch.tensor([0, -1])), "label -1 is out of range.*0 to 2"),
        (with_classes, (level, torch.tensor([0, 4])), "label 4 is out of range.*0 to 2"),
        (with_classes, (level, torch.tensor([0])), "integer labels of shape"),
        (with_classes, (level, torch.tensor([[0], [1]])), "integer labels of shape"),
        (with_classes, (level, torch.tensor([0.0, 1.0])), "integer labels of shape"),
        (Conditioning(8), (torch.zeros(2, 1),), "log_snr must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            conditioning(*arguments)
    for features, classes in ((3, None), (2, None), (64, 0)):
        with pytest.raises(ValueError, match="at least"):
            Conditioning(8, classes, features)
