"""The parts of the report of a run: what is read from its folder, what is drawn of it, and the page."""
