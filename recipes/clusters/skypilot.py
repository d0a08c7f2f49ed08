"""Write a task for SkyPilot, which rents machines at many clouds, and rents others when they are taken away.

The task runs torchrun on every machine. Not every cloud warns a machine before it takes it away, so what is not in the
last checkpoint may be lost; a managed job (`sky jobs launch`) then runs the same command on new machines, and that
continues from the checkpoint, if `run_dir` lies in the bucket that is mounted.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.clusters.base import Job, at_least
from recipes.clusters.written import Written, check_name, torchrun


@dataclass(frozen=True)
class SkyPilot(Written):
    """Rented machines; `configs/cluster/skypilot.yaml` explains the fields."""

    nodes: int = 1
    gpus: int = 0
    accelerator: str | None = None
    processes: int | None = None
    spot: bool = True
    infra: str | None = None
    cpus: str | int | None = None
    memory: str | int | None = None
    disk: int | None = None
    bucket: str | None = None
    mount: str = "/runs"
    workdir: str | None = "."
    setup: tuple[str, ...] = ()
    restarts: int = 3
    name: str = "multisagd"
    out: Path | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "nodes", "processes", "disk")
        at_least(self, 0, "gpus", "restarts")
        check_name(self.name)
        if self.gpus and self.accelerator is None:
            raise ValueError(f"gpus={self.gpus} needs to know of which kind: add accelerator, such as H100")

    def hint(self, paths: Sequence[Path]) -> str:
        """Return the command that hands files over."""
        return "; ".join(f"sky jobs launch {shlex.quote(str(path))}" for path in paths)

    def document(self, name: str, job: Job) -> dict[str, Any]:
        """Return the task of one job."""
        resources = {
            "infra": self.infra,
            "accelerators": f"{self.accelerator}:{self.gpus}" if self.gpus else None,
            "cpus": self.cpus,
            "memory": self.memory,
            "disk_size": self.disk,
            "use_spot": self.spot,
            "job_recovery": {"max_restarts_on_errors": self.restarts},
        }
        document = {
            "name": name,
            "workdir": self.workdir,
            "num_nodes": self.nodes,
            "resources": {key: value for key, value in resources.items() if value is not None},
            "file_mounts": None if self.bucket is None else {self.mount: {"source": self.bucket, "mode": "MOUNT"}},
            "setup": "\n".join(self.setup) + "\n" if self.setup else None,
            "run": self._run(job),
        }
        return {key: value for key, value in document.items() if value is not None}

    def _run(self, job: Job) -> str:
        command = torchrun(self.nodes, self.tasks, '"$SKYPILOT_NODE_RANK"', '"$first"')
        return f'first=$(echo "$SKYPILOT_NODE_IPS" | head -n1)\n{" ".join(command)} {shlex.join(job.module())}\n'
