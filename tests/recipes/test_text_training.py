"""Training on captions and sampling by prompts, with a text encoder of a few thousand random weights."""

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


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return captioned_pictures(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def run_dir(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_run(folder, *words, "every.validation=48", "every.samples=48", "guidance.scale=2")
    return folder


def draw(run_dir: Path, *overrides: str) -> Path:
    base = [f"run_dir={run_dir}", "steps=2", "count=4", "engine.threads=1", "engine.device=cpu", *overrides]
    return sample(configuration.load("sample", base))


def test_the_run_says_what_it_learned(run_dir: Path) -> None:
    facts = json.loads((run_dir / "run.json").read_text())
    assert facts["classes"] is None
    assert facts["text"]["width"] == 16
    assert len(facts["text"]["shown"]) == 4
    assert set(facts["text"]["shown"]) <= {"", *(f"a {color} square" for color in COLORS)}
    assert (run_dir / "samples" / "000000000048.png").exists()


def test_a_training_on_text_that_was_stopped_is_the_one_that_was_not(words: list[str], tmp_path: Path) -> None:
    whole = tiny_run(tmp_path / "whole", *words)
    # Neither threads nor whether embeddings were kept makes a difference.
    tiny_run(tmp_path / "parts", *words, "training.samples=48", "engine.workers=2")
    cache = Path(tiny_config(tmp_path, *words)["text"]["cache"])
    shutil.rmtree(cache)
    assert_same(tiny_run(tmp_path / "parts", *words), whole)
    assert len(list(cache.rglob("*.safetensors"))) == len(COLORS)


def test_text_changes_what_is_learned(words: list[str], run_dir: Path, tmp_path: Path) -> None:
    with_text = load_file(run_dir / "checkpoints" / "000000000096" / "network.safetensors")
    assert any("text_attention" in name for name in with_text)
    assert with_text["bottom.0.text_attention.out.weight"].any()
    classes = tiny_run(tmp_path / "classes", *words[:4])
    assert "conditioning.labels.weight" in classes.tensors["network"]


def test_prompts_are_drawn_in_turn(run_dir: Path, tmp_path: Path) -> None:
    out = draw(run_dir, "prompts=[a red square,a blue square]", "guidance.scale=3")
    made = json.loads((out / "sample.json").read_text())
    assert made["prompts"] == ["a red square", "a blue square"] * 2
    assert made["classes"] is None
    x0 = load_file(out / "samples.safetensors")["x0"]
    (tmp_path / "prompts.txt").write_text("a red square\n\n a blue square \n", encoding="utf-8")
    again = draw(run_dir, f"prompts_file={tmp_path / 'prompts.txt'}", "guidance.scale=3")
    assert torch.equal(x0, load_file(again / "samples.safetensors")["x0"])
    assert again == out
    # A sample depends on its own prompt and number alone.
    other = draw(run_dir, "prompts=[a red square,one]", "guidance.scale=3")
    mixed = load_file(other / "samples.safetensors")["x0"]
    torch.testing.assert_close(mixed[::2], x0[::2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(mixed[1::2], x0[1::2], rtol=1e-3, atol=1e-3)
    assert other != out


def test_an_empty_prompt_is_none(run_dir: Path) -> None:
    empty, none = (load_file(draw(run_dir, word) / "samples.safetensors")["x0"] for word in ('prompts=""', "count=4"))
    torch.testing.assert_close(empty, none, rtol=1e-5, atol=1e-5)


def test_sampling_writes_no_embeddings_where_the_run_says(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run")
    config = read_configuration(copy / "config.yaml")
    config["text"]["cache"] = str(tmp_path / "elsewhere")
    configuration.write(config, copy / "config.yaml")
    draw(copy, "prompts=one")
    assert not (tmp_path / "elsewhere").exists()


def test_the_encoder_may_move_but_not_change(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run")
    config = read_configuration(copy / "config.yaml")
    moved = shutil.copytree(config["text"]["name"], tmp_path / "moved")
    config["text"]["name"] = str(tmp_path / "gone")
    configuration.write(config, copy / "config.yaml")
    with pytest.raises(RecipeError, match=r"text: cannot load the text encoder '.*gone'"):
        draw(copy, "prompts=one")
    draw(copy)  # without a prompt it is not needed
    draw(copy, "prompts=one", f"text_model={moved}")
    with pytest.raises(RecipeError, match=r"other differs from the one that .*run was trained with, .*weights differ"):
        draw(copy, "prompts=one", f"text_model={tiny_encoder(tmp_path / 'other', seed=1)}")


def test_another_encoder_does_not_continue_a_run(run_dir: Path, words: list[str], tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run")
    name = Path(tiny_config(tmp_path, *words)["text"]["name"])
    kept = name.rename(tmp_path / "kept")
    tiny_encoder(name, seed=1)
    try:
        with pytest.raises(RecipeError, match="weights differ"):
            tiny_run(copy, *words, "every.validation=48", "every.samples=48", "guidance.scale=2")
    finally:
        shutil.rmtree(name)
        kept.rename(name)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["labels=3"], r"labels=3: .*on text: give prompts"),
        (["guidance.scale=2"], "guidance.scale needs labels or prompts"),
        (["prompts=[]"], "prompts is empty"),
        (["prompts=one", "prompts_file=list.txt"], "leave out one"),
        (["prompts_file=/missing.txt"], "cannot read /missing.txt"),
    ],
)
def test_mistakes_of_sampling_are_told(run_dir: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        draw(run_dir, *overrides)


def test_prompts_need_a_run_on_text(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run")
    with pytest.raises(RecipeError, match="trained without text"):
        draw(tmp_path / "run", "prompts=one")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.captions=none"], "the data have no captions: .*data.captions=sidecar"),
        (["training.conditional=false"], "contradict each other"),
        (["guidance.scale=2", "training.condition_dropout=0"], "condition_dropout=0.1"),
        (["text.max_tokens=13"], "max_tokens=13 of .* from 1 to 12"),
        (["text.name=/nowhere"], "text: cannot load the text encoder '/nowhere'"),
    ],
)
def test_mistakes_of_training_are_told(words: list[str], tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny_run(tmp_path / "run", *words, *overrides)
    assert not (tmp_path / "run").exists()


def test_text_needs_data_with_captions(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the data have no captions"):
        tiny_run(tmp_path / "run", *words[4:])
