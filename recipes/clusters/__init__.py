"""Where `multisagd launch` runs commands: on this machine, or as jobs of a Slurm cluster."""
