import errno
import io
import os

import pytest
import torch
from rich.console import Console

import multisagd as ms
from recipes.base import progress
from recipes.base.errors import RecipeError
from recipes.base.progress import Display
from recipes.runs.state import load_module, load_optimizer, optimizer_tensors


def shown(*, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, highlight=False)
    with Display("training", 1000, console=console) as display:
        display.say("a line [that] stays")
        for done in (100, 500, 1000):
            display.update(done, f"loss {done}")
    return out.getvalue()


def test_plain_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(terminal=False)
    assert text.splitlines() == [
        "a line [that] stays",
        "training 100/1,000  loss 100",
        "training 1,000/1,000  loss 1000",
    ]
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    assert "training 500/1,000  loss 500" in shown(terminal=False)


def test_a_log_says_within_seconds_how_far_it_is_and_what_is_left() -> None:
    """Lines come soon, then every ten seconds, then every minute, and a note stays until there is another."""
    clock, out = [0.0], io.StringIO()
    console = Console(file=out, width=100, highlight=False, get_time=lambda: clock[0])
    with Display("training", 10**6, console=console) as display:
        for second in range(1800):
            clock[0] = float(second)
            display.update(10 * (second + 1), "loss 1" if second == 5 else None)
    lines = out.getvalue().splitlines()
    assert lines[0] == "training 10/1,000,000"
    assert lines[1] == "training 30/1,000,000  1 day, 3:46:37 left"
    assert lines[2] == "training 130/1,000,000  loss 1  1 day, 3:46:27 left"
    assert len(lines) == 2 + 60 + 19


def test_what_is_done_at_once_is_not_worth_a_line() -> None:
    out = io.StringIO()
    with Display("measuring", 2, console=Console(file=out), after=2.0) as display:
        display.update(1)
        display.update(2)
    assert not out.getvalue()


# The thread that draws a bar ends, and the work does not.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("terminal", [False, True])
def test_work_goes_on_when_nothing_can_be_shown_any_more(terminal: bool) -> None:
    """As when the disk of a log is full, or the window of a terminal was closed."""

    class Gone(io.StringIO):
        gone = False

        def write(self, text: str) -> int:
            if self.gone:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().write(text)

    out = Gone()
    console = Console(file=out, force_terminal=terminal)
    with Display("training", 1000, console=console) as display:
        display.say("heard")
        out.gone = True
        display.say("unheard")
        display.update(1000, "done")
    assert "heard" in out.getvalue()
    assert "unheard" not in out.getvalue()


def test_a_bar_on_a_terminal() -> None:
    text = shown(terminal=True)
    assert "a line [that] stays" in text
    assert "1,000/1,000" in text
    assert "loss 1000" in text


def trained(width: int = 4) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    network = torch.nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, width)).sum().backward()
    optimizer.step()
    return network, optimizer


def test_optimizer_state_is_named_and_comes_back() -> None:
    network, optimizer = trained()
    tensors = optimizer_tensors(network, optimizer)
    assert set(tensors) == {f"{p}/{e}" for p in ("weight", "bias") for e in ("step", "exp_avg", "exp_avg_sq")}
    other = torch.optim.AdamW(network.parameters(), lr=0.5)
    load_optimizer(network, other, tensors)
    again = optimizer_tensors(network, other)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    assert other.param_groups[0]["lr"] == 0.5


def test_state_of_another_network_is_refused() -> None:
    tensors = optimizer_tensors(*trained(5))
    with pytest.raises(RecipeError, match="optimiser state weight/exp_avg does not fit"):
        load_optimizer(*trained(4), tensors)
    with pytest.raises(RecipeError, match=r"optimiser state .* does not fit"):
        load_optimizer(*trained(4), {"strange/step": torch.tensor(1.0)})
    with pytest.raises(RecipeError, match=r"the checkpoint's network does not fit.*size mismatch"):
        load_module(trained(4)[0], trained(5)[0].state_dict(), "network")


def test_an_optimizer_with_other_state_is_refused() -> None:
    network, optimizer = trained()
    optimizer.state[network.weight]["note"] = "x"
    with pytest.raises(TypeError, match="keeps note as str"):
        optimizer_tensors(network, optimizer)


def test_data_power_is_the_spectrum_of_the_data() -> None:
    from multisagd.data_spectra import DataPower

    grid = ms.Grid.of(height=8, width=8)
    covariance = ms.SpectralCovariance(ms.PowerLaw(-1.0, corner=0.1), grid)
    statistics = ms.DataStatistics.measure([covariance.sample(range(3000), 1)], grid)
    ratio = ms.SpectralCovariance(DataPower(statistics), grid).power() / covariance.power()
    assert float((ratio - 1).abs().max()) < 0.2
    half = ms.SpectralCovariance(DataPower(statistics, 0.5), grid).power()
    assert float((half / half.mean() - covariance.power().sqrt() / covariance.power().sqrt().mean()).abs().max()) < 0.2
