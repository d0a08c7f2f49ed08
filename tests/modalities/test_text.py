"""Text encoders return the last states of their models and load only safetensors; wrapped datasets keep examples."""

import json
import socket
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import transformers
from safetensors.torch import load, save_file

from modalities.base import Batch
from modalities.files import Folder
from modalities.image import Image
from modalities.image_sets import Digits
from modalities.text import TextEncoder
from modalities.wrapped import Captioned, Corrupted, Restored
from multisagd import Band, Corruption
from multisagd.gaussian_restoration import GaussianRestoration
from tests.helpers.tiny_text import WIDTH, tiny_encoder

IMAGE = Image(size=8)
TEXTS = ["a red circle", "", "one", "  a red circle\n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder") / "bert")


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
    def encoder(path: Path, tokens: int = 8) -> tuple[TextEncoder, Mock]:
        made = TextEncoder(str(path), max_tokens=tokens, cache=tmp_path / "cache")
        monkeypatch.setattr(made._model, "forward", calls := Mock(side_effect=made._model.forward))
        return made, calls

    first, calls = encoder(folder)
    embeddings = first(TEXTS)
    assert torch.equal(first(TEXTS), embeddings)
    assert calls.call_count == 2
    second, calls = encoder(folder)
    assert torch.equal(second(TEXTS), embeddings)
    assert calls.call_count == 0
    # Cut to four tokens, one of the texts differs.
    third, calls = encoder(folder, 4)
    third(TEXTS)
    assert calls.call_count == 1
    # Another model has texts of its own, and loading it leaves the global random state alone.
    before = torch.get_rng_state()
    other, _ = encoder(tiny_encoder(tmp_path / "other", seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert other.fingerprint != first.fingerprint
    assert not torch.equal(other(TEXTS), embeddings)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) == 5
    assert all(path.suffix == ".safetensors" and path.name.startswith(path.parent.name) for path in files)


def test_text_cache_has_the_permissions_of_new_files(folder: Path, tmp_path: Path) -> None:
    TextEncoder(str(folder), max_tokens=8, cache=tmp_path / "cache")(["red"])
    (tmp_path / "new").touch()
    (path,) = (tmp_path / "cache").rglob("*.safetensors")
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_text_cache_replaces_damaged_files(folder: Path, tmp_path: Path) -> None:
    texts = ["red", "a red circle"]
    expected = TextEncoder(str(folder), max_tokens=8, cache=tmp_path)(texts)
    for damage in (
        lambda data: data[:-8],
        lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],  # still a well-formed file
        lambda _: b"",
        lambda _: b"no tensor" * 9,
    ):
        for path in tmp_path.rglob("*.safetensors"):
            path.write_bytes(damage(path.read_bytes()))
        for _ in range(2):
            assert torch.equal(TextEncoder(str(folder), max_tokens=8, cache=tmp_path)(texts), expected)
    assert not list(tmp_path.rglob("*.partial"))


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


def test_captioned_returns_embeddings_of_captions(folder: Path, tmp_path: Path) -> None:
    for number, text in enumerate(["a red circle", "", "one"]):
        IMAGE.save(torch.full((3, 8, 8), number, dtype=torch.uint8), tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(text)
    plain, encoder = Folder(IMAGE, tmp_path, captions="sidecar"), TextEncoder(str(folder), max_tokens=8)
    dataset = Captioned(plain, encoder)
    batch = dataset.batch([2, 0, 1], [1, 2, 3])
    assert batch.texts == ("one", "a red circle", "")
    assert torch.equal(batch.embeddings, encoder(["one", "a red circle", ""]))
    assert torch.equal(batch.x0, plain.batch([2, 0, 1], [1, 2, 3]).x0)
    part = dataset.subset([2])
    assert (part.caption(0), len(part), part[0].text) == ("one", 1, "one")
    assert dataset.fingerprint == plain.fingerprint
    with pytest.raises(ValueError, match="have no captions"):
        Captioned(Folder(IMAGE, tmp_path), encoder)
    plain.batch = Mock(return_value=Batch(torch.zeros(3, 3, 8, 8)))
    with pytest.raises(ValueError, match="has no caption"):
        dataset.batch([0, 1, 2])


def test_captioned_embeds_the_caption_that_the_seed_draws(folder: Path, tmp_path: Path) -> None:
    IMAGE.save(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "photos" / "0.png")
    (tmp_path / "photos" / "0.json").write_text('{"text": ["one", "a red circle", ""]}')
    encoder = TextEncoder(str(folder), max_tokens=8, cache=tmp_path / "cache")
    dataset = Captioned(Folder(IMAGE, tmp_path / "photos", captions="sidecar"), encoder)
    batch = dataset.batch([0] * 30, range(30))
    assert set(batch.texts) == {"one", "a red circle", ""}
    assert torch.equal(batch.embeddings, encoder(batch.texts))
    assert dataset.batch([0]).texts == ("one",)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2, "each caption is encoded once"


def test_text_encoder_that_is_not_trusted_neither_downloads_nor_caches(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = Mock(side_effect=AssertionError("a connection was opened"))
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    with pytest.raises(ValueError, match=r"configuration downloads nothing: add text_model=nobody/nothing"):
        TextEncoder("nobody/nothing", trusted=False)
    encoder = TextEncoder(str(folder), cache=tmp_path / "outside", max_tokens=12, trusted=False)
    assert len(encoder(["a circle"])) == 1
    assert not (tmp_path / "outside").exists()
    assert not connect.called


def corrupted(redrawn: bool = False) -> Corrupted:
    modality = Image(size=8, channels=1)
    return Corrupted(Digits(modality), Corruption(Band(0.2, 0.4), modality.grid(), 0.5), seed=3, redrawn=redrawn)


def test_corrupted_adds_the_same_noise_of_the_band_to_an_example() -> None:
    dataset = corrupted()
    together = dataset.batch([5, 9, 700], [1, 2, 3]).x0
    assert torch.equal(together[1], dataset.example(9, 8).x0)
    assert torch.equal(together[2], dataset.subset([3, 700, 5]).subset([1, 2]).example(0).x0)
    added = together - dataset.inner.batch([5, 9, 700], [1, 2, 3]).x0
    assert float(added.abs().max()) > 0.1
    torch.testing.assert_close(added, dataset.corruption.covariance.project(added), rtol=0, atol=1e-5)
    assert not torch.allclose(added[0], added[1])
    redrawn = corrupted(redrawn=True)
    one, again, other = (redrawn.example(5, seed).x0 for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    assert torch.equal(redrawn.example(5).x0, redrawn.example(5).x0)


def test_corrupted_has_the_labels_texts_and_names_of_the_clean_set() -> None:
    dataset = corrupted()
    assert (dataset.classes, dataset.fingerprint) == (dataset.inner.classes, dataset.inner.fingerprint)
    assert torch.equal(dataset.batch([1, 2]).labels, dataset.inner.batch([1, 2]).labels)  # type: ignore[arg-type]
    assert (dataset.groups, dataset.unreadable, dataset.caption(0)) == (None, {}, None)


def test_restored_examples_are_nearer_to_the_clean_ones_and_keep_their_sample() -> None:
    dataset = corrupted()
    fitted = GaussianRestoration.fit([dataset.batch(range(1500)).x0], dataset.corruption)
    clean, dirty = dataset.inner.batch(range(1500, 1700)).x0, dataset.batch(range(1500, 1700)).x0
    for drawn in (False, True):
        restored = Restored(dataset, fitted, seed=3, drawn=drawn)
        x0 = restored.batch(range(1500, 1700), range(200)).x0
        assert float((x0 - clean).square().mean()) < 0.5 * float((dirty - clean).square().mean())
        assert torch.equal(restored.subset([1600]).example(0, 4).x0, x0[100])
