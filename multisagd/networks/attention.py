"""Compute attention over the samples of a grid, with two backends, and rotary positions for any number of axes."""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multisagd.libraries import BrokenLibraryError, importing
from multisagd.logs import quiet

BACKENDS = ("sdpa", "xformers")

_logger = logging.getLogger("multisagd")
_reported: set[str] = set()
_imported: dict[str, Any] = {}


def attend(
    query: Tensor, key: Tensor, value: Tensor, backend: str = "sdpa", strict: bool = False, mask: Tensor | None = None
) -> Tensor:
    """Compute softmax attention, `softmax(q kᵀ / √features) v`; inputs and output are (batch, tokens, heads, features).

    `mask`, bool (batch, keys), is true for the keys to attend to, at least one per item. If there is a mask, "sdpa" is
    used.

    The backend "sdpa" is PyTorch's own and runs everywhere. "xformers" runs on CUDA. On other devices, if xformers is
    not installed, or for inputs that its kernels do not support, "sdpa" computes the same result instead, and a log
    message gives the reason.

    Raises:
        RuntimeError: If "xformers" cannot be used and `strict` is true, instead of falling back.
        ValueError: If the backend is unknown.
    """
    check_backend(backend, strict)
    if backend == "xformers" and mask is None:
        if query.device.type != "cuda":
            _fall_back(f"xformers has no attention for {query.device.type} tensors", strict)
        elif (kernels := _xformers()) is not None:
            try:
                return kernels.memory_efficient_attention(query, key, value)
            except NotImplementedError:  # raised if it finds no kernel, before any computation
                shape = f"{query.dtype} with {query.shape[-1]} features per head"
                _fall_back(f"xformers has no attention for {shape} on this device", strict)
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    allowed = None if mask is None else mask[:, None, None, :]
    return F.scaled_dot_product_attention(query, key, value, allowed).transpose(1, 2)


def check_backend(backend: str, strict: bool = False) -> None:
    """Check, without data, that a backend works.

    If it does not, log that "sdpa" is used instead, or raise an error, as `attend` does.

    Raises:
        ValueError: If the backend is unknown.
        RuntimeError: If xformers is requested with `strict` and cannot be imported.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if backend == "xformers" and _xformers() is None:
        _fall_back(_imported["failure"], strict)


def _xformers() -> Any | None:
    # A plain dictionary, because compiled graphs can read it, but cannot trace an import.
    if "ops" not in _imported:
        _imported["ops"] = _import_xformers()
    return _imported["ops"]


def _import_xformers() -> Any | None:
    # Importing is slow and prints warnings, so it is done only on request.
    try:
        with quiet("xformers"), warnings.catch_warnings(), importing("xformers", "attention=xformers"):
            warnings.simplefilter("ignore")
            return importlib.import_module("xformers.ops")
    except BrokenLibraryError as error:
        _imported["failure"] = str(error)
        return None


def _fall_back(reason: str, strict: bool) -> None:
    if strict:
        raise RuntimeError(f'{reason}. Alternatively, set attention="sdpa", or strict=False to fall back to it')
    if reason not in _reported:
        _reported.add(reason)
        _logger.warning("%s: attention falls back to sdpa, which gives the same result", reason)


def rotary_positions(
    sizes: Sequence[int],
    features: int,
    base: float = 100.0,
    device: torch.device | None = None,
    periodic: Sequence[bool] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of axial rotary positions, both (tokens, features / 2) (2104.09864, 2403.13298).

    Tokens are the positions of a grid of these sizes, with the last axis varying fastest. The pairs of features are
    divided evenly among the axes, and the first axes get the remainder. The angles per position of an axis's pairs form
    a geometric series from 1 to nearly 1 / base radians. Along a `periodic` axis they are rounded to whole turns around
    the axis, at least one, so that its two ends are neighbours.

    Raises:
        ValueError: If `features` is odd, or there are more axes than pairs of features.
    """
    places = [torch.arange(size, dtype=torch.float32, device=device) for size in sizes]
    return rotary_positions_at(places, sizes, features, base, periodic)


def rotary_positions_at(
    places: Sequence[Tensor],
    sizes: Sequence[int],
    features: int,
    base: float = 100.0,
    periodic: Sequence[bool] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `rotary_positions`, dimensionless, of tokens at these `places` (count,) along each axis, in whole tokens.

    A place may lie between two tokens of the grid of these sizes. The result is (tokens, features / 2) twice.

    Raises:
        ValueError: If `features` is odd, or there are more axes than pairs of features.
    """
    pairs, odd = divmod(features, 2)
    if odd or pairs < len(sizes):
        raise ValueError(
            f"rotary positions need an even number of features per head, at least {2 * len(sizes)} for "
            f"{len(sizes)} axes; got {features}: increase the width or use fewer heads"
        )
    angles, counts = [], [len(place) for place in places]
    for axis, (place, size) in enumerate(zip(places, sizes, strict=True)):
        count = pairs // len(sizes) + (axis < pairs % len(sizes))
        rates = base ** -(torch.arange(count, dtype=torch.float32, device=place.device) / count)
        if periodic is not None and periodic[axis]:
            rates = (rates * size / math.tau).round().clamp(min=1) * (math.tau / size)
        along = place[:, None] * rates
        shape = [len(place) if other == axis else 1 for other in range(len(sizes))]
        angles.append(along.reshape(*shape, count).expand(*counts, count))
    table = torch.cat(angles, dim=-1).reshape(math.prod(counts), pairs)
    return table.cos(), table.sin()


def rotate(x: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs of features (batch, tokens, heads, features) by an angle per token, given by `rotary_positions`.

    After rotating queries and keys, their products depend only on differences between positions. The rotation is
    computed in at least float32 and preserves lengths.
    """
    cosine, sine = (table[:, None, :] for table in positions)
    wide = torch.promote_types(x.dtype, torch.float32)
    first, second = x.to(wide).chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(x.dtype)


class SelfAttention(nn.Module):
    """Apply multi-head self-attention with normalised queries and keys to tokens (batch, tokens, width).

    Queries and keys are divided by their root mean square and multiplied by a gain per feature (2302.05442), so no
    logit exceeds √features times the gains: attention cannot saturate, and training stays stable in half precision.

    Raises:
        ValueError: If `heads` does not divide `width`, or the backend is unknown.
        RuntimeError: If `strict` is true and the backend does not work.
    """

    def __init__(self, width: int, heads: int, backend: str = "sdpa", strict: bool = False) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide the attention width, got {heads} heads for a width of {width}")
        check_backend(backend, strict)
        self.heads, self.backend, self.strict = heads, backend, strict
        self.qkv = nn.Linear(width, 3 * width)
        self.query_gain = nn.Parameter(torch.ones(width // heads))
        self.key_gain = nn.Parameter(torch.ones(width // heads))
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, positions: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Let every token attend to all tokens: features `(batch, tokens, width)` in and out.

        `positions`, from `rotary_positions`, encode relative positions.
        """
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).unbind(2)
        query, key = normalize(query, self.query_gain), normalize(key, self.key_gain)
        if positions is not None:
            query, key = rotate(query, positions), rotate(key, positions)
        return self.out(attend(query, key, value, self.backend, self.strict).flatten(2))


def normalize(x: Tensor, gain: Tensor) -> Tensor:
    """Divide the last dimension of x by its root mean square and multiply it by a gain `(features,)`.

    The result is shaped like x.
    """
    # Under autocast the features have half precision and the gain does not; the fused kernel needs a single dtype.
    return F.rms_norm(x, gain.shape, gain.to(x.dtype), eps=1e-6)
