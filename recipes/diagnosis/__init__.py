"""The checks of `multisagd doctor`, one file for each area, and how they are run."""
