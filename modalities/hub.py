"""Models of the Hugging Face hub, found in its cache alone: a name that came with somebody's run fetches nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from multisagd.libraries import BrokenLibraryError, check


@contextmanager
def fetching_no_models(wanted: bool = True) -> Iterator[None]:
    """Find models of the hub in its cache alone, whoever loads them: what is not there counts as missing."""
    try:
        check("huggingface_hub.constants", "models of the hub")
    except BrokenLibraryError:  # then nothing fetches them
        yield
        return
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, wanted or constants.HF_HUB_OFFLINE
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
