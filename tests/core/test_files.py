"""JSON from an untrusted source is read as Python reads it, or refused by one kind of error."""

import json
import math

import pytest

from multisagd.files import parse_json

ABSURD = {
    "beyond floats": "1e400", "below floats": "-1e400", "NaN": "NaN", "infinity": "-Infinity",
    "5,000 digits": "9" * 5000, "400 digits": "-" + "9" * 400, "deeper than the stack": "[" * 100_000 + "]" * 100_000,
    "objects deeper than the stack": '{"a":' * 100_000 + "1" + "}" * 100_000, "deep": "[" * 60 + "]" * 60,
    "deep objects": '{"a": [' * 30 + "]}" * 30, "a name twice": '{"a": 1, "a": 2}', "nothing": "", "no end": '"x',
}  # fmt: skip


@pytest.mark.parametrize("kind", ABSURD)
def test_parse_json_refuses_absurd_text(kind: str) -> None:
    for text in (ABSURD[kind], '{"a": [1, ' + ABSURD[kind] + "]}"):
        with pytest.raises(ValueError) as refusal:  # noqa: PT011 - for any of several reasons
            parse_json(text)
        assert len(str(refusal.value)) < 200


def test_parse_json_reads_other_text_as_python_does() -> None:
    text = json.dumps({"a": [-0.0, 1e308, 5e-324, 10**299, [[{"b": None}]]], "c": "x" * 10**6, "d": True})
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


def test_parse_json_reads_numbers_that_are_not_finite_if_allowed() -> None:
    numbers = parse_json('{"a": NaN, "b": [-Infinity, 1e400]}', finite=False)
    assert math.isnan(numbers["a"])
    assert numbers["b"] == [-math.inf, math.inf]
