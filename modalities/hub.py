"""Access to the Hugging Face Hub through its local cache only, so that names in an untrusted run download nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from multisagd.libraries import BrokenLibraryError, check


@contextmanager
def offline_hub(offline: bool = True) -> Iterator[None]:
    """Restrict the Hub to its local cache if `offline` is True; models that are not cached count as missing."""
    try:
        check("huggingface_hub.constants", "models on the Hub")
    except BrokenLibraryError:  # without this library nothing can be downloaded
        yield
        return
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, offline or constants.HF_HUB_OFFLINE
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
