"""Serve a web page for editing a spectrum interactively: `multisagd explore`, or `python -m recipes.explore`.

The page shows, for an image, an audio clip or a video clip: the noise, the spectra of noise and data, the forward
process with white and with shaped noise, the signal that remains at the end of the process, designed sampling steps,
and the matching training configuration. By default only this machine can open the page. The page makes no requests to
the internet. Uploaded files are kept in a folder that is removed when the command ends (Ctrl-C).

Errors, each reported in one message: gradio cannot be imported; the address is in use or does not belong to this
machine; invalid sizes.
"""

import ipaddress
import os
import re
import socket
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from multisagd.libraries import importing
from recipes.base.errors import RecipeError, check_minimum
from recipes.base.signals import StopRequest
from recipes.cli.command import command
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.explorer.media import Sizes

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/@\s]+)(?::\d{1,5})?")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
REFUSED = b"This request does not name this page's host or site: `multisagd explore names=[NAME]` allows a name.\n"


@dataclass(frozen=True)
class ExploreSettings:
    """All keys of `configs/explore.yaml`; if `port` is None, the first free port from 7860 on is used."""

    host: str
    port: int | None
    names: tuple[str, ...]
    sizes: Sizes
    upload_megabytes: int
    threads: int | None

    def __post_init__(self) -> None:
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"port must be a number from 1 to 65535, got {self.port}")
        for name in self.names:
            if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
                raise ValueError(f"names: {name!r:.80} is not a host name such as explore.example.org")
        if self.upload_megabytes < 1:
            raise ValueError(f"upload_megabytes must be at least 1, got {self.upload_megabytes}")
        check_minimum(self, 1, "threads")


def explore(config: Config) -> None:
    """Serve the page until a signal requests a stop."""
    settings = Builder().settings(ExploreSettings, config, "")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with TemporaryDirectory(prefix="multisagd_explore_") as folder, StopRequest() as stop:
        page, computations, address = serve(settings, Path(folder))
        print(f"exploring at {address}\nPress Ctrl-C to stop and to remove uploaded files", flush=True)
        while stop.signal_number is None:
            time.sleep(0.1)
        page.close(verbose=False)
        computations.close()
    print("the explorer has stopped")


def serve(settings: ExploreSettings, folder: Path) -> tuple[Any, Any, str]:
    """Start a server in the background, with uploads in `folder`; return the page, its computations, and its address.

    The page must be closed before its computations.
    """
    with refused(settings):  # fails at once, whereas gradio would try a hundred ports
        family, *_, own_address = socket.getaddrinfo(settings.host, settings.port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(own_address, family=family).close()
    # Gradio reads these variables when it is imported.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder), "HF_HUB_DISABLE_TELEMETRY": "1"}
    # Gradio requests the page to check that it is being served; a proxy could not reach this machine.
    os.environ["no_proxy"] = "*"
    with importing("gradio", "explore"):
        import gradio
    from starlette.middleware import Middleware

    from recipes.explorer.page import CSS, Computations, build

    page = build(settings.sizes, computations := Computations())
    own: dict[str, Any] = {"host": settings.host, "names": settings.names}
    with refused(settings):
        _, address, _ = page.launch(
            server_name=settings.host, server_port=settings.port, css=CSS,
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            max_file_size=settings.upload_megabytes * 1_000_000, share=False, prevent_thread_lock=True, quiet=True,
            footer_links=[], run_history=False, enable_monitoring=False, pwa=False, mcp_server=False, ssr_mode=False,
            app_kwargs={"middleware": [Middleware(OwnAddress, **own)]},
        )  # fmt: skip
    # Gradio's own middleware answers cross-site requests, so this one must be outermost.
    page.app.middleware_stack = OwnAddress(page.app.middleware_stack, **own)  # type: ignore[arg-type]
    return page, computations, address


@contextmanager
def refused(settings: ExploreSettings) -> Iterator[None]:
    """Turn errors about the server's address into a RecipeError."""
    try:
        yield
    except (OSError, UnicodeError) as error:  # UnicodeError: an invalid host name
        where = "with ports from 7860 on" if settings.port is None else f"port {settings.port}"
        raise RecipeError(
            f"cannot serve at {settings.host}, {where}: in use, or not on this machine. Choose another port=… or host=…"
        ) from error


class OwnAddress:
    """Passes requests on to `app` only if they name this server's `host` or one of `names`, and come from its own site.

    A browser sends the requests of any open site to any address, including this machine, and a name may first resolve
    to another machine and later to this one (DNS rebinding). But the browser always sends the requested name (Host)
    and the requesting site (Origin). Gradio checks neither.

    A server on all addresses of a machine (0.0.0.0) can be reached at any of them, or by the machine's name. An
    address cannot resolve to another machine, so every address is allowed.
    """

    def __init__(self, app: "ASGIApp", host: str, names: Collection[str] = ()) -> None:
        self.app = app
        self.everywhere = host in ("0.0.0.0", "::", "")
        own = {host, socket.gethostname(), socket.getfqdn()} if host not in LOOPBACK else set()
        self.names = {name.lower() for name in names}
        self.own = {name.lower() for name in (*own, *LOOPBACK)} | self.names

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer a request, or refuse it with status 403."""
        if scope["type"] in ("http", "websocket") and not self.is_own(scope["headers"]):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": REFUSED})
            return
        await self.app(scope, receive, send)

    def is_own(self, headers: Collection[tuple[bytes, bytes]]) -> bool:
        """Whether the headers of a request name this server, and do not name another requesting site."""
        hosts, origins = (
            [value.decode("latin-1").lower() for key, value in headers if key.lower() == name]
            for name in (b"host", b"origin")
        )
        name = _name(hosts[0]) if len(hosts) == 1 else None
        if name is None or not (name in self.own or (self.everywhere and _is_ip_address(name))):
            return False
        for origin in origins:
            _, mark, site = origin.partition("://")
            # A proxy may send its own name as Host, or this server's name.
            if not mark or (site != hosts[0] and _name(site) not in self.names):
                return False
        return True


def _name(address: str) -> str | None:
    """Return the host of `name`, `name:port` or `[number]:port`, or None if the address has another form."""
    return None if (match := HOST.fullmatch(address)) is None else match[1].strip("[]")


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


main = command("explore", explore)

if __name__ == "__main__":
    sys.exit(main())
