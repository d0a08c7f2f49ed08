"""Compare methods from other papers with ours: `python -m benchmarks.peers`.

    config      arms of benchmarks/experiments/peers_mnist.yaml: offset noise, EqualSNR, PriorGrad; white, ours
    diffusers   its training loop on the same network, data, order and steps, sampled by its own samplers
    step_noise  coloured-noise sampling of our white runs against the same samplers with white step noise
    speed       time of a training step, ours and diffusers', in interleaved, paired repeats; on an idle machine

All are evaluated with the same counts and the same reference by `benchmarks.experiments`, for several training seeds.
Rows are appended to benchmarks/results/results.jsonl; existing rows are not repeated. Afterwards, or with
--show, means and standard errors over seeds are printed, and differences seed by seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.experiments.tables import show
from benchmarks.peers.arms import experiment
from benchmarks.peers.measuring import SPEED, measure_all
from benchmarks.rows import RESULTS, rows

PARTS = ("config", "diffusers", "step_noise", "speed")


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=100, help="paired repeats of the timing")
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--show", action="store_true", help="only print existing results")
    parser.set_defaults(size="cpu", commands=False)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there are no parts {sorted(unknown)}; choose among {', '.join(PARTS)}")
    options.parts = options.parts or list(PARTS)
    if not options.show:
        measure_all(options, RESULTS)
    show(experiment(), options.size)
    show_speed(RESULTS)


def show_speed(path: Path) -> None:
    """Print the ratios of step times."""
    for row in rows(SPEED, path):
        threads, repeats = row["arm"]["threads"], row["repeats"]
        print(f"a step on {threads} threads, medians of {repeats} paired repeats: {row['milliseconds']} ms")
        for name in ("diffusers_over_ours", "diffusers_over_ours_coloured", "coloured_over_white"):
            found = row[name]
            print(f"  {name.replace('_', ' ')}: {found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})")
        print(f"  {row['machine']}")


if __name__ == "__main__":
    main()
