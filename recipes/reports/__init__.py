"""The parts of a run's report: reading the folder, drawing charts, and the HTML page."""
