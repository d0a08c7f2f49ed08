"""The solver of the Navier–Stokes equations keeps exact solutions, balances and invariants."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from modalities.navier_stokes import NavierStokes, RingForcing, resampled
from modalities.passive_tracer import TracerFlow
from tests.helpers.refusals import assert_refused

SIZE = 24


def points(size: int = SIZE, side: float = 2 * math.pi) -> tuple[Tensor, Tensor]:
    x = torch.arange(size, dtype=torch.float64) * side / size
    return x[:, None], x[None]


@pytest.mark.parametrize("side", [2 * math.pi, 3.0])
def test_taylor_green_vortices_decay_exponentially(side: float) -> None:
    y, x = points(side=side)
    wave = 2 * math.pi / side
    vortices = torch.cos(wave * x) * torch.cos(2 * wave * y) + 0.5 * torch.sin(2 * wave * x) * torch.sin(wave * y)
    solver = NavierStokes(SIZE, viscosity=0.03, drag=0.2, side=side)
    decayed = solver.evolve(vortices[None], 0.7)[0]
    torch.testing.assert_close(decayed, vortices * math.exp(-(0.03 * 5 * wave**2 + 0.2) * 0.7), rtol=0, atol=1e-12)


def test_vorticity_is_carried_by_its_own_velocity() -> None:
    """Against the advection of three waves, differentiated by hand."""
    y, x = points()
    vorticity = torch.sin(x) + 2 * torch.cos(2 * y) + 0.5 * torch.cos(x + 3 * y)
    # The stream function of each wave is its vorticity divided by the squared wavenumber; u = d/dy, v = -d/dx of it.
    u = -torch.sin(2 * y) - 0.15 * torch.sin(x + 3 * y)
    v = -torch.cos(x) + 0.05 * torch.sin(x + 3 * y)
    by_x = torch.cos(x) - 0.5 * torch.sin(x + 3 * y)
    by_y = -4 * torch.sin(2 * y) - 1.5 * torch.sin(x + 3 * y)
    solver = NavierStokes(SIZE, viscosity=0.0)
    for found, expected in zip(solver.velocity(vorticity[None]), (u, v), strict=True):
        torch.testing.assert_close(found[0], expected.expand(SIZE, SIZE))
    after = solver.evolve(vorticity[None], 1e-5)[0]
    torch.testing.assert_close((after - vorticity) / 1e-5, -(u * by_x + v * by_y), rtol=0, atol=2e-4)


def test_inviscid_flow_keeps_energy_and_enstrophy_to_fourth_order() -> None:
    errors = []
    for step in (0.05, 0.025):
        solver = NavierStokes(32, viscosity=0.0, step=step)
        before = solver.initial([0, 1], deviation=2.0)
        after = solver.evolve(before, 1.0)
        assert float((after - before).abs().max()) > 1.0
        errors.append(float((solver.enstrophy(after) / solver.enstrophy(before) - 1).abs().max()))
        assert float((solver.energy(after) / solver.energy(before) - 1).abs().max()) < 1e-5
    assert errors[1] < 1e-6
    assert errors[1] < errors[0] / 12


def test_decaying_turbulence_keeps_its_enstrophy_balance() -> None:
    """dZ/dt = -2 nu P - 2 mu Z, integrated over time by Simpson's rule, to 1e-6 of the loss."""
    solver = NavierStokes(36, viscosity=0.01, drag=0.1, step=0.01)
    states = [solver.evolve(solver.initial([0, 1], 2.0), 1.0)]
    for _ in range(8):
        states.append(solver.evolve(states[-1], 0.05))
    rates = torch.stack([0.02 * solver.palinstrophy(each) + 0.2 * solver.enstrophy(each) for each in states])
    weights = torch.tensor([1, 4, 2, 4, 2, 4, 2, 4, 1], dtype=torch.float64)
    lost = (weights[:, None] * rates).sum(0) * 0.05 / 3
    torch.testing.assert_close(solver.enstrophy(states[0]) - solver.enstrophy(states[-1]), lost, rtol=1e-6, atol=0)


def test_forcing_injects_enstrophy_at_its_rate() -> None:
    """Z(T) + the loss to viscosity = rate T on average, within four standard errors and 5 %."""
    solver = NavierStokes(20, viscosity=0.02, forcing=RingForcing(1.5, 2, 4), step=0.05)
    states = [torch.zeros(64, 20, 20, dtype=torch.float64)]
    for number in range(20):
        states.append(solver.evolve(states[-1], 0.1, range(1000 * number, 1000 * number + 64)))
    losses = torch.stack([0.04 * solver.palinstrophy(each) for each in states])
    injected = solver.enstrophy(states[-1]) + torch.trapezoid(losses, dx=0.1, dim=0)
    error = float(injected.std()) / 8
    assert error < 0.15
    assert float(injected.mean()) == pytest.approx(1.5 * 2.0, abs=min(4 * error, 0.4))
    assert float((states[-1].mean((1, 2))).abs().max()) < 1e-12


def test_forcing_acts_on_its_ring_alone_and_differs_by_seed() -> None:
    solver = NavierStokes(SIZE, viscosity=0.0, forcing=RingForcing(1.0, 2.5, 4), step=1e-6)
    kicked = solver.evolve(torch.zeros(2, SIZE, SIZE), 1e-6, [3, 4])
    power = torch.fft.fft2(kicked).abs().square()
    y, x = (torch.fft.fftfreq(SIZE, 1 / SIZE)[:, None], torch.fft.fftfreq(SIZE, 1 / SIZE)[None])
    ring = ((y**2 + x**2).sqrt() >= 2.5) & ((y**2 + x**2).sqrt() <= 4)
    assert bool((power[:, ring] > 1e-12 * power.max()).all())
    assert float(power[:, ~ring].max()) < 1e-20 * float(power.max())
    assert not torch.allclose(kicked[0], kicked[1])


def test_trajectories_do_not_depend_on_their_batch() -> None:
    solver = NavierStokes(SIZE, viscosity=0.01, forcing=RingForcing(1.0))
    states = solver.initial(range(20), 1.0)
    together = solver.evolve(states, 0.5, range(100, 120))
    for number in (0, 19):
        alone = solver.evolve(states[[number]], 0.5, [100 + number])
        torch.testing.assert_close(alone[0], together[number], rtol=0, atol=1e-12)
    assert float(states.std()) == pytest.approx(1.0, abs=0.2)


def test_steps_are_halved_where_velocities_need_it() -> None:
    slow, fast = NavierStokes(SIZE, 0.01, step=0.2), NavierStokes(SIZE, 0.01, step=0.0125)
    states = torch.cat([slow.initial([0], 0.5), slow.initial([1], 6.0), slow.initial([2], 0.5)])
    found, expected = (solver.evolve(states, 0.4) for solver in (slow, fast))
    assert float((found - expected)[1].abs().max()) < 0.02
    assert float((found - expected)[[0, 2]].abs().max()) < 1e-4
    torch.testing.assert_close(slow.evolve(states[[1]], 0.4)[0], found[1], rtol=0, atol=1e-12)


def test_resampled_waves_are_the_same_waves() -> None:
    for old, new in ((50, 32), (32, 50), (21, 9)):
        y, x = points(old)
        fine_y, fine_x = points(new)
        found = resampled(torch.cos(3 * x - y) + torch.sin(2 * y), new, 4)
        torch.testing.assert_close(found, torch.cos(3 * fine_x - fine_y) + torch.sin(2 * fine_y))


def test_solver_refuses_steps_that_are_unstable_and_impossible_settings() -> None:
    fast = 100 * torch.from_numpy(np.random.default_rng(0).normal(size=(1, SIZE, SIZE)))
    solver = NavierStokes(SIZE, 0.01, forcing=RingForcing(1.0))
    assert_refused(
        (r"too large for step=0.05 s, by a factor of", lambda: NavierStokes(SIZE, 0.01).evolve(1e4 * fast, 1.0)),
        (r"too large for step=0.05 s", lambda: NavierStokes(SIZE, 0.01).evolve(math.nan * fast, 1.0)),
        ("needs seeds", lambda: solver.evolve(fast, 1.0)),
        (r"expected states \(batch, 24, 24\)", lambda: solver.evolve(fast[0], 1.0, [0])),
        ("duration must be positive", lambda: solver.evolve(fast, 0.0, [0])),
        ("viscosity must be at least 0", lambda: NavierStokes(SIZE, -1.0)),
        ("needs at least 13 points", lambda: NavierStokes(8, 0.01, forcing=RingForcing(1.0))),
        ("low <= high", lambda: RingForcing(1.0, 4, 2)),
        ("rate must be 0 or positive", lambda: RingForcing(-1.0)),
        ("no wavenumber is from low=2.3 to high=2.7", lambda: RingForcing(1.0, 2.3, 2.7)),
        ("no wavenumber is from low=2 to high=1e", lambda: RingForcing(1.0, 2.0, 1e300)),
        ("no wavenumber from 2.3 to 2.7", lambda: solver.initial([0], 1.0, 2.3, 2.7)),
        ("take 20,000,000,000,000 steps of 0.05 s", lambda: solver.evolve(fast, 1e12, [0])),
    )


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 4), (0.5, 2.5), (2.2, 2.3), (5, 8)])
def test_forcing_knows_its_number_of_modes(low: float, high: float) -> None:
    solver = NavierStokes(30, 0.01, forcing=RingForcing(1.0, low, high))
    assert solver.forcing is not None
    assert solver.forcing.modes == len(solver._forced[0])


def test_a_tracer_keeps_its_variance_balance_and_does_not_act_on_the_flow() -> None:
    """Half the variance changes by -g <v c> - kappa <|grad c|²>, by Simpson's rule, to 1e-6 of what is lost or fed."""
    flow = {"size": 36, "viscosity": 0.01, "drag": 0.1, "step": 0.01}
    solver, alone = TracerFlow(**flow, diffusivity=0.02, gradient=0.7), NavierStokes(**flow)  # type: ignore[arg-type]
    first = torch.stack([solver.initial([0, 1], 2.0), solver.initial([2, 3], 1.0)], dim=1)
    states = [solver.evolve(first, 1.0)]
    assert torch.equal(states[0][:, 0], alone.evolve(first[:, 0], 1.0))
    for _ in range(8):
        states.append(solver.evolve(states[-1], 0.05))
    rates = torch.stack([-0.7 * solver.flux(each) - 0.02 * 2 * solver.palinstrophy(each[:, 1]) for each in states])
    weights = torch.tensor([1, 4, 2, 4, 2, 4, 2, 4, 1], dtype=torch.float64)
    gained = (weights[:, None] * rates).sum(0) * 0.05 / 3
    found = solver.enstrophy(states[-1][:, 1]) - solver.enstrophy(states[0][:, 1])
    torch.testing.assert_close(found, gained, rtol=0, atol=1e-6 * float(rates.abs().max()))
    assert float(gained.abs().max()) > 0.01


def test_a_tracer_equal_to_the_vorticity_remains_equal() -> None:
    """Without forcing and gradient, and with equal diffusion, both solve the same equation."""
    solver = TracerFlow(24, viscosity=0.02, diffusivity=0.02)
    state = solver.initial([0], 2.0)
    after = solver.evolve(torch.stack([state, state], dim=1), 0.5)
    torch.testing.assert_close(after[:, 1], after[:, 0], rtol=0, atol=1e-11)
    forced = TracerFlow(24, viscosity=0.02, forcing=RingForcing(1.0), gradient=1.0, step=0.02)
    moved = forced.evolve(torch.zeros(2, 2, 24, 24), 0.4, [1, 2])
    assert torch.equal(moved[:, 0], NavierStokes(24, 0.02, forcing=RingForcing(1.0), step=0.02).evolve(
        torch.zeros(2, 24, 24), 0.4, [1, 2]))  # fmt: skip
    assert float(forced.flux(moved).max()) < 0  # down the gradient
    assert_refused(
        ("diffusivity", lambda: TracerFlow(24, 0.02, diffusivity=-1.0)),
        ("states \\(batch, 2, 24, 24\\)", lambda: forced.evolve(torch.zeros(2, 24, 24), 0.4, [1, 2])),
    )
