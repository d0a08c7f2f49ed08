"""What a person runs: each recipe reads top to bottom as the procedure it is."""
