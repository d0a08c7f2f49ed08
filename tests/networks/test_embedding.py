import pytest
import torch

from multisagd.networks import Conditioning, NoiseLevelFeatures


def test_noise_levels_a_tenth_apart_differ_and_no_two_levels_alias():
    levels = torch.arange(-20.0, 20.05, 0.1)
    distances = torch.cdist(NoiseLevelFeatures(64)(levels), NoiseLevelFeatures(64)(levels))
    apart = distances + 100 * torch.eye(len(levels))
    # Features have norm √32; the closest pair of all must be a pair of neighbours, and still well apart.
    assert apart.min() > 0.5
    neighbours = distances.diagonal(1)
    assert apart.min() == pytest.approx(neighbours.min().item(), rel=1e-3)


def test_features_stay_what_they_are_when_the_weights_are_halved():
    levels = torch.tensor([12.0, 12.01])
    features = NoiseLevelFeatures(64).to(torch.bfloat16)(levels)
    assert features.dtype == torch.float32
    assert torch.equal(features, NoiseLevelFeatures(64)(levels))
    assert (features[0] - features[1]).abs().max() > 0.01


def test_float64_stays_float64():
    conditioning = Conditioning(8).double()
    assert conditioning(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64


def test_no_condition_is_the_null_label():
    conditioning = Conditioning(8, classes=3)
    level = torch.tensor([0.0, 1.0])
    assert torch.equal(conditioning(level, None), conditioning(level, torch.tensor([3, 3])))
    assert not torch.equal(conditioning(level, None), conditioning(level, torch.tensor([0, 3])))


def test_a_condition_without_classes_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="classes=N"):
        Conditioning(8)(torch.zeros(2), torch.tensor([0, 1]))


@pytest.mark.parametrize("label", [-1, 4])
def test_labels_out_of_range_are_named(label):
    with pytest.raises(ValueError, match=f"label {label} is out of range.*0 to 2"):
        Conditioning(8, classes=3)(torch.zeros(2), torch.tensor([0, label]))


@pytest.mark.parametrize("labels", [torch.tensor([0]), torch.tensor([[0], [1]]), torch.tensor([0.0, 1.0])])
def test_labels_of_another_shape_or_kind_are_refused(labels):
    with pytest.raises(ValueError, match="integer labels of shape"):
        Conditioning(8, classes=3)(torch.zeros(2), labels)


def test_a_log_snr_that_is_not_one_per_sample_is_refused():
    with pytest.raises(ValueError, match="log_snr must have shape"):
        Conditioning(8)(torch.zeros(2, 1))


@pytest.mark.parametrize(("features", "classes"), [(3, None), (2, None), (64, 0)])
def test_impossible_sizes_are_refused(features, classes):
    with pytest.raises(ValueError, match="at least"):
        Conditioning(8, classes, features)
