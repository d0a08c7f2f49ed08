"""Autoencoders from any library, which convert data on a grid to smaller latents on a coarser grid and back.

`Autoencoder` is a protocol of two methods. `DiffusersAutoencoder` implements it for every autoencoder of the
diffusers library (images, videos, waveforms); any other class with these methods works too.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from modalities.hub import offline_hub
from multisagd.libraries import importing
from multisagd.logs import quiet

PER_FRAME = ("AutoencoderKLTemporalDecoder",)
"""Classes that encode frame by frame but decode all frames of a clip together."""

WEIGHTS = re.compile(r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors")
"""Names of the files that diffusers loads weights from."""

CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


class Autoencoder(Protocol):
    """Encodes and decodes batches of data with values approximately in [-1, 1].

    Both methods return float32, and use neither randomness nor gradients. The autoencoder's settings are stored next to
    the latents and compared before the latents are used, so it should be a frozen dataclass. If it has a `fingerprint`
    (a string), that is compared too: it can identify weights that may change.

    It must be thread-safe. If it accepts tensors on torch's `meta` device, shapes are known before weights are
    loaded; otherwise zeros are encoded to find the shapes.
    """

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents `(batch, latent channels, *latent grid)` of data `(batch, channels, *grid)`."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Decode latents `(batch, latent channels, *latent grid)` to data `(batch, channels, *grid)`."""
        ...


@dataclass(frozen=True)
class DiffusersAutoencoder(Autoencoder):
    """A pretrained diffusers autoencoder: `name` is a model id on the Hub or a local folder, `kind` its class.

    `kind` is VQModel, or any class whose name begins with "Autoencoder". Latents are the mode of the posterior if there
    is one. If there is a codebook, latents are not quantised until they are decoded. Weights are read when first
    needed, and only from safetensors; `dtype` and `device` (auto: a GPU if there is one) determine how the model runs.
    An image autoencoder is applied to each frame of a video, and a video autoencoder treats an image as a single frame.
    If `trusted` is False, because the name came with another person's model, it is looked up on this machine only.

    Raises:
        ValueError: If diffusers has no such class, the folder does not exist, or diffusers is not installed.
    """

    name: str
    kind: str = "AutoencoderKL"
    subfolder: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", compare=False)
    device: str = field(default="auto", compare=False)
    trusted: bool = field(default=True, compare=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be one of float32, bfloat16, float16; got {self.dtype!r}")
        _diffusers_class(self.kind)
        local = bool(self.name) and Path(self.name).expanduser().is_dir()
        if not local and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", self.name):
            raise ValueError(
                f"{self.name!r} is neither a folder nor a model id on the Hub such as stabilityai/sd-vae-ft-mse: "
                "set name to the folder that holds the autoencoder's config.json"
            )

    def encode(self, x: Tensor) -> Tensor:
        """Encode data as latents; see `Autoencoder`.

        Raises:
            ValueError: If the weights cannot be loaded, or the model does not support the grid's number of dimensions.
        """
        fitted, undo = self._fit(x)
        output = self._call("encode", fitted)
        if hasattr(output, "latent_dist"):
            z = output.latent_dist.mode()
        else:
            z = output.latents if hasattr(output, "latents") else output.latent
        return undo(z).to(x.device, torch.float32)

    def decode(self, z: Tensor) -> Tensor:
        """Decode latents to data; see `Autoencoder`.

        Raises:
            ValueError: If the weights cannot be loaded, or the model does not support the grid's number of dimensions.
        """
        fitted, undo = self._fit(z)
        options = {"num_frames": len(fitted) // len(z)} if self.kind in PER_FRAME else {}
        return undo(self._call("decode", fitted, **options).sample).to(z.device, torch.float32)

    @cached_property
    def fingerprint(self) -> str | None:
        """A hash of the weights in a local folder; None for a model on the Hub.

        A model on the Hub is identified by `name` and `revision`.
        """
        folder = Path(self._path, self.subfolder or "")
        files = sorted(path for path in folder.glob("*.safetensors") if WEIGHTS.fullmatch(path.name))
        digest = hashlib.sha256()
        for path in files:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest() if files else None

    def __getstate__(self) -> dict[str, Any]:
        # Copies and other processes load their own weights; a lock can be neither copied nor pickled.
        return {setting.name: getattr(self, setting.name) for setting in dataclasses.fields(self) if setting.init}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    @torch.no_grad()
    def _call(self, method: str, x: Tensor, **options: Any) -> Any:
        # Causal autoencoders store features of earlier frames while they process a clip.
        with self._lock:
            if x.is_meta:
                return getattr(self._outline, method)(x, **options)
            return getattr(self._model, method)(x.to(self._model.device, getattr(torch, self.dtype)), **options)

    def _fit(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return a batch with the model's number of dimensions, and a function that converts the output back."""
        own = next(CONVOLUTIONS[k] for m in self._outline.modules() for k in CONVOLUTIONS if isinstance(m, k))
        dimensions = x.ndim - 2
        if dimensions == own:
            return x, lambda output: output
        if (dimensions, own) == (3, 2):
            frames = x.shape[2]
            return x.transpose(1, 2).flatten(0, 1), lambda output: output.unflatten(0, (-1, frames)).transpose(1, 2)
        if (dimensions, own) == (2, 3):
            return x.unsqueeze(2), lambda output: output.squeeze(2)
        raise ValueError(f"{self.kind} works on grids of {own} dimensions, but this grid has {dimensions}")

    @cached_property
    def _outline(self) -> nn.Module:
        """The model built from its configuration, without weights, on the meta device."""
        kind = _diffusers_class(self.kind)
        try:
            with offline_hub(not self.trusted):
                config = kind.load_config(self._path, subfolder=self.subfolder, revision=self.revision)
        except (OSError, ValueError) as error:
            fetched = f"; models that a run names are not downloaded automatically, so run: {self._download}"
            raise ValueError(
                f"cannot read the configuration of the autoencoder {self._location} ({_first_line(error)}): "
                f"check name, subfolder and revision{'' if self.trusted else fetched}"
            ) from error
        if (written := config.get("_class_name", self.kind)) != self.kind:
            raise ValueError(f"{self._location} holds an {written}: set kind={written}")
        # Weights are initialised before they are loaded; this must not change the global random state.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            # Some constructors put a tensor on the CPU regardless of the context.
            return kind.from_config(config).eval().to("meta")

    @cached_property
    def _model(self) -> Any:
        """The model with its weights, ready to run."""
        kind = type(self._outline)
        try:
            with torch.random.fork_rng(devices=[]), offline_hub(not self.trusted):
                model, report = kind.from_pretrained(  # type: ignore[attr-defined]
                    self._path, subfolder=self.subfolder, revision=self.revision,
                    torch_dtype=getattr(torch, self.dtype),
                    use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True,
                )  # fmt: skip
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"cannot load the weights of the autoencoder {self._location} as {self.kind} ({_first_line(error)}): "
                "they must be complete and in safetensors, since other formats can execute code"
            ) from error
        if report["missing_keys"]:
            raise ValueError(
                f"the weights of the autoencoder {self._location} lack {len(report['missing_keys'])} tensors of an "
                f"{self.kind}, such as {sorted(report['missing_keys'])[0]}: set kind to the class that wrote them"
            )
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return model.eval().requires_grad_(False).to(device)

    @property
    def _path(self) -> str:
        local = Path(self.name).expanduser()
        return str(local) if local.is_dir() else self.name

    @property
    def _download(self) -> str:
        return f"hf download {self.name}{f' --revision {self.revision}' if self.revision else ''}"

    @property
    def _location(self) -> str:
        return self.name if self.subfolder is None else f"{self.name} (subfolder {self.subfolder})"


def _diffusers_class(kind: str) -> Any:
    """Return the diffusers autoencoder class with this name; no other class of that library is accepted."""
    # Importing diffusers takes seconds and prints warnings about xformers.
    named = kind.startswith("Autoencoder") or kind == "VQModel"
    with importing("diffusers", "autoencoders"), quiet("xformers"):
        import diffusers

        # diffusers imports its classes on first access.
        candidate = getattr(diffusers, kind, None) if named else None
    if isinstance(candidate, type) and issubclass(candidate, diffusers.ModelMixin):
        return candidate
    known = [name for name in dir(diffusers) if name.startswith("Autoencoder") or name == "VQModel"]
    close = difflib.get_close_matches(kind, known, n=1, cutoff=0.0)
    raise ValueError(f"diffusers {diffusers.__version__} has no autoencoder {kind!r}; did you mean {close[0]!r}?")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True)
class Identity(Autoencoder):
    """An autoencoder that changes nothing.

    With it, `multisagd encode` stores the data after reading and cropping, which makes training faster.
    """

    def encode(self, x: Tensor) -> Tensor:
        """Return the tensor unchanged."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Return the tensor unchanged."""
        return z
