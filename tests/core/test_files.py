"""JSON from someone else: whatever is in it, it is read or refused by one kind of error."""

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


@pytest.mark.parametrize("how", ABSURD)
@pytest.mark.parametrize("within", ["{}", '{{"a": [1, {}]}}'])
def test_absurd_json_is_refused(how: str, within: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - of whichever reason
        parse_json(within.format(ABSURD[how]))
    assert len(str(refused.value)) < 200


def test_other_json_is_read_as_python_reads_it() -> None:
    text = json.dumps({"a": [-0.0, 1e308, 5e-324, 10**299, [[{"b": None}]]], "c": "x" * 10**6, "d": True})
    assert parse_json(text) == json.loads(text)
    assert parse_json(text.encode()) == json.loads(text)


def test_numbers_that_are_none_are_read_where_they_may_be() -> None:
    found = parse_json('{"a": NaN, "b": [-Infinity, 1e400]}', finite=False)
    assert math.isnan(found["a"])
    assert found["b"] == [-math.inf, math.inf]
