"""A web server on this machine."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from flask import Flask
from werkzeug.serving import make_server


@contextmanager
def serving(folder: Path, parts: bool = True) -> Iterator[str]:
    """Serve a folder on this machine and yield its address; without `parts`, only whole files."""
    folder.mkdir(exist_ok=True)
    if parts:
        server = make_server("127.0.0.1", 0, Flask("files", static_folder=folder, static_url_path="/"), threaded=True)
    else:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
