"""Write manifests for Kubernetes: a PyTorchJob of Kubeflow's training operator, or a JobSet.

Both run the same pod on every node: torchrun, with its node's number and the first pod's name from the operator. A pod
that is asked to leave has `grace` seconds to save; the operator starts it, or with a JobSet all of them, anew, and the
training continues from its checkpoint, which must lie on a volume.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recipes.clusters.base import Job, at_least
from recipes.clusters.written import PORT, Written, check_name, torchrun


@dataclass(frozen=True)
class Kubernetes(Written):
    """A cluster with one of both operators; `configs/cluster/kubernetes.yaml` explains the fields."""

    image: str
    kind: Literal["pytorchjob", "jobset"] = "pytorchjob"
    nodes: int = 1
    gpus: int = 0
    processes: int | None = None
    cpus: int = 8
    memory: str | None = None
    shared_memory: str = "16Gi"
    claim: str | None = None
    mount: str = "/runs"
    restarts: int = 100
    grace: int = 120
    name: str = "multisagd"
    namespace: str | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "nodes", "processes", "cpus")
        at_least(self, 0, "gpus", "restarts", "grace")
        check_name(self.name)

    def hint(self, paths: Sequence[Path]) -> str:
        """Return the command that hands files over."""
        return f"kubectl apply -f {shlex.quote(str(self.out))}"

    def document(self, name: str, job: Job) -> dict[str, Any]:
        """Return the manifest of one job."""
        metadata = {"name": name} | ({} if self.namespace is None else {"namespace": self.namespace})
        if self.kind == "jobset":
            return {
                "apiVersion": "jobset.x-k8s.io/v1alpha2",
                "kind": "JobSet",
                "metadata": metadata,
                "spec": self._jobset(name, job),
            }
        return {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": metadata,
            "spec": self._pytorchjob(job),
        }

    def _pytorchjob(self, job: Job) -> dict[str, Any]:
        # The operator sets both variables; its RANK counts pods.
        pod = self._pod(job, "$(RANK)", "$(MASTER_ADDR)")
        replica = {"restartPolicy": "OnFailure", "template": {"spec": pod}}
        replicas = {"Master": {"replicas": 1, **replica}}
        if self.nodes > 1:
            replicas["Worker"] = {"replicas": self.nodes - 1, **replica}
        return {
            "runPolicy": {"backoffLimit": self.restarts, "cleanPodPolicy": "Running"},
            "pytorchReplicaSpecs": replicas,
        }

    def _jobset(self, name: str, job: Job) -> dict[str, Any]:
        # An indexed Job sets the variable; pods are called <set>-<job>-<number of the job>-<index>.<set>.
        pod = self._pod(job, "$(JOB_COMPLETION_INDEX)", f"{name}-node-0-0.{name}")
        template = {
            "parallelism": self.nodes,
            "completions": self.nodes,
            "completionMode": "Indexed",
            # The first pod that fails fails the job, and the set starts all of them again.
            "backoffLimit": 0,
            "template": {"spec": {"restartPolicy": "Never", **pod}},
        }
        return {
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {"maxRestarts": self.restarts},
            "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": template}}],
        }

    def _pod(self, job: Job, rank: str, address: str) -> dict[str, Any]:
        resources: dict[str, Any] = {"cpu": self.cpus}
        if self.memory is not None:
            resources["memory"] = self.memory
        limits = {"nvidia.com/gpu": self.gpus} if self.gpus else {}
        # Kubernetes reads $(NAME) in a command as a variable, and $$ as a dollar.
        words = [word.replace("$", "$$") for word in job.module()]
        volumes: list[dict[str, Any]] = [
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": self.shared_memory}}
        ]
        mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
        if self.claim is not None:
            volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": self.claim}})
            mounts.append({"name": "runs", "mountPath": self.mount})
        container = {
            # The operator of PyTorchJobs looks for a container and a port of these names.
            "name": "pytorch",
            "image": self.image,
            "command": [*torchrun(self.nodes, self.tasks, rank, address), *words],
            "ports": [{"name": "pytorchjob-port", "containerPort": PORT}],
            "resources": {"requests": resources, "limits": limits},
            "volumeMounts": mounts,
        }
        return {"terminationGracePeriodSeconds": self.grace, "containers": [container], "volumes": volumes}
