"""Write the page of results from the file of results: `python -m benchmarks.experiments.page`.

docs/results.md and docs/images/results_*.png say what benchmarks/results/results.jsonl and the files of the experiments
say: conclusions are drawn by rules. `--check` writes nothing, and fails if the page says anything else.
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
"""What comes first; other experiments follow by their names."""
OTHERS: tuple[Callable[[Path], str], ...] = (inverse_problems, speed)
"""Sections about what other benchmarks measured."""
DOCS = Path(__file__).parents[2] / "docs"
INTRODUCTION = """# Results

What shaped noise does to trained networks: the questions of the papers, and some of ours. This page is made from the
file of results, [`benchmarks/results/results.jsonl`](../benchmarks/results/results.jsonl), by

<!-- not run: trains for minutes to hours -->
```bash
make experiments                            # trains what is missing, from where it left off, and writes this page
python -m benchmarks.experiments.page       # only writes this page
```

and a test fails if it says anything else. Conclusions are drawn by rules:

- Every arm is trained once for each seed. The trainings of one seed see the same examples in the same order, so arms
  are compared seed by seed. Tables have means and standard errors over seeds.
- A verdict needs three seeds. With fewer there are numbers but no verdict, and the page says so.
- **better**, **worse**: the mean of the paired differences is more than 2 of its standard errors from zero. With
  three seeds chance alone does that in about one comparison of five: one such verdict is a hint.
- **clearly**: the 95 % confidence interval of the paired differences (Student's t: 4.3 standard errors with three
  seeds) leaves zero out. Among many comparisons, one of twenty does so by chance.
- Otherwise no difference is detected, which does not mean that the arms are equal.

What to keep in mind:

- The Fréchet distance is between features of a small classifier trained on the same data, not Inception's. It
  compares with distances in the same table only. The papers' FIDs are of other networks and features, so only
  relative changes stand side by side.
- Networks have half a million parameters or fewer and train for minutes on one CPU core; the papers' have sixteen
  million. What shows here may not show there, and the other way round.
- "Spectrum" is the root mean square, over rings of frequency, of 10 log10 of generated over real power. Pictures have
  it ring by ring, above zero where too much is generated (dotted: real data; grey: frequencies that were corrupted).
  "Recognised" is the share of samples that the classifier takes for the class they were asked for.
- Decibels "where the data were corrupted" are of power over that of clean data: above zero the corruption was learned,
  at zero the clean data are restored, at -40 or below nothing is there. Arms are compared by how far they are from
  zero, either way.
- Real data in place of samples are the noise floor: a perfect model would be there.
- `python -m benchmarks.experiments NAME --size gpu` trains an experiment at a size for a GPU, that of the papers for
  images, and with `--commands` prints its trainings instead. A section has these results if there are any."""


def papers() -> str:
    """Return the papers' own results with power laws."""
    lines = [
        [name, exponent, f"{each.white:g}", f"{each.value:g}", f"{100 * each.relative:+.0f} %"]
        for name, (each, exponent) in BEST_EXPONENTS.items()
    ]
    source = next(iter(BEST_EXPONENTS.values()))[0].source
    return (
        f"## What the papers report\n\n"
        f"FID of white noise and of the best power law ({source}). Positive exponents were "
        "worse everywhere; the gains on FFHQ and WikiArt are within the spread of repeated runs.\n\n"
        + markdown(["data", "exponent", "white", "best", "relative"], lines)
    )


def compared() -> list[tuple[Experiment, str | None]]:
    """Return the experiments in the order of the page, with the command that makes each where it is not the runner."""
    from benchmarks.peers.arms import experiment as peers  # importing diffusers takes seconds

    known = experiments()
    names = [*(name for name in ORDER if name in known), *(name for name in known if name not in ORDER)]
    return [(peers(), "python -m benchmarks.peers") if name == "peers_mnist" else (known[name], None) for name in names]


def page(path: Path = RESULTS) -> tuple[str, list[Picture]]:
    """Return the page and its pictures."""
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
        bullets(short) or "Nothing was measured yet.",
        "### What failed",
        bullets(failed) or "Nothing by these rules.",
    ]
    return "\n\n".join([INTRODUCTION, *summary, papers(), *parts, *(each(path) for each in OTHERS)]) + "\n", pictures


def anchor(title: str) -> str:
    """Return what a heading is linked by."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def digest(picture: Picture) -> str:
    """Return what a picture file carries of the numbers it shows and of the code that drew it."""
    code = Path(plots.__file__).read_bytes()
    return hashlib.sha256(json.dumps(asdict(picture)).encode() + code).hexdigest()


def current(picture: Picture, folder: Path) -> bool:
    """Return whether the file of a picture is there and shows these numbers."""
    try:
        with Image.open(folder / picture.name) as image:
            return image.info.get("Comment") == digest(picture)
    except (FileNotFoundError, UnidentifiedImageError):
        return False


def stale(path: Path = RESULTS, docs: Path = DOCS) -> list[str]:
    """Return the files that do not say what the file of results says, pictures that are shown no more among them."""
    text, pictures = page(path)
    written, images = docs / "results.md", docs / "images"
    wrong = [] if written.exists() and written.read_text(encoding="utf-8") == text else [written.name]
    wrong += [picture.name for picture in pictures if not current(picture, images)]
    shown = {picture.name for picture in pictures}
    return wrong + sorted(left.name for left in images.glob("results_*.png") if left.name not in shown)


def write(path: Path = RESULTS, docs: Path = DOCS) -> None:
    """Write the page and its pictures; a picture that shows the same numbers as before is left as it is."""
    text, pictures = page(path)
    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        if not current(picture, images):
            figure = plots.draw(picture)
            # Without the version of matplotlib the file depends on nothing but what it shows.
            figure.savefig(images / picture.name, dpi=90, metadata={"Software": None, "Comment": digest(picture)})
    for left in set(images.glob("results_*.png")) - {images / picture.name for picture in pictures}:
        left.unlink()
    (docs / "results.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if the page is not what the file of results says")
    options = parser.parse_args()
    if not options.check:
        write()
    elif wrong := stale():
        parser.exit(1, f"not what the file of results says: {', '.join(wrong)}; run {parser.prog} and commit them\n")


if __name__ == "__main__":
    main()
