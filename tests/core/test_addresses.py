"""Addresses and paths are shown to others without secrets and without the name of a home folder."""

import pytest

from multisagd.addresses import for_others, is_address, without_secrets


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


def test_without_secrets_leaves_other_texts_unchanged() -> None:
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
