"""Several ranks train, validate, sample and evaluate as one process does: same data, same noise, same weights."""

import json
import os
import socket
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from recipes import analyze
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.runs.lock import lock_run
from recipes.runs.state import ShardedTensors
from recipes.runtime import distribution
from recipes.runtime.distribution import SINGLE, Rank, replicate, synchronise
from recipes.sample import sample
from tests.helpers import equal_trainings
from tests.helpers.every_modality import save_clips
from tests.helpers.launching import ranks
from tests.helpers.tiny import (
    TINY,
    TRANSFORMER,
    assert_close,
    assert_same,
    last_state,
    read_metrics,
    tiny_run,
    tiny_words,
)

EXACT = ["engine.precision=float64", "network.dropout=0", "every.log=16", "every.validation=48", "every.samples=48"]


def trained(run_dir: Path, count: int, *words: str) -> list[dict[str, Any]]:
    done = ranks(count, "recipes.train", *tiny_words(run_dir, *EXACT, *words))
    assert done.returncode == 0, done.stderr[:6000]
    return read_metrics(run_dir)


def numbers(node: Any) -> list[float]:
    """All numbers of a nested entry in order."""
    if isinstance(node, dict):
        return [number for value in node.values() for number in numbers(value)]
    return [float(node)] if isinstance(node, int | float) else []


@pytest.mark.parametrize("distribution", ["ddp", "fsdp"])
def test_train_and_sample_on_two_ranks_equal_one_process(tmp_path: Path, distribution: str) -> None:
    run_dir = tmp_path / "together"
    alone = tiny_run(tmp_path / "alone", *EXACT, "training.accumulation=4")
    together = trained(run_dir, 2, f"engine.distribution={distribution}", "training.accumulation=2")
    expected = read_metrics(tmp_path / "alone")
    for ours, theirs in zip(together, expected, strict=True):
        assert ours["kind"] == theirs["kind"]
        assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-9, abs=1e-12)
    state = last_state(run_dir)
    assert isinstance(state.tensors["optimizer"], ShardedTensors) == (distribution == "fsdp")
    assert_close(state, alone, rtol=1e-9, atol=1e-12)
    pictures = [(tmp_path / run / "samples" / "000000000096.png").read_bytes() for run in ("alone", "together")]
    assert pictures[0] == pictures[1]

    words = [f"run_dir={run_dir}", "count=5", "steps=3", "engine.threads=1", "engine.precision=float64"]
    done = ranks(2, "recipes.sample", *words, f"out={run_dir / 'two'}")
    assert done.returncode == 0, done.stderr[:6000]
    one = sample(configuration.load("sample", [*words, f"out={run_dir / 'one'}"]))
    drawn = [load_file(folder / "samples.safetensors")["x0"] for folder in (one, run_dir / "two")]
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=1e-6)
    assert (run_dir / "two" / "samples" / "4.png").exists()


COMPILED = ["engine.compile=true", "engine.precision=float32"]
# One level: a second doubles what there is to compile, a minute's work.
ONE_LEVEL = "network.multipliers=[1]"
VARIANTS = {
    "hybrid": (4, ["engine.distribution=fsdp", "engine.shard_ranks=2"], 1e-9),
    "not resharded": (2, ["engine.distribution=fsdp", "engine.reshard=false", "training.accumulation=2"], 1e-9),
    "recomputed, replicated": (2, ["engine.recompute=true"], 1e-9),
    "recomputed, sharded": (2, ["engine.distribution=fsdp", "engine.recompute=true"], 1e-9),
    "bfloat16, sharded": (2, ["engine.distribution=fsdp", "engine.precision=bfloat16"], 0.02),
    "float16, sharded": (2, ["engine.distribution=fsdp", "engine.precision=float16"], 0.02),
    "float16, replicated": (2, ["engine.precision=float16"], 0.02),
    "compiled, replicated": (2, [*COMPILED, ONE_LEVEL], 1e-4),
    "compiled, sharded": (2, ["engine.distribution=fsdp", *COMPILED, *TRANSFORMER], 1e-4),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_train_learns_the_same_by_every_way_to_distribute_a_network(tmp_path: Path, variant: str) -> None:
    count, words, tolerance = VARIANTS[variant]
    same = [word for word in words if word.startswith(("engine.precision", "network"))]
    alone = tiny_run(tmp_path / "alone", *EXACT, *same)
    together = trained(tmp_path / "together", count, *words)
    assert last_state(tmp_path / "together").tensors["network"].keys() == alone.tensors["network"].keys()
    for ours, theirs in zip(together, read_metrics(tmp_path / "alone"), strict=True):
        assert numbers(ours) == pytest.approx(numbers(theirs), rel=tolerance, abs=1e-12)


def test_recompute_changes_no_bit(tmp_path: Path) -> None:
    """With dropout, whose numbers must come again."""
    assert_same(tiny_run(tmp_path / "kept"), tiny_run(tmp_path / "recomputed", "engine.recompute=true"))


JOURNEYS = [((2, 48), (1, 64), (2, 96)), ((4, 48), (2, 96))]
"""Numbers of processes, and the number of samples up to which each trains."""


@pytest.mark.parametrize("journey", [JOURNEYS[0], pytest.param(JOURNEYS[1], marks=pytest.mark.slow)])
def test_train_continues_with_another_number_of_ranks(tmp_path: Path, journey: tuple[tuple[int, int], ...]) -> None:
    for count, samples in journey:
        words = ["every.checkpoint=16", f"training.samples={samples}"]
        if count == 1:
            tiny_run(tmp_path / "split", *EXACT, *words)
        else:
            trained(tmp_path / "split", count, "engine.distribution=fsdp", *words)
    assert_close(last_state(tmp_path / "split"), tiny_run(tmp_path / "alone", *EXACT), rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the clips and the trainings of one process, made once for all processes that run tests."""
    ours = tmp_path_factory.getbasetemp()
    folder = (ours.parent if os.environ.get("PYTEST_XDIST_WORKER") else ours) / "equal_trainings"
    with lock_run(folder, patience=300):
        if not (folder / "made").exists():
            (folder / "clips").mkdir()
            save_clips(folder / "clips")
            equal_trainings.main(folder / "alone", folder / "clips", "ddp")
            (folder / "made").touch()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["ddp", "fsdp"])
@pytest.mark.parametrize("count", [2, 4])
def test_train_learns_the_same_in_any_number_of_processes(
    tmp_path: Path, shared: Path, count: int, distribution: str
) -> None:
    """One process with 8 samples a step learns what 2 with 4 and 4 with 2 learn, in every modality."""
    done = ranks(count, "tests.helpers.equal_trainings", str(tmp_path), str(shared / "clips"), distribution)
    assert done.returncode == 0, done.stderr[-6000:]
    for case in equal_trainings.cases(count):
        for precision in equal_trainings.precisions(case, count, distribution):
            tolerance = 1e-9 if precision == "float64" else 1e-4
            run = Path(precision) / case.replace(" ", "_")
            ours, theirs = (read_metrics(root / run, "train") for root in (tmp_path, shared / "alone"))
            assert len(ours) == len(theirs) == equal_trainings.STEPS
            for step, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                for name in ("loss", "gradient_norm"):
                    expected = pytest.approx(other[name], rel=tolerance, abs=tolerance * 1e-3)
                    assert one[name] == expected, f"{case}, {precision}, step {step}"


@pytest.mark.slow
def test_evaluate_on_two_ranks_equals_one_process(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", "training.samples=32")
    words = [
        f"run_dir={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}", "samples=20", "reference=100", "steps=2",
        "splits=2", "bootstrap=2", "classifier.samples=640", "metrics=[classifier,axes]", "engine.threads=1",
        "engine.precision=float64",
    ]  # fmt: skip
    reports = []
    for count in (1, 2):
        done = ranks(count, "recipes.evaluate", *words, f"out={tmp_path / str(count)}")
        assert done.returncode == 0, done.stderr[-6000:]
        assert done.stdout.count("also in") == 1
        reports.append(json.loads((tmp_path / str(count) / "evaluate.json").read_text()))
    assert numbers(reports[1]) == pytest.approx(numbers(reports[0]), rel=1e-5, abs=1e-9)


TORCHRUN = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


def test_commands_refuse_what_their_ranks_cannot_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for count, words, message in [
        (3, [], "training.batch=16 cannot be split over 3 processes"),
        (2, ["engine.distribution=fsdp", "engine.offload=true"], "engine.offload=true moves weights from a GPU to the"),
    ]:
        done = ranks(count, "recipes.train", *TINY, *words, f"run_dir={tmp_path / 'run'}")
        assert done.returncode != 0
        assert message in done.stderr
        assert not (tmp_path / "run").exists()
    for name, value in (TORCHRUN | {"RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    assert analyze.main(["run_dir=unused"]) == 2
    assert "analyze runs as one process, but there are 4" in capsys.readouterr().err


def test_synchronise_exchanges_accumulated_gradients_once(tmp_path: Path) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        exchange = Mock(side_effect=allreduce_hook)
        network = replicate(torch.nn.Linear(2, 2), torch.device("cpu"))
        network.register_comm_hook(None, lambda state, bucket: exchange(state, bucket))
        for part in range(4):
            synchronise(network, part == 3)
            network(torch.ones(1, 2)).sum().backward()
        exchange.assert_called_once()
    finally:
        dist.destroy_process_group()


def test_rank_is_read_from_the_environment_of_torchrun() -> None:
    assert Rank.from_environment({}) == Rank.from_environment({"WORLD_SIZE": "1"}) == SINGLE
    assert Rank.from_environment(TORCHRUN) == Rank(3, 4, 1)
    for broken in ({"RANK": "x"}, {"RANK": "4"}):
        with pytest.raises(RecipeError, match="WORLD_SIZE"):
            Rank.from_environment(TORCHRUN | broken)
    with pytest.raises(RecipeError, match="MASTER_ADDR"):
        Rank.from_environment({name: value for name, value in TORCHRUN.items() if name != "MASTER_ADDR"})


def test_rendezvous_waits_for_a_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as occupied:
        occupied.bind(("", 0))
        occupied.listen()
        port = occupied.getsockname()[1]
        for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "RANK": 0, "WORLD_SIZE": 1}.items():
            monkeypatch.setenv(name, str(value))
        with monkeypatch.context() as impatient:
            impatient.setattr(distribution, "PORT_PATIENCE", 0.0)
            with pytest.raises(RecipeError, match=f"port {port} on this machine is in use.*set MASTER_PORT"):
                distribution._rendezvous(timedelta(seconds=5))
        threading.Timer(0.5, occupied.close).start()
        store, rank, world = distribution._rendezvous(timedelta(seconds=5))
    store.set("key", "value")
    assert (rank, world, store.get("key")) == (0, 1, b"value")
