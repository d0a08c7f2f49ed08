"""Other processes and other machines: how ranks would meet, what schedulers are here, and what the hub is told."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from recipes.health.findings import Finding, Wishes, needed

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SCHEDULERS = {"sbatch": "cluster=slurm", "kubectl": "examples/clusters", "sky": "examples/clusters"}


def distribution(wishes: Wishes) -> Iterator[Finding]:
    """Let a process meet itself, as several would meet."""
    torch, dist = needed("torch"), needed("torch.distributed")
    if not dist.is_available():
        yield Finding("absent", "several processes", "this PyTorch is built without them; one process works")
        return
    backends = [name for name in ("gloo", "nccl") if dist.is_backend_available(name)]
    try:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        total = torch.ones(2)
        dist.all_reduce(total)
        dist.destroy_process_group()
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        remedy = "does the machine know its own name (/etc/hosts)? GLOO_SOCKET_IFNAME=lo works on one machine"
        yield Finding("warning", "several processes", f"processes could not meet: {reason:.300}", remedy)
        return
    yield Finding("ok", "several processes", f"torchrun can start them here; backends: {', '.join(backends)}")


def leftovers(wishes: Wishes) -> Iterator[Finding]:
    """Look for variables that torchrun sets, outside of it."""
    found = {name: os.environ[name] for name in RANKS if name in os.environ}
    told = ", ".join(f"{name}={value}" for name, value in found.items())
    if found.get("WORLD_SIZE", "1") != "1":
        yield Finding(
            "warning", "variables", f"{told}: a command would wait for other processes", f"unset {' '.join(found)}"
        )
    elif found:
        yield Finding("ok", "variables", f"{told}: one process")
    else:
        yield Finding("ok", "variables", "none of torchrun's are set, so commands run as one process")


def schedulers(wishes: Wishes) -> Iterator[Finding]:
    """Look for the programs that submit jobs to clusters."""
    for program, use in SCHEDULERS.items():
        if shutil.which(program) is None:
            yield Finding("absent", program, f"not here; only {use} needs it, and only to submit")
        else:
            yield Finding("ok", program, f"for {use}")
    if job := os.environ.get("SLURM_JOB_ID"):
        yield Finding("ok", "Slurm job", f"{job}: this is one")


def hub(wishes: Wishes) -> Iterator[Finding]:
    """Tell what decides whether models are fetched from the Hugging Face hub, and where to."""
    offline = [
        name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name, "0") not in ("", "0")
    ]
    kept = os.environ.get("HF_HOME", "~/.cache/huggingface")
    if offline:
        yield Finding("ok", "model hub", f"models come from {kept} alone, for {' and '.join(offline)} is set")
    else:
        yield Finding(
            "ok", "model hub", f"models are fetched into {kept} when a command names one (HF_HUB_OFFLINE=1: never)"
        )
