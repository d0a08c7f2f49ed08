"""`multisagd sample` draws from the chosen checkpoint, weights, labels and prompts, and so does a `Pipeline`.

The command writes complete sets; a pipeline draws the same here and in a fresh process, and saves and shares its model.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file

from modalities.audio import Audio
from modalities.files import Folder
from modalities.image import Image
from modalities.representation import Waveform
from modalities.video import Video
from multisagd import DDIM
from multisagd.libraries import BrokenLibraryError
from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_configuration
from recipes.config import compose as configuration
from recipes.export import export
from recipes.runs.settings import SampleSettings
from recipes.sample import sample
from recipes.sampling.condition import chosen_labels
from recipes.sharing.pipeline import FILES, Pipeline, PipelineOutput
from tests.helpers.tiny import assert_same, last_state, tiny_config, tiny_run
from tests.helpers.tiny_text import tiny_encoder

COLORS = ["red", "green", "blue"]
CLASSES = ["cat", "dog", "emu", "owl"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_run(folder, "spectrum=power_law")
    return folder


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a training on 60 pictures with captions in a manifest, of which every fifth is empty."""
    root = tmp_path_factory.mktemp("text")
    tiny_encoder(root / "encoder")
    (root / "photos").mkdir()
    rows = ["file,label,text"]
    for number in range(60):
        color, name = COLORS[number % 3], f"{number:02}.png"
        PILImage.new("L", (8, 8), 80 * (number % 3) + number % 7).save(root / "photos" / name)
        rows.append(f"{name},{color},{'' if number % 5 == 4 else f'a {color} square'}")
    (root / "photos" / "list.csv").write_text("\n".join(rows), encoding="utf-8")
    return [
        "data=folder", f"data.root={root / 'photos'}", "data.manifest=list.csv", "validation.holdout=12",
        "text=encoder", f"text.name={root / 'encoder'}", "text.max_tokens=8", f"text.cache={root / 'cache'}",
        "every.samples=48", "guidance.scale=2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def on_text(captioned: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "on_text"
    tiny_run(folder, *captioned)
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A run to change."""
    return shutil.copytree(trained, tmp_path / "run")


def draw(run_dir: Path, *overrides: str) -> Path:
    words = [f"run_dir={run_dir}", "steps=2", "count=6", "engine.threads=1", "engine.device=cpu", *overrides]
    return sample(configuration.load("sample", words))


def x0_of(folder: Path) -> torch.Tensor:
    return load_file(folder / "samples.safetensors")["x0"]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_sample_writes_tensors_pictures_a_table_and_a_record(trained: Path, tmp_path: Path) -> None:
    out = draw(trained, f"out={tmp_path}", "labels=[7,1-2]")
    assert names_in(out) == ["grid.png", "sample.json", "samples", "samples.safetensors"]
    assert names_in(out / "samples") == [*(f"{n}.png" for n in range(6)), "samples.csv"]
    tensors = load_file(out / "samples.safetensors")
    assert tensors["x0"].shape == (6, 1, 8, 8)
    assert tensors["x0"].dtype == torch.float32
    assert tensors["labels"].tolist() == [7, 1, 2, 7, 1, 2]
    # As data, the folder has the pictures, and with the table their classes.
    labelled = Folder(Image(size=8, channels=1), out / "samples", manifest="samples.csv")
    assert [labelled.classes[labelled.label(n)] for n in range(6)] == ["7", "1", "2", "7", "1", "2"]
    record = json.loads((out / "sample.json").read_text())
    assert record["samples_seen"] == 96
    assert record["settings"]["steps"] == 2


def test_sample_overwrites_no_files_of_others(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_text("mine")
    with pytest.raises(RecipeError, match="is not empty and does not contain a set of samples"):
        draw(trained, f"out={tmp_path}")
    assert names_in(tmp_path) == ["1.png"]
    out = draw(trained, f"out={tmp_path / 'set'}", "count=3")
    (out / "samples" / "3.png").write_text("mine")
    with pytest.raises(RecipeError, match=r"3.png would be overwritten"):
        draw(trained, f"out={out}", "count=5")
    draw(trained, f"out={out}", "count=2")
    assert (out / "samples" / "3.png").read_text() == "mine"


def test_sample_removes_everything_of_a_former_set(trained: Path, tmp_path: Path) -> None:
    out = draw(trained, f"out={tmp_path}", "count=12")
    (out / "evaluate.json").write_text('{"figures": ["evaluate_a.png", "../run.png", "mine.png"]}')
    for name in ("evaluate_a.png", "mine.png"):
        (out / name).write_text("")
    draw(trained, f"out={tmp_path}", "count=12")  # the same samples, so their evaluation holds
    assert (out / "evaluate.json").exists()
    draw(trained, f"out={tmp_path}", "count=3")
    assert names_in(out / "samples") == ["0.png", "1.png", "2.png", "samples.csv"]
    assert names_in(out) == ["grid.png", "mine.png", "sample.json", "samples", "samples.safetensors"]


def test_sample_depends_on_seed_and_number_only(trained: Path) -> None:
    whole, parts = x0_of(draw(trained)), x0_of(draw(trained, "batch=2", "count=4", "labels=0-9"))
    torch.testing.assert_close(whole[:4], parts, rtol=1e-4, atol=1e-4)
    one, other = (x0_of(draw(trained, "sampler=heun", "spacing=time", f"seed={seed}")) for seed in (0, 1))
    assert (one - other).abs().mean() > 0.1
    # The folder is named after the settings, and the last picture of training can be drawn again.
    assert draw(trained) == draw(trained) != draw(trained, "labels=1")
    assert draw(trained).parent == trained / "sampled"
    assert draw(trained).name.startswith("000000000096_dpmsolver_2_seed0_")
    last = trained / "samples" / "000000000096.png"
    assert (draw(trained, "count=4") / "grid.png").read_bytes() == last.read_bytes()


def test_sample_follows_guidance_weights_and_labels(trained: Path) -> None:
    plain = x0_of(draw(trained))
    for word in ("guidance.scale=5", "weights=network", "labels=null"):
        assert not torch.equal(x0_of(draw(trained, word)), plain), word
    assert torch.equal(x0_of(draw(trained, "guidance.scale=5", "guidance.interval=[90,99]")), plain)


def test_sample_draws_from_the_chosen_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, early = (draw(trained, f"checkpoint={name}", "count=1") for name in ("last", "0000048"))
    assert last == draw(trained, "count=1")
    assert [path.name[:12] for path in (last, early)] == ["000000000096", "000000000048"]
    assert not torch.equal(x0_of(last), x0_of(early))
    assert torch.equal(x0_of(draw(trained, "checkpoint=best", "count=1")), x0_of(last))  # of the only validation
    place = f"checkpoint={trained}/checkpoints/000000000048"
    assert torch.equal(x0_of(draw(trained, place, "count=1", f"out={tmp_path / 'out'}")), x0_of(early))
    words = [f"run_dir={trained}", f"out={tmp_path / 'model'}", "checkpoint=48"]
    exported = export(configuration.load("export", words))
    drawn = draw(exported, "count=1", "checkpoint=48", f"out={tmp_path / 'drawn'}")
    assert torch.equal(x0_of(drawn), x0_of(early))
    for folder, checkpoint, message in (
        (trained, "64", r"there is no checkpoint after 64 samples in .*; existing checkpoints: 48, 96"),
        (trained, "newest", r"checkpoint=newest: expected last, best, or the number of samples seen .*: 48, 96"),
        (exported, "best", "contains only the checkpoint after 48 samples"),
        (exported, "96", "contains only the checkpoint after 48 samples"),
    ):
        with pytest.raises(RecipeError, match=message):
            draw(folder, f"checkpoint={checkpoint}")
    # An evaluation reuses the samples of its checkpoint.
    words = [f"run_dir={trained}", "steps=2", "samples=4", "count=1", "engine.threads=1", "engine.device=cpu"]
    monkeypatch.setattr("recipes.sample.generate", lambda *_: pytest.fail("they exist"))
    for number, drawn in ((48, early), (96, last)):
        config = configuration.load("evaluate", [*words, f"checkpoint={number}"])
        sampling = {field.name: config[field.name] for field in fields(SampleSettings)} | {"members": None}
        assert sample(sampling, reuse=True) == drawn


def test_sample_refuses_mistakes_and_guides_only_models_trained_without_some_labels(copy: Path) -> None:
    config = read_configuration(copy / "config.yaml")
    config["training"]["condition_dropout"] = 0.0
    configuration.write(config, copy / "config.yaml")
    for words, message in (
        ("guidance.scale=2", r"guidance.scale .* training.condition_dropout=0"),
        ("guidance.scale=2 labels=null", "guidance.scale requires labels"),
        ("labels=10", "labels: 10 is not among the classes 0 to 9"),
        ("count=0", "count must be at least 1"),
        ("weights=best", "weights: expected one of ema, network"),
        ("prompts=one", "trained without text"),
        ("spacing=time ends=[-4,4]", "spacing=time.*: set spacing=log_snr or karras, or ends=null"),
        ("steps_file=steps.json ends=[-4,4]", "ends=.* no effect .*steps_file=steps.json: set ends=null or"),
        ("ends=[4,-4]", "ends must be two increasing log-SNRs"),
    ):
        with pytest.raises(RecipeError, match=message):
            draw(copy, *words.split())


@pytest.mark.parametrize(
    ("classes", "wanted", "expected"),
    [
        (CLASSES, "all", [0, 1, 2, 3, 0]),
        (CLASSES, "dog", [1, 1, 1]),
        (CLASSES, "2", [2, 2, 2]),
        (CLASSES, "1-3", [1, 2, 3, 1, 2]),
        (CLASSES, ("owl", 0), [3, 0, 3]),
        (CLASSES, None, None),
        (None, "all", None),
        # Classes that are named by numbers are meant by name.
        (["1", "2", "3"], ("1-2", 3), [0, 1, 2]),
        (["3", "7", "10"], "3-10", [0, 1, 2]),
        (["3", "cat", "5"], "3-5", [0, 2, 0]),
        (["005", "006", "007"], 7, [2, 2, 2]),
        (["005", "006", "007"], "5-6", [0, 1, 0]),
        (["1-2", "1", "2"], "1-2", [0, 0, 0]),
    ],
)
def test_chosen_labels_by_name_number_and_range(classes: Any, wanted: Any, expected: list[int] | None) -> None:
    assert chosen_labels(wanted, classes, len(expected or [])) == expected


def test_chosen_labels_refuses_what_names_no_class() -> None:
    outside = "is not among the classes"
    for classes, wanted, message in (
        (["1", "2", "3"], 0, outside),
        (["1", "2", "3"], "2-4", outside),
        (["3", "cat", "5"], "1", outside),
        (["7", "07"], "007", outside),
        (CLASSES, 999999999999999999, outside),
        (CLASSES, "dgo", "no class 'dgo'; did you mean 'dog'"),
        (None, "dog", "trained without classes"),
    ):
        with pytest.raises(RecipeError, match=message):
            chosen_labels(wanted, classes, 3)


def test_chosen_labels_leaves_out_classes_without_training_examples(caplog: pytest.LogCaptureFixture) -> None:
    assert chosen_labels("all", CLASSES, 4, untrained=["dog"]) == [0, 2, 3, 0]
    assert "this run has no training example of class dog" in caplog.text
    assert chosen_labels(["cat", "owl"], CLASSES, 2, untrained=["dog"]) == [0, 3]
    for wanted in ("dog", 1, "0-3", ["cat", "dog"]):
        with pytest.raises(RecipeError, match="this run has no training example of class dog"):
            chosen_labels(wanted, CLASSES, 4, untrained=["dog"])


def test_run_and_export_record_the_classes_without_training_examples(copy: Path, tmp_path: Path) -> None:
    exported = tmp_path / "model"
    facts = json.loads((copy / "run.json").read_text())
    assert facts["untrained"] == []
    (copy / "run.json").write_text(json.dumps({**facts, "untrained": ["3"]}))
    Pipeline.from_pretrained(copy, device="cpu").save_pretrained(exported)
    for folder in (copy, exported):
        drawn = load_file(draw(folder, "count=12", f"out={tmp_path / folder.name}_drawn") / "samples.safetensors")
        assert drawn["labels"].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 0, 1, 2]
        with pytest.raises(RecipeError, match="this run has no training example of class 3"):
            draw(folder, "labels=2-4")
    with pytest.raises(RecipeError, match="this run has no training example of class 3"):
        Pipeline.from_pretrained(exported, device="cpu")(labels=3)
    (copy / "run.json").write_text(json.dumps({**facts, "untrained": ["none of them"]}))
    with pytest.raises(RecipeError, match="untrained classes"):
        draw(copy)


def test_train_on_text_records_it_and_learns_from_it(on_text: Path) -> None:
    facts = json.loads((on_text / "run.json").read_text())
    assert facts["classes"] is None
    assert facts["text"]["width"] == 16
    assert len(facts["text"]["shown"]) == 4
    assert set(facts["text"]["shown"]) <= {"", *(f"a {color} square" for color in COLORS)}
    network = last_state(on_text).tensors["network"]
    assert network["bottom.0.text_attention.out.weight"].any()


def test_train_on_text_continues_bit_exactly(captioned: list[str], tmp_path: Path) -> None:
    whole = tiny_run(tmp_path / "whole", *captioned)
    # Neither threads nor whether embeddings were kept makes a difference.
    tiny_run(tmp_path / "parts", *captioned, "training.samples=48", "engine.workers=2")
    cache = Path(tiny_config(tmp_path, *captioned)["text"]["cache"])
    shutil.rmtree(cache)
    assert_same(tiny_run(tmp_path / "parts", *captioned), whole)
    assert len(list(cache.rglob("*.safetensors"))) == len(COLORS)


def test_sample_draws_prompts_in_turn(on_text: Path, tmp_path: Path) -> None:
    out = draw(on_text, "prompts=[a red square,a blue square]", "guidance.scale=3")
    assert json.loads((out / "sample.json").read_text())["prompts"] == ["a red square", "a blue square"] * 3
    x0 = x0_of(out)
    (tmp_path / "prompts.txt").write_text("a red square\n\n a blue square \n", encoding="utf-8")
    assert draw(on_text, f"prompts_file={tmp_path / 'prompts.txt'}", "guidance.scale=3") == out
    assert torch.equal(x0, x0_of(out))
    # A sample depends on its own prompt and number alone.
    other = draw(on_text, "prompts=[a red square,one]", "guidance.scale=3")
    mixed = x0_of(other)
    torch.testing.assert_close(mixed[::2], x0[::2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(mixed[1::2], x0[1::2], rtol=1e-3, atol=1e-3)
    # An empty prompt is the same as no prompt.
    torch.testing.assert_close(x0_of(draw(on_text, 'prompts=""')), x0_of(draw(on_text)), rtol=1e-5, atol=1e-5)


def test_sample_finds_the_encoder_after_a_move_and_refuses_another(on_text: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(on_text, tmp_path / "run")
    config = read_configuration(copy / "config.yaml")
    moved = shutil.copytree(config["text"]["name"], tmp_path / "moved")
    config["text"] |= {"cache": str(tmp_path / "elsewhere"), "name": str(tmp_path / "gone")}
    configuration.write(config, copy / "config.yaml")
    with pytest.raises(RecipeError, match=r"text: cannot load the text encoder '.*gone'"):
        draw(copy, "prompts=one")
    draw(copy)  # without a prompt it is not needed
    draw(copy, "prompts=one", f"text_model={moved}")
    assert not (tmp_path / "elsewhere").exists()  # no embeddings are written where the run says
    with pytest.raises(RecipeError, match=r"other differs from the one that .*run was trained with, .*weights differ"):
        draw(copy, "prompts=one", f"text_model={tiny_encoder(tmp_path / 'other', seed=1)}")


def test_train_refuses_to_continue_with_another_encoder(on_text: Path, captioned: list[str], tmp_path: Path) -> None:
    encoder = Path(tiny_config(tmp_path, *captioned)["text"]["name"])
    tiny_encoder(encoder, seed=1)
    with pytest.raises(RecipeError, match="weights differ"):
        tiny_run(on_text, *captioned)
    tiny_encoder(encoder)


def test_sample_refuses_mistakes_with_prompts(on_text: Path) -> None:
    for override, message in (
        ("labels=3 prompts=null", r"labels=3: .*on text: specify prompts"),
        ("prompts=[]", "prompts is empty"),
        ("prompts_file=list.txt", "remove one of them"),
        ("prompts_file=/missing.txt prompts=null", "cannot read /missing.txt"),
    ):
        with pytest.raises(RecipeError, match=message):
            draw(on_text, "prompts=one", *override.split())


def test_train_refuses_mistakes_with_text(captioned: list[str], tmp_path: Path) -> None:
    for override, message in (
        ("data.captions=none", "the data have no captions: .*data.captions=sidecar"),
        ("training.conditional=false", "contradict each other"),
        ("text.max_tokens=13", "max_tokens=13 of .* from 1 to 12"),
        ("text.name=/nowhere", "text: cannot load the text encoder '/nowhere'"),
    ):
        with pytest.raises(RecipeError, match=message):
            tiny_run(tmp_path / "run", *captioned, override)
        assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def model(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "image"
    return export(configuration.load("export", [f"run_dir={trained}", f"out={out}"]))


@pytest.fixture(scope="module")
def pipeline(model: Path) -> Pipeline:
    return Pipeline.from_pretrained(model, device="cpu")


SETTINGS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "defaults": ([], {}),
    "classes, guided": (
        ["labels=[1-2,7]", "guidance.scale=3", "guidance.interval=[-2,4]"],
        {"labels": ["1-2", 7], "guidance": 3.0, "guidance_interval": (-2, 4)},
    ),
    "sampler": (["sampler=ddim", "spacing=karras", "seed=4"], {"sampler": "ddim", "spacing": "karras", "seed": 4}),
    "sampler with noise": (["sampler=ddim", "sampler.eta=1", "batch=2"], {"sampler": DDIM(eta=1.0), "batch": 2}),
    "no class": (["labels=null"], {"labels": None}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_pipeline_draws_the_samples_of_the_command(model: Path, pipeline: Pipeline, tmp_path: Path, name: str) -> None:
    words, arguments = SETTINGS[name]
    out = draw(model, f"out={tmp_path / 'out'}", "count=5", *words)
    expected = load_file(out / "samples.safetensors")
    drawn = pipeline(5, 2, progress=False, **arguments)
    assert torch.equal(drawn.samples, expected["x0"])
    assert drawn.seeds == expected["seeds"].tolist()
    assert drawn.labels == (expected["labels"].tolist() if "labels" in expected else None)


FRESH = """
import sys, torch
from recipes.sharing.pipeline import Pipeline
from safetensors.torch import save_file
torch.set_num_threads(1)
drawn = Pipeline.from_pretrained(sys.argv[1], device="cpu")(3, 2, progress=False)
save_file({"x0": drawn.samples}, sys.argv[2])
"""


@pytest.mark.slow
def test_pipeline_draws_the_same_in_a_fresh_process(model: Path, tmp_path: Path) -> None:
    Pipeline.from_pretrained(model, device="cpu").save_pretrained(tmp_path / "copy")
    words = [sys.executable, "-c", FRESH, tmp_path / "copy", tmp_path / "drawn.safetensors"]
    subprocess.run(words, check=True, timeout=200, cwd=Path(__file__).parents[2])
    here = x0_of(draw(model, f"out={tmp_path / 'out'}", "count=3"))
    assert torch.equal(load_file(tmp_path / "drawn.safetensors")["x0"], here)


def test_pipeline_samples_follow_from_their_seeds(pipeline: Pipeline) -> None:
    three = pipeline(3, 2, labels=None, progress=False)
    last = pipeline(steps=2, seeds=three.seeds[2:], labels=None, progress=False)
    torch.testing.assert_close(last.samples[0], three.samples[2], rtol=1e-4, atol=1e-4)
    one, other, third = (
        pipeline(2, 1, generator=torch.Generator().manual_seed(seed), progress=False).seeds for seed in (1, 1, 2)
    )
    assert one == other
    assert len({*one, *third}) == 4


def test_pipeline_returns_and_saves_images(pipeline: Pipeline, tmp_path: Path) -> None:
    drawn = pipeline(2, 2, progress=False)
    assert "Image of 1 × 8 × 8, 10 classes" in repr(pipeline)
    assert repr(drawn) == "PipelineOutput(2 of Image, 1 × 8 × 8)"
    pixels = ((drawn.samples[:, 0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    with pytest.raises(AttributeError, match=r"these are samples of .*Image, not audios: use .media"):
        _ = drawn.audios
    drawn.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"grid.png", "sample.json", "samples", "samples.safetensors"}
    for number, image in enumerate(drawn.images):
        with PILImage.open(tmp_path / "samples" / f"{number}.png") as written:
            assert np.array_equal(np.asarray(written), pixels[number])
        assert np.array_equal(np.asarray(image), pixels[number])


def test_pipeline_output_decodes_sounds_and_videos() -> None:
    audio, video = Audio(rate=4000, seconds=0.01, representation=Waveform()), Video(frames=5, size=8)
    sound, film = (PipelineOutput(torch.zeros(1, *each.tensor_shape), each, [0]) for each in (audio, video))
    assert sound.audios[0].shape == (1, 40)
    assert film.videos[0].shape == (3, 5, 8, 8)
    assert film.videos[0].dtype == torch.uint8


def test_save_pretrained_copies_the_model_exactly(model: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.from_pretrained(model, device="cpu").to("cpu")
    pipeline.save_pretrained(tmp_path / "copy")
    for name in ("model.safetensors", "model.json"):
        assert (model / name).read_bytes() == (tmp_path / "copy" / name).read_bytes(), name


def test_pipeline_refuses_mistakes(pipeline: Pipeline) -> None:
    for arguments, message in (
        ({"labels": "cat"}, "labels: there is no class 'cat'"),
        ({"prompts": "a cat"}, "prompts: this model was trained without text"),
        ({"sampler": "huen"}, "sampler=huen: there is no such choice; did you mean 'heun'"),
        ({"count": 0}, "count, steps and batch must be at least 1"),
        ({"guidance_interval": (3, 1)}, "interval must be .* increasing"),
    ):
        with pytest.raises(RecipeError, match=message):
            pipeline(**{"steps": 2, "progress": False, **arguments})


def test_from_pretrained_fetches_named_files_from_the_hub(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    monkeypatch.chdir(tmp_path)
    with patch.object(hub, "snapshot_download", return_value=str(model)) as fetch:
        Pipeline.from_pretrained("someone/digits", revision="v1", device="cpu")
    fetch.assert_called_once_with("someone/digits", revision="v1", allow_patterns=list(FILES))
    assert not any(name.endswith((".py", ".bin", ".pt", ".pkl")) for name in FILES)
    unknown = r"there is no folder .* and it is not the name of a model on the Hub"
    for name, offline, library, message in (
        ("someone/digits", True, hub, "there is no folder someone/digits, and it cannot be fetched from the"),
        ("someone/digits", False, None, r"huggingface_hub is not installed.*pip install .*hub"),
        ("../elsewhere/model", False, hub, unknown),
        ("a/b/c", False, hub, unknown),
        ("https://example.com/model", False, hub, unknown),
    ):
        with (
            patch("huggingface_hub.constants.HF_HUB_OFFLINE", offline),
            patch.dict(sys.modules, huggingface_hub=library),
            pytest.raises((RecipeError, BrokenLibraryError), match=message),
        ):
            Pipeline.from_pretrained(name, device="cpu")
    with pytest.raises(RecipeError, match="revision=v1 applies only to models on the Hub"):
        Pipeline.from_pretrained(model, revision="v1", device="cpu")


def test_push_to_hub_uploads_the_saved_files(pipeline: Pipeline) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    files: dict[str, bytes] = {}

    def upload(repo_id: str, folder_path: str) -> None:
        files.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})

    with patch.object(hub.HfApi, "create_repo") as create, patch.object(hub.HfApi, "upload_folder", side_effect=upload):
        pipeline.push_to_hub("me/digits", private=True)
    create.assert_called_once_with("me/digits", private=True, exist_ok=True)
    assert "model.safetensors" in files
    assert json.loads(files["model.json"])["samples"] == 96
