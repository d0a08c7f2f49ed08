"""What computes: the core itself, CPU and GPUs, attention, and the compiler that torch.compile needs."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipes.health.findings import Finding, Wishes, needed


def core(wishes: Wishes) -> Iterator[Finding]:
    """Draw coloured noise, whiten it, and take one step of training."""
    torch, ms = needed("torch"), importlib.import_module("multisagd")
    grid = ms.Grid.of(height=8, width=8)
    covariance = ms.SpectralCovariance(ms.PowerLaw(-1.0), grid)
    noise = covariance.sample([0, 1], 1)
    error = float((covariance.color(covariance.whiten(noise)) - noise).abs().max())
    if error > 1e-4:
        yield Finding("broken", "noise", f"colouring does not undo whitening: they differ by {error:.1e}")
        return
    network = ms.networks.UNet(channels=1, dimensions=2, width=8, multipliers=[1])
    denoiser = ms.Denoiser(network, ms.Process(ms.CosineSchedule(), covariance))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    denoiser.loss(noise, torch.tensor([0.3, 0.6]), seeds=[2, 3]).mean().backward()
    torch.optim.AdamW(network.parameters()).step()
    moved = [bool((new != old).any()) for new, old in zip(network.parameters(), before, strict=True)]
    finite = all(bool(parameter.isfinite().all()) for parameter in network.parameters())
    if finite and any(moved):
        yield Finding("ok", "training", "coloured noise is drawn and whitened, and a step of training changes weights")
    else:
        yield Finding("broken", "training", "a step of training leaves weights as they are, or not finite")


def commands(wishes: Wishes) -> Iterator[Finding]:
    """Import what `multisagd train` imports."""
    needed("torch")
    importlib.import_module("recipes.train")
    yield Finding("ok", "commands", "all that `multisagd train` needs can be imported")


def processor(wishes: Wishes) -> Iterator[Finding]:
    """Look at the CPU and at how many threads will use it."""
    torch = needed("torch")
    cores, threads = usable_cores(), torch.get_num_threads()
    set_by = ", ".join(
        f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ
    )
    told = (
        f"{_model()}, {cores} cores for this process, {torch.backends.cpu.get_cpu_capability()}; "
        f"PyTorch uses {threads} threads{f' ({set_by})' if set_by else ''}"
    )
    if threads > cores:
        yield Finding(
            "warning", "CPU", f"{told}: more than cores, so they wait for one another", f"engine.threads={cores}"
        )
    else:
        yield Finding("ok", "CPU", told)


def usable_cores() -> int:
    """Return how many cores this process may use, by affinity and by the limit of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = Path("/sys/fs/cgroup/cpu.max")
    if limit.exists():
        quota, _, period = limit.read_text().partition(" ")
        if quota.isdigit():
            return max(1, min(cores, round(int(quota) / int(period))))
    return cores


def _model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def graphics(wishes: Wishes) -> Iterator[Finding]:
    """Look for GPUs that PyTorch can use, and compute on each."""
    torch = needed("torch")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            yield _gpu(torch, number)
        return
    if torch.backends.mps.is_available():
        told = "Apple's MPS is not used, because coefficients are computed in float64, which it does not know"
        yield Finding("warning", "GPU", f"{told}; training runs on the CPU")
    elif shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        if torch.version.cuda is None:
            remedy = "install a PyTorch for CUDA: https://pytorch.org/get-started (versions as in pyproject.toml)"
            yield Finding(
                "warning", "GPU", "there is an NVIDIA driver, but this PyTorch is built for CPUs alone", remedy
            )
        else:
            told = f"there is an NVIDIA driver, but PyTorch for CUDA {torch.version.cuda} finds no GPU"
            yield Finding(
                "warning", "GPU", told, "compare with the CUDA version that nvidia-smi names; it must not be older"
            )
    else:
        yield Finding("absent", "GPU", "none; training runs on the CPU, which suits small models only")


def _gpu(torch: Any, number: int) -> Finding:
    name = f"GPU {number}"
    try:
        facts = torch.cuda.get_device_properties(number)
        told = (
            f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, compute capability {facts.major}.{facts.minor}, "
            f"bfloat16 {'yes' if torch.cuda.is_bf16_supported() else 'no: use engine.precision=float32'}"
        )
        with torch.cuda.device(number):
            product = torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")
            spectrum = torch.fft.rfft2(product)
            free, _ = torch.cuda.mem_get_info()
        if float(product.sum()) != 64.0**3 or float(spectrum[0, 0].real) != 64.0**3:
            return Finding("broken", name, f"{told}: it computes wrongly", "engine.device=cpu")
        return Finding("ok", name, f"{told}, {free / 2**30:.0f} GiB free")
    except Exception as error:
        reason = " ".join(str(error).split())
        return Finding("warning", name, f"it cannot be used: {reason:.300}", "engine.device=cpu trains without it")


def attention(wishes: Wishes) -> Iterator[Finding]:
    """Try the kernels that compute attention."""
    torch = needed("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    values = torch.ones(1, 2, 16, 8, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    torch.nn.functional.scaled_dot_product_attention(values, values, values)
    kernels = torch.nn.attention.SDPBackend
    running = [
        name for name, kernel in (("flash", kernels.FLASH_ATTENTION), ("memory-efficient", kernels.EFFICIENT_ATTENTION),
                                  ("cuDNN", kernels.CUDNN_ATTENTION), ("plain", kernels.MATH))
        if _runs(torch, kernel, values)
    ]  # fmt: skip
    yield Finding(
        "ok", "attention", f"sdpa works on {device}; kernels that take bfloat16 or float32 here: {', '.join(running)}"
    )
    if device == "cpu":
        yield Finding("absent", "xformers", "not used: it computes on CUDA alone, and sdpa gives the same")
        return
    try:
        operators = importlib.import_module("xformers.ops")
        operators.memory_efficient_attention(*[values.transpose(1, 2)] * 3)
        yield Finding("ok", "xformers", "network.attention=xformers works")
    except Exception as error:
        reason = " ".join(str(error).split())
        yield Finding("absent", "xformers", f"does not work here, and sdpa gives the same: {reason:.200}")


def _runs(torch: Any, kernel: Any, values: Any) -> bool:
    try:
        with torch.nn.attention.sdpa_kernel([kernel]):
            torch.nn.functional.scaled_dot_product_attention(values, values, values)
    except RuntimeError:
        return False
    return True


def compiler(wishes: Wishes) -> Iterator[Finding]:
    """Look for what torch.compile needs, and with `deep` compile something."""
    torch = needed("torch")
    found = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    use = "engine.compile=true, which engine=gpu sets"
    if found is None or shutil.which(found.split()[0]) is None:
        yield Finding("absent", "compiler", f"no C++ compiler, so {use}, does not work", "apt-get install g++")
    elif not header.exists():
        remedy = f"apt-get install python{sysconfig.get_python_version()}-dev"
        yield Finding("absent", "compiler", f"{found}, but no {header}, so {use}, does not work", remedy)
    elif not wishes.deep:
        yield Finding("ok", "compiler", f"{found} and Python's headers, for {use}; --deep tries it")
    else:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        values = torch.linspace(0.0, 1.0, 64, device=device)
        compiled = torch.compile(lambda x: torch.sin(x) * 2.0 + x)
        torch.testing.assert_close(compiled(values), torch.sin(values) * 2.0 + values)
        yield Finding("ok", "compiler", f"torch.compile works on {device}, with {found}")
