"""Text encoders return the last states of their models, cache them safely and load nothing but safetensors."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load, save_file

from modalities.base import Batch
from modalities.files import Folder
from modalities.image import Image
from modalities.text import TextEncoder
from modalities.wrapped import Captioned
from multisagd.libraries import BrokenLibraryError
from tests.helpers.tiny_text import WIDTH, tiny_encoder

IMAGE = Image(size=8)
TEXTS = ["a red circle", "", "one", "  a red circle\n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder") / "bert")


def count_calls(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return a list to which each call of the model appends its tokens."""
    calls: list[list[int]] = []
    real = encoder._model.forward

    def forward(input_ids: torch.Tensor, **more: Any) -> Any:
        calls.append(input_ids.tolist()[0])
        return real(input_ids=input_ids, **more)

    monkeypatch.setattr(encoder._model, "forward", forward)
    return calls


@pytest.mark.parametrize("kind", ["bert", "t5", "clip"])
def test_text_encoder_returns_the_last_states_of_the_model(tmp_path: Path, kind: str) -> None:
    path = tiny_encoder(tmp_path / kind, kind)
    encoder = TextEncoder(str(path), max_tokens=12)
    embeddings = encoder(TEXTS)
    assert encoder.width == WIDTH
    assert embeddings.shape == (4, 5, WIDTH)
    assert embeddings.dtype == torch.float32
    assert torch.equal(embeddings[0], embeddings[3])
    kinds = {"bert": transformers.BertModel, "t5": transformers.T5EncoderModel, "clip": transformers.CLIPTextModel}
    model = kinds[kind].from_pretrained(path).eval()
    # [CLS] a red circle [SEP], as numbered by tiny_text.WORDS.
    for place, ids in [(0, [2, 4, 5, 8, 3]), (2, [2, 1, 3])]:
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(embeddings[place, : len(ids)], expected)
        assert not embeddings[place, len(ids) :].any()
    assert not embeddings[1].any()
    assert encoder(["", ""]).shape == (2, 0, WIDTH)


def test_text_encoder_cuts_long_texts_and_ignores_the_rest_of_a_batch(folder: Path) -> None:
    one, many = TextEncoder(str(folder), max_tokens=8), TextEncoder(str(folder), max_tokens=8)
    assert torch.equal(one(["red"])[0], many(["a blue square on the left", "red", "circle"])[1, :3])
    assert TextEncoder(str(folder), max_tokens=4)(["a red circle on the left"]).shape == (1, 4, WIDTH)
    for tokens in (0, 13):
        with pytest.raises(ValueError, match=rf"max_tokens={tokens} of .* from 1 to 12"):
            TextEncoder(str(folder), max_tokens=tokens)


def test_text_encoder_encodes_each_text_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = TextEncoder(str(folder), max_tokens=8, cache=tmp_path / "cache")
    calls = count_calls(first, monkeypatch)
    embeddings = first(TEXTS)
    assert len(calls) == 2
    assert torch.equal(first(TEXTS), embeddings)
    assert len(calls) == 2
    second = TextEncoder(str(folder), max_tokens=8, cache=tmp_path / "cache")
    again = count_calls(second, monkeypatch)
    assert torch.equal(second(TEXTS), embeddings)
    assert again == []
    # Cut to four tokens, one of the texts differs.
    third = TextEncoder(str(folder), max_tokens=4, cache=tmp_path / "cache")
    again = count_calls(third, monkeypatch)
    third(TEXTS)
    assert again == [[2, 4, 5, 3]]
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) == 3
    assert all(path.suffix == ".safetensors" and path.name.startswith(path.parent.name) for path in files)


@pytest.mark.skipif(os.name != "posix", reason="permissions of files as POSIX has them")
def test_text_cache_has_the_permissions_of_new_files(folder: Path, tmp_path: Path) -> None:
    for mask in (0o022, 0o077):
        before = os.umask(mask)
        try:
            TextEncoder(str(folder), max_tokens=8, cache=tmp_path / str(mask))(["red"])
        finally:
            os.umask(before)
        (path,) = (tmp_path / str(mask)).rglob("*.safetensors")
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other"])
def test_text_cache_replaces_damaged_files(folder: Path, tmp_path: Path, damage: str) -> None:
    texts = ["red", "a red circle"]
    expected = TextEncoder(str(folder), max_tokens=8, cache=tmp_path)(texts)
    for path in tmp_path.rglob("*.safetensors"):
        data = path.read_bytes()
        # A flipped bit in a number is still a well-formed file.
        flipped = data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
        path.write_bytes({"truncated": data[:-8], "flipped": flipped, "empty": b"", "other": b"no tensor" * 9}[damage])
    for _ in range(2):
        assert torch.equal(TextEncoder(str(folder), max_tokens=8, cache=tmp_path)(texts), expected)
    assert not list(tmp_path.rglob("*.partial"))


def test_text_cache_is_separate_for_each_model(folder: Path, tmp_path: Path) -> None:
    other, cache = tiny_encoder(tmp_path / "other", seed=1), tmp_path / "cache"
    before = torch.get_rng_state()
    one, two = (TextEncoder(str(path), max_tokens=8, cache=cache) for path in (folder, other))
    assert torch.equal(torch.get_rng_state(), before), "loading changes the global random state"
    assert one.fingerprint != two.fingerprint
    assert not torch.equal(one(["red"]), two(["red"]))
    assert len(list(cache.iterdir())) == 2


def test_text_encoder_refuses_pickles_and_incomplete_weights(tmp_path: Path) -> None:
    path = tiny_encoder(tmp_path / "encoder")
    weights = path / "model.safetensors"
    tensors = load(weights.read_bytes())
    save_file({name: each for name, each in tensors.items() if "key" not in name}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"are incomplete: encoder\.layer\.0\.attention\.self\.key\.bias"):
        TextEncoder(str(path), max_tokens=8)
    weights.unlink()
    torch.save(tensors, path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"cannot load the text encoder .*safetensors"):
        TextEncoder(str(path), max_tokens=8)


def test_text_encoder_does_not_run_code_that_comes_with_a_model(tmp_path: Path) -> None:
    path = tiny_encoder(tmp_path / "code")
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "mine.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    with pytest.raises(ValueError, match="cannot load the text encoder"):
        TextEncoder(str(path), max_tokens=8)
    assert not (tmp_path / "owned").exists()


def test_text_encoder_without_transformers_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BrokenLibraryError, match=r"pip install .*transformers"):
        TextEncoder("any")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_text_cache_that_cannot_be_created_is_an_error(folder: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cache"):
        TextEncoder(str(folder), max_tokens=8, cache=tmp_path / "cache")


def test_captioned_returns_embeddings_of_captions(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, text in enumerate(["a red circle", "", "one"]):
        IMAGE.save(torch.full((3, 8, 8), number, dtype=torch.uint8), tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(text)
    plain, encoder = Folder(IMAGE, tmp_path, captions="sidecar"), TextEncoder(str(folder), max_tokens=8)
    dataset = Captioned(plain, encoder)
    assert (dataset.classes, len(dataset)) == (None, 3)
    batch = dataset.batch([2, 0, 1], [1, 2, 3])
    assert batch.texts == ("one", "a red circle", "")
    assert torch.equal(batch.embeddings, encoder(["one", "a red circle", ""]))
    assert torch.equal(batch.x0, plain.batch([2, 0, 1], [1, 2, 3]).x0)
    part = dataset.subset([2])
    assert (part.caption(0), len(part), part[0].text) == ("one", 1, "one")
    assert dataset.fingerprint == plain.fingerprint
    with pytest.raises(ValueError, match="have no captions"):
        Captioned(Folder(IMAGE, tmp_path), encoder)
    monkeypatch.setattr(plain, "batch", lambda *_: Batch(torch.zeros(3, 3, 8, 8)))
    with pytest.raises(ValueError, match="has no caption"):
        dataset.batch([0, 1, 2])


def test_text_encoder_that_is_not_trusted_neither_downloads_nor_caches(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*words: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    with pytest.raises(ValueError, match=r"configuration downloads nothing: add text_model=nobody/nothing"):
        TextEncoder("nobody/nothing", trusted=False)
    encoder = TextEncoder(str(folder), cache=tmp_path / "outside", max_tokens=12, trusted=False)
    assert len(encoder(["a circle"])) == 1
    assert not (tmp_path / "outside").exists()
