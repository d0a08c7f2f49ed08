"""Fixtures that several tests of data share."""

from tests.helpers.web_server import memory, served

__all__ = ["memory", "served"]
