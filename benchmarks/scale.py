"""Training speed of a large model with white and coloured noise: samples per second, FLOPs utilisation, peak memory.

    python -m benchmarks.scale                  a transformer of DiT-B's size (arXiv 2212.09748) at 256×256, on a GPU
    python -m benchmarks.scale --size small     a small transformer at 32×32, to test on a CPU
    torchrun --standalone --nproc-per-node 8 -m benchmarks.scale engine.distribution=fsdp

The step is the recipe's own (`recipes.training.learner`): noise, network, loss, clipping, AdamW and the weight average,
on random pixels in memory. Two training loops that differ only in their noise alternate every `--steps` steps, so other
load affects both; memory is measured for both together, or for one with `--only`. Further arguments are settings of
`multisagd train`. Each run adds a row to benchmarks/results/results.jsonl unless `--forget` is given.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.rows import append
from benchmarks.timing import machine
from modalities.base import Batch, Modality
from multisagd import DataStatistics
from multisagd.ema import PowerEMA
from multisagd.networks.cost import training_flops
from multisagd.seeds import derive
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.assembly import Assembly
from recipes.runs.settings import ModelSettings, TrainSettings
from recipes.runtime.device import Runtime
from recipes.runtime.distribution import barrier, leave
from recipes.runtime.performance import GIB, peak_flops, peak_memory
from recipes.training.learner import Learner

COMMON = ["run_dir=unused", "network=transformer", "modality=image", "modality.channels=3"]
SIZES = {
    "dit-b": [
        *COMMON, "modality.size=256", "network.patch=16", "network.width=768", "network.depth=12", "network.heads=12",
        "training.batch=128", "engine=gpu",
    ],
    "small": [
        *COMMON, "modality.size=32", "network.patch=4", "network.width=96", "network.depth=2", "network.heads=2",
        "training.batch=8", "engine.device=cpu",
    ],
}  # fmt: skip
NOISES = {"white": ["spectrum=white"], "coloured": ["spectrum=power_law", "spectrum.exponent=-0.5"]}


class Training:
    """One training loop, on random pixels drawn once."""

    def __init__(self, words: Sequence[str], runtime: Runtime | None = None) -> None:
        config, builder = configuration.load("train", list(words)), Builder()
        self.settings = builder.settings(TrainSettings, config, "")
        self.runtime = runtime or Runtime.start(self.settings.engine)
        modality = builder.build(self.settings.modality, Modality, "modality")  # type: ignore[type-abstract]
        self.shape = (modality.channels, *modality.grid().shape)
        generator = torch.Generator().manual_seed(derive(0, "pixels"))
        each = len(self.runtime.share(self.settings.training.batch)) // self.settings.training.accumulation
        x0 = 2 * torch.rand(each, *self.shape, generator=generator) - 1
        statistics = DataStatistics.measure([x0], modality.grid())
        assembly = Assembly(ModelSettings.of(config, builder), builder, modality, statistics, None)
        process = assembly.process().to(self.runtime.device, self.runtime.dtype)
        network = assembly.network().to(self.runtime.device, self.runtime.dtype)
        self.parameters = sum(parameter.numel() for parameter in network.parameters())
        self.flops = training_flops(network, self.shape)
        average = PowerEMA(network)
        self.runtime.sharded(average.module)
        spread = self.runtime.parallelize(network)
        denoiser = assembly.denoiser(self.runtime.compiled(spread), process)
        self.learner = Learner(denoiser, network, spread, average, self.settings, self.runtime, None)
        self.parts = [Batch(x0)] * self.settings.training.accumulation

    def run(self, steps: int) -> float:
        """Train for some steps, and return the elapsed seconds."""
        self._finish()
        begun = time.perf_counter()
        for _ in range(steps):
            self.learner.step(self.parts)
        self.learner.averages()  # reads the losses back, which waits for all steps
        self._finish()
        return time.perf_counter() - begun

    def _finish(self) -> None:
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize(self.runtime.device)
        barrier()


def measure(words: Sequence[str], noises: Sequence[str], steps: int, rounds: int, warm_up: int) -> dict[str, Any]:
    """Alternate between the training loops, and return the measurements of each."""
    loops: dict[str, Training] = {}
    for name in noises:
        runtime = next(iter(loops.values())).runtime if loops else None
        loops[name] = Training([*words, *NOISES[name]], runtime)
    for loop in loops.values():
        loop.run(warm_up)
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds):
        order = list(loops) if number % 2 == 0 else list(loops)[::-1]
        for name in order:
            seconds[name].append(loops[name].run(steps))
    one = next(iter(loops.values()))
    runtime, batch = one.runtime, one.settings.training.batch
    peak = one.settings.engine.peak_flops or peak_flops(runtime.device, runtime.products)
    found: dict[str, Any] = {
        "parameters": one.parameters,
        "training_flops_per_sample": one.flops,
        "batch": batch,
        "memory_gib": peak_memory(runtime.device) / GIB,
        "device": runtime.describe(),
        "machine": machine(),
    }
    for name, taken in seconds.items():
        rates = [batch * steps / each for each in taken]
        found[name] = {"samples_per_second": mean(rates), "deviation": stdev(rates) if len(rates) > 1 else None}
        if one.flops is not None and peak is not None:
            found[name]["model_flops_utilisation"] = mean(rates) * one.flops / (peak * runtime.process.world)
    if len(seconds) == 2:
        white, coloured = seconds.values()
        ratios = [b / a for a, b in zip(white, coloured, strict=True)]
        found["coloured_over_white"] = {"mean": mean(ratios), "deviation": stdev(ratios) if len(ratios) > 1 else None}
    return found | {"first": runtime.main}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and store a row; return it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="dit-b")
    parser.add_argument("--only", choices=list(NOISES), help="only one noise, for its own memory")
    parser.add_argument("--steps", type=int, default=20, help="steps per turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each loop")
    parser.add_argument("--warm-up", type=int, default=10, help="steps before measuring, to compile the network")
    parser.add_argument("--forget", action="store_true", help="add no row to the results")
    parser.add_argument("settings", nargs="*", help="settings of multisagd train")
    options = parser.parse_args(arguments)
    noises = [options.only] if options.only else list(NOISES)
    found = measure([*SIZES[options.size], *options.settings], noises, options.steps, options.rounds, options.warm_up)
    if found.pop("first"):
        show(found, noises)
        if not options.forget:
            arm = {"size": options.size, "noises": noises, "settings": options.settings, "rounds": options.rounds}
            append("scale", arm, found)
    leave()
    return found


def show(found: dict[str, Any], noises: Sequence[str]) -> None:
    """Print the measurements."""
    print(found["machine"])
    flops = found["training_flops_per_sample"]
    print(f"{found['device']}; {found['parameters']:,} parameters, batch {found['batch']}")
    print(f"{'operations unknown' if flops is None else f'{flops / 1e9:,.1f} GFLOP per sample, forward and backward'}")
    for name in noises:
        rate, spread = found[name]["samples_per_second"], found[name]["deviation"]
        used = found[name].get("model_flops_utilisation")
        utilisation = "" if used is None else f", MFU {used:.1%}"
        print(f"  {name:<9} {rate:,.1f}{'' if spread is None else f' ± {spread:.1f}'} samples/s{utilisation}")
    if "coloured_over_white" in found:
        ratio = found["coloured_over_white"]
        spread = "" if ratio["deviation"] is None else f" ± {ratio['deviation']:.3f}"
        print(f"  time of coloured / white noise {ratio['mean']:.3f}{spread}")
    print(f"  peak memory {found['memory_gib']:.2f} GiB")


if __name__ == "__main__":
    main()
