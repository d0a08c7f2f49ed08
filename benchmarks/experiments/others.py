"""Sections of the page of results about what other benchmarks measured, which are no trainings to compare."""

from __future__ import annotations

from pathlib import Path

from benchmarks import inverse_problems as inverse
from benchmarks.experiments.sections import NOT_RUN, markdown
from benchmarks.rows import rows

WHITE = "runs/experiments/seed_0_57616b65"
"""Where `benchmarks.experiments` leaves the training of white noise on MNIST, seed 0."""

SPEED = {
    "diffusers_over_ours": "diffusers over ours, white noise",
    "diffusers_over_ours_coloured": "diffusers over ours, coloured noise",
    "coloured_over_white": "ours, coloured over white noise",
}


def inverse_problems(path: Path) -> str:
    """Return what guidance makes of inverse problems, and how far U-turns get."""
    command = f"python -m benchmarks.inverse_problems --run {WHITE}"
    said = [
        "## Inverse problems and U-turns",
        "*How well are held-out images restored by guidance of a network, and by their spectrum alone?*",
    ]
    tables = inverse.tables(path)
    if not tables:
        return "\n\n".join([*said, f"**Not measured.** `{command}` makes it."])
    said += [
        f"{NOT_RUN}\n```bash\n{command}\n```",
        "Means ± standard deviations over seeds; a run is named by its folder.",
    ]
    for table in tables:
        cells = zip(*(column.cells for column in table.columns), strict=True)
        lines = [[str(cell) for cell in row] for row in cells]
        said += [f"{table.title}:", markdown([str(column.header) for column in table.columns], lines)]
    return "\n\n".join(said)


def speed(path: Path) -> str:
    """Return how the time of a training step compares with diffusers'."""
    lines, machines = [], []
    for row in rows("peers_speed", path):
        threads = f"{row['arm']['threads']} threads, {row['repeats']} paired repeats"
        machines.append(f"{threads}: {row['machine']}.")
        for key, name in SPEED.items():
            found = row[key]
            lines.append([name, threads, f"{found['median']:.3f}", f"{found['low']:.3f} to {found['high']:.3f}"])
    command = "python -m benchmarks.peers speed"
    said = [
        "## The time of a step beside diffusers'",
        "*Same network, same data; medians of paired, interleaved steps.*",
    ]
    if not lines:
        return "\n\n".join([*said, f"**Not measured.** `{command}` makes it."])
    table = markdown(["ratio of times", "measured", "median", "lower to upper quartile"], lines)
    return "\n\n".join([*said, f"{NOT_RUN}\n```bash\n{command}\n```", table, *machines])
