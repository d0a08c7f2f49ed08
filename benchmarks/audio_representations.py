"""Spoken digits generated in each representation of audio: `python -m benchmarks.audio_representations`.

Every representation is trained on the same examples in the same order, by the same network with as many channels and
steps. Its samples are decoded to waveforms, as files are, and all are judged in one representation, log-mel, by one
classifier that is trained on real log-mel spectrograms: the fraction recognised, and the Fréchet distance of the
classifier's features to those of real examples. The ceiling of a representation is the same for held-out recordings
that are encoded in it and decoded.

Each run appends a row to the results, and is not trained again. `--show` only prints the table, and `--write` writes it
to docs/tutorials/audio.md. `--shrink 100` tries everything in short runs, with another file of results. `--round-trip
FOLDER` trains nothing: it prints what recordings lose when they are encoded and decoded.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.rows import RESULTS, append, between, missing, parsed, rows, tutorial_parser
from benchmarks.runs import Run, configured_data, spread, train_run
from modalities.audio import Audio
from modalities.base import Dataset, Modality
from modalities.reading import MediaFiles
from multisagd.metrics import frechet_distance
from multisagd.metrics.feature_network import FeatureNetwork, read_samples
from multisagd.samplers import Sampler
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.evaluation.classifier import Training, cached_network, read_dataset
from recipes.evaluation.sets import fixed_order

EXPERIMENT = "audio representations"
PAGE = Path(__file__).parents[1] / "docs" / "tutorials" / "audio.md"
BEGIN, END = "<!-- written by python -m benchmarks.audio_representations --write -->", "<!-- end of what is written -->"
JUDGE = "log-mel"
REPRESENTATIONS: dict[str, tuple[str, ...]] = {
    "log-mel": (),
    "complex": (
        "modality=audio", "~modality.representation.bands", "modality.representation.window=512",
        "modality.representation.scale=12",
    ),
    "constant-Q": (
        "modality=audio_cqt", "~modality.representation.bands", "~modality.representation.window",
        "modality.representation.low=110", "modality.representation.octaves=5", "modality.representation.hop=40",
    ),
}  # fmt: skip
"""Arguments of `multisagd train` by representation, beside the experiment; that of `JUDGE` has none."""
LOSSY = {
    "log-mel": "audio_mel",
    "constant-Q": "audio_cqt",
    "constant-Q, hop 32": "audio_cqt modality.representation.hop=32",
    "constant-Q, 24 bands per octave": "audio_cqt modality.representation.bins_per_octave=24",
}
"""Choices of the modality whose round trip is measured."""
CEILING = "recordings"
SMALL = ("network.width=8", "network.heads=1", "network.multipliers=[1,1]", "training.warmup=1")


@dataclass(frozen=True)
class Setting:
    """The length of the runs: `samples` of training, `count` samples drawn, and how many times shorter all else is."""

    samples: int
    count: int
    shrink: int
    root: Path | None
    threads: int

    def words(self, name: str, seed: int = 0) -> list[str]:
        """Return the arguments of `multisagd train` for one run."""
        words = ["experiment=audio_spoken_digits", *REPRESENTATIONS[name], f"seed={seed}"]
        words += [f"training.samples={self.samples}", "every.samples=0", "every.validation=0", "report=false"]
        words += [f"engine.threads={self.threads}", *([] if self.root is None else [f"data.root={self.root}"])]
        if self.shrink > 1:
            words += [*SMALL, f"validation.holdout={max(4, 300 // self.shrink)}", "training.statistics=16"]
        return words


@dataclass(frozen=True)
class Judge:
    """The classifier of real log-mel spectrograms, features of real examples, and recordings that it has not seen."""

    network: FeatureNetwork
    reference: Tensor
    modality: Audio
    held_out: Dataset

    @classmethod
    def train(cls, setting: Setting, cache: Path) -> Judge:
        """Train the classifier, unless it is in the cache."""
        examples, held_out = configured_data(setting.words(JUDGE), Builder())
        assert held_out is not None
        assert isinstance(examples.modality, Audio)
        training = Training(samples=max(128, Training.samples // setting.shrink))
        network, _ = cached_network(examples, held_out, cache, training)
        return cls(network, read_dataset(network, examples).features, examples.modality, held_out)

    def encoded(self, waveform: Tensor) -> Tensor:
        """Return the log-mel spectrogram of a decoded waveform, as if it were written to a file and read again."""
        return self.modality.encode(self.modality.level(waveform.clamp(-1, 1)))

    def values(self, x0: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the metrics of log-mel spectrograms (count, 1, bands, frames)."""
        outputs = read_samples(self.network, x0, labels)
        distance = frechet_distance(outputs.features, self.reference)
        return {"recognised": outputs.accuracy(), "frechet_distance": distance}

    def ceiling(self, modality: Modality, count: int) -> dict[str, float]:
        """Return the metrics of real recordings that are encoded by a modality and decoded.

        `error_db` is the mean absolute difference between their log-mel spectrograms before and after.
        """
        files = self.held_out
        assert isinstance(files, MediaFiles)
        order = fixed_order(files, count)
        media = [files.load(index, None) for index in order]
        before = torch.stack([self.encoded(each) for each in media])
        after = torch.stack([self.encoded(modality.decode(modality.encode(each))) for each in media])
        labels = torch.tensor([files.label(index) for index in order])
        return self.values(after, labels) | {"error_db": _decibels(self.modality, after - before)}


def _decibels(modality: Audio, difference: Tensor) -> float:
    """Return the mean absolute difference of logarithmic values in decibels."""
    floor: float = modality.representation.floor_db  # type: ignore[attr-defined]
    return float(difference.abs().mean()) * -floor / 2


def arms(setting: Setting, seeds: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Yield the conditions of all rows: of the ceilings, and of the runs."""
    for seed, name in itertools.product((CEILING, *seeds), REPRESENTATIONS):
        yield {"representation": name, "seed": seed, "samples": setting.samples, "count": setting.count}


def measure(arm: Mapping[str, Any], setting: Setting, judge: Judge, folder: Path) -> dict[str, Any]:
    """Return the values of one row; the run's folder remains until it is measured, and is continued if interrupted."""
    name, seed = arm["representation"], arm["seed"]
    if seed == CEILING:
        modality = configured_data(setting.words(name), Builder())[0].modality
        return judge.ceiling(modality, setting.count) | {"shape": modality.tensor_shape}
    started, words = time.monotonic(), setting.words(name, seed)
    train_run(folder, words)
    seconds = time.monotonic() - started
    run = Run.load(folder, 0, setting.threads, data=[*words, "data.labels=none", "data.pattern=null"])
    node = configuration.load("sample", [f"run_dir={folder}"])
    kind: type[Sampler] = Sampler  # type: ignore[type-abstract]
    sampler = Builder().build(node["sampler"], kind, "sampler", statistics=run.statistics)
    x0, labels = run.draw(sampler, node["steps"], seed, setting.count, None).cpu(), run.labels(setting.count)
    assert labels is not None
    own = run.examples.modality
    decoded = torch.stack([judge.encoded(own.decode(each)) for each in x0])
    parameters = sum(each.numel() for each in run.denoiser.network.parameters())
    values = judge.values(decoded, labels) | {"training_seconds": seconds, "parameters": parameters}
    shutil.rmtree(folder)
    return values | run.conditions()


def table(path: Path, samples: int | None = None) -> str:
    """Return the table of the results in Markdown, of runs of one length: the longest, if none is given."""
    found = [row for row in rows(EXPERIMENT, path) if row["arm"]["seed"] != CEILING]
    if not found:
        return "Not measured yet: `python -m benchmarks.audio_representations` trains for hours."
    samples = samples or max(row["arm"]["samples"] for row in found)
    real = [row for row in rows(EXPERIMENT, path) if row["arm"]["seed"] == CEILING]
    ceilings = {row["arm"]["representation"]: row for row in real}
    lines = [
        f"Spoken digits after {samples:,} training samples; all judged as log-mel spectrograms by one classifier.",
        "",
        "| representation | values | samples: recognised | Fréchet distance | seeds "
        "| recordings, encoded and decoded: recognised | Fréchet distance | change of the log-mel, dB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in REPRESENTATIONS:
        runs = [row for row in found if row["arm"]["representation"] == name and row["arm"]["samples"] == samples]
        if not runs:
            continue
        recognised, distances = (tuple(row[key] for row in runs) for key in ("recognised", "frechet_distance"))
        top = ceilings[name]
        shape = " × ".join(map(str, top["shape"]))
        digits = {"recognised": 2, "frechet_distance": 2, "error_db": 1}
        ceiling = [f"{top[key]:.{count}f}" for key, count in digits.items()]
        cells = [name, shape, spread(recognised), spread(distances), str(len(runs)), *ceiling]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(text: str, path: Path = RESULTS) -> str:
    """Return the text of the tutorial with the table of these results."""
    return between(text, BEGIN, END, table(path))


def round_trips(folder: Path) -> Table:
    """Return a table of what the middle of every recording in a folder loses in each lossy representation."""
    found = Table("representation", "values", "error, dB", "seconds", box=box.SIMPLE)
    for name, words in LOSSY.items():
        config = configuration.load("train", [*f"modality={words}".split(), "modality.loudness=peak", "run_dir=none"])
        modality = Builder().build(config["modality"], Modality, "modality")  # type: ignore[type-abstract]
        assert isinstance(modality, Audio)
        errors, started = [], time.monotonic()
        for path in sorted(each for each in folder.rglob("*") if each.suffix in modality.suffixes):
            x0 = modality.encode(modality.load(path))
            errors.append(_decibels(modality, modality.encode(modality.decode(x0)) - x0))
        seconds = (time.monotonic() - started) / len(errors)
        shape = " × ".join(map(str, modality.tensor_shape))
        found.add_row(name, shape, f"{mean(errors):.1f}", f"{seconds:.2f}")
    return found


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = tutorial_parser(__doc__, 60_000, [0, 1], Path("runs/audio_representations"))
    parser.add_argument("--count", type=int, default=300, help="samples drawn, and recordings of the ceiling")
    parser.add_argument("--round-trip", type=Path, metavar="FOLDER")
    options = parsed(parser)
    if options.round_trip is not None:
        Console(width=120).print(round_trips(options.round_trip))
        return
    if options.write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), options.results), encoding="utf-8")
        return
    shrink = options.shrink
    setting = Setting(
        max(32, options.samples // shrink), max(10, options.count // shrink), shrink, options.root, options.threads
    )
    left = [] if options.show else missing(EXPERIMENT, list(arms(setting, options.seeds)), options.results)
    judge = Judge.train(setting, options.work / "features") if left else None
    for arm in left:
        assert judge is not None
        folder = options.work / f"{arm['representation']} {arm['seed']} {setting.samples}".replace(" ", "_").replace(
            ",", ""
        )
        values = measure(arm, setting, judge, folder)
        append(EXPERIMENT, arm, values, options.results)
        print(f"{arm}: {values}", flush=True)
    print(table(options.results))


if __name__ == "__main__":
    main()
