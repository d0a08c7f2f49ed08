"""Public functions take numbers of any kind, and refuse times outside of [0, 1], complex data and impossible seeds."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import multisagd as ms
from multisagd.inputs import as_data, as_times
from multisagd.integrations import KarrasDenoiser
from multisagd.omission import ProjectedDenoiser
from tests.helpers import dense
from tests.helpers.refusals import assert_refused

GRID = ms.Grid.of(height=4, width=5)
SHAPE = (2, 1, 4, 5)
SEEDS = [0, 1]
STATISTICS = dense.stationary(dense.power_law(GRID), GRID)
PROCESS = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.3), GRID))
BAND = ms.Corruption(ms.Band(0.3, 0.5), GRID, 0.1)
X = dense.random(*SHAPE).float()


class Half(nn.Module):
    """A network that halves its input, and needs one noise level for each item."""

    def forward(self, x: torch.Tensor, log_snr: torch.Tensor, condition: Any = None) -> torch.Tensor:
        assert log_snr.shape == (len(x),)
        return x / 2


def build(covariance: ms.SpectralCovariance = PROCESS.covariance, modulation: Any = None) -> ms.Process:
    return ms.Process(PROCESS.schedule, covariance, modulation)


FLOOR = ms.NoiseFloor(PROCESS.schedule, PROCESS.covariance, BAND)
BLURRED = build(modulation=ms.Blur(1.0))
DENOISER = ms.Denoiser(Half(), PROCESS)
KARRAS = ms.Denoiser(Half(), PROCESS, preconditioning="karras", statistics=STATISTICS)
SPECTRAL = ms.Denoiser(Half(), PROCESS, preconditioning="spectral", statistics=STATISTICS)
OMITTING = ProjectedDenoiser(Half(), build(ms.SpectralCovariance(ms.Outside(ms.Band(0.3, 0.5)), GRID)))
RESTORING = ms.RestoringDenoiser(Half(), build(modulation=FLOOR), BAND, STATISTICS)
ORACLE = ms.GaussianDenoiser(PROCESS, STATISTICS)
POOLED = ms.Pooled({"height": 2}, GRID)
INTEGERS = torch.tensor([[0, 1, -2, 3, 1], [2, 1, 0, -1, 1], [0, 0, 1, 1, 2], [1, 2, 3, 1, 0]]).expand(SHAPE)
NOISE = PROCESS.noise(SHAPE, SEEDS)
COVARIANCE = PROCESS.covariance
OF_DATA_AND_TIME: dict[str, Callable[[torch.Tensor, Any], Any]] = {
    "add_noise": lambda x, t: PROCESS.add_noise(x, t, NOISE[: len(x)]),
    "posterior": lambda x, t: PROCESS.posterior(x, x, t, 0.0)[0],
    "to_x0": lambda x, t: PROCESS.to_x0(x, x, t, "score"),
    "from_x0": lambda x, t: PROCESS.from_x0(x, x, t, "score"),
    "blurred process": lambda x, t: BLURRED.add_noise(x, t, NOISE[: len(x)]),
    "denoiser": DENOISER,
    "denoiser, Karras": KARRAS,
    "denoiser, spectral": SPECTRAL,
    "oracle": ORACLE,
    "DPS": lambda x, t: ms.DPS(ORACLE, POOLED, x[:, :, ::2], 0.1)(x, t),
    "PiGDM": lambda x, t: ms.PiGDM(ORACLE, POOLED, x[:, :, ::2], 0.1, 0.5)(x, t),
    "error": lambda x, t: DENOISER.error(x, t, NOISE[: len(x)]),
    "loss": lambda x, t: DENOISER.loss(x, t, SEEDS),
    "projected": lambda x, t: OMITTING.loss(x, t, SEEDS),
    "restoring": lambda x, t: RESTORING.loss(x, t, SEEDS),
    "noised": lambda x, t: RESTORING.training_pair(x, t, NOISE)[0],
}
OF_TIME: dict[str, Callable[[Any], Any]] = {
    "log_snr": ms.FlowSchedule().log_snr,
    "alpha_sigma": ms.KarrasSchedule().alpha_sigma,
    "coefficients": lambda t: PROCESS.coefficients(t, X),
    "posterior, to": lambda t: PROCESS.posterior(X, X, 1.0, t)[0],
    "blur": lambda t: ms.Blur(1.0)(t, GRID),
    "colour shift": lambda t: ms.ColorShift(ms.Flat(), ms.PowerLaw(0.3))(t, GRID),
    "prefilter": lambda t: ms.Prefilter(ms.PowerLaw(0.3))(t, GRID),
    "noise floor": lambda t: FLOOR(t, GRID),
    "weigh": lambda t: DENOISER.weigh(X, t, weighting=ms.MinSNR()),
    "x0_error": lambda t: DENOISER.x0_error(X, t),
    "guidance": lambda t: ms.ClassifierFree(ORACLE, 2.0, (-5.0, 5.0))(X, t, torch.zeros(2)),
    **{name: lambda t, call=call: call(X, t) for name, call in OF_DATA_AND_TIME.items()},
}
OF_DATA: dict[str, Callable[[torch.Tensor], Any]] = {
    "color": COVARIANCE.color,
    "whiten": COVARIANCE.whiten,
    "apply": COVARIANCE.apply,
    "solve": COVARIANCE.solve,
    "project": COVARIANCE.project,
    "white": ms.SpectralCovariance(ms.Flat(), GRID).color,
    "mahalanobis": COVARIANCE.mahalanobis,
    "Karras": lambda x: KarrasDenoiser(ORACLE)(x, 0.5),
    "squared error": lambda x: ms.loss.squared_error(x, COVARIANCE, "mahalanobis"),
    "penalty": lambda x: ms.SpectralPenalty()(x, x + 1, GRID),
    "statistics": lambda x: ms.DataStatistics.measure([x], GRID).power,
    "corrupt": lambda x: BAND.corrupt(x, SEEDS),
    "likelihood": lambda x: ms.log_likelihood(ORACLE, x, steps=2, seeds=SEEDS),
    "u_turn": lambda x: ms.u_turn(ORACLE, ms.DDIM(), x, 0.5, 2, SEEDS),
    "initial": lambda x: ms.sample(ORACLE, ms.DDIM(), SHAPE, 2, SEEDS, initial=x),
    "mix": lambda x: ms.mix_noise(x, NOISE, ms.LowPass(0.2), GRID),
    "mixed": lambda x: ms.mix_noise(NOISE, x, ms.LowPass(0.2), GRID),
    "blur": ms.Filtered.gaussian(1.0, GRID).apply,
    "pool": POOLED.apply,
    "mask": lambda x: ms.Masked(torch.ones(GRID.shape), GRID).apply(x),
    "posterior mean": ms.GaussianPosterior(STATISTICS, ms.Filtered.gaussian(1.0, GRID), 0.1).mean,
    **{name: lambda x, call=call: call(x, 0.5) for name, call in OF_DATA_AND_TIME.items()},
}
WRONG_TIMES: list[tuple[Any, str]] = [
    (torch.tensor([3, 743]), r"from 0 to 1, got torch.int64: diffusers' timestep i of 1,000 is the time"),
    (torch.zeros(2, dtype=torch.int32), "got torch.int32"),
    (torch.tensor([True, False]), "got torch.bool"),
    (torch.tensor([3.0, 743.0]), r"must lie between 0 \(the data\) and 1 \(the noise\), got 3 to 743: diffusers'"),
    (torch.tensor([0.5, -1e-3], dtype=torch.float64), "got -0.001 to 0.5"),
    (torch.tensor([0.5, float("nan")]), "got nan"),
    (torch.tensor(1.5), "got 1.5"),
    (2, "got 2: "),
    (999.0, "got 999"),
    (float("nan"), "got nan"),
    (np.int64(17), "got 17"),
    ("noon", "times must be numbers from 0 to 1, got 'noon'"),
]
ONE_TIME: list[Any] = [
    0.25, np.float32(0.25), torch.tensor(0.25, dtype=torch.float16), torch.tensor([0.25]), np.array([0.25, 0.25])
]  # fmt: skip


@pytest.mark.parametrize("name", OF_TIME)
def test_functions_of_time_take_any_number_and_refuse_what_is_not_a_time(name):
    call = OF_TIME[name]
    call(torch.tensor([0.0, 0.5 if name == "posterior, to" else 1.0]))
    expected = call(torch.tensor([0.25, 0.25], dtype=torch.float64))
    for number in ONE_TIME:
        result = call(number)
        if isinstance(expected, torch.Tensor):
            result = result.double().expand(expected.shape)
            torch.testing.assert_close(result, expected.double(), rtol=1e-3, atol=1e-5)
    for wrong, message in WRONG_TIMES:
        with pytest.raises(ValueError, match=message):
            call(wrong)


@given(st.floats(0, 1), st.sampled_from([torch.float64, torch.float32]))
def test_as_times_returns_valid_times_unchanged(t, dtype):
    times = torch.tensor([t], dtype=dtype)
    assert as_times(times) is times
    assert float(as_times(t)) == t
    for end in (0, 1):
        assert torch.equal(as_times(end), torch.tensor(float(end), dtype=torch.float64))


def test_as_times_reads_no_values_where_that_would_stall_or_break():
    for time in (as_times, ms.CosineSchedule().log_snr):
        assert time(torch.empty(3, device="meta")).shape == (3,)
        torch.func.vmap(time)(torch.rand(3))
        torch.func.vmap(torch.func.grad(time))(torch.rand(3))
        torch.compile(time, backend="eager", fullgraph=True)(torch.rand(3))
        assert time(torch.empty(0)).shape == (0,)
    with pytest.raises(ValueError, match=r"got torch\.int64"):
        as_times(torch.zeros(3, dtype=torch.int64, device="meta"))


def test_sampling_refuses_timesteps():
    sample, timesteps = partial(ms.sample, ORACLE, ms.DDIM(), SHAPE, 2, SEEDS), torch.tensor([999, 500, 0])
    assert_refused(
        ("int64", lambda: sample(times=timesteps)),
        ("got 0 to 999", lambda: sample(times=timesteps.float())),
        ("must start at a time in", lambda: ms.u_turn(ORACLE, ms.DDIM(), X, 500, 2, SEEDS)),
        ("got 500", lambda: ms.u_turn_correlation(PROCESS, STATISTICS, 500)),
        ("got 500", lambda: ms.terminal_snr(PROCESS, STATISTICS, time=500)),
        ("got 500", lambda: PROCESS.prior(SHAPE, SEEDS, start=500)),
    )
    assert torch.equal(PROCESS.prior(SHAPE, SEEDS, start=1), PROCESS.prior(SHAPE, SEEDS))


EMPTY = torch.empty(0, *SHAPE[1:])
NEEDS_ITEMS = {"loss", "restoring", "projected", "statistics", "corrupt", "likelihood", "u_turn", "initial", "noised"}
NEEDS_ITEMS |= {"mix", "mixed"}


@pytest.mark.parametrize("name", OF_DATA)
def test_functions_of_data_take_every_real_dtype_and_empty_batches(name):
    call = OF_DATA[name]
    expected = call(INTEGERS.float())
    for dtype in (torch.int64, torch.int8):
        result = call(INTEGERS.to(dtype))
        assert result.dtype == expected.dtype
        assert torch.equal(result, expected), dtype
    size = float(expected.double().abs().max())
    for dtype, tolerance in ((torch.float64, 1e-4), (torch.float16, 0.05), (torch.bfloat16, 0.05)):
        result = call(INTEGERS.to(dtype))
        assert result.is_floating_point()
        assert float((result.double() - expected.double()).abs().max()) <= tolerance * size, dtype
    if name not in NEEDS_ITEMS:
        assert len(call(EMPTY)) == 0


def test_functions_of_data_refuse_complex_numbers_and_impossible_shapes():
    grid_shape = r"expected shape \(batch, channels, height, width\), got \(\)"
    numbers = INTEGERS.to(torch.complex64)
    assert_refused(
        (r"data must be real numbers, got torch\.complex64: stack", lambda: COVARIANCE.color(numbers)),
        (r"data must be real numbers, got torch\.complex64: stack", lambda: DENOISER(numbers, 0.5)),
        (r"data must be real numbers, got torch\.complex64: stack", lambda: ORACLE(numbers, 0.5)),
        ("at least one seed", lambda: PROCESS.noise((0, 1, 4, 5), [])),
        (grid_shape, lambda: PROCESS.noise((), [])),
        ("'height': size must be a positive integer, got 0", lambda: PROCESS.noise((1, 1, 0, 5), [0])),
        ("'width': size must be a positive integer", lambda: COVARIANCE.color(torch.empty(1, 1, 4, 0))),
        (r"expected shape \(..., height, width\), got \(\)", lambda: COVARIANCE.color(torch.tensor(1.0))),
        ("empty items", lambda: ms.loss.squared_error(torch.empty(2, 0, 4, 5), COVARIANCE)),
        ("at least one seed", lambda: ms.sample(ORACLE, ms.DDIM(), (0, 1, 4, 5), 2, [])),
        (grid_shape, lambda: ms.sample(ORACLE, ms.DDIM(), (), 2, [])),
        ("no data", lambda: ms.DataStatistics.measure([], GRID)),
        ("no data", lambda: ms.DataStatistics.measure([EMPTY], GRID)),
    )


PIXELS = ms.Masked(torch.ones(SHAPE), GRID)
SEEDED: dict[str, Callable[[Any], torch.Tensor]] = {
    "sample of a covariance": COVARIANCE.sample,
    "noise": lambda seeds: PROCESS.noise(SHAPE, seeds),
    "prior": lambda seeds: PROCESS.prior(SHAPE, seeds),
    "loss": lambda seeds: DENOISER.loss(X, 0.5, seeds),
    "sample": lambda seeds: ms.sample(ORACLE, ms.Ancestral(), SHAPE, 2, seeds),
    "log_likelihood": lambda seeds: ms.log_likelihood(ORACLE, X, steps=1, seeds=seeds),
    "u_turn": lambda seeds: ms.u_turn(ORACLE, ms.DDIM(), X, 0.5, 1, seeds),
    "sample_refined": lambda seeds: ms.sample_refined(
        ORACLE, ms.DDIM(), SHAPE, 1, seeds, ms.Refinement(ms.LowPass(0.2))
    ),
    "observe": lambda seeds: PIXELS.observe(X, 0.1, seeds),
    "sample of a posterior": lambda seeds: ms.GaussianPosterior(STATISTICS, PIXELS, 0.1).sample(X, seeds),
}


@given(st.integers(2**32, 2**64 - 1))
def test_seeds_beyond_two_to_the_32_are_hashed(seed):
    """The CPU's generator keeps the lower 32 bits, so that seeds 2^32 apart would draw the same."""
    assert torch.equal(COVARIANCE.sample([seed]), COVARIANCE.sample([seed]))
    assert not torch.equal(COVARIANCE.sample([seed]), COVARIANCE.sample([seed % 2**32]))


@pytest.mark.parametrize("name", SEEDED)
def test_seeded_functions_take_one_integer_of_any_kind_for_each_item(name):
    call = SEEDED[name]
    expected = call([0, 1])
    unsigned = np.arange(2, dtype=np.uint8)
    for seeds in (range(2), (0, 1), np.arange(2), unsigned, torch.arange(2), [False, True]):
        assert torch.equal(call(seeds), expected), seeds
    for seed in (-1, 2**64, 10**30):
        with pytest.raises(ValueError, match=rf"a seed must be an integer from 0 to 2\^64 - 1, got {seed}"):
            call([seed, 0])
    for seeds in ([0.5, 1.0], 7, ["a", "b"], None):
        with pytest.raises(ValueError, match="seeds must be integers, one for each item of the batch"):
            call(seeds)
    if name != "sample of a covariance":  # which draws as many items as there are seeds
        with pytest.raises(ValueError, match="expected 2 seeds for a batch of 2, one per item, got 3"):
            call(range(3))


def test_as_data_returns_floats_unchanged_and_integers_as_float32():
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        x = torch.zeros(3, dtype=dtype)
        assert as_data(x) is x
    assert as_data(torch.tensor([True])).dtype == torch.float32
