"""The page of `multisagd explore`: pure functions from control values to images, curves and text."""
