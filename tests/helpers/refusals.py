"""Calls that must be refused, each with a message."""

from collections.abc import Callable

import pytest


def assert_refused(*cases: tuple[str, Callable[[], object]]) -> None:
    """Check that each call raises a ValueError whose message contains the pattern before it."""
    for message, attempt in cases:
        with pytest.raises(ValueError, match=message):
            attempt()
