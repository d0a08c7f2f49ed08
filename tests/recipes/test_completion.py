"""Completion: the candidates against what Hydra composes, and the scripts in the shells themselves."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from omegaconf import OmegaConf

from multisagd.networks.attention import BACKENDS
from recipes.base.commands import COMMANDS, CONFIGURED
from recipes.completion import SHELLS, complete, for_bash, listed_values, script, words_of
from recipes.config import compose as configuration
from recipes.config import groups as outline
from recipes.config.groups import Outline, groups
from recipes.design import DesignSettings
from recipes.encode import EncodeSettings
from recipes.runs.settings import Loss, SampleSettings, Sampling
from recipes.runtime.device import EngineSettings

ROOT = Path(__file__).parents[2]
BREAKS = " \t\n\"'@><=;|&(:"


def offered(*words: str) -> list[str]:
    return [each for each, _ in complete(words)]


def cases() -> list[tuple[str, dict[str, str]]]:
    """Return commands with choices: none; every experiment; and of all other groups that train knows one each."""
    found: list[tuple[str, dict[str, str]]] = [(command, {}) for command in CONFIGURED]
    for group, command in (("refine", "sample"), ("cluster", "launch"), ("experiment", "train")):
        found += [(command, {group: choice}) for choice in groups()[group]]
    others = {group: choices for group, choices in groups().items() if group not in ("refine", "cluster", "experiment")}
    for number in range(max(map(len, others.values()))):
        found.append(("train", {group: choices[number % len(choices)] for group, choices in others.items()}))
    return [*found, ("analyze", {"experiment": "audio_notes", "modality": "video", "network": "transformer"})]


def check(chosen: list[tuple[str, dict[str, str]]]) -> None:
    """Compare keys and defaults with Hydra's, interpolations not resolved."""
    for name, choices in chosen:
        composed = configuration._compose(name, [f"{group}={choice}" for group, choice in choices.items()])
        assert Outline(choices).keys(name) == OmegaConf.to_container(composed), (name, choices)


def test_keys_are_those_that_hydra_composes() -> None:
    """Of every command; and the choices whose files build on others."""
    check([case for case in cases() if case[0] != "train" or not case[1]])
    built = ("latent_image", "cached_video", "latent", "audio_notes", "ablation_sign_digits")
    check([case for case in cases() if any(choice in built for choice in case[1].values())])


@pytest.mark.slow
def test_keys_of_every_choice_are_those_that_hydra_composes() -> None:
    check([case for case in cases() if case[0] == "train"])


def test_keys_of_your_own_files(tmp_path: Path) -> None:
    (tmp_path / "spectrum").mkdir()
    (tmp_path / "spectrum" / "mine.yaml").write_text("# Mine.\n_target_: multisagd.Flat\nlevel: 2.0\n")
    own = f"--config-dir={tmp_path}"
    assert offered("train", own, "spectrum=m") == ["spectrum=mine", "spectrum=mixed"]
    assert offered("train", "--config-dir", str(tmp_path), "spectrum=mine", "spectrum.") == ["spectrum.level="]
    (tmp_path / "spectrum" / "mine.yaml").write_text("a: [1")  # while it is being written
    outline.read_file.cache_clear()
    assert offered("train", own, "spectrum=mine", "spectrum.") == []


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["tra"], ["train"]),
        (["--v"], ["--version"]),
        (["help", "samp"], ["sample"]),
        (["train", "spectrum=power"], ["spectrum=power_law"]),
        (["train", "spectrum=power_law", "spectrum.exp"], ["spectrum.exponent="]),
        (["train", "experiment=audio_notes", "modality.representation.h"], ["modality.representation.hop="]),
        (["train", "modality=audio", "modality=image", "modality.repr"], []),
        (["train", "training.learn"], ["training.learning_rate="]),
        (["train", "train"], ["training."]),
        (["train", "spec"], ["spectrum=", "spectrum."]),
        (["train", "exper"], ["experiment="]),
        (["sample", "exper"], []),
        (["launch", "exper"], ["experiment="]),
        (["launch", "cluster=slurm", "cluster.part"], ["cluster.partition="]),
        (["launch", "command=sample", "prompts_"], ["prompts_file="]),
        (["launch", "command=eval"], ["command=evaluate"]),
        (["train", "engine.compile="], ["engine.compile=true", "engine.compile=false"]),
        (["train", "engine.precision=b"], ["engine.precision=bfloat16"]),
        (["train", "training.betas="], ["training.betas=[0.9,0.99]"]),
        (["train", "+spectrum=whi"], ["+spectrum=white"]),
        (["train", "--s"], ["--show"]),
        (["evaluate", "metrics=[spe"], ["metrics=[spectrum]"]),
        (["list", "spec"], ["spectra"]),
        (["list", "spectra", "e"], []),
        (["doctor", "r"], ["run_dir="]),
        (["doctor", "--"], ["--json", "--deep", "--help"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["completion", "bash", ""], []),
        (["nonsense", "a"], []),
    ],
)  # fmt: skip
def test_candidates(words: list[str], found: list[str]) -> None:
    assert offered(*words) == found


def test_all_commands_are_offered() -> None:
    assert set(offered("")) == {*COMMANDS, "help", "--help", "--version"}


def test_files_are_offered_where_a_text_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize(
    ("line", "words"),
    [("a b", ["a", "b"]), ("a ", ["a", ""]), ("a 'b c", ["a", "b c"]), ('a "b', ["a", "b"]), (r"a b\ c", ["a", "b c"])],
)
def test_a_line_is_split_as_a_shell_splits_it(line: str, words: list[str]) -> None:
    assert words_of(line) == words


def test_where_the_data_of_a_run_are_now_is_offered() -> None:
    assert [each for each, _ in complete(["evaluate", "data."])] == ["data.root=", "data.urls="]
    assert ("data.", "keys of the run's data") in complete(["sample", "da"])


def test_values_of_few_are_those_of_the_settings() -> None:
    """The values that comments list are those of the type hints of the settings."""

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
        assert set(listed_values(Outline({}).comment(command, key))) == set(literal(*owner)), key
    for network in ("unet", "transformer"):
        comment = Outline({"network": network}).comment("train", "network.attention")
        assert tuple(listed_values(comment)) == BACKENDS
    assert offered("train", "engine.device=") == ["engine.device=auto", "engine.device=cpu", "engine.device=cuda"]


def test_it_answers_without_importing_what_takes_long() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "recipes.cli", "__complete", "zsh", "train", "spectrum=po"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("spectrum=power_law\t")
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not imported & {"torch", "hydra", "omegaconf", "numpy", "rich"}, "a press of a key would take too long"


def test_nothing_is_said_to_one_who_types() -> None:
    command = [sys.executable, "-m", "recipes.cli", "__complete", "tcsh", "train"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def in_terminal(command: list[str], lines: list[str], expected: str, environment: dict[str, str]) -> str:
    """Type lines into a shell, one after the other, and return what is on the screen once `expected` is."""
    number, terminal = pty.fork()
    if number == 0:
        os.execvpe(command[0], command, {**environment, "TERM": "dumb", "PS1": "> "})
    seen = ""
    try:
        for line in lines:
            os.write(terminal, line.encode())
        deadline = time.monotonic() + 30
        while expected not in seen.replace("\r", "").replace("\n", "") and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 65536).decode(errors="replace")
    finally:
        os.kill(number, 9)
        os.waitpid(number, 0)
        os.close(terminal)
    return seen.replace("\r", "").replace("\n", "")


@pytest.fixture
def shell_environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which `multisagd` is this checkout's."""
    program = tmp_path / "bin" / "multisagd"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m recipes.cli "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"no {shell} here: apt-get install {shell}")


@needs("bash")
def test_bash_completes(shell_environment: dict[str, str]) -> None:
    script = (
        'eval "$(multisagd completion bash)"\n'
        "try() { COMP_LINE=$1; COMP_POINT=${#1}; COMP_WORDS=(multisagd); COMPREPLY=(x)\n"
        '_multisagd 2>/dev/null; echo "${#COMPREPLY[@]} ${COMPREPLY[*]}"; }\n'
        'try "multisagd tra"; try "multisagd train spectrum=p"; try "multisagd train spectrum=nothing"\n'
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60, env=shell_environment
    )
    assert done.stdout.splitlines() == ["1 train", "3 pink power_law progressive", "0 "]


@needs("bash")
def test_bash_writes_what_it_completes(shell_environment: dict[str, str]) -> None:
    lines = ['eval "$(multisagd completion bash)"\n', "multisagd train spectrum=power_l\tnetwork.wid\t64"]
    expected = "multisagd train spectrum=power_law network.width=64"
    assert expected in in_terminal(["bash", "--norc", "-i"], lines, expected, shell_environment)


@needs("zsh")
def test_zsh_writes_what_it_completes(shell_environment: dict[str, str], tmp_path: Path) -> None:
    lines = [f"autoload -U compinit && compinit -u -d {tmp_path}/dump\n", 'eval "$(multisagd completion zsh)"\n']
    lines.append("multisagd train spectrum=power_l\tnetwork.wid\t64")
    expected = "network.width=64"
    seen = in_terminal(["zsh", "-f", "-i"], lines, expected, shell_environment)
    assert "spectrum=power_law" in seen
    assert expected in seen


@needs("fish")
def test_fish_completes(shell_environment: dict[str, str]) -> None:
    script = 'multisagd completion fish | source; complete -C "multisagd train spectrum=po"'
    done = subprocess.run(
        ["fish", "-c", script], capture_output=True, text=True, check=True, timeout=60, env=shell_environment
    )
    assert done.stdout.startswith("spectrum=power_law\tAmplitude")


def test_scripts_say_how_to_install_them() -> None:
    for shell in SHELLS:
        assert f"multisagd completion {shell}" in script(shell)
