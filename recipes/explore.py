"""Serve a page on which a spectrum is dragged: `multisagd explore`, the same as `python -m recipes.explore`.

The page shows, for an image, a sound or a clip: the noise, its spectrum beside the data's, the forward process with
white and with shaped noise, what is left of the data at its end, steps designed for it, and the configuration of all
that, to train with. It is served to this machine alone unless `host` says otherwise, asks nothing of the network, and
keeps uploaded files in a folder that is removed when it ends (Ctrl-C).

Errors, each in one message: gradio cannot be imported; the address is taken, or not one of this machine; sizes that
cannot be shown.
"""

import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from multisagd.libraries import importing
from recipes.base.errors import RecipeError, check_minimum
from recipes.base.signals import StopRequest
from recipes.cli.command import command
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.explorer.guard import OwnAddress
from recipes.explorer.media import Sizes


@dataclass(frozen=True)
class ExploreSettings:
    """All keys of `configs/explore.yaml`; `port` None takes the first that is free from 7860 on."""

    host: str
    port: int | None
    names: tuple[str, ...]
    sizes: Sizes
    upload_megabytes: int
    threads: int | None

    def __post_init__(self) -> None:
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"port is a number from 1 to 65535, got {self.port}")
        for name in self.names:
            if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
                raise ValueError(f"names: {name!r:.80} is no name of a machine, such as explore.example.org")
        if self.upload_megabytes < 1:
            raise ValueError(f"upload_megabytes is at least 1, got {self.upload_megabytes}")
        check_minimum(self, 1, "threads")


def explore(config: Config) -> None:
    """Serve the page until a signal asks to stop."""
    settings = Builder().settings(ExploreSettings, config, "")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with TemporaryDirectory(prefix="multisagd_explore_") as folder, StopRequest() as stop:
        page, address = serve(settings, Path(folder))
        print(f"exploring at {address}\nCtrl-C ends it, and removes uploaded files", flush=True)
        while stop.signal_number is None:
            time.sleep(0.1)
        page.close(verbose=False)
    print("the explorer has ended")


def serve(settings: ExploreSettings, folder: Path) -> tuple[Any, str]:
    """Start serving in the background, uploads going into `folder`, and return the page and its address.

    Raises BrokenLibraryError if gradio cannot be imported, RecipeError if the address cannot be had.
    """
    with refused(settings):  # at once, where gradio would try a hundred ports
        family, *_, place = socket.getaddrinfo(settings.host, settings.port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(place, family=family).close()
    # Read when gradio is imported.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder), "HF_HUB_DISABLE_TELEMETRY": "1"}
    # Gradio asks the page itself whether it is there, and a proxy cannot reach this machine.
    os.environ["no_proxy"] = "*"
    with importing("gradio", "explore"):
        import gradio
    from starlette.middleware import Middleware

    from recipes.explorer.page import CSS, build

    page = build(settings.sizes)
    own: dict[str, Any] = {"host": settings.host, "names": settings.names}
    with refused(settings):
        _, address, _ = page.launch(
            server_name=settings.host, server_port=settings.port, css=CSS,
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            max_file_size=settings.upload_megabytes * 1_000_000, share=False, prevent_thread_lock=True, quiet=True,
            footer_links=[], run_history=False, enable_monitoring=False, pwa=False, mcp_server=False, ssr_mode=False,
            app_kwargs={"middleware": [Middleware(OwnAddress, **own)]},
        )  # fmt: skip
    # Gradio puts a layer of its own around, which answers questions of other sites before they come to the one within.
    page.app.middleware_stack = OwnAddress(page.app.middleware_stack, **own)  # type: ignore[arg-type]
    return page, address


@contextmanager
def refused(settings: ExploreSettings) -> Iterator[None]:
    """Raise a RecipeError for an address that is refused within."""
    try:
        yield
    except (OSError, UnicodeError) as error:  # the latter for what cannot be the name of a machine
        where = "with ports from 7860 on" if settings.port is None else f"port {settings.port}"
        raise RecipeError(
            f"cannot serve at {settings.host}, {where}: taken, or no address of this machine. Choose another port=… or "
            "host=…"
        ) from error


main = command("explore", explore)

if __name__ == "__main__":
    sys.exit(main())
