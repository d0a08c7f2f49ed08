"""The doctor: what it finds here, and that nothing that is broken keeps it from telling the rest."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_run

from recipes.doctor import report
from recipes.engine import config as configuration
from recipes.export import export
from recipes.health import compute, packages, places, run_folder
from recipes.health.company import leftovers
from recipes.health.findings import Check, Finding, Wishes, run
from recipes.health.isolation import examine
from recipes.runs.lock import held

ROOT = Path(__file__).parents[2]


def doctor(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "recipes.cli", "doctor", *words], capture_output=True, text=True, check=False,
        timeout=120, cwd="/", env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


def states(told: str) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads(told)["findings"]}


@pytest.mark.slow
def test_all_is_well_here() -> None:
    done = doctor("--json")
    assert done.returncode == 0, done.stdout
    found = states(done.stdout)
    assert json.loads(done.stdout)["sound"]
    assert [row for row in found.values() if row["state"] == "broken" and row["essential"]] == []
    for name in ("Python", "packages", "PyTorch", "torchvision", "torchaudio", "training", "attention", "images",
                 "sounds", "videos", "commands"):  # fmt: skip
        assert found[name]["state"] == "ok", found[name]
    # What is normal is no cause for alarm; "look" is left to what differs between machines.
    rows = json.loads(done.stdout)["findings"]
    packages_here = [row for row in rows if row["area"] in ("Python and packages", "Optional features", "Media")]
    assert [row for row in packages_here if row["state"] in ("broken", "warning")] == []


def broken_torch(folder: Path, source: str) -> str:
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(source)
    return f"{folder}{os.pathsep}{ROOT}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ImportError('libcudart.so.12: cannot open shared object file')", "ImportError: libcudart.so.12"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "it ended the process by SIGILL"),
    ],
)
def test_a_torch_that_cannot_be_imported_is_named_and_the_rest_is_looked_at(
    tmp_path: Path, source: str, message: str
) -> None:
    """In letters of ASCII alone, and without rich, which is made to be missing too."""
    path = broken_torch(tmp_path, source)
    (tmp_path / "rich.py").write_text("raise ImportError('broken too')")
    done = doctor(PYTHONPATH=path, PYTHONIOENCODING="ascii")
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert any("X broken" in line and "PyTorch" in line and message in line for line in lines), done.stdout
    for name in ("memory", "working folder", "images", "model hub", "text"):
        assert any(line.split()[:2] == ["ok", name.split()[0]] or name in line for line in lines), name
    assert "Something is broken that training needs" in lines[-1]


def test_a_foreign_package_of_one_of_our_names_is_told(tmp_path: Path) -> None:
    (tmp_path / "modalities").mkdir()
    (tmp_path / "modalities" / "__init__.py").touch()
    broken_torch(tmp_path, "raise ImportError")  # to be quick
    done = doctor("--json", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    found = states(done.stdout)["names"]
    assert (done.returncode, found["state"]) == (1, "broken")
    assert f"{tmp_path}/modalities" in found["told"]


def test_checks_that_crash_hang_or_raise_do_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trouble.py").write_text(
        "import os, time\n"
        "from recipes.health.findings import Check, Finding\n"
        "def fine(wishes):\n    print('noise')\n    yield Finding('ok', 'fine', 'as it should be')\n"
        "def crash(wishes):\n    os.abort()\n"
        "def hang(wishes):\n    time.sleep(60)\n"
        "def fail(wishes):\n    yield Finding('ok', 'half', '')\n    raise OSError('no such\\n  thing')\n"
        "CHECKS = tuple(Check('area', each.__name__, each) for each in (fine, crash, hang, fail, fine))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = [(check.name, each.state, each.told) for check, all_ in examine("trouble", Wishes(), 2.0) for each in all_]
    assert found == [
        ("fine", "ok", "as it should be"),
        ("crash", "broken", "it ended the process by SIGABRT"),
        ("hang", "broken", "it hangs: nothing came of it within 2 s"),
        ("fail", "broken", "OSError: no such thing"),
        ("fine", "ok", "as it should be"),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("thing>=2", ""),
        ("thing==2.1.*", ""),
        ("thing<2", "thing is 2.1.0+cu13, and <2 is needed"),
        ("nothing-of-this-name>=1", "nothing-of-this-name is not installed"),
        ("thing[more]>=2", "absent-part is not installed"),
        ("thing[other]", "thing is 2.1.0+cu13, and <1 is needed"),
        ("thing<1; sys_platform == 'never'", ""),
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
    assert packages.unmet(line) == problem


def test_every_optional_dependency_is_explained() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert packages.FEATURES.keys() == extras.keys() - {"dev"}


def test_an_installed_wheel_knows_the_same_requirements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    information = tmp_path / "multisagd-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: multisagd\nVersion: 1\nRequires-Python: >=3.11\nProvides-Extra: text\n"
        'Requires-Dist: torch==2.11.*\nRequires-Dist: xformers==0.0.35; sys_platform == "linux"\n'
        'Requires-Dist: transformers>=4.57; extra == "text"\n'
        'Requires-Dist: av>=18; (sys_platform == "linux") and extra == "text"\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(packages, "ROOT", tmp_path)
    assert packages.project() == (
        ">=3.11",
        {
            "": ["torch==2.11.*", 'xformers==0.0.35; sys_platform == "linux"'],
            "text": ["transformers>=4.57", 'av>=18; (sys_platform == "linux")'],
        },
    )
    assert packages.source("text") == "'multisagd[text]'"
    (tmp_path / "pyproject.toml").touch()
    assert packages.source("text") == f"-e '{tmp_path}[text]'"
    (tmp_path / "constraints.txt").write_text("torch==2.14.1\n")
    for torch, pinned in (("2.14.1+cu130", f"-c '{tmp_path}/constraints.txt' "), ("2.11.0", "")):
        monkeypatch.setattr(packages, "_version", lambda name, torch=torch: torch)
        assert packages.source("text") == f"{pinned}-e '{tmp_path}[text]'"


def test_a_foreign_environment_of_torchrun_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert [each.state for each in leftovers(Wishes())] == ["ok"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "there")
    (found,) = leftovers(Wishes())
    assert (found.state, found.remedy) == ("warning", "unset WORLD_SIZE MASTER_ADDR")


def test_threads_are_compared_with_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "usable_cores", lambda: 0)
    (found,) = compute.processor(Wishes())
    assert (found.state, found.remedy) == ("warning", "engine.threads=0")


def test_folders_that_are_files_or_full_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert places.writable("it", tmp_path / "file", True).state == "broken"
    assert places.writable("it", tmp_path / "a" / "b", True).state == "ok"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    monkeypatch.setattr(places, "LITTLE", shutil.disk_usage(tmp_path).free * 2)
    assert "checkpoints soon fill" in places.writable("it", tmp_path, True).told


def test_known_data_are_those_of_the_configurations() -> None:
    named = "".join(path.read_text() for path in (ROOT / "configs").rglob("*.yaml"))
    for path in places.KNOWN_DATA:
        assert f"${{oc.env:MULTISAGD_DATA,data}}/{path}\n" in named


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_run(folder)
    return folder


def judged(run_dir: Path) -> dict[str, Finding]:
    check = Check("run", "run", run_folder.folder, essential=True)
    return {each.name: each for each in run(check, Wishes(run_dir))}


def test_a_sound_run_is_told_to_be_so(sound: Path) -> None:
    found = judged(sound)
    assert {each.state for each in found.values()} == {"ok"}
    assert found["checkpoint"].told.startswith("after 96 of 96 samples")
    with held(sound):
        assert judged(sound)["in use"].state == "warning"


def test_damaged_checkpoints_are_told_and_the_one_before_is_found(sound: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sound, tmp_path / "run")
    files = sorted((copy / "checkpoints").rglob("network.safetensors"))
    files[-1].write_bytes(files[-1].read_bytes()[:-1] + b"\1")
    found = judged(copy)
    assert (found["checkpoint 96"].state, found["checkpoint"].state) == ("warning", "ok")
    assert "its content was altered" in found["checkpoint 96"].told
    assert found["checkpoint"].told.startswith("after 48")
    files[0].write_bytes(b"")
    assert judged(copy)["checkpoint 48"].state == "broken"


@pytest.mark.parametrize(
    ("name", "content"), [("config.yaml", "a: [1"), ("run.json", "{"), ("statistics.safetensors", "")]
)
def test_what_cannot_be_read_of_a_run_is_broken(sound: Path, tmp_path: Path, name: str, content: str) -> None:
    copy = shutil.copytree(sound, tmp_path / "run")
    (copy / name).write_text(content)
    found = judged(copy)["run"]
    assert found.state == "broken"
    assert name in found.told


def test_folders_without_a_run(tmp_path: Path) -> None:
    assert judged(tmp_path / "new")["run"].state == "absent"
    assert judged(tmp_path)["run"].told == "it is empty"
    (tmp_path / "thesis.tex").touch()
    assert judged(tmp_path)["run"] == Finding(
        "warning", "run", "it holds no run, but thesis.tex", "training needs a folder of its own"
    )


def test_an_exported_model_is_read_whole(sound: Path, tmp_path: Path) -> None:
    export(configuration.load("export", [f"run_dir={sound}", f"out={tmp_path / 'model'}"]))
    assert judged(tmp_path / "model")["model"].told.endswith("intact")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert judged(tmp_path / "model")["run"].state == "broken"


def test_commands_stand_whole_on_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    remedy = "pip install -e '/a/very/long/path/to/a/checkout/of/multisagd[remote]'"
    check = Check("area", "it", lambda wishes: [])
    assert f"  it: {remedy}" in list(report([(check, [Finding("absent", "it", "word " * 30, remedy)])]))
