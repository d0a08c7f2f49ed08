"""Fixtures that several tests of data share."""

from tests.helpers.web_server import memory

__all__ = ["memory"]
