"""Completion offers the keys that Hydra composes, and the scripts work in the shells themselves."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipes.base.commands import COMMANDS, CONFIGURED
from recipes.completion import complete, for_bash
from recipes.config import compose as configuration
from recipes.config import groups as configuration_groups
from recipes.config.groups import KeyTable, groups

ROOT = Path(__file__).parents[2]
BREAKS = " \t\n\"'@><=;|&(:"


def offered(*words: str) -> list[str]:
    return [each for each, _ in complete(words)]


def commands_with_choices() -> Iterator[tuple[str, dict[str, str]]]:
    """Every command without a choice, every experiment, and each choice of the other groups of train."""
    yield from ((command, {}) for command in CONFIGURED)
    apart = {"refine": "sample", "cluster": "launch", "experiment": "train"}
    yield from ((command, {group: choice}) for group, command in apart.items() for choice in groups()[group])
    others = {group: choices for group, choices in groups().items() if group not in apart}
    for number in range(max(map(len, others.values()))):
        yield "train", {group: choices[number % len(choices)] for group, choices in others.items()}
    yield "analyze", {"experiment": "audio_notes", "modality": "video", "network": "transformer"}


BUILT_ON_OTHERS = {"latent_image", "cached_video", "latent", "audio_notes", "ablation_sign_digits"}


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_key_table_has_the_keys_and_defaults_that_hydra_composes(quick: bool) -> None:
    """Interpolations are not resolved."""
    for name, choices in commands_with_choices():
        if quick == (name != "train" or not choices or not BUILT_ON_OTHERS.isdisjoint(choices.values())):
            composed = configuration._compose(name, [f"{group}={choice}" for group, choice in choices.items()])
            assert KeyTable(choices).keys(name) == OmegaConf.to_container(composed), (name, choices)


def test_complete_offers_choices_and_keys_of_config_dir(tmp_path: Path) -> None:
    (tmp_path / "spectrum").mkdir()
    (tmp_path / "spectrum" / "mine.yaml").write_text("# Mine.\n_target_: multisagd.Flat\nlevel: 2.0\n")
    own = f"--config-dir={tmp_path}"
    assert offered("train", own, "spectrum=m") == ["spectrum=mine", "spectrum=mixed"]
    assert offered("train", "--config-dir", str(tmp_path), "spectrum=mine", "spectrum.") == ["spectrum.level="]
    (tmp_path / "spectrum" / "mine.yaml").write_text("a: [1")  # while it is being written
    configuration_groups.read_file.cache_clear()
    assert offered("train", own, "spectrum=mine", "spectrum.") == []


CANDIDATES = {
    "tra": ["train"],
    "help samp": ["sample"],
    "train spectrum=power": ["spectrum=power_law"],
    "train spectrum=power_law spectrum.exp": ["spectrum.exponent="],
    "train experiment=audio_notes modality.representation.h": ["modality.representation.hop="],
    "train modality=audio modality=image modality.repr": [],
    "train train": ["training."],
    "train spec": ["spectrum=", "spectrum."],
    "train exper": ["experiment="],
    "sample exper": [],
    "launch cluster=slurm cluster.part": ["cluster.partition="],
    "launch command=sample prompts_": ["prompts_file="],
    "launch command=eval": ["command=evaluate"],
    "train engine.compile=": ["engine.compile=true", "engine.compile=false"],
    "train engine.device=": ["engine.device=auto", "engine.device=cpu", "engine.device=cuda"],
    "train training.betas=": ["training.betas=[0.9,0.99]"],
    "train +spectrum=whi": ["+spectrum=white"],
    "train --s": ["--show"],
    "evaluate metrics=[spe": ["metrics=[spectrum]"],
    "evaluate data.": ["data.root=", "data.urls="],
    "list spec": ["spectra"],
    "list spectra e": [],
    "doctor r": ["run_dir="],
    "doctor --": ["--json", "--deep", "--help"],
    "completion ": ["bash", "zsh", "fish"],
    "completion bash ": [],
    "nonsense a": [],
}


def test_complete_offers_commands_choices_keys_and_values() -> None:
    assert {line: offered(*line.split(" ")) for line in CANDIDATES} == CANDIDATES
    assert set(offered("")) == {*COMMANDS, "help", "--help", "--version"}
    assert ("data.", "keys of the run's data") in complete(["sample", "da"])


def test_complete_offers_files_where_text_is_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photos").mkdir()
    (tmp_path / "my photos" / "a.png").touch()
    for name in (".hidden", "two\nlines"):
        (tmp_path / name).mkdir()
    assert offered("train", "run_dir=") == ["run_dir=my photos/"]
    assert offered("train", "data=folder", "data.root=my photos/") == ["data.root=my photos/a.png"]
    assert offered("train", "--config-dir=m") == ["--config-dir=my photos/"]
    assert offered("train", "seed=") == ["seed=0"]
    assert for_bash("multisagd train run_dir=m", BREAKS) == [r"my\ photos/"]
    assert for_bash(r"multisagd train run_dir=my\ ph", BREAKS) == [r"my\ photos/"]
    assert for_bash("multisagd train run_dir=m", "") == [r"run_dir=my\ photos/"]
    for quotation_mark in ("'", '"'):
        assert for_bash(f"multisagd train {quotation_mark}run_dir=m", BREAKS) == ["run_dir=my photos/"]


def test_complete_command_imports_nothing_slow_and_prints_no_errors() -> None:
    program = [sys.executable, "-X", "importtime", "-m", "recipes.cli", "__complete"]
    done = subprocess.run([*program, "zsh", "train", "spectrum=po"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("spectrum=power_law\t")
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not imported & {"torch", "hydra", "omegaconf", "numpy", "rich"}, "a press of a key would take too long"
    # A message would appear in the line that is being typed.
    program = [sys.executable, "-m", "recipes.cli", "__complete"]
    done = subprocess.run([*program, "tcsh", "train"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


# In zsh, a function stands in for the builtin that works only while a line is being edited.
COMPLETIONS = {
    "bash": (
        'eval "$(multisagd completion bash)"\n'
        "try() { COMP_LINE=$1; COMP_POINT=${#1}; COMP_WORDS=(multisagd); COMPREPLY=(x)\n"
        '_multisagd 2>/dev/null; echo "${#COMPREPLY[@]} ${COMPREPLY[*]}"; }\n'
        'try "multisagd tra"; try "multisagd train spectrum=p"; try "multisagd train spectrum=nothing"\n'
        "complete -p multisagd\n",
        "1 train\n3 pink power_law progressive\n0 \ncomplete -o nosort -F _multisagd multisagd\n",
    ),
    "zsh": (
        'compdef() { }; compadd() { print -l -- ${(P)@[-1]} }; eval "$(multisagd completion zsh)"\n'
        "words=(multisagd train spec); CURRENT=3; _multisagd\n"
        "words=(multisagd train spectrum=power_l); _multisagd\n",
        "spectrum=\nspectrum.\nspectrum=power_law\n",
    ),
    "fish": ('multisagd completion fish | source; complete -C "multisagd train spectrum=po"', "spectrum=power_law\t"),
}


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_completion_script_completes(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here: apt-get install {shell}")
    program = tmp_path / "multisagd"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m recipes.cli "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    lines, expected = COMPLETIONS[shell]
    done = subprocess.run([shell, "-c", lines], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith(expected)
    assert done.stdout == expected or shell == "fish"  # which adds the description
