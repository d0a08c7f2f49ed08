"""Completion offers the keys that Hydra composes, and the scripts work in the shells themselves."""

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from omegaconf import OmegaConf

from multisagd.networks.attention import BACKENDS
from recipes.base.commands import COMMANDS, CONFIGURED
from recipes.completion import complete, for_bash, listed_values, script, words_of
from recipes.config import compose as configuration
from recipes.config import groups as configuration_groups
from recipes.config.groups import KeyTable, groups
from recipes.design import DesignSettings
from recipes.encode import EncodeSettings
from recipes.runs.settings import Loss, SampleSettings, Sampling
from recipes.runtime.device import EngineSettings

ROOT = Path(__file__).parents[2]
BREAKS = " \t\n\"'@><=;|&(:"


def offered(*words: str) -> list[str]:
    return [each for each, _ in complete(words)]


def cases() -> list[tuple[str, dict[str, str]]]:
    """Return commands with choices: no choice, every experiment, and one choice of each other group of train."""
    chosen: list[tuple[str, dict[str, str]]] = [(command, {}) for command in CONFIGURED]
    for group, command in (("refine", "sample"), ("cluster", "launch"), ("experiment", "train")):
        chosen += [(command, {group: choice}) for choice in groups()[group]]
    others = {group: choices for group, choices in groups().items() if group not in ("refine", "cluster", "experiment")}
    for number in range(max(map(len, others.values()))):
        chosen.append(("train", {group: choices[number % len(choices)] for group, choices in others.items()}))
    return [*chosen, ("analyze", {"experiment": "audio_notes", "modality": "video", "network": "transformer"})]


def check_keys(chosen: list[tuple[str, dict[str, str]]]) -> None:
    """Compare keys and defaults with Hydra's, interpolations not resolved."""
    for name, choices in chosen:
        composed = configuration._compose(name, [f"{group}={choice}" for group, choice in choices.items()])
        assert KeyTable(choices).keys(name) == OmegaConf.to_container(composed), (name, choices)


def test_outline_keys_are_those_that_hydra_composes() -> None:
    """Of every command; and the choices whose files build on others."""
    check_keys([case for case in cases() if case[0] != "train" or not case[1]])
    built = ("latent_image", "cached_video", "latent", "audio_notes", "ablation_sign_digits")
    check_keys([case for case in cases() if any(choice in built for choice in case[1].values())])


@pytest.mark.slow
def test_outline_keys_of_every_choice_are_those_that_hydra_composes() -> None:
    check_keys([case for case in cases() if case[0] == "train"])


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
    "--v": ["--version"],
    "help samp": ["sample"],
    "train spectrum=power": ["spectrum=power_law"],
    "train spectrum=power_law spectrum.exp": ["spectrum.exponent="],
    "train experiment=audio_notes modality.representation.h": ["modality.representation.hop="],
    "train modality=audio modality=image modality.repr": [],
    "train training.learn": ["training.learning_rate="],
    "train train": ["training."],
    "train spec": ["spectrum=", "spectrum."],
    "train exper": ["experiment="],
    "sample exper": [],
    "launch exper": ["experiment="],
    "launch cluster=slurm cluster.part": ["cluster.partition="],
    "launch command=sample prompts_": ["prompts_file="],
    "launch command=eval": ["command=evaluate"],
    "train engine.compile=": ["engine.compile=true", "engine.compile=false"],
    "train engine.device=": ["engine.device=auto", "engine.device=cpu", "engine.device=cuda"],
    "train engine.precision=b": ["engine.precision=bfloat16"],
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
    (tmp_path / ".hidden").mkdir()
    assert offered("train", "run_dir=") == ["run_dir=my photos/"]
    assert offered("train", "data=folder", "data.root=my photos/") == ["data.root=my photos/a.png"]
    assert offered("train", "--config-dir=m") == ["--config-dir=my photos/"]
    assert offered("train", "seed=") == ["seed=0"]
    assert for_bash("multisagd train run_dir=m", BREAKS) == [r"my\ photos/"]
    assert for_bash(r"multisagd train run_dir=my\ ph", BREAKS) == [r"my\ photos/"]
    assert for_bash("multisagd train run_dir=m", "") == [r"run_dir=my\ photos/"]
    assert for_bash("multisagd train 'run_dir=m", BREAKS) == ["run_dir=my photos/"]


def test_words_of_splits_an_incomplete_line_as_a_shell_does() -> None:
    lines = {"a b": ["a", "b"], "a ": ["a", ""], "a 'b c": ["a", "b c"], 'a "b': ["a", "b"], r"a b\ c": ["a", "b c"]}
    assert {line: words_of(line) for line in lines} == lines


def test_listed_values_are_those_of_the_type_hints() -> None:

    def literal(owner: Any, name: str) -> tuple[str, ...]:
        hint = get_type_hints(owner)[name]
        assert get_origin(hint) is Literal, hint
        return get_args(hint)

    owners = {
        ("sample", "band"): (SampleSettings, "band"), ("encode", "dtype"): (EncodeSettings, "dtype"),
        ("train", "engine.distribution"): (EngineSettings, "distribution"),
        ("train", "engine.precision"): (EngineSettings, "precision"),
        ("train", "loss.metric"): (Loss, "metric"), ("train", "loss.weighting"): (Loss, "weighting"),
        ("design", "objective"): (DesignSettings, "objective"), ("train", "sampling.spacing"): (Sampling, "spacing"),
        ("sample", "spacing"): (SampleSettings, "spacing"), ("sample", "weights"): (SampleSettings, "weights"),
        ("export", "weights"): (SampleSettings, "weights"), ("evaluate", "spacing"): (SampleSettings, "spacing"),
    }  # fmt: skip
    for (command, key), owner in owners.items():
        assert set(listed_values(KeyTable({}).comment(command, key))) == set(literal(*owner)), key
    for network in ("unet", "transformer"):
        comment = KeyTable({"network": network}).comment("train", "network.attention")
        assert tuple(listed_values(comment)) == BACKENDS


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


@pytest.fixture
def shell_environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which `multisagd` is this checkout's."""
    program = tmp_path / "bin" / "multisagd"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m recipes.cli "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "TERM": "dumb", "PS1": "> "}


# In zsh, a function stands in for the builtin that works only while a line is being edited.
COMPLETIONS = {
    "bash": (
        'eval "$(multisagd completion bash)"\n'
        "try() { COMP_LINE=$1; COMP_POINT=${#1}; COMP_WORDS=(multisagd); COMPREPLY=(x)\n"
        '_multisagd 2>/dev/null; echo "${#COMPREPLY[@]} ${COMPREPLY[*]}"; }\n'
        'try "multisagd tra"; try "multisagd train spectrum=p"; try "multisagd train spectrum=nothing"\n',
        "1 train\n3 pink power_law progressive\n0 \n",
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
def test_completion_script_completes(shell: str, shell_environment: dict[str, str]) -> None:
    assert f"multisagd completion {shell}" in script(shell), "it does not say how to install it"
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here: apt-get install {shell}")
    lines, expected = COMPLETIONS[shell]
    done = subprocess.run([shell, "-c", lines], capture_output=True, text=True, check=True, env=shell_environment)
    assert done.stdout.startswith(expected)
    assert done.stdout == expected or shell == "fish"  # which adds the description


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_completion_script_completes_in_a_bash_terminal(shell_environment: dict[str, str]) -> None:
    expected = "multisagd train spectrum=power_law network.width=64"
    process, terminal = pty.fork()
    if process == 0:
        os.execvpe("bash", ["bash", "--norc", "-i"], shell_environment)
    seen = ""
    try:
        os.write(terminal, b'eval "$(multisagd completion bash)"\nmultisagd train spectrum=power_l\tnetwork.wid\t64')
        deadline = time.monotonic() + 30
        while expected not in seen and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 65536).decode(errors="replace").replace("\r", "").replace("\n", "")
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(terminal)
    assert expected in seen
