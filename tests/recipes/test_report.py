"""`multisagd report` shows what the files of a run hold, and nothing in them can harm the person who opens the page.

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
from unittest.mock import Mock
from urllib.parse import unquote

import av
import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from safetensors.torch import save_file

import multisagd as ms
from modalities.audio import write_wav
from modalities.image import Image
from modalities.video_writing import write_video
from multisagd import DataStatistics, PowerLaw, SpectralCovariance
from multisagd.analysis.profiles import axis_profile, radial_profile
from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_configuration
from recipes.cli import main as cli
from recipes.config import compose as configuration
from recipes.config.groups import flatten
from recipes.plotting.curves import Axis, Series, draw
from recipes.plotting.figures import draw_power
from recipes.report import ReportSettings, write_report
from recipes.reports.losses import loss_charts
from recipes.reports.page import Budget, Note, Section, is_report, item, render
from recipes.reports.run import Overview, read_run
from recipes.reports.samples import evenly_spaced
from recipes.reports.summary import settings, summary_blocks
from recipes.runs import metrics as reader
from tests.helpers.hostile_files import link
from tests.helpers.tiny import TINY, read_metrics, tiny_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    tiny_run(folder, "every.validation=48", "every.samples=48", "spectrum=power_law", "spectrum.exponent=-0.5")
    return folder


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


class Reader(HTMLParser):
    """The text of a page, its elements with attributes, and the points of its charts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words = self.within = ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.points: list[dict[str, Any]] = []
        self.feed(page)
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.within = tag
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.within = ""

    def handle_data(self, data: str) -> None:
        if self.within == "script" and self.elements[-1][1].get("type") == "application/json":
            self.points.append(json.loads(data))
        elif self.within not in ("script", "style"):
            self.words += f" {data}"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def curves(self, name: str) -> list[dict[str, list[str]]]:
        """Return the values of the curves of one name, and where they are."""
        return [each for points in self.points for each in points["series"] if each["name"] == name]

    def values(self, name: str) -> list[str]:
        return self.curves(name)[0]["values"]


def page_of(run_dir: Path, **keys: Any) -> Reader:
    path, _ = write_report(ReportSettings(run_dir, **{"examples": 0, **keys}))
    text = path.read_text(encoding="utf-8")
    assert is_report(text)
    return Reader(text)


def set_keys(run_dir: Path, **groups: Any) -> None:
    """Write other values into the configuration of a run."""
    config = read_configuration(run_dir / "config.yaml")
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config | groups))


def save_samples(folder: Path, **facts: Any) -> Path:
    """Make a set of four samples, with files of facts next to them."""
    folder.mkdir(parents=True)
    x0 = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    save_file({"x0": x0, "labels": torch.arange(4)}, folder / "samples.safetensors")
    for name, content in facts.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def page(trained: Path) -> Reader:
    return page_of(trained)


def test_report_shows_the_losses_of_the_metrics(page: Reader, trained: Path) -> None:
    entries, validations = read_metrics(trained, "train"), read_metrics(trained, "validation")
    assert page.curves("training")[0]["at"] == [f"{entry['samples']:,}" for entry in entries]
    assert page.values("training") == [f"{entry['loss']:.4g}" for entry in entries]
    assert [entry["samples"] for entry in validations] == [48, 96]
    assert page.values("validation") == [f"{entry['loss']:.4g}" for entry in validations]
    for name, level in validations[-1]["level"].items():
        expected = [f"{entry['level'][name]['loss']:.4g}" for entry in validations]
        assert page.values(f"{name}, log-SNR {level['log_snr']:.1f}") == expected
    levels = sorted(validations[-1]["level"].values(), key=lambda each: each["log_snr"])
    assert page.values("after 96") == [f"{each['loss']:.4g}" for each in levels]
    bands = validations[-1]["band"]
    for band in next(iter(bands.values())):
        mean = sum(errors[band] for errors in bands.values()) / len(bands)
        assert page.values(band)[-1] == f"{mean:.4g}"


def test_report_shows_the_spectra_of_data_and_noise(page: Reader, trained: Path) -> None:
    statistics = DataStatistics.load(trained / "statistics.safetensors")
    grid = statistics.grid
    noise = SpectralCovariance(PowerLaw(-0.5), grid).power() * statistics.sigma_data**2
    drawn = [points for points in page.points if points["x"] == "cycles per pixel"]
    assert len(drawn) == 2
    for points, axis in zip(drawn, ("height", "width"), strict=True):
        for each, power in zip(points["series"], (statistics.power, noise), strict=True):
            expected = axis_profile(power, grid, axis).power.tolist()
            assert [float(value) for value in each["values"]] == pytest.approx(expected, rel=1e-3)
    falling = [float(value) for value in page.values("schedule")]
    assert falling == sorted(falling, reverse=True)
    assert "Signal left at t = 1" in page.words


def test_report_embeds_pictures_configuration_and_environment_and_loads_nothing(page: Reader, trained: Path) -> None:
    kept = {(trained / "samples" / f"{seen:012d}.png").read_bytes() for seen in (48, 96)}
    assert kept <= {base64.b64decode((image["src"] or "").split(",")[1]) for image in page.all("img")}
    start = json.loads((trained / "run.json").read_text())["starts"][0]
    for words in (*flatten(read_configuration(trained / "config.yaml")), start["revision"], start["versions"]["torch"]):
        assert words in page.words
    assert all(image.get("alt") for image in page.all("img"))
    for _, attributes in page.elements:
        assert "style" not in attributes
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("data:", "#")), attributes


def test_settings_are_marked_where_they_differ_from_the_defaults(trained: Path) -> None:
    config = read_configuration(trained / "config.yaml")
    shown = settings(config)
    assert {("spectrum", "power_law"), ("network", "unet")} <= set(shown.choices)
    chosen = [f"{group}={choice}" for group, choice in shown.choices]
    defaults, values = flatten(configuration.load("train", ["run_dir=r", *chosen])), flatten(config)
    for row in shown.rows:
        differs = defaults[row.key] != values[row.key] and row.key != "run_dir"
        assert (row.default is not None) == differs, row.key


class TestMissingParts:
    def test_report_of_a_configuration_alone_names_what_is_missing(self, trained: Path, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        shutil.copy(trained / "config.yaml", tmp_path / "run")
        words = page_of(tmp_path / "run").words
        for part in ("not begun", "metrics.jsonl is missing", "No samples were drawn during training"):
            assert part in words
        assert f"multisagd sample run_dir={tmp_path / 'run'}" in words

    def test_read_run_names_each_missing_part(self, run_dir: Path, tmp_path: Path) -> None:
        for name in ("run.json", "metrics.jsonl", "timing.jsonl", "statistics.safetensors", "config.yaml"):
            (run_dir / name).rename(tmp_path / name)
            run = read_run(run_dir)
            (note,) = run.missing
            assert note.startswith(f"{name} is missing")
            assert run.seen == 96
            if name != "config.yaml":
                (tmp_path / name).rename(run_dir / name)
        assert page_of(run_dir).values("training")

    def test_read_run_names_broken_files_and_reads_the_rest(self, run_dir: Path) -> None:
        (run_dir / "run.json").write_text("{")
        (run_dir / "statistics.safetensors").write_bytes(b"\xff" * 20)
        with (run_dir / "metrics.jsonl").open("a") as file:
            file.write('[1]\n{"samples": "many", "kind": "train"}\n{"samples": 128, "kind": "tra')
        run = read_run(run_dir)
        for note in ("run.json could not be read", "statistics.safetensors could not", "3 lines are not valid entries"):
            assert note in " ".join(run.missing)
        assert [entry["samples"] for entry in run.train] == [32, 64, 96]

    def test_report_refuses_folders_that_are_not_runs(self, tmp_path: Path) -> None:
        for folder, message in ((tmp_path, "not the folder of a training run"), (tmp_path / "x", "there is no folder")):
            with pytest.raises(RecipeError, match=message):
                page_of(folder)
        assert not list(tmp_path.iterdir())

    def test_read_run_knows_the_state_of_a_training(self, run_dir: Path) -> None:
        assert read_run(run_dir).state == "finished"
        set_keys(run_dir, training=read_configuration(run_dir / "config.yaml")["training"] | {"samples": 128})
        assert read_run(run_dir).state == "interrupted"
        (note,) = (block.text for block in summary_blocks(read_run(run_dir)) if isinstance(block, Note))
        assert "The last checkpoint is after 96 samples" in note
        with (run_dir / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert read_run(run_dir).state == "in progress"
        shutil.rmtree(run_dir / "checkpoints")
        (note,) = (block.text for block in summary_blocks(read_run(run_dir)) if isinstance(block, Note))
        assert "before its first checkpoint: the same command starts from the beginning" in note


class TestHostileRuns:
    def test_report_turns_nothing_of_a_run_into_markup(self, run_dir: Path, tmp_path: Path) -> None:
        evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{7*191}}$\\frac"
        facts = json.loads((run_dir / "run.json").read_text())
        facts["starts"][0] |= {"device": evil, "revision": evil, "command": [evil], "versions": {evil: evil}}
        (run_dir / "run.json").write_text(json.dumps(facts | {"classes": [evil] * 10}))
        set_keys(run_dir, **{evil: {evil: evil}})
        entry = read_metrics(run_dir, "validation")[-1] | {"samples": 112}
        entry |= {"band": {evil: {evil: 0.5, "0": 0.25}}, "level": {evil: {"log_snr": 1.0, "loss": 0.5}}}
        with (run_dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        row = {"name": evil, "value": 1.0, "unit": evil}
        judged = {"results": {evil: {"rows": [row], "notes": [evil]}}, "unavailable": {evil: evil}, "figures": [evil]}
        sampled = {"prompts": [evil], "settings": {"steps": evil, "labels": evil}}
        save_samples(run_dir / "sampled" / "<b>set", sample=sampled, evaluate=judged)
        clean, page = page_of(shutil.copytree(run_dir, tmp_path / "clean")), page_of(run_dir, names=(evil,))
        assert "onerror" in page.words  # it is there, as text
        assert "1337" not in page.words
        assert len(page.all("script")) == len(clean.all("script"))
        assert len([each for each in page.all("script") if each.get("type") != "application/json"]) == 1
        assert len(page.all("style")) == 1
        assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
        assert not [each for each in page.all("img") if each.get("src") == "x"]

    def test_report_follows_no_links_out_of_a_run(self, run_dir: Path, tmp_path: Path) -> None:
        first, last = sorted((run_dir / "samples").iterdir())
        last.unlink()
        link(first, shutil.copy(first, tmp_path / "secret.png"))(run_dir)
        (tmp_path / "run.json").write_text('{"starts": [{"device": "a secret"}]}')
        link("run.json", tmp_path / "run.json")(run_dir)
        page = page_of(run_dir)
        assert "a symbolic link that points outside the run" in page.words
        assert not page.all("img")
        assert "a secret" not in page.words

    def test_report_follows_no_links_of_sets_of_samples(self, run_dir: Path, tmp_path: Path) -> None:
        judged = {"results": {"kind": {"rows": [{"name": "a secret", "value": 1.0}]}}, "counts": {}}
        outside = save_samples(tmp_path / "outside", evaluate=judged)
        linked = save_samples(run_dir / "sampled" / "linked", evaluate=judged)
        assert "a secret" in page_of(run_dir).words
        link("evaluate.json", outside / "evaluate.json")(linked)
        page = page_of(run_dir)
        assert "evaluate.json is a symbolic link that points outside the folder" in page.words
        assert "a secret" not in page.words
        assert page.curves("samples 1: 4, ")
        link("samples.safetensors", outside / "samples.safetensors")(linked)
        assert not page_of(run_dir).curves("samples 1: 4, ")

    def test_report_fetches_no_autoencoder_from_the_hub(self, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("diffusers")
        unreachable = Mock(side_effect=socket.gaierror("no network in this test"))
        monkeypatch.setattr(socket, "getaddrinfo", unreachable)
        words = ["modality=latent_image", "modality.statistics=null", "modality.autoencoder.name=nobody/nothing"]
        modality = configuration.load("train", [*words, "run_dir=r"])["modality"]
        modality["autoencoder"]["trusted"] = True  # a run cannot call itself trusted
        set_keys(run_dir, modality=modality)
        save_samples(run_dir / "sampled" / "some", evaluate={})
        page = page_of(run_dir, examples=1)
        unreachable.assert_not_called()
        assert "A report downloads nothing, not even autoencoders" in page.words
        assert "cannot read the configuration" in page.words
        assert "Signal left at t = 1" in page.words


def test_report_replaces_only_its_own_page(run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "report.html").write_text(render("older", "", [], ""))
    page_of(run_dir)
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine")
    for out, message in (
        (mine, "was not written by this command"),
        (tmp_path / "config.yaml", "must end in"),
        (mine / "page.html", r"cannot write .*: choose another out"),
    ):
        with pytest.raises(RecipeError, match=message):
            page_of(run_dir, out=out)
    assert mine.read_text() == "<p>mine"
    (run_dir / "report.html.partial").symlink_to(tmp_path / "outside")
    with pytest.raises(RecipeError, match="is a symbolic link"):
        page_of(run_dir)
    assert not (tmp_path / "outside").exists()


def test_report_compares_runs(run_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_run(other, "every.validation=48", "every.samples=48")
    page = page_of(run_dir, others=(other,), names=("shaped", "white"))
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    (table,) = re.findall(r"<caption>Differing configuration keys</caption>.*?</table>", text, re.DOTALL)
    keys = re.findall(r'<th scope="row">(.*?)</th>', table)
    assert "spectrum._target_" in keys
    assert all(key.startswith("spectrum.") for key in keys)
    for name, folder in (("shaped", run_dir), ("white", other)):
        assert page.values(name) == [f"{entry['loss']:.4g}" for entry in read_metrics(folder, "train")]
    for names, message in ((("one",), "add one name for each"), (("one", "one"), "the same name twice")):
        with pytest.raises(ValueError, match=message):
            ReportSettings(run_dir, others=(other,), names=names)
    with pytest.raises(RecipeError, match="given twice"):
        page_of(run_dir, others=(run_dir,))


def test_read_metrics_thins_evenly_and_keeps_the_last_entry(tmp_path: Path) -> None:
    lines = [json.dumps({"samples": number, "kind": "train", "loss": 1.0}) for number in range(1, 10_001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    metrics = reader.read_metrics(tmp_path / "metrics.jsonl")
    samples = [entry["samples"] for entry in metrics.of("train")]
    assert reader.MAX_ENTRIES / 2 <= len(samples) <= reader.MAX_ENTRIES + 1
    assert len({after - before for before, after in pairwise(samples[:-1])}) == 1
    assert (samples[0], samples[-1]) == (1, 10_000)
    assert metrics.subsampled
    assert evenly_spaced(range(100), 4) == [0, 33, 66, 99]


class TestMedia:
    def embedded(self, path: Path, kind: str) -> tuple[str, bytes]:
        """Return the type and the content of the `kind` of media that a page gets of a file."""
        budget = Budget(10**8)
        address = getattr(item("it", path, path.parent, budget), kind)
        assert budget.omitted == []
        kind, data = address.removeprefix("data:").split(";base64,")
        return kind, base64.b64decode(data)

    def test_report_names_media_beyond_the_budget(self, run_dir: Path) -> None:
        path, omitted = write_report(ReportSettings(run_dir, examples=0, megabytes=0.0001))
        assert omitted
        assert "Increase megabytes=… to embed more" in path.read_text(encoding="utf-8")
        budget = Budget(10**9)
        (run_dir / "samples" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        assert item("broken", run_dir / "samples" / "broken.png", run_dir, budget) is None
        assert "broken.png" in budget.omitted[0]

    def test_item_embeds_small_files_unchanged_and_large_pictures_as_webp(self, tmp_path: Path) -> None:
        write_wav(torch.zeros(1, 400), 8000, tmp_path / "0.wav")
        Image(channels=1).save(torch.zeros(1, 8, 8, dtype=torch.uint8), tmp_path / "0.png")
        assert self.embedded(tmp_path / "0.png", "audio") == ("audio/wav", (tmp_path / "0.wav").read_bytes())
        assert self.embedded(tmp_path / "0.png", "image") == ("image/png", (tmp_path / "0.png").read_bytes())
        noise = np.random.default_rng(0).integers(0, 256, (3, 320, 320), dtype=np.uint8)
        Image().save(torch.from_numpy(noise), tmp_path / "1.png")
        kind, data = self.embedded(tmp_path / "1.png", "image")
        assert kind == "image/webp"
        assert PIL.Image.open(io.BytesIO(data)).size == (320, 320)

    def test_item_compresses_long_sounds_to_mp3_of_the_same_length_and_pitch(self, tmp_path: Path) -> None:
        rate, seconds = 37_000, 4.0  # a rate that MP3 does not know
        time = torch.arange(int(rate * seconds)) / rate
        write_wav(0.5 * torch.sin(2 * torch.pi * 440 * time)[None], rate, tmp_path / "0.wav")
        kind, data = self.embedded(tmp_path / "0.wav", "audio")
        assert kind == "audio/mpeg"
        assert len(data) < (tmp_path / "0.wav").stat().st_size / 3
        with av.open(io.BytesIO(data), "r") as file:
            sound = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
            new = file.streams.audio[0].rate
        assert len(sound) / new == pytest.approx(seconds, abs=0.1)
        assert np.abs(np.fft.rfft(sound)).argmax() * new / len(sound) == pytest.approx(440, abs=1)

    def test_item_reencodes_clips_that_few_browsers_play(self, tmp_path: Path) -> None:
        pixels = torch.randint(0, 256, (3, 5, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        write_video(pixels, tmp_path / "odd.mp4", 8)
        write_video(pixels[..., :8, :6], tmp_path / "even.mp4", 8)
        even, odd = (self.embedded(tmp_path / f"{name}.mp4", "video")[1] for name in ("even", "odd"))
        assert even == (tmp_path / "even.mp4").read_bytes()
        with av.open(io.BytesIO(odd), "r") as file:
            stream = file.streams.video[0]
            assert (stream.width, stream.height, stream.pix_fmt, stream.frames) == (14, 18, "yuv420p", 5)
            assert stream.average_rate == 8


class TestCharts:
    def test_draw_places_points_where_the_drawing_shows_them(self) -> None:
        chart = draw("c", "", "", Axis("x"), Axis("y", level=0.0), [Series("a", [10, 20, 30], [1.0, 9.0, 5.0], "c0")])
        (points,) = chart.points["series"]
        path = re.search(r'<g id="c-0">\s*<path d="([^"]*)"', str(chart.svg))
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", path[1])]
        assert [value for place in points["positions"] for value in place] == pytest.approx(numbers, abs=0.1)
        # A logarithmic scale leaves out what it cannot show.
        y = Axis("y", "log")
        assert draw("c", "", "", Axis("x"), y, [Series("a", [1.0, 2.0], [0.0, float("nan")], "c0")]) is None
        chart = draw("c", "", "", Axis("x"), y, [Series("a", [1.0, 2.0, 3.0], [1.0, 0.0, 100.0], "c0")])
        assert chart.points["series"][0]["values"] == ["1", "100"]

    def test_chart_exports_exact_numbers_and_no_formulas(self) -> None:
        series = [Series("=a", [1200.0, 2400.0], [0.123456789, -1.5], "c0"), Series("-b()", [2400.0], [1e-9], "c1")]
        chart = draw("c", "", "", Axis("samples seen"), Axis("y"), series)
        rows = [["samples seen", "'=a", "'-b()"], ["1200", "0.123456789", ""], ["2400", "-1.5", "1e-09"]]
        assert list(csv.reader(chart.csv.splitlines())) == rows
        assert chart.rows == [["1,200", "0.1235", ""], ["2,400", "-1.5", "1e-09"]]

    def test_render_hides_secrets_in_names_of_curves(self) -> None:
        name = "samples of https://u:PASSWORD@host/a/long/path/to/some/run?sig=SIGNATURE and HIDDEN"
        chart = draw("c", "", "", Axis("x"), Axis("y"), [Series(name, [1.0], [1.0], "c0")])
        page = unquote(render("t", "", [Section("s", "S", [chart])], "", hidden=["HIDDEN"]))
        assert "samples of https://" in page
        assert not {"PASSWORD", "SIGNATURE", "HIDDEN"} & set(re.findall(r"[A-Z]{5,}", page))


def test_report_command_draws_samples(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", f"run_dir={run_dir}", "samples=4", "steps=2", "examples=1"]) == 0
    assert "open it in a browser" in capsys.readouterr().out
    page = Reader((run_dir / "report.html").read_text(encoding="utf-8"))
    assert page.values("samples 1: 4, DPMSolver in 2 steps")
    assert "Example 1, white noise" in page.words
    assert "Example 1, the run's noise" in page.words


def test_train_command_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, path = [*TINY, "report=true", f"run_dir={tmp_path / 'run'}"], tmp_path / "run" / "report.html"
    assert cli.main(["train", *words]) == 0
    assert is_report(path.read_text(encoding="utf-8"))
    assert "finished" in Reader(path.read_text(encoding="utf-8")).words
    path.write_text("mine")
    assert cli.main(["train", *words]) == 0
    assert "note: no report was written" in capsys.readouterr().out


ENTRY: dict[str, Any] = {"samples": 32, "loss": 1.0, "gradient_norm": 1.0}


@pytest.mark.parametrize(("train", "held_out", "subsampled", "message"), [
    ([], 1, False, "No training step has been logged"),
    ([ENTRY], 1, False, "There was no validation yet"),
    ([ENTRY], 0, False, "No data were held out"),
    ([ENTRY], 0, True, "too many entries"),
])  # fmt: skip
def test_loss_charts_say_what_is_missing(train: list[Any], held_out: int, subsampled: bool, message: str) -> None:
    run = Overview(Path("run"), "run", None, {"held_out": held_out}, train, [], [], subsampled, None, ())
    assert any(message in block.text for block in loss_charts(run) if isinstance(block, Note))


def test_draw_power_omits_a_profile_without_power() -> None:
    grid = ms.Grid.of(y=8, x=8)
    plot = Figure().subplots()
    for power, lines in ((torch.zeros(grid.half_shape), 0), (torch.ones(grid.half_shape), 1)):
        draw_power(plot, radial_profile(power, grid), "data")
        assert len(plot.lines) == lines
