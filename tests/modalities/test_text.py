"""Text encoders: what they give, what they keep, and what they refuse; all with random weights made here."""

import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from modalities.base import Batch
from modalities.captions import Captioned
from modalities.files import Folder
from modalities.image import Image
from modalities.text import TextEncoder
from multisagd.libraries import BrokenLibraryError
from tests.helpers.tiny_text import WIDTH, tiny_encoder

IMAGE = Image(size=8)
TEXTS = ["a red circle", "", "one", "  a red circle\n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder") / "bert")


def picture(path: Path, value: int) -> None:
    IMAGE.save(torch.full((3, 8, 8), value, dtype=torch.uint8), path)


def count_calls(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return a list that grows by the tokens of each call of the model."""
    calls: list[list[int]] = []
    real = encoder._model.forward

    def forward(input_ids: torch.Tensor, **more: Any) -> Any:
        calls.append(input_ids.tolist()[0])
        return real(input_ids=input_ids, **more)

    monkeypatch.setattr(encoder._model, "forward", forward)
    return calls


@pytest.mark.parametrize("kind", ["bert", "t5", "clip"])
def test_embeddings_are_the_models_last_states(tmp_path: Path, kind: str) -> None:
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


def test_an_embedding_does_not_depend_on_its_batch(folder: Path) -> None:
    one, many = TextEncoder(str(folder), max_tokens=8), TextEncoder(str(folder), max_tokens=8)
    assert torch.equal(one(["red"])[0], many(["a blue square on the left", "red", "circle"])[1, :3])


def test_long_texts_are_cut(folder: Path) -> None:
    encoder = TextEncoder(str(folder), max_tokens=4)
    assert encoder(["a red circle on the left"]).shape == (1, 4, WIDTH)
    for tokens in (0, 13):
        with pytest.raises(ValueError, match=rf"max_tokens={tokens} of .* from 1 to 12"):
            TextEncoder(str(folder), max_tokens=tokens)


def test_each_text_is_encoded_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    # Cut to four tokens, one of them is another text.
    third = TextEncoder(str(folder), max_tokens=4, cache=tmp_path / "cache")
    again = count_calls(third, monkeypatch)
    third(TEXTS)
    assert again == [[2, 4, 5, 3]]
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) == 3
    assert all(path.suffix == ".safetensors" and path.name.startswith(path.parent.name) for path in files)


@pytest.mark.skipif(os.name != "posix", reason="permissions of files as POSIX has them")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_cache_is_as_open_as_the_folders_it_lies_in(folder: Path, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        TextEncoder(str(folder), max_tokens=8, cache=tmp_path / "cache")(["red"])
    finally:
        os.umask(before)
    (path,) = (tmp_path / "cache").rglob("*.safetensors")
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other"])
def test_a_damaged_file_is_made_anew(folder: Path, tmp_path: Path, damage: str) -> None:
    expected = TextEncoder(str(folder), max_tokens=8, cache=tmp_path)(["red", "a red circle"])
    for path in tmp_path.rglob("*.safetensors"):
        data = path.read_bytes()
        # A flipped bit in a number is still a well-formed file.
        flipped = data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
        path.write_bytes({"truncated": data[:-8], "flipped": flipped, "empty": b"", "other": b"no tensor" * 9}[damage])
    assert torch.equal(TextEncoder(str(folder), max_tokens=8, cache=tmp_path)(["red", "a red circle"]), expected)
    assert torch.equal(TextEncoder(str(folder), max_tokens=8, cache=tmp_path)(["red", "a red circle"]), expected)
    assert not list(tmp_path.rglob("*.partial"))


def test_models_do_not_share_a_cache(folder: Path, tmp_path: Path) -> None:
    other = tiny_encoder(tmp_path / "other", seed=1)
    cache = tmp_path / "cache"
    one, two = (TextEncoder(str(path), max_tokens=8, cache=cache) for path in (folder, other))
    assert one.fingerprint != two.fingerprint
    assert not torch.equal(one(["red"]), two(["red"]))
    assert len(list(cache.iterdir())) == 2


def test_loading_leaves_the_random_numbers_alone(folder: Path) -> None:
    torch.manual_seed(5)
    TextEncoder(str(folder), max_tokens=8)
    drawn = torch.rand(())
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(()))


def test_only_safetensors_are_loaded(tmp_path: Path) -> None:
    path = tiny_encoder(tmp_path / "pickled")
    tensors = transformers.BertModel.from_pretrained(path).state_dict()
    (path / "model.safetensors").unlink()
    torch.save(tensors, path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"cannot load the text encoder .*pickled.*safetensors"):
        TextEncoder(str(path), max_tokens=8)


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    path = tiny_encoder(tmp_path / "code")
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(
        text.replace('"model_type": "bert"', '"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}')
    )
    (path / "mine.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    with pytest.raises(ValueError, match="cannot load the text encoder"):
        TextEncoder(str(path), max_tokens=8)
    assert not (tmp_path / "owned").exists()


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tiny_encoder(tmp_path / "partial")
    tensors = load_file(path / "model.safetensors")
    save_file(
        {name: t for name, t in tensors.items() if "key" not in name}, path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"are incomplete: encoder\.layer\.0\.attention\.self\.key\.bias"):
        TextEncoder(str(path), max_tokens=8)


def test_no_transformers_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BrokenLibraryError, match=r"pip install .*transformers"):
        TextEncoder("any")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_made_is_an_error(folder: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cache"):
        TextEncoder(str(folder), max_tokens=8, cache=tmp_path / "cache")


def test_a_dataset_gives_embeddings_of_its_captions(folder: Path, tmp_path: Path) -> None:
    for number, text in enumerate(["a red circle", "", "one"]):
        picture(tmp_path / f"{number}.png", number)
        (tmp_path / f"{number}.txt").write_text(text)
    encoder = TextEncoder(str(folder), max_tokens=8)
    plain = Folder(IMAGE, tmp_path, captions="sidecar")
    dataset = Captioned(plain, encoder)
    assert dataset.classes is None
    assert len(dataset) == 3
    batch = dataset.batch([2, 0, 1], [1, 2, 3])
    assert batch.texts == ("one", "a red circle", "")
    assert batch.embeddings is not None
    assert torch.equal(batch.embeddings, encoder(["one", "a red circle", ""]))
    assert torch.equal(batch.x0, plain.batch([2, 0, 1], [1, 2, 3]).x0)
    part = dataset.subset([2])
    assert (part.caption(0), len(part), part[0].text) == ("one", 1, "one")
    assert dataset.fingerprint == plain.fingerprint
    with pytest.raises(ValueError, match="have no captions"):
        Captioned(Folder(IMAGE, tmp_path), encoder)


def test_an_example_without_a_caption_is_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        picture(tmp_path / f"{number}.png", number)
        (tmp_path / f"{number}.txt").write_text("one")
    dataset = Folder(IMAGE, tmp_path, captions="sidecar")
    monkeypatch.setattr(dataset, "batch", lambda *_: Batch(torch.zeros(2, 3, 8, 8)))
    with pytest.raises(ValueError, match="has no caption"):
        Captioned(dataset, TextEncoder(str(folder), max_tokens=8)).batch([0, 1])


def test_an_encoder_that_a_run_names_is_looked_for_here_alone_and_keeps_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*words: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    with pytest.raises(ValueError, match=r"configuration downloads nothing: add text_model=nobody/nothing"):
        TextEncoder("nobody/nothing", trusted=False)
    encoder = TextEncoder(str(folder), cache=tmp_path / "outside", max_tokens=12, trusted=False)
    assert len(encoder(["a circle"])) == 1
    assert not (tmp_path / "outside").exists()
