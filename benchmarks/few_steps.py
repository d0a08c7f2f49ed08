"""Errors of a run with few and with many sampling steps, by log-SNR: `python -m benchmarks.few_steps RUN`.

Samples from a run by Heun's method on Karras' steps, with increasing numbers of steps, using the trained network and
the exact denoiser of its training examples: `E[x0 | x_t]` if x0 is one of them (of the requested class). The exact
denoiser tests the metric and the steps: its error must not increase with the number of steps. Then the exact denoiser
replaces the network in a range of log-SNRs only, which shows where the errors arise.

Entries are Fréchet distances of classifier features / spectrum errors in dB, mean and standard deviation over seeds.
Rows are appended to benchmarks/results/results.jsonl and not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import append, missing
from benchmarks.runs import Run, by_steps
from multisagd import Heun, KarrasSchedule, Process
from multisagd.condition import AnyCondition, as_condition
from multisagd.sampling import AnyDenoiser

EXPERIMENT = "few steps"
REFERENCE = 5000


@dataclass
class Exact:
    """Returns `E[x0 | x_t]` for white noise and data that are one of `examples`, `(count, channels, *grid)`."""

    process: Process
    examples: Tensor
    labels: Tensor | None

    def __call__(self, x_t: Tensor, t: Tensor, condition: AnyCondition = None) -> Tensor:
        """Return the mean of the examples, each weighted by its posterior probability."""
        at = self.process.coefficients(t, x_t)
        data, a, b = self.examples.to(x_t).flatten(1), at.a.reshape(-1, 1).to(x_t), at.b.reshape(-1, 1).to(x_t)
        distance = a**2 * data.square().sum(1) - 2 * a * (x_t.flatten(1) @ data.T)
        labels = as_condition(condition, classes=True, text=False).labels
        if labels is not None and self.labels is not None:
            distance = distance.masked_fill(labels[:, None] != self.labels.to(labels), math.inf)
        return (torch.softmax(-distance / (2 * b**2), 1) @ data).reshape(x_t.shape)


@dataclass
class Spliced:
    """Uses the exact denoiser where the log-SNR is in `exact_in`, and the network elsewhere."""

    network: AnyDenoiser
    exact: AnyDenoiser
    exact_in: tuple[float, float]

    @property
    def process(self) -> Process:
        """The process of the network."""
        return self.network.process

    def __call__(self, x_t: Tensor, t: Tensor, condition: AnyCondition = None) -> Tensor:
        """Call the denoiser for this time, which must be the same for the whole batch."""
        log_snr = float(self.process.schedule.log_snr(t[:1].double()))
        chosen = self.exact if self.exact_in[0] <= log_snr <= self.exact_in[1] else self.network
        return chosen(x_t, t, condition)


FULL = (-2 * math.log(80), -2 * math.log(0.002))
ARMS: dict[str, tuple[tuple[float, float] | None, tuple[float, float]]] = {
    # The log-SNRs with the exact denoiser, and the log-SNRs between which samples are drawn.
    "network": (None, FULL),
    "exact": ((-math.inf, math.inf), FULL),
    "exact below log-SNR -4": ((-math.inf, -4.0), FULL),
    "exact from -4 to 4": ((-4.0, 4.0), FULL),
    "exact above 4": ((4.0, math.inf), FULL),
    "network, from log-SNR -6": (None, (-6.0, FULL[1])),
    "network, from log-SNR 6 in one more step": (None, (FULL[0], 6.0)),
}


def measure(run_dir: Path, options: argparse.Namespace) -> None:
    """Measure all arms without a row."""
    wanted = [
        {"run": run_dir.name, "denoiser": name, "steps": steps, "seed": seed, "count": options.count}
        for name, steps, seed in itertools.product(ARMS, options.steps, options.seeds)
    ]
    left = missing(EXPERIMENT, wanted)
    if not left:
        return
    run = Run.load(run_dir, REFERENCE, options.threads, allow=("benchmarks",))
    network, process = run.denoiser, run.denoiser.process
    if not bool(((process.covariance.power() - 1).abs() < 1e-6).all()):
        raise SystemExit("the exact denoiser supports white noise only")
    examples, labels = run.examples.batch(list(range(len(run.examples))))[:2]
    exact = Exact(process, examples, None if run.classes is None else labels)
    for arm in left:
        exact_in, ends = ARMS[arm["denoiser"]]
        even = torch.linspace(1, 0, arm["steps"] + 1, dtype=torch.float64)
        noisiest, cleanest = (math.exp(-log_snr / 2) for log_snr in ends)
        log_snrs = KarrasSchedule(sigma_min=cleanest, sigma_max=noisiest).log_snr(even)
        if ends[1] < FULL[1]:  # one more step removes the remaining noise, which would affect the metrics
            log_snrs = torch.cat([log_snrs, torch.tensor(FULL[1:], dtype=torch.float64)])
        times = process.schedule.time(log_snrs)
        chosen: Any = network if exact_in is None else Spliced(network, exact, exact_in)
        x0 = replace(run, denoiser=chosen).draw(Heun(), arm["steps"], arm["seed"], arm["count"], times=times)
        values = run.judge(x0)
        append(EXPERIMENT, arm, values | run.conditions())
        print(f"{arm}: {values}", flush=True)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 9, 18, 36])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="only print existing results")
    options = parser.parse_args()
    if not options.show:
        measure(options.run, options)
    by_steps(EXPERIMENT, options.run.name, "denoiser", ARMS, ("frechet_distance", "spectrum_error_db"))


if __name__ == "__main__":
    main()
