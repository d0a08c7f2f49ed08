"""Spectra are described as plain data from which they are built again; all else is refused by place and reason."""

import json
import math

import numpy as np
import pytest
import torch

import multisagd as ms
from multisagd.description import DEEPEST, describe, spectrum_of
from recipes.config.build import Builder
from tests.helpers.every_spectrum import EXAMPLES, GRID, WAVEFORM
from tests.helpers.refusals import assert_refused


def rebuilt(spectrum: ms.Spectrum) -> ms.Spectrum:
    return spectrum_of(json.loads(json.dumps(describe(spectrum))))


def test_examples_contain_every_public_spectrum():
    public = [name for name in ms.__all__ if isinstance(getattr(ms, name), type)]
    assert {n for n in public if issubclass(getattr(ms, n), ms.Spectrum)} - {"Spectrum"} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_describe_keeps_every_public_spectrum(name):
    spectrum, grid = EXAMPLES[name], WAVEFORM if name == "HarmonicStop" else GRID
    again = rebuilt(spectrum)
    assert type(again) is getattr(ms, name)
    assert torch.equal(again.power(grid), spectrum.power(grid))
    if name != "Table":  # which compares by identity, as tensors do
        assert again == spectrum == Builder().build(describe(spectrum), ms.Spectrum, "spectrum")


def test_describe_uses_the_notation_of_configurations():
    spectrum = ms.PowerLaw(-0.3, axes=("height", "width")) * ms.Autoregressive(0.5, axis="frame") ** 2.0 + 0.1
    described = describe(spectrum)
    law = node("multisagd.PowerLaw", exponent=-0.3, axes=["height", "width"])
    frames = node("multisagd.Autoregressive", coefficient=0.5, axis="frame")
    squared = node("multisagd.spectrum.Power", base=frames, exponent=2.0)
    product = node("multisagd.spectrum.Product", left=law, right=squared)
    assert described == node("multisagd.spectrum.Sum", left=product, right=node("multisagd.Flat", level=0.1))
    assert Builder().build(described, ms.Spectrum, "spectrum") == rebuilt(spectrum) == spectrum
    assert spectrum_of({"_target_": "multisagd.radial.PowerLaw", "exponent": -1, "axes": None}) == ms.PowerLaw(-1.0)


def node(target: object, **parameters: object) -> dict:
    return {"_target_": target, **parameters}


def nested(depth: int) -> dict:
    inner = node("multisagd.Flat")
    for _ in range(depth):
        inner = node("multisagd.spectrum.Power", base=inner, exponent=1.0)
    return inner


def table(values: list, axes: list) -> dict:
    return node("multisagd.Table", values=values, axes=axes)


BAD = {
    "os": (node("os.system", command="true"), "is not a spectrum"),
    "not a spectrum": (node("multisagd.Denoiser"), "is not a spectrum"),
    "abstract": (node("multisagd.Spectrum"), "is not a spectrum"),
    "abstract, of a module": (node("multisagd.radial.Radial"), "is not a spectrum"),
    "misspelt": (node("multisagd.PowerLaws", exponent=1), "did you mean 'multisagd.PowerLaw'"),
    "no target": ({"exponent": 1}, "expected a spectrum"),
    "a list as target": (node(["multisagd.Flat"]), "expected a spectrum"),
    "no mapping": ([1], "expected a spectrum"),
    "unknown parameter": (node("multisagd.PowerLaw", exponnent=1), "did you mean 'exponent'"),
    "missing": (node("multisagd.PowerLaw"), "PowerLaw needs exponent"),
    "text for a number": (node("multisagd.PowerLaw", exponent="-1"), r"spectrum\.exponent: expected float"),
    "truth for a number": (node("multisagd.Flat", level=True), r"spectrum\.level: expected float"),
    "a huge number": (node("multisagd.Flat", level=10**400), "too large for a float"),
    "refused by its class": (node("multisagd.Flat", level=-1.0), "at least 0"),
    "a choice": (node("multisagd.Band", low=0, high=1, unit="hertz"), r"spectrum\.unit"),
    "too few": (node("multisagd.TwoBand", low=[0.1]), r"spectrum\.low"),
    "deeper down": (
        node("multisagd.spectrum.Sum", left=node("multisagd.Flat"), right=node("builtins.eval")),
        r"spectrum\.right: 'builtins.eval' is not a spectrum",
    ),
    "bottomless": (nested(5000), "nested too deeply"),
    "endless harmonics": (
        node("multisagd.Spots", frequency={"x": 0.1}, radius=0.1, harmonics=10**9),
        "from 1 to 1000 harmonics",
    ),
    "a table without spacing": (
        table([1.0] * 3, [{"name": "x", "size": 4, "spacing": None}]),
        "spacing must be positive and finite, got None",
    ),
    "a table of another size": (table([1.0], [{"name": "x", "size": 4}]), "expected 3 values"),
    "a table of words": (table(["a"], []), "expected float"),
    "a table without axes": (node("multisagd.Table", values=[1.0]), "two lists"),
    "a table with an odd axis": (table([1.0], [{"names": "x"}]), "each axis of a table must have"),
}


@pytest.mark.parametrize("name", BAD)
def test_spectrum_of_refuses_bad_descriptions_by_place_and_reason(name):
    description, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        spectrum_of(description)


def test_describe_refuses_what_cannot_be_built_again():
    class Mine(ms.PowerLaw):
        pass

    grid = ms.Grid.of(y=512, x=512)
    deep: ms.Spectrum = ms.Flat()
    for _ in range(DEEPEST + 1):
        deep = deep**1.0
    assert_refused(
        (r"Mine is not a multisagd spectrum.*multisagd\.Table", lambda: describe(ms.Flat() + Mine(-1.0))),
        (r"PowerLaw\.exponent is a", lambda: describe(ms.PowerLaw(torch.nn.Parameter(torch.tensor(-1.0))))),
        ("131,584 numbers is too large", lambda: describe(ms.Table(torch.ones(grid.half_shape), grid))),
        ("nested spectra", lambda: describe(deep)),
    )


def test_describe_keeps_infinite_numbers_and_those_of_numpy():
    assert rebuilt(ms.Band(np.float32(0.25), math.inf)) == ms.Band(0.25, math.inf)
    grid = ms.Grid((ms.Axis("x", np.int64(4), np.float32(0.5), periodic=True),))
    again = rebuilt(ms.Table(torch.tensor([1.0, 2.0, 3.0]), grid))
    assert again.grid.periodic == (True,)
    assert again.power(grid).tolist() == [1.0, 2.0, 3.0]
