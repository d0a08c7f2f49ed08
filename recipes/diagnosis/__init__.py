"""The checks of `multisagd doctor`, one file per area, and their runner."""
