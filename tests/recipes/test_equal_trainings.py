"""1 process with 8 samples a step learns what 2 with 4 and 4 with 2 learn: all modalities, DDP and FSDP2."""

import os
from pathlib import Path

import pytest

from recipes.runs.lock import lock_run
from tests.helpers import equal_trainings
from tests.helpers.every_modality import save_clips
from tests.helpers.launching import ranks
from tests.helpers.tiny import read_metrics

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("distribution", ["ddp", "fsdp"])
@pytest.mark.parametrize("count", [2, 4])
def test_train_learns_the_same_in_any_number_of_processes(
    tmp_path: Path, shared: Path, count: int, distribution: str
) -> None:
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
