"""Mistakes on the command line get an error message with the remedy."""

import re
from pathlib import Path
from unittest.mock import patch

import pytest

from recipes.base.commands import CONFIGURED
from recipes.base.errors import RecipeError
from recipes.cli.main import main
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.groups import KeyTable, flatten, offered, prefixes
from recipes.config.suggestions import MEANINGS
from recipes.runs.lock import lock_run
from recipes.runs.model import open_model
from recipes.train import train
from tests.helpers.tiny import tiny_config

MISTAKES = [
    # words that are not settings
    (["train", "--run-dir=x"], "without dashes: run_dir=x"),
    (["train", "run_dir", "runs/x"], "settings are written key=value or group=choice, as in run_dir=runs/x"),
    (["train", "run_dir", "=", "x"], "no spaces around the equals sign: run_dir=x"),
    (["train", "run_dir=", "x"], "a space ended 'run_dir=': write run_dir=x, without a space"),
    (["train", "run_dir="], "run_dir= has no value: write run_dir=null for none"),
    (["train", "run_dir=r", ""], "an argument is empty after 'run_dir=r': is a shell variable unset?"),
    (["train", "runs/x"], "is it run_dir=runs/x or data.root=runs/x?"),
    (["launch", "train"], "command=train"),
    # quotation, lists and paths
    (["train", "training.betas=[0.9,", "0.99]"], "that contains spaces, as in 'training.betas=[0.9, 0.99]'"),
    (["train", "modality.size=(48,64)"], "a list is written modality.size=[48,64]"),
    (["train", "training.samples=1,000"], "a number without commas"),
    (["train", "data.root=it's"], """for the shell: 'data.root="it'"'"'s"'"""),
    (["train", "data.root=~/photos"], "write data.root=$HOME/photos"),
    (["train", "run_dir=“r”"], "has typographic quotation marks"),
    (["train", "spectrum==white"], "one equals sign is enough"),
    (["train", "labels=[cat,dog"], "[ and ] do not match"),
    # keys, groups and choices
    (["train", "spectrum=powerlaw"], "spectrum=powerlaw: there is no such choice; did you mean 'power_law'?"),
    (["train", "sptcrum=white"], "unknown key 'sptcrum'; did you mean 'spectrum'?"),
    (["train", "data.root=photos"], "it is a key of data=cifar10, data=fashion_mnist, data=folder"),
    (["train", "exponent=-1"], "it is spectrum.exponent=-1 with spectrum=brown"),
    (["train", "exponent=-1,-2"], "it is spectrum.exponent=… with spectrum=brown"),
    (["train", "zebra=1,2"], "`multisagd train --help` lists the keys"),
    (["train", "+spectrum=white"], "remove the + of +spectrum=white"),
    (["train", "learning_rate=1e-3"], "did you mean 'training.learning_rate'?"),
    (["train", "epochs=3"], "did you mean 'training.samples'? Training is counted in samples seen"),
    (["train", "resume=true"], "did you mean 'run_dir'? The same command on the same run_dir continues"),
    (["sample", "spectrum=white"], "does not choose spectrum: its groups are engine, refine, sampler"),
    (["train"], "run_dir has no value: add run_dir=… to the command"),
]


@pytest.mark.parametrize(("words", "remedy"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_load_names_the_remedy_of_a_mistake(words: list[str], remedy: str) -> None:
    command, *settings = words
    needed = ["run_dir=r"] if command in ("train", "sample") and len(settings) == 1 and "=" in settings[0][1:] else []
    with pytest.raises(RecipeError) as caught:
        configuration.load(command, [*settings, *needed] if "run_dir=" in settings else [*needed, *settings])
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_main_names_the_remedy_of_a_mistaken_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words, remedy in (
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["run_dir=x", "train"], "the command comes first"),
        (["list", "spctra"], "did you mean 'spectra'?"),
        (["list", "spectra", "--config-dir=nowhere"], "nowhere is not a folder"),
    ):
        assert main(words) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert remedy in printed.err
        assert len(printed.err.splitlines()) <= 2
    for words, remedy in (
        (["doctor", "rundir=x"], "write the folder of a run as run_dir=FOLDER"),
        (["completion", "tcsh"], "choose from"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert remedy in capsys.readouterr().err


def test_train_refuses_an_invalid_process_before_it_measures_the_data(tmp_path: Path) -> None:
    for words, remedy in (
        (["spectrum=power_law", "spectrum.exponent=foo"], "spectrum.exponent: expected a number, got 'foo'"),
        (["spectrum=power_law", "spectrum.corner=-1"], "spectrum: "),
        (["schedule.log_snr_range=[5,1]"], "schedule"),
        (["padding={height:-1}"], "padding: "),
        (["process._target_=multisagd.Proces"], "process._target_"),
    ):
        with (
            patch("recipes.training.setup.measure", side_effect=AssertionError("that may have taken minutes")),
            pytest.raises(RecipeError, match=f"^{re.escape(remedy)}"),
        ):
            train(tiny_config(tmp_path / "run", *words))
        assert not (tmp_path / "run").exists()


def test_meanings_lead_to_keys_that_exist() -> None:
    keys = {command: set(prefixes(flatten(KeyTable({}).keys(command)))) for command in CONFIGURED}
    every = set().union(*keys.values(), *(offered(command) for command in CONFIGURED), {"data.root", "data.urls"})
    for names, words in MEANINGS.items():
        assert set(names) <= every, names
        assert not set(words.split()) & keys["train"], names


SYNONYMS = {
    "train": {
        "training.lr": "training.learning_rate", "optimizer.lr": "training.learning_rate", "n": "training.samples",
        "training.epochs": "training.samples", "data.batch_size": "training.batch", "steps": "sampling.steps",
        "output": "run_dir", "gpus": "cluster.gpus", "fp16": "engine.precision", "wandb": "tracking.wandb",
        "data_dir": "data.root", "cfg_scale": "guidance.scale", "model": "network",
    },
    "sample": {
        "n": "count", "samples": "count", "num_inference_steps": "steps", "output": "out", "prompt": "prompts",
        "sampling.cfg_scale": "guidance.scale", "ckpt": "checkpoint", "scheduler": "sampler", "lr": "--help",
        "data_dir": "data.root",
    },
    "evaluate": {"batch_size": "batch", "lr": "classifier.learning_rate"},
}  # fmt: skip
"""Words of other programs and the key that the message names, by command."""


@pytest.mark.parametrize("command", SYNONYMS)
def test_load_suggests_keys_for_words_of_other_programs(command: str) -> None:
    for word, key in SYNONYMS[command].items():
        with pytest.raises(RecipeError) as caught:
            configuration.load(command, ["run_dir=x", f"{word}=1"])
        assert key in str(caught.value).replace(repr(word), ""), word


def test_open_model_lists_the_runs_nearby_and_lock_run_needs_a_folder(tmp_path: Path) -> None:
    for folder in ("real", "holding/inner", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("real/config.yaml", "holding/inner/config.yaml", "file"):
        (tmp_path / file).touch()
    for name, remedy in (
        ("nothing", "nothing, which does not exist; there are .*real"),
        ("file", "file, which is a file; there are .*real"),
        ("holding", "holding, which contains neither; there are .*holding/inner"),
        ("empty", "create one with `multisagd train`"),
    ):
        with pytest.raises(RecipeError, match=f"no run or exported model is in .*{remedy}"):
            open_model(tmp_path / name, Builder())
    with (
        pytest.raises(RecipeError, match=r"cannot create the folder .*: choose another"),
        lock_run(tmp_path / "file/x"),
    ):
        pass


def test_load_accepts_unusual_but_valid_values() -> None:
    words = ["run_dir=C:\\runs\\x", "data=folder", "data.root=my photos/a-b", "seed=-3", "modality.size=[8,9]"]
    config = configuration.load("train", [*words, "training.betas=[0.9, 0.99]", "~keep", "+extra=1"])
    assert config["run_dir"] == "C:\\runs\\x"
    assert config["data"]["root"] == "my photos/a-b"
    assert config["modality"]["size"] == [8, 9]
    assert "keep" not in config
