"""What people get wrong on the command line, and the remedy that they read."""

from pathlib import Path

import pytest

from recipes.base.commands import CONFIGURED
from recipes.base.errors import RecipeError
from recipes.cli.main import main
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.groups import Outline, flatten, offered, prefixes
from recipes.config.suggestions import MEANINGS
from recipes.runs.lock import held
from recipes.runs.model import open_model
from recipes.runtime.device import EngineSettings, Runtime
from recipes.train import train
from tests.helpers.tiny import tiny_config

MISTAKES = [
    # words that are no settings
    (["train", "--run_dir", "x"], "settings are written key=value without dashes: run_dir=x"),
    (["train", "--run-dir=x"], "without dashes: run_dir=x"),
    (["train", "-v"], "unknown option -v"),
    (["train", "–-show"], "unknown option –-show"),
    (["train", "run_dir", "runs/x"], "settings are written key=value or group=choice, as in run_dir=runs/x"),
    (["train", "run_dir:x"], "as in run_dir=x"),
    (["train", "run_dir", "=", "x"], "no spaces around the equals sign: run_dir=x"),
    (["train", "run_dir=", "x"], "a space ended 'run_dir=': write run_dir=x, without a space"),
    (["train", "run_dir="], "run_dir= has no value: write run_dir=null for none"),
    (["train", "run_dir=r", ""], "an argument is empty after 'run_dir=r': is a shell variable unset?"),
    (["train", "runs/x"], "is it run_dir=runs/x or data.root=runs/x?"),
    (["launch", "train"], "command=train"),
    # quotation, lists and paths
    (["train", "training.betas=[0.9,", "0.99]"], "that contains spaces, as in 'training.betas=[0.9, 0.99]'"),
    (["train", "modality.size=(48,64)"], "a list is written modality.size=[48,64]"),
    (["train", "modality.size=48,64"], "a list is written modality.size=[48,64]"),
    (["train", "training.samples=1,000"], "a number without commas"),
    (["train", "data.root=it's"], """for the shell: 'data.root="it'"'"'s"'"""),
    (["train", "data.root=~/photos"], "write data.root=$HOME/photos"),
    (["train", "run_dir=“r”"], "has typographic quotation marks"),
    (["train", "spectrum==white"], "one equals sign is enough"),
    (["train", "labels=[cat,dog"], "[ and ] do not match"),
    (["train", "training={samples:3"], "{ and } do not match"),
    # keys, groups and choices
    (["train", "spectrum=powerlaw"], "spectrum=powerlaw: there is no such choice; did you mean 'power_law'?"),
    (["train", "sptcrum=white"], "unknown key 'sptcrum'; did you mean 'spectrum'?"),
    (["train", "data=photos"], "there is no such choice; known: cifar10, digits"),
    (["train", "data.root=photos"], "it is a key of data=cifar10, data=fashion_mnist, data=folder"),
    (["train", "exponent=-1"], "it is spectrum.exponent=-1 with spectrum=brown"),
    (["train", "exponent=-1,-2"], "it is spectrum.exponent=… with spectrum=brown"),
    (["train", "zebra=1,2"], "`multisagd train --help` lists the keys"),
    (["train", "+spectrum=white"], "remove the + of +spectrum=white"),
    (["train", "learning_rate=1e-3"], "did you mean 'training.learning_rate'?"),
    (["train", "training.batch_size=3"], "did you mean 'training.batch'?"),
    (["train", "steps=3"], "did you mean 'sampling.steps'"),
    (["train", "lr=1e-3"], "did you mean 'training.learning_rate'?"),
    (["train", "epochs=3"], "did you mean 'training.samples'? Training is counted in samples seen"),
    (["train", "resume=true"], "did you mean 'run_dir'? The same command on the same run_dir continues"),
    (["train", "zebra=1"], "`multisagd train --help` lists the keys"),
    (
        ["sample", "spectrum=white"],
        "does not choose spectrum: its groups are engine, refine, sampler",
    ),
    (["sample", "samples=3"], "did you mean 'count'?"),
    (["sample", "exponent=3"], "`multisagd sample --help` lists"),
    (["train"], "run_dir has no value: add run_dir=… to the command"),
    (["design"], "statistics has no value: add statistics=…"),
]


@pytest.mark.parametrize(("words", "remedy"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_told_with_its_remedy(words: list[str], remedy: str) -> None:
    command, *settings = words
    needed = ["run_dir=r"] if command in ("train", "sample") and len(settings) == 1 and "=" in settings[0][1:] else []
    with pytest.raises(RecipeError) as caught:
        configuration.load(command, [*settings, *needed] if "run_dir=" in settings else [*needed, *settings])
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["Train"], "did you mean 'train'?"),
        (["run_dir=x", "train"], "the command comes first"),
        (["list", "spctra"], "did you mean 'spectra'?"),
        (["list", "zebras"], "known: clusters, commands"),
        (["list", "spectra", "--config-dir=nowhere"], "nowhere is not a folder"),
    ],
)
def test_a_mistake_in_a_command_is_told(words: list[str], remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert remedy in told.err
    assert len(told.err.splitlines()) <= 2


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["doctor", "x"], "a run's folder is written run_dir=FOLDER"),
        (["doctor", "rundir=x"], "a run's folder is written run_dir=FOLDER"),
        (["completion", "tcsh"], "choose from"),
        (["completion"], "shell"),
    ],
)
def test_a_mistake_in_a_tool_is_told(words: list[str], remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert remedy in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["spectrum=power_law", "spectrum.exponent=foo"], "spectrum.exponent: expected a number, got 'foo'"),
        (["spectrum=power_law", "spectrum.corner=-1"], "spectrum: "),
        (["schedule.log_snr_range=[5,1]"], "schedule"),
        (["padding={height:-1}"], "padding: "),
        (["process._target_=multisagd.Proces"], "process._target_"),
    ],
)
def test_a_process_of_no_sense_is_told_before_the_data_are_measured(
    words: list[str], remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.training.setup.measure", lambda *_: pytest.fail("that may have taken minutes"))
    with pytest.raises(RecipeError) as caught:
        train(tiny_config(tmp_path / "run", *words))
    assert str(caught.value).startswith(remedy)
    assert not (tmp_path / "run").exists()


def test_words_of_other_programs_lead_to_keys_that_exist() -> None:
    keys = {command: set(prefixes(flatten(Outline({}).keys(command)))) for command in CONFIGURED}
    every = set().union(*keys.values(), *(offered(command) for command in CONFIGURED), {"data.root", "data.urls"})
    for names, words in MEANINGS.items():
        assert set(names) <= every, names
        assert not set(words.split()) & keys["train"], names


@pytest.mark.parametrize(
    ("command", "word", "key"),
    [
        ("train", "training.lr", "training.learning_rate"), ("train", "optimizer.lr", "training.learning_rate"),
        ("train", "training.epochs", "training.samples"), ("train", "max_train_steps", "training.samples"),
        ("train", "training.steps", "training.samples"), ("train", "data.batch_size", "training.batch"),
        ("train", "n", "training.samples"), ("train", "output", "run_dir"), ("train", "gpus", "cluster.gpus"),
        ("train", "fp16", "engine.precision"), ("train", "wandb", "tracking.wandb"), ("train", "checkpoint", "run_dir"),
        ("train", "data_dir", "data.root"), ("train", "cfg_scale", "guidance.scale"), ("train", "model", "network"),
        ("sample", "n", "count"), ("sample", "num_samples", "count"), ("sample", "num_inference_steps", "steps"),
        ("sample", "output", "out"), ("sample", "sampling.cfg_scale", "guidance.scale"),
        ("sample", "prompt", "prompts"), ("sample", "ckpt", "checkpoint"), ("export", "ckpt_path", "checkpoint"),
        ("sample", "scheduler", "sampler"), ("sample", "lr", "--help"), ("sample", "data_dir", "data.root"),
        ("evaluate", "batch_size", "batch"), ("evaluate", "lr", "classifier.learning_rate"),
        ("encode", "batch_size", "batch"), ("export", "output_dir", "out"), ("design", "num_steps", "steps"),
    ],
)  # fmt: skip
def test_words_of_other_programs_are_understood(command: str, word: str, key: str) -> None:
    needed = [f"{each}=x" for each in ("run_dir", "statistics", "out") if Outline({}).keys(command).get(each) == "???"]
    with pytest.raises(RecipeError) as caught:
        configuration.load(command, [*needed, f"{word}=1"])
    assert key in str(caught.value).replace(repr(word), "")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("nothing", "does not exist; there are .*real"), ("file", "is a file; there are .*real"),
     ("holding", "holds neither; there are .*holding/inner"), ("empty", "`multisagd train` makes runs")],
)  # fmt: skip
def test_a_folder_without_a_run_is_told_with_those_that_have_one(tmp_path: Path, name: str, remedy: str) -> None:
    for run in ("real", "holding/inner"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "config.yaml").touch()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match=f"no run or exported model is in .*{name}, which {remedy}|{remedy}"):
        open_model(tmp_path / name, Builder())


def test_a_run_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(RecipeError, match=r"cannot make the folder .*: choose another"),
        held(tmp_path / "file/x"),
    ):
        pass


def test_a_device_of_no_kind_is_told() -> None:
    with pytest.raises(RecipeError, match=r"engine.device=gpu: unknown kind of device; write auto, cpu, cuda"):
        Runtime.start(EngineSettings(device="gpu"))


def test_what_is_right_stays_right() -> None:
    words = ["run_dir=C:\\runs\\x", "data=folder", "data.root=my photos/a-b", "seed=-3", "modality.size=[8,9]"]
    config = configuration.load("train", [*words, "training.betas=[0.9, 0.99]", "~keep", "+extra=1"])
    assert config["run_dir"] == "C:\\runs\\x"
    assert config["data"]["root"] == "my photos/a-b"
    assert config["modality"]["size"] == [8, 9]
    assert "keep" not in config
