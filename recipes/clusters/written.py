"""Clusters that are told by a file: what to run is written as YAML, for a person to look at and hand over."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from recipes.clusters.base import STOPPING, Job, Machines
from recipes.engine.errors import RecipeError
from recipes.engine.files import write_text
from recipes.engine.printing import show

PORT = 29500
"""Where the first process listens for the others; a container or a rented machine has no other use for it."""


class Written(Machines):
    """A cluster whose jobs are YAML documents; `out` is the folder for them, or None to print them."""

    out: Path | None
    name: str

    @abstractmethod
    def document(self, name: str, job: Job) -> dict[str, Any]:
        """Return the document of one job."""

    @abstractmethod
    def hint(self, paths: Sequence[Path]) -> str:
        """Return the command that hands files over."""

    def documents(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Return the text of each job's document by the name of the job."""
        found = {}
        for number, job in enumerate(jobs):
            name = numbered(self.name, number if len(jobs) > 1 else None)
            text = yaml.dump(self.document(name, job), Dumper=_Readable, sort_keys=False, width=1000)
            found[name] = f"# {job}\n{text}"
        return found

    def show(self, jobs: Sequence[Job]) -> str:
        """Return all documents."""
        return "---\n".join(self.documents(jobs).values()).rstrip()

    def launch(self, jobs: Sequence[Job]) -> int:
        """Write the documents, or print them; nothing is submitted."""
        if self.out is None:
            show(self.show(jobs))
            return 0
        self.out.mkdir(parents=True, exist_ok=True)
        texts = {self.out / f"{name}.yaml": text for name, text in self.documents(jobs).items()}
        for path in texts:
            # Its first line is the command, which a file of somebody's own does not begin with.
            if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith("# multisagd "):
                raise RecipeError(f"{path} was not written by multisagd launch: choose another cluster.out")
        for path, text in texts.items():
            write_text(path, text)
        print(f"written to {self.out}; nothing runs yet. To run it: {self.hint(list(texts))}")
        return 0


class _Readable(yaml.SafeDumper):
    """Writes texts of several lines as such, and what occurs twice, twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """Tell that nothing is written as a reference."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Write a text so that it is one for every reader: some take 1e3 or 0o7 for a number, and y for yes."""
    like_a_number = re.match(r"[-+.]?\d|[ynYN]$", text) is not None
    style = "|" if "\n" in text else "'" if like_a_number else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Readable.add_representer(str, _text)


def torchrun(nodes: int, processes: int, rank: str, address: str) -> list[str]:
    """Return the command that starts the processes of one node; `rank` and `address` may be variables.

    A process that fails ends its node, and whoever runs the nodes starts all of them anew: torchrun alone could not
    bring back the others.
    """
    return [
        "python", "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={processes}",
        f"--node-rank={rank}", f"--master-addr={address}", f"--master-port={PORT}",
        f"--signals-to-handle={STOPPING}",
    ]  # fmt: skip


def check_name(name: str) -> None:
    """Check that a name is one for machines: it becomes a part of host names.

    Raises:
        ValueError: if it is not.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise ValueError(
            f"name must be of small letters, digits and dashes, at most 40, and begin with a letter: {name!r}"
        )


def numbered(name: str, number: int | None) -> str:
    """Return the name of a job, or of job `number` of a sweep."""
    return name if number is None else f"{name}-{number}"
