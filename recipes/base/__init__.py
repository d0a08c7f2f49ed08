"""Utilities that all of `recipes` uses. This package imports no other part of `recipes`."""
