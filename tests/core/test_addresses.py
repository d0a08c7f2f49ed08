"""What of an address others may read."""

import pytest

from multisagd.addresses import for_others, is_address, without_secrets

HIDDEN = [
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
]


@pytest.mark.parametrize(("text", "shown"), HIDDEN)
def test_secrets_of_addresses_are_left_out(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown


@pytest.mark.parametrize(
    "text", ["shards/{000..099}.tar", "what? 3:4 @ noon", "user@host", "https://h/a/b.tar", "s3://bucket/*.tar", "1:2"]
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("/home/ann/photos", "~/photos"), ("root=/Users/ann", "root=~"), (r"C:\Users\ann\photos", r"~\photos"),
     ("'/root/x'", "'~/x'"), ("data/home/ann", "data/home/ann"), ("/rooted/x", "/rooted/x")],
)  # fmt: skip
def test_home_folders_name_nobody(text: str, shown: str) -> None:
    assert for_others(text) == shown


def test_what_is_more_than_a_plain_path() -> None:
    for text in ("http://h/x", "reference::x", "a::b::c", "file:///x", "memory://x", "//host/share", r"\\host\share",
                 "data:,x", "pipe:curl x", "s{3..3}://b"):  # fmt: skip
        assert is_address(text)
    for text in ("/data/x.tar", "x", "C:/x", "shards/{00..09}.tar", "a:b", "owner/model", "~/x", "./a//b"):
        assert not is_address(text)
