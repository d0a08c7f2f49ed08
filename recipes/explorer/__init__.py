"""What `multisagd explore` shows: pure functions from the settings of its controls to pictures, curves and text."""
