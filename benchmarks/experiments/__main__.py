"""Train and judge experiments: `python -m benchmarks.experiments controls_mnist equal_snr_mnist --workers 2`.

An experiment is a YAML file in benchmarks/experiments: a question, and arms that differ in arguments of
`multisagd train`. Rows are appended to benchmarks/results/results.jsonl; existing rows are not measured again, and
interrupted training runs continue. All arms are run with the first seed, then with the next, so that an interruption
leaves complete comparisons. `python -m benchmarks.experiments.page` then writes docs/results.md. `--size gpu` uses
larger networks and more samples (not run here), and `--commands` prints the training commands, for a cluster, instead.
Without names, it runs the experiments of one page: `--page results`, or `--page fields`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from benchmarks.experiments.design import CPU, Page, experiments
from benchmarks.experiments.runner import Options, jobs, run_all
from benchmarks.experiments.statistics import ENOUGH
from benchmarks.rows import RESULTS


def main() -> None:
    """Measure, or print the commands."""
    known = experiments()
    listed = "\n".join(f"  {name}: {each.question}" for name, each in known.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nexperiments:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="experiments (default: all of the page that have the size)"
    )
    parser.add_argument("--page", choices=get_args(Page), default="results", help="page whose experiments are run")
    parser.add_argument("--arms", nargs="+", help="only these arms (default: all)")
    parser.add_argument("--size", default=CPU, help="cpu (default), or a size that the experiments name, such as gpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(ENOUGH)))
    parser.add_argument("--workers", type=int, default=1, help="number of runs trained at a time")
    parser.add_argument("--threads", type=int, default=1, help="number of threads per run")
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"), help="folder for training runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results")
    parser.add_argument("--commands", action="store_true", help="print the training commands instead of training")
    parser.add_argument("--shrink", type=int, default=1, metavar="FACTOR",
                        help="for trials: divide all numbers of samples; needs another file of results")  # fmt: skip
    given = parser.parse_args()
    if unknown := set(given.names) - set(known):
        parser.error(f"there are no experiments {sorted(unknown)}; choose among {sorted(known)}")
    of_page = [name for name, each in known.items() if each.page == given.page]
    chosen = [known[name] for name in given.names or of_page]
    if given.size != CPU:
        if lacking := [each.name for each in chosen if given.names and given.size not in each.sizes]:
            parser.error(f"{lacking} have no size {given.size}; their sizes: {[*{s for e in chosen for s in e.sizes}]}")
        chosen = [each for each in chosen if given.size in each.sizes]
    arms = {arm for each in chosen for arm in (*each.arms, *each.untrained)}
    if wrong := set(given.arms or ()) - arms:
        parser.error(f"there are no arms {sorted(wrong)}; choose among {sorted(arms)}")
    if given.shrink > 1 and given.results == RESULTS:
        parser.error("--shrink makes other runs than those of the page: give another file of results, --results FILE")
    chosen = [each.shrunk(given.shrink) for each in chosen]
    only = None if given.arms is None else tuple(given.arms)
    options = Options(given.size, tuple(given.seeds), only, given.work, given.workers, given.threads)
    if given.commands:
        print("\n".join(job.command(given.work) for job in jobs(chosen, options, given.results)))
    elif failed := run_all(chosen, options, given.results):
        sys.exit("\n".join(["these runs failed; the same command tries them again:", *failed]))


if __name__ == "__main__":
    main()
