"""Plotting: line charts for pages, and figures as files."""
