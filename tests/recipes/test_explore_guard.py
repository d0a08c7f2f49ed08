"""The explorer answers HTTP requests to its own address, and refuses those of other sites."""

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.explore import ExploreSettings, OwnAddress, serve

pytest.importorskip("gradio", reason="needs gradio: pip install 'multisagd[explore]'")
PATHS = [("GET", "/"), ("GET", "/config"), ("POST", "/gradio_api/upload"), ("POST", "/gradio_api/queue/join")]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    config = configuration.load("explore", ["sizes.image=32", "sizes.clip=16", "names=[explore.example]"])
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR", "HF_HUB_DISABLE_TELEMETRY", "no_proxy"):
            patch.setenv(name, "")  # restored at the end
        page, address = serve(Builder().settings(ExploreSettings, config, ""), Path(folder))
        yield int(address.rstrip("/").rsplit(":", 1)[1])
        page.close(verbose=False)


def ask(port: int, host: str, method: str = "GET", path: str = "/config", **headers: str) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"Host": host, "Content-Length": "0", **headers}.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        answer.read()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}
    finally:
        connection.close()


def test_own_address_is_answered(port: int) -> None:
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "LOCALHOST:8000", f"[::1]:{port}"):
        assert ask(port, host)[0] == 200
        assert ask(port, host, Origin=f"http://{host}")[0] == 200


def test_own_address_refuses_other_names_and_sites(port: int) -> None:
    own = f"127.0.0.1:{port}"
    others = ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "10.0.0.1")
    for host in (*others, ""):
        assert ask(port, host)[0] in (400, 403), host
    for origin in ("http://evil.example", "null", "", f"http://localhost:{port}", "http://127.0.0.1:1", f"{own}"):
        for method, path in PATHS:
            assert ask(port, own, method, path, Origin=origin)[0] == 403, (origin, path)
        preflight = {"Access_Control_Request_Method": "POST", "Origin": origin}
        status, headers = ask(port, own, "OPTIONS", "/gradio_api/queue/join", **preflight)
        assert status == 403
        assert "access-control-allow-origin" not in headers


def test_own_address_includes_the_names_of_a_proxy(port: int) -> None:
    """Whichever name, port and protocol the proxy passes on."""
    assert ask(port, "explore.example", Origin="https://explore.example")[0] == 200
    assert ask(port, "explore.example:8443", Origin="https://explore.example:8443")[0] == 200
    forwarded: dict[str, Any] = {"X_Forwarded_Host": "explore.example", "X_Forwarded_Proto": "https"}
    assert ask(port, f"127.0.0.1:{port}", Origin="https://explore.example", **forwarded)[0] == 200
    assert ask(port, "explore.example.evil", Origin="https://explore.example")[0] == 403


def test_own_address_of_a_network_server_is_its_number_or_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "machine")
    monkeypatch.setattr("socket.getfqdn", lambda: "machine.example")

    async def app(*words: object) -> None:
        """Do nothing."""

    def answered(host: str, requested: str) -> bool:
        return OwnAddress(app, host).is_own([(b"host", requested.encode())])

    for name in ("10.1.2.3:7860", "[fe80::1]:7860", "machine:7860", "machine.example", "localhost:7860"):
        assert answered("0.0.0.0", name)
    assert not answered("0.0.0.0", "evil.example:7860")
    assert answered("10.1.2.3", "10.1.2.3:7860")
    assert not answered("10.1.2.3", "10.9.9.9:7860")
