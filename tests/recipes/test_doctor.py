"""`multisagd doctor` reports what works here, whatever else is broken."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from packaging.requirements import Requirement

from recipes.config import compose as configuration
from recipes.diagnosis import device, environment
from recipes.diagnosis.check import Check, Finding, run_isolated
from recipes.diagnosis.run_folder import run_folder
from recipes.doctor import main
from recipes.export import export
from recipes.runs.lock import lock_run
from tests.helpers.hostile_files import updated
from tests.helpers.tiny import tiny_run

ROOT = Path(__file__).parents[2]


def doctor(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "recipes.cli", "doctor", *words], capture_output=True, text=True, check=False,
        timeout=120, cwd="/", env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


def test_doctor_fails_where_an_essential_check_could_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = (Check("area", "training", "recipes.diagnosis.missing:step", essential=True),)
    monkeypatch.setattr("recipes.doctor.CHECKS", checks)
    assert main([]) == 1
    assert "not checked, because an import failed" in capsys.readouterr().out


@pytest.mark.slow
def test_doctor_finds_nothing_broken_here() -> None:
    done = doctor("--json")
    assert done.returncode == 0, done.stdout
    result = json.loads(done.stdout)
    assert result["works"]
    rows = {row["name"]: row for row in result["findings"]}
    assert not [row for row in rows.values() if row["state"] == "broken"]
    for name in ("packages", "modalities", "torch", "torchvision", "torchaudio", "training", "sdpa", "soundfile", "av"):
        assert rows[name]["state"] == "ok", rows[name]
    # What is normal is not reported as a warning, which is left to what differs between machines.
    areas = ("Python and packages", "Optional packages")
    assert not [row for row in rows.values() if row["area"] in areas and row["state"] == "warning"]


def test_doctor_names_broken_packages_and_checks_the_rest(tmp_path: Path) -> None:
    """In ASCII, and without rich, which is missing too; a remedy stays on one line, to be copied."""
    for name, source in (("torch", "raise ImportError('libcudart.so.12')"), ("modalities", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source)
    (tmp_path / "rich.py").write_text("raise ImportError('broken too')")
    done = doctor(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}", PYTHONIOENCODING="ascii", COLUMNS="60")
    assert (done.returncode, done.stderr) == (1, "")
    lines, printed = done.stdout.splitlines(), " ".join(done.stdout.split())
    assert "broken torch ImportError: libcudart.so.12" in printed
    assert f"broken modalities `modalities` is {tmp_path}/modalities" in printed
    for name in ("memory", "working folder", "packages", "text"):
        assert any(line.startswith(f"  ok       {name}") for line in lines), done.stdout
    assert any(line.startswith("  modalities: ") and line.endswith("in another folder") for line in lines), done.stdout
    assert "Training does not work" in printed


def test_run_isolated_survives_checks_that_crash_hang_or_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trouble.py").write_text(
        "import os, signal, time\n"
        "from recipes.diagnosis.check import Finding\n"
        "def fine(name):\n    print('noise', flush=True)\n    return Finding('ok', name)\n"
        "def crash():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "def hang():\n    time.sleep(60)\n"
        "def fail():\n    raise OSError('no such\\n  thing')\n"
        "def leave():\n    os.write(2, b'undefined symbol: x')\n    os._exit(127)\n"
    )
    (tmp_path / "unusable.py").write_text("raise ImportError('built for another PyTorch')\n")
    monkeypatch.syspath_prepend(tmp_path)
    expected = [
        ("trouble:fine", "ok", "as it should be"),
        ("trouble:crash", "broken", "the check ended its process by SIGKILL"),
        ("trouble:hang", "broken", "the check hangs: no result within 5 s"),
        ("trouble:fail", "broken", "OSError: no such thing"),
        ("trouble:leave", "broken", "the check ended its process with status 127: undefined symbol: x"),
        ("unusable:check", "absent", "not checked, because an import failed: ImportError: built for another PyTorch"),
        ("trouble:fine", "ok", "as it should be"),
    ]
    checks = [Check("area", name, name, ("as it should be",) if "fine" in name else ()) for name, *_ in expected]
    assert [(check.name, each.state, each.message) for check, each in run_isolated(checks, 5.0)] == expected


def install(folder: Path, name: str, version: str, *metadata: str) -> None:
    """Write the metadata of an installed package."""
    information = folder / f"{name}-{version}.dist-info"
    information.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *metadata]
    (information / "METADATA").write_text("\n".join([*lines, ""]))


def test_unmet_compares_requirements_with_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    install(
        tmp_path, "thing", "2.1.0+cu13", "Provides-Extra: more", "Provides-Extra: other",
        "Requires-Dist: absent-part>=3; extra == 'more'", "Requires-Dist: thing<1; extra == 'other'",
    )  # fmt: skip
    problems = {
        "thing==2.1.0": "",
        "thing<2": "thing is 2.1.0+cu13, but <2 is required",
        "nothing-of-this-name>=1": "nothing-of-this-name is not installed",
        "thing[more]>=2": "absent-part is not installed",
        "thing[other]": "thing is 2.1.0+cu13, but <1 is required",
    }
    assert {line: environment.unmet(Requirement(line)) for line in problems} == problems


def test_requirements_and_source_of_a_wheel_and_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert environment.EXTRAS.keys() == extras.keys() - {"dev"}
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    install(
        tmp_path, "multisagd", "1", "Provides-Extra: text", "Requires-Dist: torch==2.11.*",
        'Requires-Dist: xformers==1; sys_platform == "never"',
        'Requires-Dist: av>=18; (sys_platform != "never") and extra == "text"',
    )  # fmt: skip
    assert [str(each) for each in environment.requirements()] == ["torch==2.11.*"]
    assert [each.name for each in environment.requirements("text")] == ["av"]
    assert environment.source("text") == "'multisagd[text]'"
    (tmp_path / "pyproject.toml").touch()
    assert environment.source("text") == f"-e '{tmp_path}[text]'"
    # Constraints must not replace the installed PyTorch.
    (tmp_path / "constraints.txt").write_text("torch==2.14.1 ; sys_platform == 'linux'\n")
    constrained = f"-c '{tmp_path}/constraints.txt' -e '{tmp_path}'"
    for problem in ("", "torch is not installed", "torch is 2.11.0, but ==2.14.1 is required"):
        monkeypatch.setattr(environment, "unmet", Mock(return_value=problem))
        assert environment.source() == (f"-e '{tmp_path}'" if "is required" in problem else constrained)


def test_console_command_reports_another_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.console_command().state == "absent"
    command = tmp_path / "multisagd"
    for folder, state, message in ((ROOT, "ok", ""), ("/opt/another", "warning", "/opt/another")):
        command.write_text(f"#!/bin/sh\necho multisagd 0.1.0 in {folder}, Python 3.11, torch 2.11\n")
        command.chmod(0o755)
        finding = environment.console_command()
        assert finding.state == state
        assert message in finding.message


def test_cpu_and_attention_report_too_many_threads_and_wrong_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10**6)
    finding = device.cpu()
    assert finding.state == "warning"
    assert finding.remedy.startswith("engine.threads=")
    assert device.attention("sdpa").state == "ok"
    monkeypatch.setattr(device, "attend", lambda query, key, value, backend, strict: value)
    with pytest.raises(AssertionError, match="not close"):
        device.attention("sdpa")


def limit_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))


def test_writable_and_data_folder_report_files_space_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert environment.writable(str(tmp_path / "file")).state == "broken"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    limit_disk(monkeypatch, 2**40)
    assert environment.writable(str(tmp_path / "a" / "b")).state == "ok"
    limit_disk(monkeypatch, 2**20)
    assert "checkpoints may soon fill" in environment.writable(str(tmp_path)).message
    monkeypatch.setenv("MULTISAGD_DATA", str(tmp_path))
    assert environment.data_folder().state == "absent"
    (tmp_path / "images" / "mnist").mkdir(parents=True)
    assert environment.data_folder() == Finding("ok", f"{tmp_path}: images/mnist")


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_run(folder)
    return folder


def check(folder: Path, state: str, message: str = "") -> None:
    """Compare the state and a part of the message of the finding about a folder."""
    finding = run_folder(str(folder))
    assert finding.state == state, finding
    assert message in finding.message


def test_run_folder_reports_lock_space_and_foreign_files(
    intact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(intact, "ok", "checkpoint after 96 of 96 samples")
    with lock_run(intact):
        check(intact, "warning", "another process is using the folder")
    check(tmp_path / "new", "ok")
    check(tmp_path, "ok")
    (tmp_path / "thesis.tex").touch()
    check(tmp_path, "broken", f"there is no run or exported model in {tmp_path}")
    limit_disk(monkeypatch, 1000)
    check(intact, "broken", "do not fit on the disk")


def test_run_folder_reports_other_versions_and_damaged_files(intact: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(intact, tmp_path / "run")
    for name, content in (("config.yaml", "a: [1"), ("run.json", "{"), ("statistics.safetensors", "")):
        whole = (copied / name).read_bytes()
        (copied / name).unlink()  # the file may be mapped into memory
        (copied / name).write_text(content)
        check(copied, "broken", name)
        (copied / name).write_bytes(whole)
    updated("run.json", starts=[{"versions": {"torch": "2.0.0"}}])(copied)
    check(copied, "warning", "last started with torch 2.0.0, now")
    files = sorted((copied / "checkpoints").rglob("network.safetensors"))
    files[-1].write_bytes(files[-1].read_bytes()[:-1] + b"\1")
    check(copied, "warning", "checkpoint after 48")
    check(copied, "warning", "its content was altered")
    files[0].write_bytes(b"")
    check(copied, "broken", "no checkpoint is intact")
    (copied / "samples" / "link").symlink_to(ROOT)
    check(copied, "broken", "outside of")


def test_run_folder_reads_an_exported_model_completely(intact: Path, tmp_path: Path) -> None:
    export(configuration.load("export", [f"run_dir={intact}", f"out={tmp_path / 'model'}"]))
    check(tmp_path / "model", "ok", "intact")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    check(tmp_path / "model", "broken")
