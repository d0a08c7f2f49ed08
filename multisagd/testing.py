"""Test your own modalities for conformance: `check_modality(modality, path)`.

It needs one real file of the medium, and uses only the methods of a modality. Each broken rule raises an AssertionError
that names the method, the expected behaviour and the reason.
"""

from __future__ import annotations

import pickle
import random
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multisagd.covariance import SpectralCovariance
from multisagd.grid import Grid
from multisagd.spectrum import Flat

LARGEST = 20.0
"""Maximum magnitude of encoded data. Data far beyond [-1, 1] hide noise of unit variance, so no schedule suits them."""


def check_modality(
    modality: Any, path: str | Path, tolerance: float | None = 1e-3, saved_tolerance: float | None = 0.3
) -> None:
    """Check the rules that training, sampling and datasets rely on, with one file of the modality.

    The checks are, in order: the grid and its units; loading, seeds and threads; shapes, dtypes and range of `encode`;
    masks; the round trip `encode(decode(x0))`; decoding of any model output; files written and read again; and errors
    for bad files.

    Args:
        modality: the modality to check.
        path: a valid file of its medium.
        tolerance: maximum error of the round trip, relative to the root mean square of x0; None if the modality loses
            more by design.
        saved_tolerance: maximum relative error of files written and read again; None if files lose more by design.

    Raises:
        AssertionError: If a rule is broken; the message names the method and the rule.
    """
    path = Path(path)
    grid = _check_grid(modality, path)
    x0 = _check_loading(modality, path, grid)
    _check_decoding(modality, x0, grid, tolerance)
    with tempfile.TemporaryDirectory() as folder:
        _check_files(modality, path, saved_tolerance, Path(folder))
        _check_errors(modality, path, Path(folder))


def _check_grid(modality: Any, path: Path) -> Grid:
    for name in ("channels", "suffixes", "grid", "load", "encode", "decode", "save", "mask", "save_grid", "in_buckets"):
        _require(hasattr(modality, name), f"the modality has no {name}: inherit from modalities.base.Modality")
    grid = modality.grid()
    _require(isinstance(grid, Grid), f"grid() must return a multisagd.Grid, got {type(grid).__name__}")
    _require(
        modality.grid() == grid,
        "grid() must return the same grid at every call: noise and statistics are defined on it",
    )
    channels = modality.channels
    _require(isinstance(channels, int) and channels >= 1, f"channels must be a positive integer, got {channels!r}")
    variables = getattr(modality, "variables", None)
    described = variables is None or len(variables) == channels
    _require(described, f"variables must describe each of {channels} channels, got {variables!r:.200}")
    suffixes = modality.suffixes
    valid = isinstance(suffixes, tuple) and suffixes and all(s == s.lower() and s.startswith(".") for s in suffixes)
    _require(valid, f'suffixes must be a tuple of lower-case endings such as (".wav",), got {suffixes!r}')
    _require(path.name.lower().endswith(suffixes), f"{path} has none of the modality's suffixes {suffixes}")
    _check_buckets(modality, grid)
    return grid


def _check_buckets(modality: Any, grid: Grid) -> None:
    sizes = modality.in_buckets()
    _require(sizes[0].grid() == grid, "in_buckets() must begin with the modality's own size, that of grid()")
    for each in sizes:
        alike = each.channels == modality.channels and len(each.grid().shape) == grid.dimensions
        alike = alike and each.grid() == grid.resize(each.grid().shape)
        _require(alike, f"in_buckets() must differ in size only, but {each} has other channels, axes or spacing")


def _check_loading(modality: Any, path: Path, grid: Grid) -> Tensor:
    def encoded(seed: int | None) -> Tensor:
        return modality.encode(modality.load(path, seed))

    before = _global_state()
    loaded = {seed: encoded(seed) for seed in (None, 0, 1, 2)}
    _require(
        before == _global_state(), "load and encode must draw from seeds only, but changed a global random generator"
    )
    for seed, x0 in loaded.items():
        _check_tensor(x0, (modality.channels, *grid.shape), f"encode(load(path, seed={seed}))")
        _require(torch.equal(x0, encoded(seed)), f"load(path, seed={seed}) must give the same result each time")
        largest = float(x0.abs().max())
        _require(largest <= LARGEST, f"encode must return values of about [-1, 1], got one of magnitude {largest:.3g}")
        _check_mask(modality, modality.load(path, seed), grid)
    with ThreadPoolExecutor(4) as pool:
        for seed, x0 in zip([None, 0, 1, 2] * 2, pool.map(encoded, [None, 0, 1, 2] * 2), strict=True):
            _require(torch.equal(x0, loaded[seed]), "load and encode must give equal results in several threads")
    return loaded[None]


def _check_mask(modality: Any, media: Any, grid: Grid) -> None:
    mask = modality.mask(media)
    if mask is None:
        return
    one, every = (1, *grid.shape), (modality.channels, *grid.shape)
    valid = isinstance(mask, Tensor) and mask.dtype == torch.bool and tuple(mask.shape) in (one, every)
    actual = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
    shapes = f"{one}" if one == every else f"{one}, or {every} if channels differ"
    _require(valid, f"mask must return None or bool of shape {shapes}, got {actual}")
    _require(bool(mask.any()), "mask excludes all of this file: load should have refused it")


def _check_decoding(modality: Any, x0: Tensor, grid: Grid, tolerance: float | None) -> None:
    kept = x0.clone()
    again = modality.encode(modality.decode(x0))
    _require(torch.equal(x0, kept), "decode must not change its argument")
    _check_tensor(again, tuple(x0.shape), "encode(decode(x0))")
    _check_near(again, x0, tolerance, "encode(decode(x0)) must equal x0")
    # An untrained model may generate anything: noise, and values far outside the range.
    noise = SpectralCovariance(Flat(), grid).sample([0], modality.channels)[0]
    _check_tensor(modality.encode(modality.decode(5 * noise)), tuple(x0.shape), "encode(decode(noise))")
    broken = x0.clone()
    broken.view(-1)[0] = float("nan")
    _require_raises(lambda: modality.decode(broken), "decode of a tensor with NaN", ValueError)


def _check_files(modality: Any, path: Path, tolerance: float | None, folder: Path) -> None:
    media = modality.decode(modality.encode(modality.load(path)))
    saved = folder / "new" / "deeper" / f"example{modality.suffixes[0]}"
    modality.save(media, saved)
    _require(saved.is_file(), f"save must create folders and write {saved.name} into them, but the file is missing")
    again = modality.encode(modality.load(saved))
    x0 = modality.encode(media)
    _check_tensor(again, tuple(x0.shape), "what was saved, loaded and encoded again")
    _check_near(again, x0, tolerance, "encode(load(what save wrote)) must equal what was saved")
    image = folder / "images" / "grid.png"
    modality.save_grid([media, media, media], image)
    with image.open("rb") as file:
        _require(file.read(8) == b"\x89PNG\r\n\x1a\n", "save_grid must write a PNG, but the file is not a PNG")


def _check_errors(modality: Any, path: Path, folder: Path) -> None:
    ending = max((suffix for suffix in modality.suffixes if path.name.lower().endswith(suffix)), key=len)
    _require_raises(lambda: modality.load(folder / f"missing{ending}"), "load of a file that does not exist")
    contents = {"empty": b"", "garbage": bytes(random.Random(0).randbytes(5000)), "text": b"hello, this is text\n" * 50}
    for name, content in contents.items():
        bad = folder / f"{name}{ending}"
        bad.write_bytes(content)
        _require_raises(lambda bad=bad: modality.load(bad), f"load of a file with {name} content")  # type: ignore[misc]
    copy = folder / f"copy with spaces, ünïcode{ending}"
    shutil.copyfile(path, copy)
    _require(
        torch.equal(modality.encode(modality.load(copy, 3)), modality.encode(modality.load(path, 3))),
        "random choices in load must depend on the seed only, but a copy of the file gives a different result",
    )


def _check_tensor(x: Any, shape: tuple[int, ...], what: str) -> None:
    _require(isinstance(x, Tensor), f"{what} must be a tensor, got {type(x).__name__}")
    actual = f"{x.dtype} {tuple(x.shape)} on {x.device.type}"
    valid = x.dtype == torch.float32 and tuple(x.shape) == shape and x.device.type == "cpu"
    _require(valid, f"{what} must be float32 of shape {shape} on the CPU, got {actual}")
    _require(bool(torch.isfinite(x).all()), f"{what} must be finite, but contains NaN or infinity")


def _check_near(again: Tensor, x0: Tensor, tolerance: float | None, what: str) -> None:
    if tolerance is None:
        return
    error, size = float((again - x0).square().mean().sqrt()), float(x0.square().mean().sqrt())
    _require(
        error <= tolerance * size,
        f"{what} within a relative error of {tolerance:g}, but the error is {error / max(size, 1e-30):.3g}",
    )


def _global_state() -> tuple[bytes, bytes, object]:
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - the global generator must not change
    return torch.get_rng_state().numpy().tobytes(), pickle.dumps(numpy_state), random.getstate()


def _require_raises(call: Callable[[], Any], what: str, kind: type[Exception] = Exception) -> None:
    try:
        call()
    except kind as error:
        _require(
            bool(str(error)), f"{what} must raise an error with a message, but the {type(error).__name__} has none"
        )
        return
    except Exception as error:  # an error of the wrong type
        raise AssertionError(f"{what} must raise {kind.__name__}, got {type(error).__name__}: {error}") from error
    raise AssertionError(f"{what} must raise {kind.__name__}, but nothing was raised")


def _require(holds: object, rule: str) -> None:
    # Not an assert statement, which `python -O` omits.
    if not holds:
        raise AssertionError(rule)
