"""The parts of a run's report: reading the folder, drawing, and the page."""
