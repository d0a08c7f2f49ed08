"""`multisagd report`: what the page says equals what the run's files hold, and nothing in them can harm who opens it.

A page takes a second or two, so tests share one where they can.
"""

import base64
import csv
import fcntl
import io
import json
import re
import shutil
import socket
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import av
import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from safetensors.torch import save_file

from modalities.audio import write_wav
from modalities.image import Image
from modalities.video_writing import write_video
from multisagd import DataStatistics, PowerLaw, SpectralCovariance
from multisagd.analysis.profiles import axis_profile
from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_configuration
from recipes.cli import main as cli
from recipes.config import compose as configuration
from recipes.config.groups import flatten
from recipes.plotting.curves import Axis, Series, draw
from recipes.report import ReportSettings, write_report
from recipes.reports.page import Budget, Item, Note, Section, is_report, item, render
from recipes.reports.run import read_run
from recipes.reports.samples import spread
from recipes.reports.summary import settings, summary_blocks
from recipes.runs import metrics as reader
from tests.helpers.tiny import TINY, read_metrics, tiny_run

POWER = ["spectrum=power_law", "spectrum.exponent=-0.5"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    tiny_run(folder, "every.validation=48", "every.samples=48", *POWER)
    return folder


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


class Reader(HTMLParser):
    """What a page holds: its text, its elements with attributes, and what its scripts and styles are."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.within = ""
        self.points: list[dict[str, Any]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.within = tag
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.within = ""

    def handle_data(self, data: str) -> None:
        if self.within == "script" and dict(self.elements[-1][1]).get("type") == "application/json":
            self.points.append(json.loads(data))
        elif self.within not in ("script", "style"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def page_of(run_dir: Path, **keys: Any) -> Reader:
    path, _ = write_report(ReportSettings(run_dir, **{"examples": 0, **keys}))
    text = path.read_text(encoding="utf-8")
    assert is_report(text)
    return Reader(text)


def curve(page: Reader, name: str) -> dict[str, list[str]]:
    """The values of one curve, and where they are, of the first chart that has one of this name."""
    return next(each for points in page.points for each in points["series"] if each["name"] == name)


@pytest.fixture(scope="module")
def page(trained: Path) -> Reader:
    return page_of(trained)


class TestContent:
    def test_losses_are_those_of_the_metrics(self, page: Reader, trained: Path) -> None:
        entries = read_metrics(trained, "train")
        assert curve(page, "training")["at"] == [f"{entry['samples']:,}" for entry in entries]
        assert curve(page, "training")["values"] == [f"{entry['loss']:.4g}" for entry in entries]
        validations = read_metrics(trained, "validation")
        assert [entry["samples"] for entry in validations] == [48, 96]
        assert curve(page, "validation")["values"] == [f"{entry['loss']:.4g}" for entry in validations]

    def test_losses_by_noise_level_and_band(self, page: Reader, trained: Path) -> None:
        validations = read_metrics(trained, "validation")
        for name, level in validations[-1]["level"].items():
            found = curve(page, f"{name}, log-SNR {level['log_snr']:.1f}")["values"]
            assert found == [f"{entry['level'][name]['loss']:.4g}" for entry in validations]
        levels = sorted(validations[-1]["level"].values(), key=lambda each: each["log_snr"])
        assert curve(page, "after 96")["values"] == [f"{each['loss']:.4g}" for each in levels]
        bands = validations[-1]["band"]
        for band in next(iter(bands.values())):
            mean = sum(errors[band] for errors in bands.values()) / len(bands)
            assert curve(page, band)["values"][-1] == f"{mean:.4g}"

    def test_spectra_are_those_of_data_and_noise(self, page: Reader, trained: Path) -> None:
        statistics = DataStatistics.load(trained / "statistics.safetensors")
        grid = statistics.grid
        noise = SpectralCovariance(PowerLaw(-0.5), grid).power() * statistics.sigma_data**2
        drawn = [points for points in page.points if points["x"] == "cycles per pixel"]
        assert len(drawn) == 2
        for points, axis in zip(drawn, ("height", "width"), strict=True):
            for each, power in zip(points["series"], (statistics.power, noise), strict=True):
                expected = axis_profile(power, grid, axis).power.tolist()
                assert [float(value) for value in each["values"]] == pytest.approx(expected, rel=1e-3)

    def test_the_signal_left_falls_from_the_data_to_the_noise(self, page: Reader) -> None:
        falling = [float(value) for value in curve(page, "schedule")["values"]]
        assert falling == sorted(falling, reverse=True)
        assert "Signal left at t = 1" in page.words

    def test_pictures_of_training_are_there_as_they_are(self, page: Reader, trained: Path) -> None:
        kept = {(trained / "samples" / f"{seen:012d}.png").read_bytes() for seen in (48, 96)}
        sources = [image["src"] for image in page.all("img")]
        shown = {base64.b64decode(source.split(",")[1]) for source in sources if source is not None}
        assert kept <= shown
        (slider,) = [each for each in page.all("input") if each.get("type") == "range"]
        assert slider["max"] == "1"

    def test_configuration_and_environment_are_complete(self, page: Reader, trained: Path) -> None:
        for key in flatten(read_configuration(trained / "config.yaml")):
            assert key in page.words
        start = json.loads((trained / "run.json").read_text())["starts"][0]
        assert start["revision"] in page.words
        assert start["versions"]["torch"] in page.words

    def test_every_picture_is_described_and_nothing_comes_from_elsewhere(self, page: Reader) -> None:
        assert all(image.get("alt") for image in page.all("img"))
        for _, attributes in page.elements:
            assert "style" not in attributes
            for name in ("src", "href", "xlink:href"):
                target = attributes.get(name)
                assert target is None or target.startswith(("data:", "#")), target
        headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
        assert headings[0] == 1
        assert all(now - before <= 1 for before, now in pairwise(headings))
        identities = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(set(identities)) == len(identities)


def test_settings_are_marked_where_they_differ_from_the_defaults(trained: Path) -> None:
    found = settings(read_configuration(trained / "config.yaml"))
    rows = {row.key: row for row in found.rows}
    assert dict(found.choices)["spectrum"] == "power_law"
    assert dict(found.choices)["network"] == "unet"
    chosen = [f"{group}={choice}" for group, choice in found.choices]
    plain = flatten(configuration.load("train", ["run_dir=r", *chosen]))
    for key, row in rows.items():
        value = flatten(read_configuration(trained / "config.yaml"))[key]
        assert (row.default is not None) == (plain[key] != value and key != "run_dir"), key
    assert rows["network.width"].default == str(plain["network.width"])


class TestMissingParts:
    def test_only_a_configuration(self, trained: Path, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        shutil.copy(trained / "config.yaml", tmp_path / "run")
        words = page_of(tmp_path / "run").words
        assert "not begun" in words
        assert "metrics.jsonl is missing" in words
        assert "statistics.safetensors is missing" in words
        assert f"multisagd sample run_dir={tmp_path / 'run'}" in words

    @pytest.mark.parametrize(
        "name", ["config.yaml", "run.json", "metrics.jsonl", "timing.jsonl", "statistics.safetensors"]
    )
    def test_each_part_alone_is_named(self, run_dir: Path, name: str) -> None:
        (run_dir / name).unlink()
        run = read_run(run_dir)
        (note,) = run.missing
        assert note.startswith(f"{name} is missing")
        assert run.seen == 96

    def test_without_configuration_and_pictures(self, run_dir: Path) -> None:
        (run_dir / "config.yaml").unlink()
        shutil.rmtree(run_dir / "samples")
        page = page_of(run_dir)
        assert curve(page, "training")["values"]
        assert "No samples were drawn during training" in page.words

    def test_broken_files_are_named_and_the_rest_is_shown(self, run_dir: Path) -> None:
        (run_dir / "run.json").write_text("{")
        (run_dir / "statistics.safetensors").write_bytes(b"\xff" * 20)
        with (run_dir / "metrics.jsonl").open("a") as file:
            file.write('[1]\n{"samples": "many", "kind": "train"}\n{"samples": 128, "kind": "tra')
        run = read_run(run_dir)
        told = " ".join(run.missing)
        assert "run.json could not be read" in told
        assert "statistics.safetensors could not be read" in told
        assert "3 lines are not entries" in told
        assert [entry["samples"] for entry in run.train] == [32, 64, 96]

    def test_what_is_no_run_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match="is not the folder of a training run"):
            page_of(tmp_path)
        with pytest.raises(RecipeError, match="there is no folder"):
            page_of(tmp_path / "nowhere")
        assert not list(tmp_path.iterdir())

    def test_a_medium_that_is_not_allowed_leaves_spectra_and_process(self, run_dir: Path) -> None:
        config = read_configuration(run_dir / "config.yaml")
        config["modality"]["_target_"] = "os.Path"
        configuration.write(config, run_dir / "config.yaml")
        page = page_of(run_dir)
        assert "not under an allowed package" in page.words
        assert "Signal left at t = 1" in page.words
        assert curve(page, "noise")["values"]

    def test_state(self, run_dir: Path) -> None:
        assert read_run(run_dir).state == "finished"
        config = read_configuration(run_dir / "config.yaml")
        config["training"]["samples"] = 128
        configuration.write(config, run_dir / "config.yaml")
        assert read_run(run_dir).state == "interrupted"
        (said,) = [block.text for block in summary_blocks(read_run(run_dir)) if isinstance(block, Note)]
        assert "Its last checkpoint is after 96 samples" in said
        with (run_dir / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert read_run(run_dir).state == "in progress"
        shutil.rmtree(run_dir / "checkpoints")
        (said,) = [block.text for block in summary_blocks(read_run(run_dir)) if isinstance(block, Note)]
        assert "before its first checkpoint: the same command starts from the beginning" in said


def test_nothing_of_a_run_becomes_markup(run_dir: Path, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{7*191}}$\\frac"
    facts = json.loads((run_dir / "run.json").read_text())
    facts["starts"][0] |= {"device": evil, "revision": evil, "command": [evil], "versions": {evil: evil}}
    facts["classes"] = [evil] * 10
    (run_dir / "run.json").write_text(json.dumps(facts))
    config = read_configuration(run_dir / "config.yaml")
    config[evil] = {evil: evil}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    entry = read_metrics(run_dir, "validation")[-1]
    entry["band"] = {evil: {evil: 0.5, "0": 0.25}}
    entry["level"] = {evil: {"log_snr": 1.0, "loss": 0.5}}
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(entry | {"samples": 112}) + "\n")
    folder = run_dir / "sampled" / "<b>set"
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    save_file(
        {"x0": torch.randn(4, 1, 8, 8, generator=generator), "labels": torch.arange(4)}, folder / "samples.safetensors"
    )
    (folder / "sample.json").write_text(json.dumps({"prompts": [evil], "settings": {"steps": evil, "labels": evil}}))
    row = {"name": evil, "value": 1.0, "unit": evil}
    judged = {
        "results": {evil: {"rows": [row], "notes": [evil]}},
        "unavailable": {evil: evil},
        "pictures": [evil, "../x.png"],
    }
    (folder / "evaluate.json").write_text(json.dumps(judged))

    clean, page = page_of(shutil.copytree(run_dir, tmp_path / "clean")), page_of(run_dir, names=(evil,))
    assert "onerror" in page.words  # it is there, as text
    assert "1337" not in page.words
    assert len(page.all("script")) == len(clean.all("script"))
    assert len([each for each in page.all("script") if each.get("type") != "application/json"]) == 1
    assert len(page.all("style")) == 1
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert not [each for each in page.all("img") if each.get("src") == "x"]


def test_links_that_lead_out_of_a_run_are_not_followed(run_dir: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    shutil.copy(run_dir / "samples" / f"{48:012d}.png", secret)
    for path in (run_dir / "samples").iterdir():
        path.unlink()
    (run_dir / "samples" / f"{48:012d}.png").symlink_to(secret)
    (run_dir / "run.json").unlink()
    (tmp_path / "run.json").write_text('{"starts": [{"device": "a secret"}]}')
    (run_dir / "run.json").symlink_to(tmp_path / "run.json")
    page = page_of(run_dir)
    assert "a link that leads out of the run" in page.words
    assert not page.all("img")
    assert "a secret" not in page.words


def test_sets_of_samples_that_are_links_are_not_followed(run_dir: Path, tmp_path: Path) -> None:
    judged = {"counts": {}, "results": {"kind": {"rows": [{"name": "a secret", "value": 1.0}]}}}
    outside, linked = (judged_set(tmp_path / "outside", judged), judged_set(run_dir / "sampled" / "linked", judged))
    assert "a secret" in page_of(run_dir).words
    (linked / "evaluate.json").unlink()
    (linked / "evaluate.json").symlink_to(outside / "evaluate.json")
    page = page_of(run_dir)
    assert "evaluate.json is a link that leads out of the folder" in page.words
    assert "a secret" not in page.words
    assert curve(page, "samples 1: 4, ")["values"]
    (linked / "samples.safetensors").unlink()
    (linked / "samples.safetensors").symlink_to(outside / "samples.safetensors")
    page = page_of(run_dir)
    with pytest.raises(StopIteration):
        curve(page, "samples 1: 4, ")


def judged_set(folder: Path, judged: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    save_file(
        {"x0": torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))}, folder / "samples.safetensors"
    )
    (folder / "evaluate.json").write_text(json.dumps(judged))
    return folder


def test_an_autoencoder_of_the_hub_is_not_fetched(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    asked: list[Any] = []

    def nowhere(*address: Any, **options: Any) -> Any:
        asked.append(address)
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    config = read_configuration(run_dir / "config.yaml")
    words = ["modality=latent_image", "modality.statistics=null", "modality.autoencoder.name=nobody/nothing"]
    latent = configuration.load("train", [*words, f"run_dir={run_dir}"])["modality"]
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config | {"modality": latent}))
    judged_set(run_dir / "sampled" / "some", {})
    page = page_of(run_dir, examples=1)
    assert not asked
    assert "A report fetches nothing, autoencoders of the hub included. cannot read the configuration" in page.words
    assert "Signal left at t = 1" in page.words


class TestOut:
    def test_it_replaces_its_own_page_alone(self, run_dir: Path, tmp_path: Path) -> None:
        (run_dir / "report.html").write_text(render("older", "", [], ""))
        page_of(run_dir)
        mine = tmp_path / "mine.html"
        mine.write_text("<p>mine")
        with pytest.raises(RecipeError, match="is not a page that this command wrote"):
            page_of(run_dir, out=mine)
        assert mine.read_text() == "<p>mine"
        with pytest.raises(RecipeError, match="should end in"):
            page_of(run_dir, out=tmp_path / "config.yaml")

    def test_what_cannot_be_written_is_named(self, run_dir: Path, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(RecipeError, match=r"cannot write .*: choose another out"):
            page_of(run_dir, out=tmp_path / "file" / "page.html")

    def test_it_follows_no_link(self, run_dir: Path, tmp_path: Path) -> None:
        (run_dir / "report.html.partial").symlink_to(tmp_path / "outside")
        with pytest.raises(RecipeError, match="is a link"):
            page_of(run_dir)
        assert not (tmp_path / "outside").exists()


def test_runs_side_by_side(run_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_run(other, "every.validation=48", "every.samples=48")
    page = page_of(run_dir, others=(other,), names=("shaped", "white"))
    assert "of the same seeds" in page.words
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    (table,) = re.findall(r"<caption>Differing configuration keys</caption>.*?</table>", text, re.DOTALL)
    keys = re.findall(r'<th scope="row">(.*?)</th>', table)
    assert "spectrum._target_" in keys
    assert all(key.startswith("spectrum.") for key in keys)
    for name, folder in (("shaped", run_dir), ("white", other)):
        expected = [f"{entry['loss']:.4g}" for entry in read_metrics(folder, "train")]
        assert curve(page, name)["values"] == expected
    with pytest.raises(ValueError, match="give one for each"):
        ReportSettings(run_dir, others=(other,), names=("one",))
    with pytest.raises(ValueError, match="the same name twice"):
        ReportSettings(run_dir, others=(other,), names=("one", "one"))
    with pytest.raises(RecipeError, match="given twice"):
        page_of(run_dir, others=(run_dir,))


def test_long_journals_are_thinned_evenly_and_keep_their_last_entry(tmp_path: Path) -> None:
    lines = [json.dumps({"samples": number, "kind": "train", "loss": 1.0}) for number in range(1, 10_001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    journal = reader.read_metrics(tmp_path / "metrics.jsonl")
    samples = [entry["samples"] for entry in journal.of("train")]
    steps = {after - before for before, after in pairwise(samples[:-1])}
    assert reader.MOST / 2 <= len(samples) <= reader.MOST + 1
    assert len(steps) == 1
    assert (samples[0], samples[-1]) == (1, 10_000)
    assert journal.thinned
    assert spread(range(100), 4) == [0, 33, 66, 99]


def test_media_beyond_the_budget_are_named(run_dir: Path) -> None:
    path, left_out = write_report(ReportSettings(run_dir, examples=0, megabytes=0.0001))
    assert left_out
    assert "Increase megabytes=… to embed more" in path.read_text(encoding="utf-8")
    budget = Budget(10**9)
    (run_dir / "samples" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert item("broken", run_dir / "samples" / "broken.png", run_dir, budget) is None
    assert "broken.png" in budget.left_out[0]


def content(address: str | None) -> tuple[str, bytes]:
    assert address is not None
    kind, data = address.removeprefix("data:").split(";base64,")
    return kind, base64.b64decode(data)


class TestMedia:
    def taken(self, path: Path) -> Item:
        budget = Budget(10**8)
        found = item("it", path, path.parent, budget)
        assert found is not None
        assert budget.left_out == []
        return found

    def test_small_files_are_taken_as_they_are(self, tmp_path: Path) -> None:
        write_wav(torch.zeros(1, 400), 8000, tmp_path / "0.wav")
        Image(channels=1).save(torch.zeros(1, 8, 8, dtype=torch.uint8), tmp_path / "0.png")
        found = self.taken(tmp_path / "0.png")
        assert content(found.sound) == ("audio/wav", (tmp_path / "0.wav").read_bytes())
        assert content(found.picture) == ("image/png", (tmp_path / "0.png").read_bytes())
        assert found.small
        assert found.clip is None

    def test_long_sounds_become_mp3_of_the_same_length_and_pitch(self, tmp_path: Path) -> None:
        rate, seconds = 37_000, 4.0  # a rate that MP3 does not know
        time = torch.arange(int(rate * seconds)) / rate
        write_wav(0.5 * torch.sin(2 * torch.pi * 440 * time)[None], rate, tmp_path / "0.wav")
        kind, data = content(self.taken(tmp_path / "0.wav").sound)
        assert kind == "audio/mpeg"
        assert len(data) < (tmp_path / "0.wav").stat().st_size / 3
        with av.open(io.BytesIO(data), "r") as file:
            heard = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
            new = file.streams.audio[0].rate
        assert len(heard) / new == pytest.approx(seconds, abs=0.1)
        loudest = np.abs(np.fft.rfft(heard)).argmax() * new / len(heard)
        assert loudest == pytest.approx(440, abs=1)

    def test_large_pictures_become_webp_of_the_same_size(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (3, 320, 320), dtype=np.uint8)
        Image().save(torch.from_numpy(noise), tmp_path / "0.png")
        kind, data = content(self.taken(tmp_path / "0.png").picture)
        assert kind == "image/webp"
        assert PIL.Image.open(io.BytesIO(data)).size == (320, 320)

    def test_clips_that_few_browsers_play_are_written_anew(self, tmp_path: Path) -> None:
        pixels = torch.randint(0, 256, (3, 5, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        write_video(pixels, tmp_path / "odd.mp4", 8)
        write_video(pixels[..., :8, :6], tmp_path / "even.mp4", 8)
        assert content(self.taken(tmp_path / "even.mp4").clip)[1] == (tmp_path / "even.mp4").read_bytes()
        with av.open(io.BytesIO(content(self.taken(tmp_path / "odd.mp4").clip)[1]), "r") as file:
            stream = file.streams.video[0]
            assert (stream.width, stream.height, stream.pix_fmt, stream.frames) == (14, 18, "yuv420p", 5)
            assert stream.average_rate == 8


def test_charts_show_what_their_scales_can() -> None:
    x, y = Axis("x"), Axis("y", "log")
    assert draw("none", "", "", x, y, [Series("a", [1.0, 2.0], [0.0, float("nan")], "c0")]) is None
    chart = draw("some", "", "", x, y, [Series("a", [1.0, 2.0, 3.0], [1.0, 0.0, 100.0], "c0")])
    assert chart is not None
    (series,) = chart.points["series"]
    assert series["values"] == ["1", "100"]
    (left, low), (right, high) = series["places"]
    assert left < right
    assert low > high  # on a screen, up is less


def test_points_lie_where_the_drawing_shows_them() -> None:
    series = Series("a", [10, 20, 30], [100.0, 900.0, 500.0], "c0")
    chart = draw("c", "Chart", "", Axis("x"), Axis("y", level=0.0), [series])
    assert chart is not None
    (points,) = chart.points["series"]
    path = re.search(r'<g id="c-0">\s*<path d="([^"]*)"', str(chart.picture))
    assert path is not None
    drawn = [float(number) for number in re.findall(r"-?\d+\.?\d*", path[1])]
    assert [value for place in points["places"] for value in place] == pytest.approx(drawn, abs=0.1)


def test_files_of_numbers_are_exact_and_hold_no_formulas() -> None:
    series = [
        Series("=a", [1200.0, 2400.0], [0.123456789, -1.5], "c0"), Series("-b()", [2400.0], [1e-9], "c1"),
    ]  # fmt: skip
    chart = draw("some", "", "", Axis("samples seen"), Axis("y"), series)
    assert chart is not None
    text = chart.csv
    assert list(csv.reader(text.splitlines())) == [
        ["samples seen", "'=a", "'-b()"], ["1200", "0.123456789", ""], ["2400", "-1.5", "1e-09"],
    ]  # fmt: skip
    assert chart.rows == [["1,200", "0.1235", ""], ["2,400", "-1.5", "1e-09"]]


def test_names_of_curves_keep_no_secrets() -> None:
    name = "samples of https://u:PASSWORD@host/a/long/path/to/some/run?sig=SIGNATURE and HIDDEN"
    chart = draw("some", "", "", Axis("x"), Axis("y"), [Series(name, [1.0], [1.0], "c0")])
    assert chart is not None
    page = render("t", "", [Section("s", "S", [chart])], "", hidden=["HIDDEN"])
    assert "samples of https://" in unquote(page)
    assert not {"PASSWORD", "SIGNATURE", "HIDDEN"} & set(re.findall(r"[A-Z]{5,}", unquote(page)))


def test_long_names_are_told_apart_and_those_of_bands_do_not_overlap() -> None:
    names = [f"spectrum_power_law_02_epsilon_1e_10_seed_{seed}_57616b65" for seed in (0, 1)]
    bands = [f"{low / 20:.2f}-{(low + 1) / 20:.2f}" for low in range(20)]
    series = [Series(name, range(20), [1.0] * 20, "c0") for name in names]
    chart = draw("some", "", "", Axis("band", ticks=bands), Axis("y"), series)
    assert chart is not None
    assert len({curve.name for curve in chart.curves}) == 2
    named = [band for band in bands if f">{band}<" in chart.picture]
    assert named == bands[:: len(bands) // len(named)]
    assert 2 < len(named) <= 5
    assert chart.points["series"][0]["at"] == bands


def test_the_command_draws_samples_when_asked(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", f"run_dir={run_dir}", "samples=4", "steps=2", "examples=1"]) == 0
    assert "open it in a browser" in capsys.readouterr().out
    page = Reader((run_dir / "report.html").read_text(encoding="utf-8"))
    assert curve(page, "samples 1: 4, Heun in 2 steps")["values"]
    assert "Example 1, white noise" in page.words
    assert "Example 1, the run's noise" in page.words


def test_training_as_a_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "report=true", f"run_dir={tmp_path / 'run'}"]
    assert cli.main(["train", *words]) == 0
    assert is_report((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert "finished" in Reader((tmp_path / "run" / "report.html").read_text(encoding="utf-8")).words
    (tmp_path / "run" / "report.html").write_text("mine")
    assert cli.main(["train", *words]) == 0
    assert "note: no report was written" in capsys.readouterr().out
