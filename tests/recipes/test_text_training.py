"""Training on captions and sampling by prompts work with a text encoder, and refuse another one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_configuration
from recipes.config import compose as configuration
from recipes.sample import sample
from tests.helpers.captions import COLORS, captioned_pictures
from tests.helpers.tiny import assert_same, tiny_config, tiny_run
from tests.helpers.tiny_text import tiny_encoder

REPORTS = ["every.validation=48", "every.samples=48", "guidance.scale=2"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return captioned_pictures(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def trained(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_run(folder, *words, *REPORTS)
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A run to change."""
    return shutil.copytree(trained, tmp_path / "run")


def draw(run_dir: Path, *overrides: str) -> Path:
    base = [f"run_dir={run_dir}", "steps=2", "count=4", "engine.threads=1", "engine.device=cpu", *overrides]
    return sample(configuration.load("sample", base))


def x0_of(folder: Path) -> torch.Tensor:
    return load_file(folder / "samples.safetensors")["x0"]


def change_text(run_dir: Path, **keys: str) -> None:
    config = read_configuration(run_dir / "config.yaml")
    config["text"] |= keys
    configuration.write(config, run_dir / "config.yaml")


def test_train_on_text_records_it_and_learns_from_it(trained: Path, words: list[str], tmp_path: Path) -> None:
    facts = json.loads((trained / "run.json").read_text())
    assert facts["classes"] is None
    assert facts["text"]["width"] == 16
    assert len(facts["text"]["shown"]) == 4
    assert set(facts["text"]["shown"]) <= {"", *(f"a {color} square" for color in COLORS)}
    assert (trained / "samples" / "000000000048.png").exists()
    network = load_file(trained / "checkpoints" / "000000000096" / "network.safetensors")
    assert any("text_attention" in name for name in network)
    assert network["bottom.0.text_attention.out.weight"].any()
    classes = tiny_run(tmp_path / "classes", *words[:4])
    assert "conditioning.labels.weight" in classes.tensors["network"]
    with pytest.raises(RecipeError, match="trained without text"):
        draw(tmp_path / "classes", "prompts=one")


def test_train_on_text_continues_bit_exactly(words: list[str], tmp_path: Path) -> None:
    whole = tiny_run(tmp_path / "whole", *words)
    # Neither threads nor whether embeddings were kept makes a difference.
    tiny_run(tmp_path / "parts", *words, "training.samples=48", "engine.workers=2")
    cache = Path(tiny_config(tmp_path, *words)["text"]["cache"])
    shutil.rmtree(cache)
    assert_same(tiny_run(tmp_path / "parts", *words), whole)
    assert len(list(cache.rglob("*.safetensors"))) == len(COLORS)


def test_sample_draws_prompts_in_turn(trained: Path, tmp_path: Path) -> None:
    out = draw(trained, "prompts=[a red square,a blue square]", "guidance.scale=3")
    record = json.loads((out / "sample.json").read_text())
    assert record["prompts"] == ["a red square", "a blue square"] * 2
    assert record["classes"] is None
    x0 = x0_of(out)
    (tmp_path / "prompts.txt").write_text("a red square\n\n a blue square \n", encoding="utf-8")
    again = draw(trained, f"prompts_file={tmp_path / 'prompts.txt'}", "guidance.scale=3")
    assert torch.equal(x0, x0_of(again))
    assert again == out
    # A sample depends on its own prompt and number alone.
    other = draw(trained, "prompts=[a red square,one]", "guidance.scale=3")
    mixed = x0_of(other)
    torch.testing.assert_close(mixed[::2], x0[::2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(mixed[1::2], x0[1::2], rtol=1e-3, atol=1e-3)
    assert other != out
    # An empty prompt is the same as no prompt.
    torch.testing.assert_close(x0_of(draw(trained, 'prompts=""')), x0_of(draw(trained)), rtol=1e-5, atol=1e-5)


def test_sample_finds_the_encoder_after_a_move_and_refuses_another(copy: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(read_configuration(copy / "config.yaml")["text"]["name"], tmp_path / "moved")
    change_text(copy, cache=str(tmp_path / "elsewhere"))
    draw(copy, "prompts=one")
    assert not (tmp_path / "elsewhere").exists()  # no embeddings are written where the run says
    change_text(copy, name=str(tmp_path / "gone"))
    with pytest.raises(RecipeError, match=r"text: cannot load the text encoder '.*gone'"):
        draw(copy, "prompts=one")
    draw(copy)  # without a prompt it is not needed
    draw(copy, "prompts=one", f"text_model={moved}")
    with pytest.raises(RecipeError, match=r"other differs from the one that .*run was trained with, .*weights differ"):
        draw(copy, "prompts=one", f"text_model={tiny_encoder(tmp_path / 'other', seed=1)}")


def test_train_refuses_to_continue_with_another_encoder(copy: Path, words: list[str], tmp_path: Path) -> None:
    name = Path(tiny_config(tmp_path, *words)["text"]["name"])
    kept = name.rename(tmp_path / "kept")
    tiny_encoder(name, seed=1)
    try:
        with pytest.raises(RecipeError, match="weights differ"):
            tiny_run(copy, *words, *REPORTS)
    finally:
        shutil.rmtree(name)
        kept.rename(name)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["labels=3"], r"labels=3: .*on text: give prompts"),
        (["guidance.scale=2"], "guidance.scale needs labels or prompts"),
        (["prompts=[]"], "prompts is empty"),
        (["prompts=one", "prompts_file=list.txt"], "remove one of them"),
        (["prompts_file=/missing.txt"], "cannot read /missing.txt"),
    ],
)
def test_sample_refuses_mistakes_with_prompts(trained: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        draw(trained, *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.captions=none"], "the data have no captions: .*data.captions=sidecar"),
        (["data=digits"], "the data have no captions"),
        (["training.conditional=false"], "contradict each other"),
        (["text.max_tokens=13"], "max_tokens=13 of .* from 1 to 12"),
        (["text.name=/nowhere"], "text: cannot load the text encoder '/nowhere'"),
    ],
)
def test_train_refuses_mistakes_with_text(words: list[str], tmp_path: Path, overrides: list[str], message: str) -> None:
    settings = words[4:] if overrides == ["data=digits"] else words
    with pytest.raises(RecipeError, match=message):
        tiny_run(tmp_path / "run", *settings, *overrides)
    assert not (tmp_path / "run").exists()
