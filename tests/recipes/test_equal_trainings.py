"""1 process with 8 samples a step learns what 2 with 4 and 4 with 2 learn: all modalities, DDP and FSDP2."""

from pathlib import Path

import equal_trainings
import pytest
from every_modality import save_clips
from launching import ranks

from recipes.engine.tracking import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    save_clips(root)
    return root


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Path:
    out = tmp_path_factory.mktemp("alone")
    equal_trainings.main(out, clips, "ddp")
    return out


@pytest.mark.parametrize("distribution", ["ddp", "fsdp"])
@pytest.mark.parametrize("count", [2, 4])
def test_losses_are_equal_over_all_steps(
    tmp_path: Path, alone: Path, clips: Path, count: int, distribution: str
) -> None:
    done = ranks(count, "equal_trainings", str(tmp_path), str(clips), distribution)
    assert done.returncode == 0, done.stderr[-6000:]
    for case in equal_trainings.cases(count):
        for precision in equal_trainings.precisions(count, distribution):
            tolerance = 1e-9 if precision == "float64" else 1e-4
            run = Path(precision) / case.replace(" ", "_")
            ours, theirs = (read_metrics(root / run, "train") for root in (tmp_path, alone))
            assert len(ours) == len(theirs) == equal_trainings.STEPS
            for step, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                for name in ("loss", "gradient_norm"):
                    told = f"{case}, {precision}, step {step}"
                    assert one[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance * 1e-3), told
