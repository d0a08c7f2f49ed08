"""Networks trained by others, on whose features sets are compared; weights are read as tensors and nothing else."""
