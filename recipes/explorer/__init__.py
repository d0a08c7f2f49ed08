"""The page of `multisagd explore`: pure functions from control values to pictures, curves and text."""
