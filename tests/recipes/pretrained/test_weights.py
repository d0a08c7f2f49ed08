"""Pretrained weights are read as tensors and nothing else, and networks take those that are theirs alone."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from multisagd.metrics.vggish import VGGish, vggish_features
from recipes.base.errors import RecipeError
from recipes.evaluation import pretrained as networks
from recipes.evaluation.pretrained import Published, fill, read_weights


class Touch:
    """Unpickling this runs something."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_tensors_are_read(tmp_path: Path, suffix: str) -> None:
    tensors = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}
    path = tmp_path / f"weights{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    found = read_weights(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_nothing_that_could_run_is_read(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"weight": Touch(canary)}, tmp_path / "torch.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Touch(canary)))
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "program.pt"))
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    for name in ("torch.pth", "plain.pth", "program.pt", "list.pth"):
        with pytest.raises(RecipeError, match=f"cannot read weights from {tmp_path / name}"):
            read_weights(tmp_path / name)
        with pytest.raises(RecipeError, match=f"cannot read weights from {tmp_path / name}"):
            networks.load_inception(tmp_path / name)
    assert not canary.exists()
    with pytest.raises(RecipeError, match="No such file"):
        read_weights(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80", b"\x00" * 20, b"PK\x03\x04", b"h\x05.", b"}q\x00u."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_garbage_is_told_in_one_message(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"cannot read weights from .* \(.+\): give a state dict"):
        read_weights(path)


def test_a_published_name_that_states_a_hash_must_be_true(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "some.pth")
    content = (tmp_path / "some.pth").read_bytes()
    good = tmp_path / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    good.write_bytes(content)
    assert torch.equal(read_weights(good, Published(f"https://example.org/{good.name}"))["weight"], torch.ones(2))
    dated = tmp_path / "net-20240115.pth"
    dated.write_bytes(content)
    with pytest.raises(RecipeError, match="SHA-256 does not begin with 20240115"):
        read_weights(dated, Published("https://example.org/net-20240115.pth"))
    # The names of other files state nothing.
    assert torch.equal(
        read_weights(dated, Published("https://example.org/other-01234567.pth"))["weight"], torch.ones(2)
    )
    assert torch.equal(read_weights(dated)["weight"], torch.ones(2))


def test_published_weights_are_found_where_torch_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    published = Published("https://example.org/some/net-01234567.pth")
    assert published.found(None) is None
    assert published.found(tmp_path / "own.pth") == tmp_path / "own.pth"
    published.kept().parent.mkdir()
    published.kept().touch()
    assert published.found(None) == tmp_path / "checkpoints" / "net-01234567.pth"

    def refuse(url: str, path: str, hash_prefix: str) -> None:
        assert (url, path, hash_prefix) == (published.url, str(published.kept()), "01234567")
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(RecipeError, match=r"no network.*put it at"):
        published.fetch()


def test_other_networks_weights_are_refused(tmp_path: Path) -> None:
    network = nn.Linear(2, 3)
    with pytest.raises(RecipeError, match="not those of Linear"):
        fill(network, {"weight": torch.ones(2, 2)}, tmp_path / "x.pth")
    fill(network, {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, tmp_path / "x.pth")
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    for load in (networks.load_inception, networks.load_r3d):
        with pytest.raises(RecipeError, match=r"other\.pth are not those of"):
            load(tmp_path / "other.pth")


def test_the_inception_network_reads_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import NoTrainInceptionV3

    # The architecture with random weights: its own loader is passed by.
    torch.save({}, tmp_path / "empty.pth")
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        random = FeatureExtractorInceptionV3("random", ["2048"], str(tmp_path / "empty.pth"))
    weights = tmp_path / "random.safetensors"
    save_file(random.state_dict(), weights)
    torch.save(random.state_dict(), tmp_path / "random.pth")
    network = networks.load_inception(weights)
    images = torch.randint(256, (2, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    last, earlier = networks.inception_features(network, images).split(networks.BLOCKS, dim=1)
    assert last.shape == (2, 2048)
    assert earlier.shape == (2, 768)
    # torchmetrics wraps the same network for its own metrics.
    theirs = NoTrainInceptionV3("inception", ["768"], str(tmp_path / "random.pth"))
    torch.testing.assert_close(theirs(images.expand(-1, 3, -1, -1)).reshape(2, 768), earlier)


def test_the_video_network_reads_clips(tmp_path: Path) -> None:
    from torchvision.models.video import R3D_18_Weights, r3d_18

    torch.manual_seed(0)
    random = r3d_18().eval()
    torch.save(random.state_dict(), tmp_path / "random.pth")
    network = networks.load_r3d(tmp_path / "random.pth")
    clips = torch.randint(256, (2, 3, 5, 16, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = networks.r3d_features(network, clips)
    assert found.shape == (2, 512)
    assert networks.R3D.url == R3D_18_Weights.KINETICS400_V1.url
    # The whole network is the features and its last layer.
    usual = R3D_18_Weights.KINETICS400_V1.transforms(resize_size=(112, 112))
    prepared = usual(clips.transpose(1, 2).contiguous())
    torch.testing.assert_close(random.fc(found), random(prepared))
    torch.testing.assert_close(
        networks.r3d_features(network, clips[:1, :1]), networks.r3d_features(network, clips[:1, [0, 0, 0]])
    )


@pytest.mark.slow
def test_vggish_reads_sounds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    random = VGGish()
    # 72 million weights, as published.
    assert sum(parameter.numel() for parameter in random.parameters()) == 72_141_184
    torch.save(random.state_dict(), tmp_path / "random.pth")
    network = networks.load_vggish(tmp_path / "random.pth")
    sound = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0))
    assert vggish_features(network, sound, 8000).shape == (128,)
