"""A run whose records name data by addresses opens nothing but plain paths of this machine, and writes nothing."""

import io
import shutil
import socket
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image as PILImage

from modalities import byte_ranges
from modalities.base import Modality
from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_configuration
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.evaluation.sets import real_data
from recipes.report import ReportSettings, write_report
from recipes.sample import sample
from tests.helpers.archives import archive
from tests.helpers.hostile_files import updated
from tests.helpers.tiny import tiny_run

ADDRESSES: list[Any] = [
    "reference::evil.json", "reference://a.tar::http://127.0.0.1:9/evil.json", "http://127.0.0.1:9/a.tar",
    "file:///tmp/a.tar", "local:///tmp/a.tar", "memory://a.tar", "zip://a.tar::x.zip", "tar://a.tar::x.tar",
    "simplecache::http://127.0.0.1:9/a.tar", "filecache::/tmp/a.tar", "github://me:repository@main/a.tar",
    "jupyter://127.0.0.1:9/a.tar", "ssh://me:SECRET@127.0.0.1/a.tar", "//host/share/a.tar", r"\\host\share\a.tar",
    "s{3..3}://bucket/a.tar", "{0..1}::http://127.0.0.1:9/a.tar", "data:,x", "pipe:touch canary",
    "dir::file:///", "gs://bucket/a.tar?token=SECRET", ["a.tar", "http://127.0.0.1:9/b.tar"],
]  # fmt: skip
SHARDS = {"_target_": "modalities.tars.TarShards"}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_run(folder, "training.samples=16")
    return folder


@pytest.fixture
def run_dir(healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a run, in a process that cannot use the network."""

    connect = Mock(side_effect=AssertionError("a connection was opened"))
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copytree(healthy, tmp_path / "run")


def naming(run_dir: Path, **data: Any) -> Path:
    """Let the records of a run name other data."""
    config = read_configuration(run_dir / "config.yaml")
    configuration.write({**config, "data": {**SHARDS, **data}}, run_dir / "config.yaml")
    updated("run.json", data=None)(run_dir)
    return run_dir


@pytest.mark.parametrize("urls", ADDRESSES, ids=str)
def test_real_data_opens_an_address_only_if_the_command_line_repeats_it(
    run_dir: Path, urls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_url = Mock(side_effect=ValueError("opened"))
    monkeypatch.setattr(byte_ranges, "url_to_fs", open_url)
    with pytest.raises(RecipeError, match=r"^data\.urls=.* If you trust it, repeat it") as refused:
        real_data(naming(run_dir, urls=urls), Builder())
    assert "SECRET" not in str(refused.value)
    open_url.assert_not_called()
    with pytest.raises(RecipeError, match="opened"):
        real_data(naming(run_dir, urls="http://127.0.0.1:9/other.tar"), Builder(), {"urls": urls})
    open_url.assert_called_once_with(byte_ranges.expanded(urls if isinstance(urls, str) else urls[0])[0])


def test_real_data_opens_no_address_in_any_other_key(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_ranges, "url_to_fs", lambda url: pytest.fail(f"fsspec was given {url}"))
    for key in ("root", "manifest", "index", "anything"):
        with pytest.raises(RecipeError, match=rf"^data\.{key}=https://…@h/x: .* contacts no other address"):
            real_data(naming(run_dir, urls="a.tar", **{key: "https://me:SECRET@h/x"}), Builder())
    inner = {**SHARDS, "urls": "http://127.0.0.1:9/a.tar"}
    with pytest.raises(RecipeError, match=r"^data\.dataset\.urls=http"):
        real_data(naming(run_dir, _target_="modalities.wrapped.Captioned", dataset=inner, encoder={}), Builder())
    # A run cannot call itself trusted, and environment variables are not a part of it.
    with pytest.raises(RecipeError, match=r"nowhere\.tar"):
        real_data(naming(run_dir, urls="nowhere.tar", trusted=True), Builder())
    monkeypatch.setenv("SECRET", "/etc")
    with pytest.raises(RecipeError, match=r"\$\{oc\.env:SECRET\}"):
        real_data(naming(run_dir, urls="${oc.env:SECRET}/a.tar"), Builder())


def test_real_data_writes_nothing_where_a_run_names_an_index(run_dir: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    picture = io.BytesIO()
    PILImage.new("L", (8, 8), 90).save(picture, "PNG")
    (shards / "0.tar").write_bytes(archive(*((f"{number}.png", picture.getvalue()) for number in range(120))))
    before = sorted(tmp_path.rglob("*"))
    naming(run_dir, urls=f"{shards}/{{0..0}}.tar", index=str(tmp_path / "outside"))
    train, held_out = real_data(run_dir, Builder())
    assert len(train) + len(held_out) == 120
    assert sorted(tmp_path.rglob("*")) == before


def test_report_and_sample_open_no_address_of_a_run(run_dir: Path) -> None:
    """A report explains why it shows no data, and samples need no data."""
    naming(run_dir, urls="reference://a.tar::http://127.0.0.1:9/evil.json")
    path, _ = write_report(ReportSettings(run_dir))
    assert "contacts no other address" in path.read_text()
    words = [f"run_dir={run_dir}", "steps=1", "count=2", "engine.threads=1", "engine.device=cpu"]
    sample(configuration.load("sample", words))


def test_builder_of_a_run_downloads_no_autoencoder(run_dir: Path) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    autoencoder = {"_target_": "modalities.autoencoders.DiffusersAutoencoder", "name": "nobody/nothing"}
    inner = read_configuration(run_dir / "config.yaml")["modality"]
    node = {"_target_": "modalities.latent.Latent", "modality": inner, "autoencoder": {**autoencoder, "trusted": True}}
    with pytest.raises(
        (RecipeError, ValueError), match="not downloaded automatically, so run: hf download nobody/nothing"
    ):
        Builder().of_a_run({}).build(node, Modality, "modality").grid()  # type: ignore[type-abstract]
