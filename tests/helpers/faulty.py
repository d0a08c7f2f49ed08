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
    """The digits, with a fault of process `rank` in batch number `at` of `size` samples; once, for it leaves a mark.

    The fault "spoil" makes this batch and the one after it so large that their losses are infinite.
    """

    def __init__(
        self,
        modality: Image,
        fault: Literal["kill", "hang", "freeze", "error", "spoil"],
        rank: int,
        at: int,
        size: int,
        marks: Path,
    ) -> None:
        super().__init__(modality)
        self.fault, self.rank, self.at, self.size, self.mark = fault, rank, at, size, Path(marks) / "done"
        self.calls = 0

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        if seeds is not None and len(seeds) == self.size and os.environ.get("RANK", "0") == str(self.rank):
            self.calls += 1
            if self.fault == "spoil" and self.calls in (self.at, self.at + 1):
                batch = super().batch(indices, seeds)
                return batch._replace(x0=1e30 * batch.x0)
            if self.calls == self.at and self.fault != "spoil" and not self.mark.exists():
                self.mark.parent.mkdir(parents=True, exist_ok=True)
                self.mark.touch()
                if self.fault == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if self.fault == "freeze":
                    os.kill(os.getpid(), signal.SIGSTOP)  # the whole process, with all its threads
                if self.fault == "error":
                    raise RuntimeError("the disk fell out")
                time.sleep(3600)
        return super().batch(indices, seeds)
