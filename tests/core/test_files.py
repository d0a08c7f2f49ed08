"""JSON of an untrusted source is read or refused; addresses and paths show no secrets and no home folder."""

import json
import math

import pytest

from multisagd.addresses import for_others, is_address, without_secrets
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://bucket.example/0.tar?X-Amz-Signature=SECRET", "https://bucket.example/0.tar?…"),
        ("https://bucket.example/0.tar#token=SECRET", "https://bucket.example/0.tar#…"),
        ("https://me:SECRET@bucket.example/{000..004}.tar", "https://…@bucket.example/{000..004}.tar"),
        ("https://SECRET@bucket.example", "https://…@bucket.example"),
        ("https://me:SE/CR@ET@bucket.example/0.tar", "https://…@bucket.example/0.tar"),
        ("['s3://k:SECRET@b/0.tar', 'gs://b/1.tar?s=SECRET']", "['s3://…@b/0.tar', 'gs://b/1.tar?…']"),
        ("simplecache::https://me:SECRET@h/0.tar", "simplecache::https://…@h/0.tar"),
        ("zip://a.tar::https://h/0.zip?sig=SECRET", "zip://a.tar::https://h/0.zip?…"),
        ("error: me:SECRET@host was refused", "error: …@host was refused"),
        ("h/0.tar?sig=SECRET&x=1 is missing", "h/0.tar?… is missing"),
        ('url="HTTPS://me:SECRET@h/0.tar?SECRET"', 'url="HTTPS://…@h/0.tar?…"'),
    ],
)
def test_without_secrets_hides_every_secret_of_an_address(text: str, shown: str) -> None:
    assert without_secrets(text) == without_secrets(shown) == shown


def test_without_secrets_and_for_others_leave_other_texts_unchanged() -> None:
    for text in ("shards/{00..99}.tar", "what? 3:4 @ noon", "user@host", "https://h/a/b.tar", "s3://b/*.tar", "1:2"):
        assert without_secrets(text) == text


def test_for_others_hides_home_folders() -> None:
    for text, shown in (
        ("/home/ann/photos", "~/photos"), ("root=/Users/ann", "root=~"), (r"C:\Users\ann\photos", r"~\photos"),
        ("'/root/x'", "'~/x'"), ("data/home/ann", "data/home/ann"), ("/rooted/x", "/rooted/x"),
    ):  # fmt: skip
        assert for_others(text) == shown


def test_is_address_tells_addresses_from_plain_paths() -> None:
    for text in ("http://h/x", "reference::x", "a::b::c", "file:///x", "memory://x", "//host/share", r"\\host\share",
                 "data:,x", "pipe:curl x", "s{3..3}://b"):  # fmt: skip
        assert is_address(text), text
    for text in ("/data/x.tar", "x", "C:/x", "shards/{00..09}.tar", "a:b", "owner/model", "~/x", "./a//b"):
        assert not is_address(text), text
