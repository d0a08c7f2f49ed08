"""Plotting: line charts for HTML pages, and figures as PNG files."""
