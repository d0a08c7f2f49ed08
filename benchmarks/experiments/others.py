"""Sections of the results page about other benchmarks, which do not compare training runs."""

from __future__ import annotations

from pathlib import Path

from benchmarks import inverse_problems as inverse
from benchmarks.experiments.design import CPU, experiments, run_folder
from benchmarks.experiments.sections import NOT_RUN, markdown
from benchmarks.rows import rows

CONTROLS = "controls_mnist"
SPEED = {
    "diffusers_over_ours": "diffusers / ours, white noise",
    "diffusers_over_ours_coloured": "diffusers / ours, coloured noise",
    "coloured_over_white": "ours, coloured / white noise",
}
"""The ratios of times in the rows of `benchmarks.peers.speed`, with their titles."""


def white() -> str:
    """Return the folder in which the runner stores the training run with white noise on MNIST, seed 0."""
    return f"runs/experiments/{run_folder(experiments()[CONTROLS].arguments('white', 0, CPU))}"


def inverse_problems(path: Path) -> str:
    """Return the section on inverse problems solved by guidance, and on U-turns."""
    command = f"python -m benchmarks.inverse_problems --run {white()}"
    said = [
        "## Inverse problems and U-turns",
        "*How well does guidance of a network restore held-out images, compared with the spectrum alone?*",
    ]
    tables = inverse.tables(path)
    if not tables:
        return "\n\n".join([*said, f"**Not measured.** Run `{command}` to measure it."])
    said += [
        f"{NOT_RUN}\n```bash\n{command}\n```",
        "Means ± standard deviations over seeds. Each table begins with the folder of the run. The consistency is the "
        "error of the measurement as a multiple of its noise: 1 for the true images.",
    ]
    for table in tables:
        cells = zip(*(column.cells for column in table.columns), strict=True)
        lines = [[str(cell) for cell in row] for row in cells]
        said += [f"{table.title}:", markdown([str(column.header) for column in table.columns], lines)]
    return "\n\n".join(said)


def speed(path: Path) -> str:
    """Return the section on the time of a training step compared with diffusers'."""
    lines, machines = [], []
    for row in rows("peers_speed", path):
        threads = f"{row['arm']['threads']} threads, {row['repeats']} paired repeats"
        machines.append(f"{threads}: {row['machine']}.")
        for key, name in SPEED.items():
            found = row[key]
            lines.append([name, threads, f"{found['median']:.3f}", f"{found['low']:.3f} to {found['high']:.3f}"])
    command = "python -m benchmarks.peers.speed"
    said = [
        "## Time of a training step compared with diffusers'",
        "*How long does a step take with the same network and data? Medians of paired, interleaved steps.*",
        "In diffusers' loop the network has one output for each channel, which its loss needs; ours has three "
        "(`denoiser=dual`).",
    ]
    if not lines:
        return "\n\n".join([*said, f"**Not measured.** Run `{command}` to measure it."])
    table = markdown(["ratio of times", "measured", "median", "lower to upper quartile"], lines)
    return "\n\n".join([*said, f"{NOT_RUN}\n```bash\n{command}\n```", table, *machines])
