"""Write the results page from the results file: `python -m benchmarks.experiments.page`.

docs/results.md and docs/images/results_*.png are generated from benchmarks/results/results.jsonl and the files of the
experiments, with conclusions drawn by fixed rules. `--check` writes nothing, and fails if the page is not up to date.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from benchmarks.experiments import plots
from benchmarks.experiments.design import Experiment, experiments
from benchmarks.experiments.others import inverse_problems, speed
from benchmarks.experiments.plots import Picture
from benchmarks.experiments.published import BEST_EXPONENTS
from benchmarks.experiments.reading import Results
from benchmarks.experiments.sections import bullets, failures, headlines, markdown, section
from benchmarks.rows import RESULTS

ORDER = ("power_law_mnist", "power_law_fashion_mnist", "two_band_mnist", "omission_mnist", "frequency_bounded_mnist")
"""The first experiments on the page; the others follow in alphabetical order."""
OTHERS: tuple[Callable[[Path], str], ...] = (inverse_problems, speed)
"""Sections about the results of other benchmarks."""
DOCS = Path(__file__).parents[2] / "docs"
INTRODUCTION = """# Results

The effect of shaped noise on trained networks: the questions of the papers, and some of our own. This page is generated
from the results file, [`benchmarks/results/results.jsonl`](../benchmarks/results/results.jsonl), by

<!-- not run: trains for minutes to hours -->
```bash
make experiments                            # trains what is missing, continues interrupted runs, and writes this page
python -m benchmarks.experiments.page       # only writes this page
```

A test fails if the page is not up to date. Conclusions follow fixed rules:

- The arms of an experiment differ in some arguments of `multisagd train`. Every arm is trained once for each seed.
  Training runs with the same seed see the same examples in the same order, so arms are compared seed by seed. Tables
  show means and standard errors over seeds.
- A verdict needs three seeds. With fewer seeds, the page gives the numbers and says that there is no verdict.
- **better**, **worse**: the mean of the paired differences is more than 2 of its standard errors from zero. With
  three seeds this happens by chance in about one of five comparisons, so a single such verdict is only a hint.
- **clearly**: the 95 % confidence interval of the paired differences (Student's t: 4.3 standard errors with three
  seeds) excludes zero. This happens by chance in one of twenty comparisons.
- Otherwise no difference is detected, which does not mean that the arms are equal.

Notes on the numbers:

- All rows were measured with the former recipe: class embeddings that were small at first, which learn classes late
  ([how to train well](tutorials/training-well.md)). The same commands give other numbers now.
- The Fréchet distance is between features of a small classifier trained on the same data, not Inception's features. It
  is comparable only to distances in the same table. The papers' FIDs use other networks and features, so only relative
  changes can be compared.
- The networks have half a million parameters or fewer and train for minutes on one CPU core; the papers' networks have
  sixteen million. An effect found here may not exist there, and vice versa.
- "Spectrum" is the root mean square, over frequency rings, of 10 log10 of the generated power divided by the real
  power. The figures show this ratio for each ring: above zero, too much power is generated (dotted: real data; grey:
  corrupted frequencies). "Recognised" is the fraction of samples that the classifier assigns to the requested class.
- "Power where the data were corrupted" is relative to the power of clean data, in decibels: above zero the corruption
  was learned, at zero the clean data are restored, and at -40 or below there is practically nothing. Arms are compared
  by their distance from zero in either direction.
- "DC" is zero frequency, the mean of an image; a gain is DC if it comes from zero frequency.
- Real data in place of samples give the noise floor, which a perfect model would reach.
- `python -m benchmarks.experiments NAME --size gpu` trains an experiment at a size for a GPU, which for images is the
  papers' size; `--commands` prints the training commands instead. A section includes these results if there are any."""


def papers() -> str:
    """Return the section on the papers' own results with power laws."""
    lines = [
        [name, exponent, f"{each.white:g}", f"{each.value:g}", f"{100 * each.relative:+.0f} %"]
        for name, (each, exponent) in BEST_EXPONENTS.items()
    ]
    source = next(iter(BEST_EXPONENTS.values()))[0].source
    return (
        f"## What the papers report\n\n"
        f"FID of white noise and of the best power law ({source}). Positive exponents were "
        "worse everywhere; the gains on FFHQ and WikiArt are within the spread of repeated runs.\n\n"
        + markdown(["data", "exponent", "white", "best", "relative change"], lines)
    )


def compared() -> list[tuple[Experiment, str | None]]:
    """Return the experiments in the order of the page, each with its command if that is not the runner's."""
    from benchmarks.peers.arms import experiment as peers  # importing diffusers takes seconds

    known = experiments()
    names = [*(name for name in ORDER if name in known), *(name for name in known if name not in ORDER)]
    return [(peers(), "python -m benchmarks.peers") if name == "peers_mnist" else (known[name], None) for name in names]


def page(path: Path = RESULTS) -> tuple[str, list[Picture]]:
    """Return the text of the page, and its figures."""
    parts, pictures = [], []
    short, failed = [], []
    for experiment, command in compared():
        text, shown = section(experiment, path, command)
        parts.append(text)
        pictures += shown
        results = Results.read(experiment, "cpu", path)
        if results.raw:
            name = f"[{experiment.title}](#{anchor(experiment.title)})"
            short += [f"{name}: {line}" for line in headlines(results)]
            failed += [f"{name}: {line}" for line in failures(results)]
    summary = [
        "## In short",
        bullets(short) or "Nothing has been measured yet.",
        "### What failed",
        bullets(failed) or "Nothing, by these rules.",
    ]
    return "\n\n".join([INTRODUCTION, *summary, papers(), *parts, *(each(path) for each in OTHERS)]) + "\n", pictures


def anchor(title: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def digest(picture: Picture) -> str:
    """Return a hash of the numbers that a figure shows and of the code that plots it; the image file contains it."""
    code = Path(plots.__file__).read_bytes()
    return hashlib.sha256(json.dumps(asdict(picture)).encode() + code).hexdigest()


def current(picture: Picture, folder: Path) -> bool:
    """Whether the image file of a figure exists and shows these numbers."""
    try:
        with Image.open(folder / picture.name) as image:
            return image.info.get("Comment") == digest(picture)
    except (FileNotFoundError, UnidentifiedImageError):
        return False


def stale(path: Path = RESULTS, docs: Path = DOCS) -> list[str]:
    """Return the files that are not up to date with the results file, including figures that are no longer shown."""
    text, pictures = page(path)
    written, images = docs / "results.md", docs / "images"
    wrong = [] if written.exists() and written.read_text(encoding="utf-8") == text else [written.name]
    wrong += [picture.name for picture in pictures if not current(picture, images)]
    shown = {picture.name for picture in pictures}
    return wrong + sorted(left.name for left in images.glob("results_*.png") if left.name not in shown)


def write(path: Path = RESULTS, docs: Path = DOCS) -> None:
    """Write the page and its figures; a figure that already shows these numbers is not written again."""
    text, pictures = page(path)
    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        if not current(picture, images):
            figure = plots.draw(picture)
            # Without the version of matplotlib, the file depends only on its content.
            figure.savefig(images / picture.name, dpi=90, metadata={"Software": None, "Comment": digest(picture)})
    for left in set(images.glob("results_*.png")) - {images / picture.name for picture in pictures}:
        left.unlink()
    (docs / "results.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if the page is not up to date with the results file")
    options = parser.parse_args()
    if not options.check:
        write()
    elif wrong := stale():
        parser.exit(1, f"not up to date with the results file: {', '.join(wrong)}; run {parser.prog} and commit them\n")


if __name__ == "__main__":
    main()
