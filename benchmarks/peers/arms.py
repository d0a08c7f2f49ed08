"""The peers, by name, that cannot be expressed as arguments of `multisagd train` in `peers_mnist.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.experiments.design import Experiment, experiments
from benchmarks.peers.diffusers_loop import Peer
from benchmarks.peers.step_noise import ColouredSteps, Progress
from multisagd import DDIM, DPMSolver
from multisagd.samplers import Sampler
from recipes.runs.settings import Training

EXPERIMENT = "peers_mnist"
WHITE = "white"
SOLVERS = ("DDIM", "DPM-Solver++")
"""The names of `Peer.samplers`."""


def peers(training: Training) -> dict[str, Peer]:
    """Return the diffusers training loops: its example, and its loop with our optimiser settings."""
    return {
        "diffusers' example": Peer(),
        "diffusers, our optimiser": Peer.as_ours("linear", training),
        "diffusers, our optimiser, cosine": Peer.as_ours("squaredcos_cap_v2", training),
    }


PEERS = ("diffusers' example", "diffusers, our optimiser", "diffusers, our optimiser, cosine")


@dataclass(frozen=True)
class StepNoise:
    """A method to sample the white run: a stochastic sampler, its steps, and the colour of its step noise."""

    base: Sampler
    steps: int
    strength: float = 0.0
    divider: float = 1.0
    tilt: tuple[float, float] = (0.0, 0.0)

    def sampler(self, progress: Progress) -> Sampler:
        """Return the sampler for the progress of a model."""
        return ColouredSteps(self.base, progress, self.strength, self.divider, self.tilt)


STOCHASTIC: Mapping[str, Sampler] = {"DDIM, eta 1": DDIM(eta=1.0), "DPM-Solver++ SDE": DPMSolver(sde=True)}
STEPS = (20, 50)
COLOURS: Mapping[str, dict[str, float | tuple[float, float]]] = {
    # the plain form at half and full strength
    "^.5": {"strength": 0.5},
    "^1": {"strength": 1.0},
    # the published settings for unguided SiT-XL/2, as we understand them
    "as for SiT": {"strength": 0.75, "divider": 1.73, "tilt": (0.15, -0.5)},
}


def step_noises() -> dict[str, StepNoise]:
    """Return all methods to sample the white run, by name."""
    found = {}
    for (sampler, base), steps in ((pair, steps) for pair in STOCHASTIC.items() for steps in STEPS):
        found[f"{sampler}, {steps} steps"] = StepNoise(base, steps)
        for colour, settings in COLOURS.items():
            found[f"{sampler}, {steps} steps, coloured {colour}"] = StepNoise(base, steps, **settings)  # type: ignore[arg-type]
    return found


def experiment() -> Experiment:
    """Return the experiment of the file, with the arms of this module added for tables."""
    filed = experiments()[EXPERIMENT]
    against = dict(filed.against) if not isinstance(filed.against, str) else {}
    against |= {f"{name}, {solver}": WHITE for name in PEERS for solver in SOLVERS}
    against |= {name: name.split(", coloured")[0] if ", coloured" in name else WHITE for name in step_noises()}
    return replace(filed, arms=dict.fromkeys(against, ()) | dict(filed.arms), against=against)
