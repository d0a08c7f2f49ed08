from pathlib import Path

import pytest

from tests.helpers import kill_and_continue

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("ranks", "distribution", "times"), [(1, "ddp", 2), (2, "fsdp", 1)])
def test_killed_trainings_end_as_if_nothing_had_been(tmp_path: Path, ranks: int, distribution: str, times: int) -> None:
    torn = kill_and_continue.main(tmp_path, times, ranks, distribution)
    assert torn >= times // 2  # every second one is killed within the writing of a checkpoint
