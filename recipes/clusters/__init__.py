"""Where a command can run: on this machine, under Slurm, on Kubernetes, or on machines rented through SkyPilot."""
