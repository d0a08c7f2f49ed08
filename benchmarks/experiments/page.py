"""Write the pages of results from the results file: `python -m benchmarks.experiments.page`.

docs/results.md, docs/results-fields.md and docs/images/results_*.png are generated from
benchmarks/results/results.jsonl and the files of the experiments, with conclusions drawn by fixed rules. `--check`
writes nothing, and fails if a page is not up to date; `--results FILE --docs FOLDER` writes the pages of another file,
to look at a trial.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import isnan
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from benchmarks.experiments import plots
from benchmarks.experiments.design import CPU, Experiment, Page, experiments
from benchmarks.experiments.metrics import MOST_BITS
from benchmarks.experiments.others import inverse_problems, speed
from benchmarks.experiments.plots import Picture
from benchmarks.experiments.published import OMISSION, POWER_LAWS, SOURCE, Published
from benchmarks.experiments.reading import Results, blocked
from benchmarks.experiments.sections import bullets, markdown, section, sentence
from benchmarks.experiments.statistics import ENOUGH
from benchmarks.rows import RESULTS

OTHERS: tuple[Callable[[Path], str], ...] = (inverse_problems, speed)
"""Sections about the results of other benchmarks."""
DOCS = Path(__file__).parents[2] / "docs"
INTRODUCTION = f"""# Results

The effect of shaped noise on trained networks: the questions of the papers, and some of our own. This page is generated
from the results file, [`benchmarks/results/results.jsonl`](../benchmarks/results/results.jsonl), by

<!-- not run: trains for hours -->
```bash
make experiments                            # trains what is missing, continues interrupted runs, and writes this page
python -m benchmarks.experiments --workers 2 # only trains
python -m benchmarks.experiments.page       # only writes this page
```

A test fails if the page is not up to date. Conclusions follow fixed rules:

- The arms of an experiment differ in some arguments of `multisagd train`. Every arm is trained once for each seed.
  Training runs with the same seed see the same examples in the same order, so arms are compared seed by seed: by the
  logarithm of the ratio of Fréchet distances, and by the difference of other metrics.
- Each experiment names one primary metric, in bold, before it is run: the Fréchet distance of samples of the default
  sampler, and for videos without classes the change from frame to frame.
- **better**, **worse**: there are at least {ENOUGH} seeds, and the p-value of Student's t-test of the paired values on
  the primary metric, corrected by Holm's method for the number of comparisons of the experiment, is below .05. The
  exact p-value of all choices of signs, which assumes no distribution, stands beside it; with {ENOUGH} seeds it is at
  least {2 / 2**ENOUGH:.3f}.
- Otherwise no difference is detected, which does not mean that the arms are equal: the **least detectable** ratio (or
  difference) is what would be detected with a probability of 80 %, given the spread over seeds, at a level of .05
  divided by the number of comparisons (for other metrics than the primary one: at .05). A ratio of 1.05 also stands
  for its inverse. Smaller effects may exist.
- **Controls come first**: effects that were planted must be found, and another implementation of the same training
  must not differ. While a control fails or is not measured, no verdict is given, only numbers.
- Other metrics stand beside the primary one, without a verdict.

Notes on the numbers:

- ODE and SDE are the samplers: `dpm_solver` and `dpm_solver_sde` (the default), at the times that `multisagd sample`
  chooses.
- The Fréchet distance is between features of a small classifier trained on the same data, not Inception's features. It
  is comparable only to distances in the same table.
- The networks have half a million parameters or fewer and train for about a minute on one CPU core; the papers'
  networks have sixteen million. An effect found here may not exist there, and vice versa.
- "Spectrum" is the root mean square, over frequency rings, of 10 log10 of the generated power divided by the real
  power. The figures show this ratio for each ring: above zero, too much power is generated (dotted: real data; grey:
  corrupted frequencies). "Recognised" is the fraction of samples that the classifier assigns to the requested class.
- "Bits per dimension" are those of 128 fixed held-out examples, estimated with the same random numbers for every arm.
  They are missing if the noise has no likelihood, as with frequencies without noise, and if they exceed {MOST_BITS:g}:
  networks that predict only x0 do not approach the data as the noise vanishes.
- "Samples needed" is the fraction of the other arm's training samples after which an arm reaches the other arm's final
  value, interpolated in logarithms between a quarter, a half and the end of training; median over seeds. `<` and `>`:
  it lies outside. At a quarter the learning rate is still high, so a training of that length would be better.
- "Power where the data were corrupted" is relative to the power of clean data, in decibels: above zero the corruption
  was learned, at zero the clean data are restored, and at -40 or below there is practically nothing.
- "DC" is zero frequency, the mean of an image; a gain is DC if it comes from zero frequency.
- Real data in place of samples give the noise floor, which a perfect model would reach.
- `python -m benchmarks.experiments NAME --size gpu` trains an experiment at a size for a GPU, which for images is the
  papers' size; `--commands` prints the training commands instead. A section includes these results if there are any."""


FIELDS = """# Results on fields

What shaped noise, preconditioning, the padding of the network and the placement of steps contribute on physical fields,
whose spectrum is the product. This page is generated from the same file by the same rules as
[results](results.md#results); `python -m benchmarks.experiments --page fields --workers 2` trains what is missing. Each
experiment is judged by the error of power over rings of frequency.

- "Rings" is the root mean square, over rings of frequency but zero, of 10 log10 of the generated power divided by the
  real power; the quietest third of the rings has least power in the data. Errors of deviation and kurtosis are in
  percent of their values in the data.
- The second table of each experiment is for samples whose power is corrected after each step
  (`multisagd sample calibration=256`): what the noise and the training contribute to rings is small next to it, so read
  the kurtosis and the likelihood there.
- Arms of an ablation have three seeds, and no verdict.
- "Bits per dimension" are those of fixed held-out fields, estimated with the same random numbers for every arm.
- Real data in place of samples give the noise floor, which a perfect model would reach."""


def papers() -> str:
    """Return the section on the papers' own results."""

    def listed(head: str, results: Mapping[str, Published]) -> str:
        lines = [[name, f"{each.white:g}", f"{each.value:g}", f"{100 * each.relative:+.0f} %"]
                 for name, each in results.items()]  # fmt: skip
        return markdown([head, "white", "shaped", "relative change"], lines)

    return (
        f"## What the papers report\n\nFID of white noise and of the best power law ({SOURCE}). Positive exponents "
        "were worse everywhere; the gains on FFHQ and WikiArt are within the spread of repeated runs.\n\n"
        f"{listed('data, exponent', POWER_LAWS)}\n\nFID on MNIST with one corrupted band, of white noise and of "
        f"selective omission ({SOURCE}):\n\n{listed('band', OMISSION)}"
    )


def summary(measured: list[Results], reasons: list[str]) -> list[str]:
    """Return the state of the controls, and the comparisons that answer the question of each experiment."""
    said = ["**No verdicts yet**: " + "; ".join(reasons) + "."] if reasons else ["All controls passed."]
    for results in measured:
        name = f"[{results.experiment.title}](#{anchor(results.experiment.title)})"
        named = [each for each in results.tested if (each.arm, each.other) in results.experiment.headline]
        answered = [each for each in named if each.paired.enough and not isnan(each.paired.p)]
        said += [f"{name}: {sentence(results, each, not reasons)}" for each in answered]
        if missing := [f"`{each.arm}` against `{each.other}`" for each in named if each not in answered]:
            said.append(f"{name}: not measured yet{'' if not answered else ': ' + ', '.join(missing)}.")
    return said


def page(path: Path = RESULTS, of: Page = "results") -> tuple[str, list[Picture]]:
    """Return the text of a page, and its figures; the controls are those of all pages."""
    reasons = blocked(experiments().values(), path)
    known = {name: each for name, each in experiments().items() if each.page == of}
    read = {name: _all_sizes(each, path) for name, each in known.items()}
    parts, pictures = [], []
    for name, experiment in known.items():
        text, shown = section(experiment, read[name], not reasons)
        parts.append(text)
        pictures += shown
    short = f"## In short\n\n{bullets(summary([each[0] for each in read.values()], reasons))}"
    if of == "fields":
        return "\n\n".join([FIELDS, short, *parts]) + "\n", pictures
    return "\n\n".join([INTRODUCTION, short, *parts, papers(), *(each(path) for each in OTHERS)]) + "\n", pictures


def pages(path: Path) -> tuple[dict[str, str], list[Picture]]:
    """Return the texts of all pages by the names of their files, and all figures."""
    each = {"results.md": page(path), "results-fields.md": page(path, "fields")}
    return {name: text for name, (text, _) in each.items()}, [one for _, shown in each.values() for one in shown]


def _all_sizes(experiment: Experiment, path: Path) -> list[Results]:
    return [Results.read(experiment, size, path) for size in (CPU, *experiment.sizes)]


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
    texts, pictures = pages(path)
    images = docs / "images"
    wrong = [
        name for name, text in texts.items()
        if not (docs / name).exists() or (docs / name).read_text(encoding="utf-8") != text
    ]  # fmt: skip
    wrong += [picture.name for picture in pictures if not current(picture, images)]
    shown = {picture.name for picture in pictures}
    return wrong + sorted(left.name for left in images.glob("results_*.png") if left.name not in shown)


def write(path: Path = RESULTS, docs: Path = DOCS) -> None:
    """Write the pages and their figures; a figure that already shows these numbers is not written again."""
    texts, pictures = pages(path)
    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        if not current(picture, images):
            figure = plots.draw(picture)
            # Without the version of matplotlib, the file depends only on its content.
            figure.savefig(images / picture.name, dpi=90, metadata={"Software": None, "Comment": digest(picture)})
    for left in set(images.glob("results_*.png")) - {images / picture.name for picture in pictures}:
        left.unlink()
    for name, text in texts.items():
        (docs / name).write_text(text, encoding="utf-8")


def main() -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if the page is not up to date with the results file")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the page")
    options = parser.parse_args()
    if not options.check:
        write(options.results, options.docs)
    elif wrong := stale(options.results, options.docs):
        parser.exit(1, f"not up to date with the results file: {', '.join(wrong)}; run {parser.prog} and commit them\n")


if __name__ == "__main__":
    main()
