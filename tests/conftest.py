"""Shared by all tests: one thread each, so that timings and sums do not depend on how many tests run at once."""

import torch

torch.set_num_threads(1)
