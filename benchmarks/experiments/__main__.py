"""Run experiments and print their tables: `python -m benchmarks.experiments power_law_mnist omission_mnist`.

An experiment is a YAML file in benchmarks/experiments: a question, and arms that differ in arguments of
`multisagd train`. Rows are appended to benchmarks/results/results.jsonl; existing rows are not measured again, and
interrupted training runs continue. Afterwards, or with --show, tables of means and standard errors over seeds are
printed, with the differences seed by seed. `--size gpu` uses the size of the papers (not run here), and `--commands`
prints the training commands, for a cluster, instead. `--all-arms` adds the arms that are not trained on a CPU by
default, to save time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.experiments.design import experiments
from benchmarks.experiments.runner import measure
from benchmarks.experiments.tables import show


def main() -> None:
    """Measure and print."""
    known = experiments()
    listed = "\n".join(f"  {name}: {each.question}" for name, each in known.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nexperiments:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments (default: all)")
    parser.add_argument("--arms", nargs="+", help="names of arms (default: those that take little time on a CPU)")
    parser.add_argument("--all-arms", action="store_true")
    parser.add_argument("--size", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--commands", action="store_true", help="print the commands instead of training")
    parser.add_argument("--show", action="store_true", help="only print existing results")
    options = parser.parse_args()
    if unknown := set(options.names) - set(known):
        parser.error(f"there are no experiments {sorted(unknown)}; choose among {sorted(known)}")
    chosen = [known[name] for name in options.names or known]
    for experiment in () if options.show else chosen:
        everything = options.all_arms or options.size == "gpu" or experiment.cpu_arms is None
        arms = options.arms or list(experiment.arms if everything else experiment.cpu_arms or ())
        if wrong := set(arms) - set(experiment.arms):
            parser.error(f"{experiment.name} has no arms {sorted(wrong)}; choose among {sorted(experiment.arms)}")
        measure(experiment, options, arms)
    for experiment in () if options.commands else chosen:
        show(experiment, options.size)


if __name__ == "__main__":
    main()
