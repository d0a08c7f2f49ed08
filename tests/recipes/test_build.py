"""Objects are built from configurations with checked types, and only from classes of allowed packages."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

import multisagd as ms
from modalities.base import Dataset, Modality
from multisagd.samplers import Sampler
from recipes.base.errors import RecipeError
from recipes.config.build import Builder


@dataclass
class Leaf:
    value: float = 1.0


@dataclass
class Settings:
    count: int = 1
    share: float = 0.5
    kind: Literal["a", "b"] = "a"
    pair: tuple[float, float] = (0.0, 1.0)
    names: tuple[str, ...] = ()
    maybe: int | None = None
    leaf: Leaf = field(default_factory=Leaf)
    anything: Any = None


def test_build_nests_objects_and_fills_omitted_arguments_from_the_context() -> None:
    node = {
        "_target_": "multisagd.spectrum.Product",
        "left": {"_target_": "multisagd.PowerLaw", "exponent": -1, "axes": ["height"]},
        "right": {"_target_": "multisagd.Autoregressive", "axis": "width", "coefficient": 0.5},
    }
    expected = ms.PowerLaw(-1.0, axes=("height",)) * ms.Autoregressive(0.5, axis="width")
    assert Builder().build(node, ms.Spectrum, "spectrum") == expected
    node = {"_target_": "multisagd.networks.UNet", "width": 8, "multipliers": [1], "heads": 2, "classes": None}
    network = Builder().build(node, nn.Module, "network", channels=3, dimensions=1, classes=4, unknown=1)
    assert network(torch.zeros(2, 3, 8), torch.zeros(2), torch.tensor([0, 4])).shape == (2, 3, 8)


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "builtins.eval", "builtins.exec", "subprocess.Popen", "torch.nn.Linear",
        "multisagd.networks.unet.torch.load", "modalities.files.os.system", "modalities.reading.ThreadPoolExecutor",
        "recipes.runs.run.subprocess.run", "recipes.train.train", "recipes.train.main", "multisagd.networks.unet",
        "multisagd.seeds.derive", "multisagd.Grid", "multisagd.PowerLaw.__init__", "multisagd.PowerLaw.__class__",
        "multisagd.networks.UNet.__init__.__globals__", "multisagd.networks.UNet.forward", "multisagd_evil.UNet",
        "", "os", None, 3, ["os.system"],
    ],
)  # fmt: skip
def test_build_refuses_targets_outside_the_packages_or_of_another_type(target: Any) -> None:
    for expected in (nn.Module, ms.Spectrum, Modality, Dataset, Sampler):
        with pytest.raises(RecipeError, match=r"^place"):
            Builder().build({"_target_": target}, expected, "place")


def test_build_imports_from_allowed_packages_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "boom.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError, match="allow_targets=\\[boom\\]"):
        Builder().build({"_target_": "boom.Network"}, nn.Module, "network")
    (tmp_path / "my_modules.py").write_text("import os\nfrom torch.nn import Linear\n")
    for name, real in (("Linear", "torch"), ("os.system", "which is os")):
        with pytest.raises(RecipeError, match=real):
            Builder(("my_modules",)).build({"_target_": f"my_modules.{name}"}, nn.Module, "network")


def test_build_finds_an_allowed_package_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import multisagd\nclass Mine(multisagd.Spectrum):\n    def __init__(self, a: int): self.a = a\n"
    (tmp_path / "my_spectra.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    node = {"_target_": "my_spectra.Mine", "a": 2}
    assert Builder(("my_spectra",)).build(node, ms.Spectrum, "spectrum").a == 2  # type: ignore[attr-defined]


NESTED = {"_target_": "multisagd.spectrum.Sum", "left": {"_target_": "os.getcwd"}, "right": {}}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "multisagd.PowerLw"}, "spectrum._target_: multisagd.PowerLw does not exist.*'PowerLaw'"),
        ({"_target_": "multisagd.PowerLaw", "expnent": 1}, "spectrum.expnent.*did you mean 'exponent'"),
        ({"_target_": "multisagd.PowerLaw"}, "spectrum: PowerLaw needs exponent"),
        ({"_target_": "multisagd.PowerLaw", "exponent": "x"}, "spectrum.exponent: expected a number, got 'x'"),
        ({"_target_": "multisagd.PowerLaw", "exponent": True}, "spectrum.exponent: expected a number"),
        ({"_target_": "multisagd.PowerLaw", "exponent": 1, "corner": -1}, "spectrum: a power law's corner"),
        ({"exponent": 1}, "spectrum has no _target_"),
        (NESTED, r"^spectrum\.left\._target_: os.getcwd is not under an allowed package"),
        ({"_target_": "multisagd.PowerLaw", "exponent": {"_target_": "multisagd.Flat"}}, "exponent: expected a number"),
    ],
)
def test_build_names_the_key_and_the_remedy_of_a_mistake(node: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Builder().build(node, ms.Spectrum, "spectrum")


def test_settings_converts_values_to_their_types() -> None:
    node = {"count": 1e3, "share": 1, "kind": "b", "pair": [1, 2], "names": ["x"], "maybe": 3, "leaf": {"value": 2}}
    settings = Builder().settings(Settings, node, "")
    assert settings == Settings(1000, 1.0, "b", (1.0, 2.0), ("x",), 3, Leaf(2.0))
    assert isinstance(settings.count, int)
    assert isinstance(settings.share, float)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("count", 1.5, "count: expected a whole number, got 1.5"),
        ("count", True, "count: expected a whole number"),
        ("count", None, "count: expected a whole number"),
        ("kind", "c", "kind: expected one of a, b, got 'c'"),
        ("pair", [1, 2, 3], "pair: expected a list of a number"),
        ("names", "x", "names: expected a list of text, got 'x'"),
        ("maybe", "x", "maybe: expected a whole number or null"),
        ("maybe", {"a": 1}, "maybe: expected a whole number or null, got a group of keys"),
        ("leaf", 3, "leaf: expected Leaf"),
        ("leaf", {"valu": 3}, "leaf.valu.*did you mean 'value'"),
        ("cuont", 3, "cuont.*did you mean 'count'"),
    ],
)
def test_settings_refuses_values_of_a_wrong_type(key: str, value: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Builder().settings(Settings, {key: value}, "")
