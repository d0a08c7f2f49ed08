"""The doctor: what it finds here, and that nothing that is broken keeps it from reporting the rest."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from recipes.config import compose as configuration
from recipes.diagnosis import device, environment
from recipes.diagnosis.check import Check, Finding, run_isolated
from recipes.diagnosis.run_folder import run_folder
from recipes.doctor import main, report
from recipes.export import export
from recipes.runs.lock import held
from tests.helpers.tiny import tiny_run

ROOT = Path(__file__).parents[2]


def doctor(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "recipes.cli", "doctor", *words], capture_output=True, text=True, check=False,
        timeout=120, cwd="/", env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


def findings(output: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(output)["findings"]}


def test_training_does_not_work_where_an_essential_check_could_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = (Check("area", "training", "recipes.diagnosis.missing:step", essential=True),)
    monkeypatch.setattr("recipes.doctor.CHECKS", checks)
    assert main([]) == 1
    assert "not checked, because an import failed" in capsys.readouterr().out


@pytest.mark.slow
def test_all_is_well_here() -> None:
    done = doctor("--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["works"]
    found = findings(done.stdout)
    assert not [row for row in found.values() if row["state"] == "broken"]
    for name in ("packages", "modalities", "torch", "torchvision", "torchaudio", "training", "sdpa", "soundfile", "av"):
        assert found[name]["state"] == "ok", found[name]
    # What is normal is not reported as a warning, which is left to what differs between machines.
    areas = ("Python and packages", "Optional packages")
    assert not [row for row in found.values() if row["area"] in areas and row["state"] == "warning"]


def broken_torch(folder: Path, source: str) -> str:
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(source)
    return f"{folder}{os.pathsep}{ROOT}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ImportError('libcudart.so.12: cannot open shared object file')", "ImportError: libcudart.so.12"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "it ended the process by SIGILL"),
        ("import os; os.write(2, b'undefined symbol: x'); os._exit(127)", "with status 127: undefined symbol: x"),
    ],
)
def test_a_torch_that_cannot_be_imported_is_named_and_the_rest_is_looked_at(
    tmp_path: Path, source: str, message: str
) -> None:
    """In ASCII, and without rich, which is made to be missing too."""
    path = broken_torch(tmp_path, source)
    (tmp_path / "rich.py").write_text("raise ImportError('broken too')")
    done = doctor(PYTHONPATH=path, PYTHONIOENCODING="ascii", COLUMNS="120")
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert any(line.split()[:2] == ["broken", "torch"] and message in line for line in lines), done.stdout
    for name in ("memory", "working folder", "packages", "text"):
        assert any(line.startswith(f"  ok       {name}") for line in lines), done.stdout
    assert lines[-1].startswith("Training does not work")


def test_a_foreign_package_named_modalities_is_reported(tmp_path: Path) -> None:
    (tmp_path / "modalities").mkdir()
    (tmp_path / "modalities" / "__init__.py").touch()
    broken_torch(tmp_path, "raise ImportError")  # to be quick
    done = doctor("--json", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    found = findings(done.stdout)["modalities"]
    assert (done.returncode, found["state"]) == (1, "broken")
    assert f"{tmp_path}/modalities" in found["message"]


def test_checks_that_crash_hang_or_raise_do_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trouble.py").write_text(
        "import os, signal, time\n"
        "from recipes.diagnosis.check import Finding\n"
        "def fine(name):\n    print('noise', flush=True)\n    return Finding('ok', name)\n"
        "def crash():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "def hang():\n    time.sleep(60)\n"
        "def fail():\n    raise OSError('no such\\n  thing')\n"
    )
    (tmp_path / "unusable.py").write_text("raise ImportError('built for another PyTorch')\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("trouble:fine", "trouble:crash", "trouble:hang", "trouble:fail", "unusable:check", "trouble:fine")
    checks = [Check("area", name, name, ("as it should be",) if "fine" in name else ()) for name in names]
    found = [(check.name, each.state, each.message) for check, each in run_isolated(checks, 5.0)]
    assert found == [
        ("trouble:fine", "ok", "as it should be"),
        ("trouble:crash", "broken", "it ended the process by SIGKILL"),
        ("trouble:hang", "broken", "it hangs: no result within 5 s"),
        ("trouble:fail", "broken", "OSError: no such thing"),
        ("unusable:check", "absent", "not checked, because an import failed: ImportError: built for another PyTorch"),
        ("trouble:fine", "ok", "as it should be"),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("thing>=2", ""),
        ("thing==2.1.*", ""),
        ("thing<2", "thing is 2.1.0+cu13, but <2 is required"),
        ("nothing-of-this-name>=1", "nothing-of-this-name is not installed"),
        ("thing[more]>=2", "absent-part is not installed"),
        ("thing[other]", "thing is 2.1.0+cu13, but <1 is required"),
    ],
)
def test_requirements_are_compared_with_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, problem: str
) -> None:
    information = tmp_path / "thing-2.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: thing\nVersion: 2.1.0+cu13\nProvides-Extra: more\nProvides-Extra: other\n"
        "Requires-Dist: absent-part>=3; extra == 'more'\nRequires-Dist: thing<1; extra == 'other'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert environment.unmet(Requirement(line)) == problem


def test_every_optional_dependency_is_reported() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert environment.EXTRAS.keys() == extras.keys() - {"dev"}


def test_an_installed_wheel_has_the_same_requirements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    information = tmp_path / "multisagd-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: multisagd\nVersion: 1\nRequires-Python: >=3.11\nProvides-Extra: text\n"
        'Requires-Dist: torch==2.11.*\nRequires-Dist: xformers==0.0.35; sys_platform == "never"\n'
        'Requires-Dist: transformers>=4.57; extra == "text"\n'
        'Requires-Dist: av>=18; (sys_platform != "never") and extra == "text"\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert [str(each) for each in environment.requirements()] == ["torch==2.11.*"]
    assert [each.name for each in environment.requirements("text")] == ["transformers", "av"]
    assert environment.source("text") == "'multisagd[text]'"
    (tmp_path / "pyproject.toml").touch()
    assert environment.source("text") == f"-e '{tmp_path}[text]'"


@pytest.mark.parametrize(("installed", "pinned"), [("2.14.1+cu130", True), ("2.11.0", False), ("", True)])
def test_constraints_are_given_unless_they_replace_the_installed_pytorch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installed: str, pinned: bool
) -> None:
    def version(name: str) -> str:
        if not installed:
            raise environment.metadata.PackageNotFoundError
        return installed

    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment.metadata, "version", version)
    monkeypatch.setattr(environment.metadata, "requires", lambda name: [])
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").write_text("torch==2.14.1 ; sys_platform == 'linux'\n")
    constraints = f"-c '{tmp_path}/constraints.txt' " if pinned else ""
    assert environment.source() == f"{constraints}-e '{tmp_path}'"


@pytest.mark.parametrize(("folder", "state"), [(ROOT, "ok"), ("/opt/another", "warning"), (None, "absent")])
def test_the_console_command_of_another_checkout_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: object, state: str
) -> None:
    if folder is not None:
        (tmp_path / "multisagd").write_text(f"#!/bin/sh\necho multisagd 0.1.0 in {folder}, Python 3.11, torch 2.11\n")
        (tmp_path / "multisagd").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = environment.console_command()
    assert found.state == state
    assert str(folder) in found.message or state != "warning"


def test_threads_are_compared_with_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10**6)
    found = device.cpu()
    assert found.state == "warning"
    assert found.remedy.startswith("engine.threads=")


def test_an_attention_backend_that_computes_wrongly_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.attention("sdpa").state == "ok"
    monkeypatch.setattr(device, "attend", lambda query, key, value, backend, strict: value)
    with pytest.raises(AssertionError, match="not close"):
        device.attention("sdpa")


def test_folders_that_are_files_or_full_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert environment.writable(str(tmp_path / "file")).state == "broken"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    free = namedtuple("Usage", "free")
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: free(2**40))
    assert environment.writable(str(tmp_path / "a" / "b")).state == "ok"
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: free(2**20))
    assert "checkpoints soon fill" in environment.writable(str(tmp_path)).message


def test_data_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTISAGD_DATA", str(tmp_path))
    assert environment.data_folder().state == "absent"
    (tmp_path / "images" / "mnist").mkdir(parents=True)
    assert environment.data_folder() == Finding("ok", f"{tmp_path}: images/mnist")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_run(folder)
    return folder


def test_a_sound_run_is_ok(sound: Path) -> None:
    found = run_folder(str(sound))
    assert found.state == "ok"
    assert found.message.startswith("checkpoint after 96 of 96 samples")
    with held(sound):
        found = run_folder(str(sound))
    assert found.state == "warning"
    assert "another process is using it" in found.message


def test_a_run_of_other_versions_is_reported(sound: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sound, tmp_path / "run")
    facts = json.loads((copy / "run.json").read_text())
    facts["starts"][-1]["versions"]["torch"] = "2.0.0"
    (copy / "run.json").write_text(json.dumps(facts))
    found = run_folder(str(copy))
    assert found.state == "warning"
    assert "last started with torch 2.0.0, now" in found.message


def test_damaged_checkpoints_are_reported_and_the_one_before_is_found(sound: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sound, tmp_path / "run")
    files = sorted((copy / "checkpoints").rglob("network.safetensors"))
    files[-1].write_bytes(files[-1].read_bytes()[:-1] + b"\1")
    found = run_folder(str(copy))
    assert found.state == "warning"
    assert found.message.startswith("checkpoint after 48")
    assert "its content was altered" in found.message
    files[0].write_bytes(b"")
    assert run_folder(str(copy)).state == "broken"


def test_a_disk_without_space_for_the_next_checkpoints_is_reported(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    found = run_folder(str(sound))
    assert found.state == "broken"
    assert "do not fit on the disk" in found.message


@pytest.mark.parametrize(
    ("name", "content"), [("config.yaml", "a: [1"), ("run.json", "{"), ("statistics.safetensors", "")]
)
def test_what_cannot_be_read_of_a_run_is_broken(sound: Path, tmp_path: Path, name: str, content: str) -> None:
    copy = shutil.copytree(sound, tmp_path / "run")
    (copy / name).write_text(content)
    found = run_folder(str(copy))
    assert found.state == "broken"
    assert name in found.message


def test_a_link_out_of_a_run_is_refused(sound: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sound, tmp_path / "run")
    (copy / "samples" / "link").symlink_to(ROOT)
    found = run_folder(str(copy))
    assert found.state == "broken"
    assert "outside of" in found.message


def test_folders_without_a_run(tmp_path: Path) -> None:
    assert run_folder(str(tmp_path / "new")).state == "ok"
    assert run_folder(str(tmp_path)).state == "ok"
    (tmp_path / "thesis.tex").touch()
    found = run_folder(str(tmp_path))
    assert found.state == "broken"
    assert f"no run or exported model is in {tmp_path}" in found.message


def test_an_exported_model_is_read_completely(sound: Path, tmp_path: Path) -> None:
    export(configuration.load("export", [f"run_dir={sound}", f"out={tmp_path / 'model'}"]))
    assert run_folder(str(tmp_path / "model")).message.endswith("intact")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert run_folder(str(tmp_path / "model")).state == "broken"


def test_commands_stand_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    remedy = "pip install -e '/a/very/long/path/to/a/checkout/of/multisagd[remote]'"
    assert f"  it: {remedy}" in list(report([(Check("area", "it", ""), Finding("absent", "word " * 30, remedy))]))
