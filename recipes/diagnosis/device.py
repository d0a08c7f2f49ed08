"""Check computation: a training step, CPU, GPUs, attention, and torch.compile."""

import os
import re
from pathlib import Path

import torch

import multisagd as ms
from multisagd.networks.attention import attend
from recipes.diagnosis.check import Finding, summary

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def training_step() -> Finding:
    """Draw coloured noise, whiten it, and run one training step."""
    covariance = ms.SpectralCovariance(ms.PowerLaw(-1.0), ms.Grid.of(height=8, width=8))
    noise = covariance.sample([0, 1], 1)
    torch.testing.assert_close(covariance.color(covariance.whiten(noise)), noise, atol=1e-4, rtol=0.0)
    network = ms.networks.UNet(channels=1, dimensions=2, width=8, multipliers=[1])
    before = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    denoiser = ms.Denoiser(network, ms.Process(ms.CosineSchedule(), covariance))
    denoiser.loss(noise, torch.tensor([0.3, 0.6]), seeds=[2, 3]).mean().backward()
    torch.optim.AdamW(network.parameters()).step()
    after = torch.nn.utils.parameters_to_vector(network.parameters())
    if torch.equal(after, before) or not after.isfinite().all():
        return Finding("broken", "a training step leaves the weights unchanged, or makes them non-finite")
    return Finding("ok", "noise is coloured and whitened, and a training step changes the weights")


def cpu() -> Finding:
    """Compare PyTorch's threads with the cores available to this process under the system's and container's limits."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = Path("/sys/fs/cgroup/cpu.max")
    quota, _, period = (limit.read_text() if limit.exists() else "max").partition(" ")
    cores = max(1, min(cores, round(int(quota) / int(period)))) if quota.isdigit() else cores
    threads = torch.get_num_threads()
    message = f"{cores} cores, {torch.backends.cpu.get_cpu_capability()}; PyTorch uses {threads} threads"
    return Finding("warning", message, f"engine.threads={cores}") if threads > cores else Finding("ok", message)


def gpus() -> Finding:
    """Compute on every GPU that PyTorch can use, or report why no GPU can be used."""
    file = Path("/proc/driver/nvidia/version")
    driver = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", file.read_text() if file.exists() else "")
    described = [f"NVIDIA driver {driver[0]}"] if driver else []
    if driver and not torch.cuda.is_available():
        message = f"{described[0]}, but PyTorch for CUDA {torch.version.cuda} finds no GPU"
        remedy = (
            "install PyTorch for a CUDA version that nvidia-smi shows as supported: https://pytorch.org/get-started"
        )
        return Finding("warning", message, remedy)
    for number in range(torch.cuda.device_count()):
        properties, (free, total) = torch.cuda.get_device_properties(number), torch.cuda.mem_get_info(number)
        memory, capability = (
            f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free",
            f"{properties.major}.{properties.minor}",
        )
        described.append(f"{properties.name}, {memory}, compute capability {capability}")
        product = torch.ones(64, 64, device=f"cuda:{number}") @ torch.ones(64, 64, device=f"cuda:{number}")
        if float(product.sum()) != 64.0**3 or float(torch.fft.rfft2(product)[0, 0].real) != 64.0**3:
            return Finding("broken", f"{'; '.join(described)}: this GPU computes wrong results", "engine.device=cpu")
    if described:
        return Finding("ok", "; ".join(described))
    return Finding("absent", "no CUDA GPU; training runs on the CPU, which suits only small models")


def attention(backend: str) -> Finding:
    """Compare an attention backend with softmax(q kᵀ / √features) v written out in double precision."""
    if backend == "xformers" and not torch.cuda.is_available():
        return Finding("absent", "xformers requires CUDA; sdpa gives the same results")
    query, key, value = torch.randn(3, 2, 16, 4, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    result = attend(query, key, value, backend, strict=True)
    scores = torch.einsum("bqhf,bkhf->bhqk", query.double(), key.double()) / 32**0.5
    reference = torch.einsum("bhqk,bkhf->bqhf", scores.softmax(-1), value.double())
    torch.testing.assert_close(result.double(), reference, atol=1e-2, rtol=0.0)  # as precise as TF32
    return Finding("ok", f"agrees with the reference on {DEVICE}")


def compiler() -> Finding:
    """Compile a function with torch.compile, which requires a C++ compiler and Python's headers, and takes minutes."""
    values = torch.linspace(0.0, 1.0, 64, device=DEVICE)
    try:
        result = torch.compile(lambda x: torch.sin(x) * 2.0 + x)(values)
    except Exception as error:  # each compiler backend raises its own errors
        message = f"engine.compile=true, which engine=gpu sets, does not work: {summary(error)}"
        return Finding("absent", message, "apt-get install g++ python3-dev")
    torch.testing.assert_close(result, torch.sin(values) * 2.0 + values)
    return Finding("ok", f"torch.compile works on {DEVICE}")
