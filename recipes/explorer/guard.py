"""Who is answered by a page that is served to this machine: requests that name it by its own address.

A browser sends the requests of any site that it shows to wherever that site asks, this machine included, and a name may
lead to another machine at first and to this one later (DNS rebinding). But it always says which name was asked (Host)
and which site asks (Origin). Gradio looks at neither where it answers.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/@\s]+)(?::\d{1,5})?")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
REFUSED = b"This page is asked by another name or site than its own: `multisagd explore names=[NAME]` allows a name.\n"


class OwnAddress:
    """Passes on to `app` what asks for a server at `host` by its own address, or by one of `names` and of its site.

    A server at all addresses of a machine (0.0.0.0) is asked by any of them, or by the machine's name. An address is
    not a name that could lead elsewhere, so it need not be known.
    """

    def __init__(self, app: ASGIApp, host: str, names: Collection[str] = ()) -> None:
        self.app = app
        self.everywhere = host in ("0.0.0.0", "::", "")
        own = {host, socket.gethostname(), socket.getfqdn()} if host not in LOOPBACK else set()
        self.names = {name.lower() for name in names}
        self.own = {name.lower() for name in (*own, *LOOPBACK)} | self.names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
        """Whether the headers of a request name this server, and no other site as the one that asks."""
        hosts, origins = (
            [value.decode("latin-1").lower() for key, value in headers if key.lower() == name]
            for name in (b"host", b"origin")
        )
        name = _name(hosts[0]) if len(hosts) == 1 else None
        if name is None or not (name in self.own or (self.everywhere and _is_number(name))):
            return False
        for origin in origins:
            _, mark, place = origin.partition("://")
            # A proxy may pass its own name on as Host, or this server's.
            if not mark or (place != hosts[0] and _name(place) not in self.names):
                return False
        return True


def _name(address: str) -> str | None:
    """Return the name or number of `name`, `name:port` or `[number]:port`."""
    found = HOST.fullmatch(address)
    return None if found is None else found[1].strip("[]")


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
