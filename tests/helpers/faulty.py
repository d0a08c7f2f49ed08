"""Digits that fail on purpose: at a given batch one process is killed, hangs or raises an error."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from modalities.base import Batch
from modalities.image import Image
from modalities.image_sets import Digits


class Faulty(Digits):
    """The digits, with a fault of process `rank` in batch number `at` of `size` samples; once, because a file marks it.

    The fault "spoil" makes this batch and the next so large that their losses are infinite.
    """

    def __init__(
        self, modality: Image, fault: Literal["kill", "hang", "freeze", "error", "spoil"],
        rank: int, at: int, size: int, marks: Path,
    ) -> None:  # fmt: skip
        super().__init__(modality)
        self.fault, self.rank, self.at, self.size, self.mark = fault, rank, at, size, Path(marks) / "done"
        self.calls = 0

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        batch = super().batch(indices, seeds)
        if seeds is None or len(seeds) != self.size or os.environ.get("RANK", "0") != str(self.rank):
            return batch
        self.calls += 1
        if self.fault == "spoil":
            return batch._replace(x0=1e30 * batch.x0) if self.calls in (self.at, self.at + 1) else batch
        if self.calls == self.at and not self.mark.exists():
            self.mark.parent.mkdir(parents=True, exist_ok=True)
            self.mark.touch()
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)  # the whole process, with all its threads
            if self.fault == "error":
                raise RuntimeError("the disk fell out")
            time.sleep(3600)
        return batch
