"""Tar archives that tools write are read, and damaged, truncated or misleading ones are refused by name."""

import gzip
import io
import random
import re
import tarfile
from dataclasses import replace
from operator import attrgetter

import pytest

from modalities.tar_index import ScanOptions, ShardIndex
from modalities.tar_members import Member, ReadAheadBuffer, members
from tests.helpers.archives import KIND, NAME, SIZE, archive, changed

OPTIONS = ScanOptions(("jpg", "png"))


def listed(data: bytes) -> list[Member]:
    return list(members(lambda start, stop: data[start:stop], len(data)))


def names_of(index: ShardIndex) -> list[str]:
    return [index.names[place] for place in range(len(index))]


def built(data: bytes, block: int = 4096) -> ShardIndex:
    return ShardIndex.build(lambda start, stop: data[start:stop], len(data), "", OPTIONS, block)


PLAIN = archive(("a.jpg", b"A" * 700), ("b.jpg", b"B" * 512), ("b.cls", b"3"))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(form: int) -> None:
    names = ["a.jpg", "deep/er/b.jpg", "ünicode.png", f"{'long/' * 30}{'x' * 60}.jpg", "empty.jpg"]
    data = archive(*((name, bytes([n]) * (n * 400)) for n, name in enumerate(reversed(names))), form=form)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(each.name, each.offset_data, each.size) for each in tar]
    assert [(each.name, each.start, each.size) for each in listed(data)] == expected
    for block in (1, 512, 700, 10_000_000):
        ahead = ReadAheadBuffer(lambda start, stop: data[start:stop], len(data), block)
        assert list(members(ahead, len(data))) == listed(data)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_may_be_larger_than_eight_gigabytes(form: int) -> None:
    header = tarfile.TarInfo("huge.jpg")
    header.size = 9 << 30
    head = header.tobuf(form)

    def read(start: int, stop: int) -> bytes:
        return (head + bytes(1024))[start:stop] if start < len(head) else bytes(stop - start)

    (member,) = members(read, len(head) + (9 << 30) + 1024)
    assert (member.name, member.start, member.size) == ("huge.jpg", len(head), 9 << 30)


def test_tar_index_ignores_links_devices_and_folders() -> None:
    kinds = {b"1": "link", b"2": "link", b"3": "device", b"4": "device", b"6": "pipe", b"5": "folder"}
    headers = [tarfile.TarInfo(name) for name in ("x.jpg",) * len(kinds)]
    for header, kind in zip(headers, kinds, strict=True):
        header.type, header.linkname = kind, "/etc/passwd"
    data = archive(*headers, ("real.jpg", b"data"))
    assert [each.kind for each in listed(data)] == [*kinds.values(), "file"]
    assert names_of(built(data)) == ["real.jpg"]


def test_tar_index_keeps_names_and_ignores_hidden_files() -> None:
    names = ["c\nd.jpg", "C:\\e.jpg", "a../f.jpg", "bad\udcff.jpg"]
    assert names_of(built(archive(*((name, b"x") for name in names)))) == names
    assert names_of(built(archive(("BZhang/a.jpg", b"x")))) == ["BZhang/a.jpg"], "this name begins like a bzip2 file"
    hidden = ["._a.jpg", "__meta__.jpg", "README", "a.other"]
    assert names_of(built(archive(*((name, b"x") for name in [*hidden, "d.ir/a.JPG"])))) == ["d.ir/a.JPG"]


def pax(records: bytes, kind: bytes = b"x", size: bytes | None = None) -> bytes:
    """Return an archive with an extended header of these records in front of `PLAIN`."""
    head = archive(("pax", records))[: 512 + -(-len(records) // 512) * 512]
    head = changed(head, 0, KIND, kind)
    return (head if size is None else changed(head, 0, SIZE, size)) + PLAIN


def record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


REFUSED: dict[str, tuple[bytes, str]] = {
    "gzip": (gzip.compress(PLAIN), "compressed with gzip.*decompress"),
    "zstd": (b"\x28\xb5\x2f\xfd" + PLAIN, "compressed with zstd"),
    "something else": (b"\x89PNG" * 300, "not a tar archive"),
    "empty": (b"", "truncated: it has 0 bytes and no end marker"),
    "half a header": (PLAIN[:300], "truncated"),
    "cut within media": (PLAIN[:1000], r"truncated: 'a.jpg' ends at 1212, but the archive has 1000 bytes"),
    "cut between members": (PLAIN[:1536], "truncated: it has 1536 bytes and no end marker"),
    "cut within padding": (PLAIN[:1300], "truncated"),
    "damaged header": (PLAIN[:1540] + b"!" + PLAIN[1541:], "the header at byte 1536 is damaged"),
    "size beyond the archive": (changed(PLAIN, 0, SIZE, b"77777777777\0"), "'a.jpg' ends at 8589935103"),
    "absurd binary size": (changed(PLAIN, 0, SIZE, b"\x80" + b"\x7f" * 11), "'a.jpg' ends at"),
    "negative size": (changed(PLAIN, 0, SIZE, b"\xff" * 12), "at byte 0 has no valid size: .* not a positive number"),
    "size of letters": (changed(PLAIN, 0, SIZE, b"0x100"), "not a positive number"),
    "sum that lies": (changed(PLAIN, 0, NAME, b"evil.jpg", fix=False), "not a tar archive"),
    "GNU sparse": (changed(PLAIN, 0, KIND, b"S"), "'a.jpg' is sparse"),
    "part of a volume": (changed(PLAIN, 0, KIND, b"M"), "part of a larger file"),
    "pax sparse": (pax(record("GNU.sparse.major", "1")), "a sparse member"),
    "pax size beyond": (pax(record("size", "999999")), "'a.jpg' ends at"),
    "pax size negative": (pax(record("size", "-512")), "gives the size b'-512'"),
    "pax length beyond": (pax(b"99 path=x\n"), "an extended header is damaged"),
    "pax length zero": (pax(b"0 path=x\n"), "an extended header is damaged"),
    "pax without end": (pax(b"8 path=x"), "an extended header is damaged"),
    "pax names all": (pax(record("path", "x.jpg"), b"g"), "a global header gives all members the same name"),
    "extension of gigabytes": (pax(b"", size=b"77777777777\0"), "an extended header of 8589934591 bytes"),
    "long name of gigabytes": (pax(b"", b"L", b"77777777777\0"), "an extended header of 8589934591 bytes"),
    "nothing after a long name": (pax(b"x" * 9, b"L")[:1024], "after the name of 'xxxxxxxxx'"),
    "name above": (archive(("../../etc/a.jpg", b"x")), "'../../etc/a.jpg' points outside the archive"),
    "absolute name": (archive(("/etc/b.jpg", b"x")), "'/etc/b.jpg' points outside the archive"),
    "name above a folder": (archive(("a/../../b.jpg", b"x")), "'a/../../b.jpg' points outside the archive"),
    "twice": (archive(("a.jpg", b"1"), ("a.jpg", b"2")), "'a.jpg' is in the archive twice"),
    "twice by a pax name": (pax(record("path", "b.jpg")), "'b.jpg' is in the archive twice"),
    "two media": (archive(("a.jpg", b"1"), ("a.png", b"2")), "'a.jpg' and 'a.png' are media of the .*data.media=png"),
    "joined": (PLAIN[:2560] + bytes(1024) + PLAIN, "data after the end-of-archive marker"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=list(REFUSED))
@pytest.mark.timeout(20)
def test_tar_index_refuses_damaged_and_misleading_archives(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(data)


FAULTY: dict[str, tuple[bytes, str]] = {
    "class of megabytes": (archive(("a.jpg", b"1"), ("a.cls", b"3" * 2**21)), "'a.cls' has 2097152 bytes"),
    "empty class": (archive(("a.jpg", b"1"), ("a.cls", b" \n")), "the class of 'a' is empty"),
    "text of no UTF-8": (archive(("a.jpg", b"1"), ("a.txt", b"\xff")), "'a.txt' is not UTF-8 text"),
    "deep JSON": (archive(("a.jpg", b"1"), ("a.json", b"[" * 100_000)), "'a.json' is not valid JSON"),
    "JSON number of many digits": (archive(("a.json", b'{"label": ' + b"9" * 9000 + b"}")), "not valid JSON"),
    "JSON class of a list": (archive(("a.json", b'{"label": [1]}')), "label must be text or an integer"),
    "JSON class of half a character": (archive(("a.json", b'{"label": "\\ud83d"}')), "label: half of a character"),
    "JSON class true": (archive(("a.json", b'{"label": true}')), "label must be text or an integer"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), FAULTY.values(), ids=list(FAULTY))
def test_tar_index_notes_classes_and_captions_that_cannot_be_read(data: bytes, message: str) -> None:
    kinds = ("captions",) if "a.txt" in message else ("labels", "captions") if "valid JSON" in message else ("labels",)
    faults = ShardIndex.unpack(built(data).pack()).faults
    assert tuple(faults) == kinds
    assert all(re.search(message, fault) for fault in faults.values())


def test_tar_index_counts_files_of_no_example_by_their_endings() -> None:
    names = ("a.jpg", "a.json", "b 1.5.jpg", "c 2.7.jpg", "d.npy", "e", ".hidden", "__other.tsv", "f.x.npy")
    index = ShardIndex.unpack(built(archive(*((name, b"[1]") for name in names))).pack())
    assert (len(index), index.faults) == (1, {})
    assert index.others == {".*.jpg": 2, ".npy": 1, "(none)": 1, ".*.npy": 1}


def test_members_read_extended_headers() -> None:
    extended = pax(record("path", "päx.jpg") + record("mtime", "1.5") + record("comment", ""))
    assert built(extended).names[0] == "päx.jpg"
    assert listed(pax(record("comment", "0123456789abcdef"), b"g")) == [
        each._replace(header=each.header + 1024) for each in listed(PLAIN)
    ]
    # A size by pax and then GNU's long name: both describe the same member.
    both = pax(record("size", "700"))[:1024] + pax(b"long.jpg\0", b"L")
    assert next((each.name, each.size) for each in listed(both)) == ("long.jpg", 700)


def test_members_of_randomly_damaged_archives_are_refused_or_within_bounds() -> None:
    for draw in map(random.Random, range(4)):
        for _ in range(400):
            data = bytearray(PLAIN)
            for _ in range(draw.randint(1, 8)):
                place = draw.choice([draw.randrange(len(data)), draw.randrange(512), 1536 + draw.randrange(512)])
                data[place] ^= 1 << draw.randrange(8)
            damaged = bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])
            try:
                entries = listed(damaged)
            except ValueError:
                continue
            assert all(each.header >= 0 and each.start + each.size <= len(damaged) for each in entries)


def test_tar_index_takes_classes_and_captions_from_text_and_json() -> None:
    data = archive(
        ("1.jpg", b"x"), ("1.cls", b" 7\n"), ("1.txt", "\ufeffun chat ".encode()),
        ("2.json", b'{"label": 3, "text": "dog", "other": [1, {}]}'), ("2.jpg", b"x"),
        # Files of an example need not be adjacent, and .cls and .txt override .json.
        ("3.json", b'{"label": "json", "text": "json"}'), ("4.jpg", b"x"), ("3.jpg", b"x"), ("3.cls", b"cls"),
        ("3.txt", b"txt"), ("3.caption", b"caption"), ("7.jpg", b"x"), ("7.caption", b"caption"),
        ("8.jpg", b"x"), ("8.json", b'{"text": ["one", " two "]}'), ("7.json", b'{"text": ["json"]}'),
        ("5.json", b'{"label": null}'), ("5.jpg", b"x"), ("6.json", b'{"label": "no media"}'),
    )  # fmt: skip
    index = built(data)
    assert names_of(index) == ["1.jpg", "2.jpg", "4.jpg", "3.jpg", "7.jpg", "8.jpg", "5.jpg"]
    classes = [index.classes[place] if place >= 0 else None for place in index.label]
    assert classes == ["7", "3", None, "cls", None, None, None]
    captions = [("un chat",), ("dog",), (), ("txt",), ("caption",), ("one", "two"), ()]
    assert [index.captions_of(row) for row in range(len(index))] == captions


def test_tar_index_round_trips_through_bytes() -> None:
    index = built(archive(("a.jpg", b"x"), ("a.txt", b"text"), ("b.jpg", b""), ("b.cls", b"cat"), ("b\udcff.jpg", b"")))
    again = ShardIndex.unpack(index.pack())
    assert again.pack() == index.pack()
    assert again.digest == index.digest
    assert names_of(again) == ["a.jpg", "b.jpg", "b\udcff.jpg"]
    assert len(ShardIndex.unpack(built(archive()).pack())) == 0


def test_tar_index_digest_depends_on_every_part() -> None:
    variants = [
        [("a.jpg", b"x"), ("a.txt", b"t"), ("b.jpg", b"x"), ("b.txt", b"u")],
        [("b.jpg", b"x"), ("b.txt", b"u"), ("a.jpg", b"x"), ("a.txt", b"t")],
        [("a.jpg", b"x"), ("a.txt", b"tu"), ("b.jpg", b"x"), ("b.txt", b"")],
        [("a.jpg", b"x"), ("a.txt", b"tu"), ("b.jpg", b"x")],
        [("a.jpg", b"x"), ("a.cls", b"t"), ("b.jpg", b"x"), ("b.cls", b"u")],
        [("a.jpg", b"xy"), ("a.cls", b"t"), ("b.jpg", b"x"), ("b.cls", b"u")],
    ]
    assert len({built(archive(*each)).digest for each in variants}) == len(variants)


def forged(name: str, place: int, value: int) -> bytes:
    """Return the bytes of an index with another value in one of its arrays."""
    index = built(archive(("1.jpg", b"x"), ("1.txt", b"text"), ("2.jpg", b"x")) if "texts" in name else PLAIN)
    attrgetter(name)(index)[place] = value
    return index.pack()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{}", b"\xff" * 100, built(PLAIN).pack()[:-1], forged("header", 1, 1 << 62), forged("header", 1, -512),
        forged("header", 1, (1 << 63) - 1), forged("size", 0, -1), forged("size", 0, 1 << 60), forged("label", 0, 1),
        forged("label", 0, -2), forged("names.ends", 0, 1 << 40), forged("names.ends", 1, 3),
        forged("texts.ends", 0, -1), forged("captions", 0, -1), forged("captions", 0, 1 << 62),
        forged("captions", 1, 1), replace(built(PLAIN), crc=built(PLAIN).crc[:1]).pack(),
        replace(built(PLAIN), crc=built(PLAIN).crc.astype("int64")).pack(),
        replace(built(PLAIN), length=1 << 70).pack(),
    ],
)  # fmt: skip
def test_tar_index_refuses_damaged_and_forged_bytes(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"not an index|invalid"):
        ShardIndex.unpack(content)
