"""Spectra as plain data: every one of them there and back, and what is refused."""

import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import multisagd as ms
from multisagd.description import DEEPEST, describe, spectrum_of
from multisagd.spectrum import Power, Product, Sum
from recipes.config.build import Builder

GRID = ms.Grid.of(frame=(4, 1 / 25, "s"), height=6, width=5)
WAVEFORM = ms.Grid.of(time=(800, 1 / 8000, "s"))

EXAMPLES = {
    "Autoregressive": ms.Autoregressive(time_constant=0.4, axis="frame"),
    "Band": ms.Band(0.1, 0.4, unit="nyquist", axes=("height", "width")),
    "Exponential": ms.Exponential(2.0, axes=("height", "width"), factors={"height": 0.5}),
    "Flat": ms.Flat(2.0),
    "Gaussian": ms.Gaussian(1.5).on("width"),
    "HarmonicStop": ms.HarmonicStop(50.0, width=20.0, axis="time", harmonics=3),
    "LowPass": ms.LowPass(0.2, order=3, axes=("width",)),
    "Offset": ms.Offset(0.3, axes=("frame",)),
    "Outside": ms.Outside(ms.Band(0.2, 0.3, axes=("height", "width"))),
    "PowerLaw": ms.PowerLaw(-0.5, axes=("frame", "height", "width"), factors={"frame": 0.05}),
    "Rings": ms.Rings((8.0, 4.0, 0.1)),
    "Spots": ms.Spots({"height": 0.2, "width": 0.1}, radius=0.2, harmonics=2),
    "Streaks": ms.Streaks(30.0, width=40.0),
    "Table": ms.Table(torch.rand(GRID.half_shape, generator=torch.Generator().manual_seed(0)), GRID),
    "TwoBand": ms.TwoBand((0.0, 0.2), (0.3, 0.4), (0.7, 0.1), unit="cycles", axes=("height", "width")),
    "VelocityTuned": ms.VelocityTuned({"width": 8.0}, time_constant=0.5),
}

AXES = st.sampled_from([("height", "width"), ("width",), ("frame",)])
NUMBERS = st.floats(0.05, 4.0)
LEAVES = st.one_of(
    st.builds(ms.Flat, NUMBERS),
    st.builds(ms.PowerLaw, st.floats(-1.5, 1.5), corner=st.none() | NUMBERS, axes=AXES),
    st.builds(lambda low, width, axes: ms.Band(low, low + width, axes=axes), NUMBERS, NUMBERS, AXES),
    st.builds(ms.Autoregressive, st.floats(-0.9, 0.9), axis=st.sampled_from(GRID.names)),
    st.builds(ms.Offset, NUMBERS, axes=st.none() | AXES),
    st.builds(ms.VelocityTuned, st.dictionaries(st.sampled_from(["height", "width"]), NUMBERS), NUMBERS),
    st.builds(lambda angle: ms.Outside(ms.Streaks(angle)), NUMBERS),
)
SPECTRA = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(Product, inner, inner), st.builds(Sum, inner, inner), st.builds(Power, inner, st.floats(-2, 2))
    ),
    max_leaves=6,
)


def there_and_back(spectrum: ms.Spectrum) -> ms.Spectrum:
    return spectrum_of(json.loads(json.dumps(describe(spectrum))))


@settings(max_examples=80, deadline=None)
@given(SPECTRA)
def test_every_composition_is_itself_again(spectrum):
    again = there_and_back(spectrum)
    assert again == spectrum
    assert torch.equal(again.power(GRID), spectrum.power(GRID))


def test_there_is_an_example_of_every_public_spectrum():
    public = [name for name in ms.__all__ if isinstance(getattr(ms, name), type)]
    assert {n for n in public if issubclass(getattr(ms, n), ms.Spectrum)} - {"Spectrum"} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_public_spectrum_has_the_same_power_again(name):
    spectrum, grid = EXAMPLES[name], WAVEFORM if name == "HarmonicStop" else GRID
    again = there_and_back(spectrum)
    assert type(again) is getattr(ms, name)
    assert torch.equal(again.power(grid), spectrum.power(grid))
    if name != "Table":  # which compares by identity, as tensors do
        assert again == spectrum


def test_the_notation_is_that_of_configurations():
    spectrum = ms.PowerLaw(-0.3, axes=("height", "width")) * ms.Autoregressive(0.5, axis="frame") + 0.1
    described = describe(spectrum)
    assert described == {
        "_target_": "multisagd.spectrum.Sum",
        "left": {
            "_target_": "multisagd.spectrum.Product",
            "left": {"_target_": "multisagd.PowerLaw", "exponent": -0.3, "axes": ["height", "width"]},
            "right": {"_target_": "multisagd.Autoregressive", "coefficient": 0.5, "axis": "frame"},
        },
        "right": {"_target_": "multisagd.Flat", "level": 0.1},
    }
    assert Builder().build(described, ms.Spectrum, "spectrum") == spectrum


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - {"Table"}))
def test_configurations_take_what_is_described(name):
    assert Builder().build(describe(EXAMPLES[name]), ms.Spectrum, "spectrum") == EXAMPLES[name]


def test_a_module_path_names_a_class_too():
    node = {"_target_": "multisagd.radial.PowerLaw", "exponent": -1, "axes": None}
    assert spectrum_of(node) == ms.PowerLaw(-1.0)


def nested(depth: int) -> dict:
    node: dict = {"_target_": "multisagd.Flat"}
    for _ in range(depth):
        node = {"_target_": "multisagd.spectrum.Power", "base": node, "exponent": 1.0}
    return node


FLAT = {"_target_": "multisagd.Flat"}
BAD = {
    "os": ({"_target_": "os.system", "command": "true"}, "is not a spectrum"),
    "not a spectrum": ({"_target_": "multisagd.Denoiser"}, "is not a spectrum"),
    "abstract": ({"_target_": "multisagd.Spectrum"}, "is not a spectrum"),
    "abstract, of a module": ({"_target_": "multisagd.radial.Radial"}, "is not a spectrum"),
    "misspelt": ({"_target_": "multisagd.PowerLaws", "exponent": 1}, "did you mean 'multisagd.PowerLaw'"),
    "no target": ({"exponent": 1}, "expected a spectrum"),
    "a list as target": ({"_target_": ["multisagd.Flat"]}, "expected a spectrum"),
    "no mapping": ([1], "expected a spectrum"),
    "unknown parameter": ({"_target_": "multisagd.PowerLaw", "exponnent": 1}, "did you mean 'exponent'"),
    "missing": ({"_target_": "multisagd.PowerLaw"}, "PowerLaw needs exponent"),
    "text for a number": ({"_target_": "multisagd.PowerLaw", "exponent": "-1"}, r"spectrum\.exponent: expected float"),
    "truth for a number": ({"_target_": "multisagd.Flat", "level": True}, r"spectrum\.level: expected float"),
    "a huge number": ({"_target_": "multisagd.Flat", "level": 10**400}, "out of range"),
    "refused by its class": ({"_target_": "multisagd.Flat", "level": -1.0}, "at least 0"),
    "a choice": ({"_target_": "multisagd.Band", "low": 0, "high": 1, "unit": "hertz"}, r"spectrum\.unit"),
    "too few": ({"_target_": "multisagd.TwoBand", "low": [0.1]}, r"spectrum\.low"),
    "deeper down": (
        {"_target_": "multisagd.spectrum.Sum", "left": FLAT, "right": {"_target_": "builtins.eval"}},
        r"spectrum\.right: 'builtins.eval' is not a spectrum",
    ),
    "bottomless": (nested(5000), "nested too deeply"),
    "endless harmonics": (
        {"_target_": "multisagd.Spots", "frequency": {"x": 0.1}, "radius": 0.1, "harmonics": 10**9},
        "from 1 to 1000 harmonics",
    ),
    "a table without spacing": (
        {"_target_": "multisagd.Table", "values": [1.0] * 3, "axes": [{"name": "x", "size": 4, "spacing": None}]},
        "spacing must be positive and finite, got None",
    ),
    "a table of another size": (
        {"_target_": "multisagd.Table", "values": [1.0], "axes": [{"name": "x", "size": 4}]},
        "needs 3 values",
    ),
    "a table of words": ({"_target_": "multisagd.Table", "values": ["a"], "axes": []}, "expected float"),
    "a table without axes": ({"_target_": "multisagd.Table", "values": [1.0]}, "two lists"),
    "a table with an odd axis": (
        {"_target_": "multisagd.Table", "values": [1.0], "axes": [{"names": "x"}]},
        "each axis of a table has",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_description_is_refused_by_place_and_reason(name):
    node, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        spectrum_of(node)


class Mine(ms.PowerLaw):
    pass


def test_what_cannot_be_read_again_is_not_described():
    with pytest.raises(ValueError, match=r"Mine is not a spectrum of multisagd.*multisagd\.Table"):
        describe(ms.Flat() + Mine(-1.0))
    with pytest.raises(ValueError, match=r"PowerLaw\.exponent is a Parameter"):
        describe(ms.PowerLaw(torch.nn.Parameter(torch.tensor(-1.0))))
    grid = ms.Grid.of(y=512, x=512)
    with pytest.raises(ValueError, match="131,584 numbers is too large"):
        describe(ms.Table(torch.ones(grid.half_shape), grid))
    deep: ms.Spectrum = ms.Flat()
    for _ in range(DEEPEST + 1):
        deep = deep**1.0
    with pytest.raises(ValueError, match="nested spectra"):
        describe(deep)


def test_infinite_numbers_and_those_of_numpy_are_kept():
    assert there_and_back(ms.Band(np.float32(0.25), math.inf)) == ms.Band(0.25, math.inf)
    grid = ms.Grid((ms.Axis("x", np.int64(4), np.float32(0.5)),))
    again = there_and_back(ms.Table(torch.tensor([1.0, 2.0, 3.0]), grid))
    assert again.power(grid).tolist() == [1.0, 2.0, 3.0]
