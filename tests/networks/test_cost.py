"""The operations of a training step are those counted on paper, or unknown."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from multisagd.networks.cost import training_flops
from tests.helpers.networks import transformer, unet


class Output(NamedTuple):
    """What networks of diffusers return."""

    sample: Tensor


class Perceptron(nn.Module):
    """Two products, whose operations are counted on paper."""

    def __init__(self, output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 20, bias=False), nn.Linear(20, 12, bias=False)
        self.output = output

    def forward(self, x: Tensor, log_snr: Tensor, condition: object = None) -> Any:
        return self.output(self.two(self.one(x.flatten(1))).reshape_as(x))


def test_training_flops_are_those_counted_on_paper_or_unknown() -> None:
    """Forward 2·in·out each; backward as much again for the weights, and for all inputs except the data."""
    forward = 2 * 12 * 20 + 2 * 20 * 12
    for output in (Tensor.clone, Output):
        assert training_flops(Perceptron(output), (1, 3, 4)) == 3 * forward - 2 * 12 * 20
    for fails in (lambda x: x * float(x.detach().mean()), lambda x: {}["missing"]):
        assert training_flops(Perceptron(fails), (1, 3, 4)) is None


def test_training_flops_of_networks_grow_with_the_grid() -> None:
    for shape in ((2, 16), (1, 9, 12), (1, 4, 6, 8)):
        for network in (unet(shape[0], len(shape) - 1), transformer(shape[0], len(shape) - 1)):
            small, large = (training_flops(network, (*shape[:-1], factor * shape[-1])) for factor in (1, 2))
            assert small is not None
            assert large is not None
            assert 1.5 * small < large < 5 * small, shape
            assert all(parameter.device.type == "cpu" for parameter in network.parameters())
