"""Mistakes on the command line get an error message with the remedy, and printed settings are quoted for a shell."""

import re
import subprocess
from pathlib import Path

import pytest

import recipes
from recipes.base.commands import CONFIGURED, setting
from recipes.base.errors import RecipeError
from recipes.cli.command import take_option
from recipes.cli.main import main
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.groups import KeyTable, flatten, offered, prefixes
from recipes.config.suggestions import MEANINGS
from recipes.runs.lock import lock_run
from recipes.runs.model import open_model

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
    (["train", "validation.group=(x)"], """'validation.group="(x)"'"""),
    (["train", "training.samples=1,000"], "a number without commas"),
    (["train", "data.root=it's"], """for the shell: 'data.root="it'"'"'s"'"""),
    (["train", "data.root=~/photos"], "write data.root=$HOME/photos"),
    (["train", "--run_dir", "my runs"], "'run_dir=my runs'"),
    (["train", "run_dir=", "my runs"], "'run_dir=my runs'"),
    (["train", "my runs/a,b"], """'run_dir="my runs/a,b"' or 'data.root="my runs/a,b"'"""),
    (["train", "run_dir=“r”"], "has typographic quotation marks"),
    (["train", "spectrum==white"], "one equals sign is enough"),
    (["train", "labels=[cat,dog"], "[ and ] do not match"),
    # keys, groups and choices
    (["train", "sptcrum=white"], "unknown key 'sptcrum'; did you mean 'spectrum'?"),
    (["train", "data.root=photos"], "it is a key of data=arrays, data=cifar10, data=fashion_mnist, data=folder"),
    (["train", "exponent=-1"], "it is spectrum.exponent=-1 with spectrum=brown"),
    (["train", "exponent=-1,-2"], "it is spectrum.exponent=… with spectrum=brown"),
    (["train", "zebra=1,2"], "`multisagd train --help` lists the keys"),
    (["train", "+spectrum=white"], "remove the + of +spectrum=white"),
    (["train", "epochs=3"], "did you mean 'training.samples'? Training is counted in samples seen"),
    (["train", "resume=true"], "did you mean 'run_dir'? The same command on the same run_dir continues"),
    (["sample", "spectrum=white"], "does not choose spectrum: its groups are engine, refine, sampler"),
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


def test_meanings_lead_to_keys_that_exist() -> None:
    keys = {command: set(prefixes(flatten(KeyTable({}).keys(command)))) for command in CONFIGURED}
    every = set().union(*keys.values(), *(offered(command) for command in CONFIGURED), {"data.root", "data.urls"})
    for names, words in MEANINGS.items():
        assert set(names) <= every, names
        assert not set(words.split()) & keys["train"], names


def test_load_suggests_keys_for_words_of_other_programs() -> None:
    for command, name, key in (
        ("train", "training.lr", "training.learning_rate"),
        ("train", "n", "training.samples"),
        ("train", "steps", "sampling.steps"),
        ("train", "gpus", "cluster.gpus"),
        ("train", "data_dir", "data.root"),
        ("sample", "samples", "count"),
        ("sample", "num_inference_steps", "steps"),
        ("sample", "sampling.cfg_scale", "guidance.scale"),
        ("sample", "data_dir", "data.root"),
        ("sample", "lr", "--help"),
        ("evaluate", "lr", "classifier.learning_rate"),
    ):
        with pytest.raises(RecipeError) as caught:
            configuration.load(command, ["run_dir=x", f"{name}=1"])
        assert key in str(caught.value).replace(repr(name), ""), (command, name)


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
        with pytest.raises(RecipeError, match=f"there is no run or exported model in .*{remedy}"):
            open_model(tmp_path / name, Builder())
    with (
        pytest.raises(RecipeError, match=r"cannot create the folder .*: choose another"),
        lock_run(tmp_path / "file/x"),
    ):
        pass


TEXTS = [
    "runs/a", "lr=1, w 8", "a b", "it's", 'say "x"', "a\\b", "a\\", 'a\\"b', "a\\'b", "${seed}", "x${oc.env:HOME}y",
    "\\${seed}", "null", "true", "1", "1e3", "[a]", "{a:b}", "~x", "$HOME", "`x`", "ünï 日本", "-x", "a:b", "  a ",
    "!x", "#x", "*", "a(b)", "'q'", "a;b&c|d", "", "a\tb", "%x", "@y", "nan",
]  # fmt: skip


def test_setting_is_read_back_by_a_shell_and_by_the_command() -> None:
    words = [setting("out", text) for text in TEXTS]
    done = subprocess.run(["sh", "-c", f"printf '%s\\0' {' '.join(words)}"], capture_output=True, check=True)
    read = done.stdout.decode().split("\0")[:-1]
    for text, each in zip(TEXTS, read, strict=True):
        assert configuration.load("sample", ["run_dir=run", each])["out"] == text
    assert setting("run_dir", "/a/b-c_d.e/000001") == "run_dir=/a/b-c_d.e/000001"


def test_printed_commands_quote_their_settings() -> None:
    root = Path(recipes.__path__[0])
    unquoted = re.compile(r"multisagd [a-z]+ [^\"]*?[\w.]+=\{(?!setting|shlex)")
    assert [path.name for path in root.rglob("*.py") if unquoted.search(path.read_text(encoding="utf-8"))] == []


def test_take_option_needs_a_value() -> None:
    words = ["--config-dir"]
    with pytest.raises(RecipeError, match="has no value"):
        take_option(words, "--config-dir")
