"""Pretrained weights are read as tensors and nothing else, and a network takes its own weights only."""

import hashlib
import pickle
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from multisagd.metrics.vggish import VGGish, vggish_features
from recipes.base.errors import RecipeError
from recipes.evaluation import pretrained as networks
from recipes.evaluation.pretrained import Published, fill, read_weights
from tests.helpers.hostile_files import Bomb, torch_bomb


def test_read_weights_runs_nothing_and_names_files_it_cannot_read(tmp_path: Path) -> None:
    canary, files = tmp_path / "canary", tmp_path / "files"
    files.mkdir()
    (files / "torch.pth").write_bytes(torch_bomb(canary))
    (files / "plain.pth").write_bytes(pickle.dumps(Bomb(canary)))
    torch.jit.script(nn.Linear(2, 2)).save(str(files / "program.pt"))
    torch.save([torch.ones(1)], files / "list.pth")
    garbage = (b"", b"garbage", b"\x80", b"\x00" * 20, b"PK\x03\x04", b"h\x05.", b"}q\x00u.")
    for number, content in enumerate(garbage):
        (files / f"{number}.pth").write_bytes(content)
        (files / f"{number}.safetensors").write_bytes(content)
    for path in files.iterdir():
        for load in (read_weights, networks.load_inception):
            with pytest.raises(RecipeError, match=rf"cannot read weights from {path} \(.+\): use a state dict"):
                load(path)
    assert not canary.exists()
    with pytest.raises(RecipeError, match="No such file"):
        read_weights(tmp_path / "nowhere.pth")


def test_read_weights_checks_the_hash_in_a_published_name(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "some.pth")
    content = (tmp_path / "some.pth").read_bytes()
    good = tmp_path / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    good.write_bytes(content)
    dated = tmp_path / "net-20240115.pth"
    dated.write_bytes(content)
    with pytest.raises(RecipeError, match="SHA-256 does not begin with 20240115"):
        read_weights(dated, Published("https://example.org/net-20240115.pth"))
    # The names of other files state nothing.
    other = Published("https://example.org/other-01234567.pth")
    for path, published in ((good, Published(f"https://example.org/{good.name}")), (dated, other), (dated, None)):
        assert torch.equal(read_weights(path, published)["weight"], torch.ones(2))


def test_published_weights_are_found_where_torch_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    published = Published("https://example.org/some/net-01234567.pth")
    assert published.local_path(None) is None
    assert published.local_path(tmp_path / "own.pth") == tmp_path / "own.pth"
    published.cached_path().parent.mkdir()
    published.cached_path().touch()
    assert published.local_path(None) == tmp_path / "checkpoints" / "net-01234567.pth"

    download = Mock(side_effect=OSError("no network"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(RecipeError, match=r"no network.*save it as"):
        published.fetch()
    download.assert_called_once_with(published.url, str(published.cached_path()), hash_prefix="01234567")


def test_fill_refuses_weights_of_another_network(tmp_path: Path) -> None:
    network = nn.Linear(2, 3)
    fill(network, {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, tmp_path / "x.pth")
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    with pytest.raises(RecipeError, match="do not fit Linear"):
        fill(network, {"weight": torch.ones(2, 2)}, tmp_path / "x.pth")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    for load in (networks.load_inception, networks.load_r3d):
        with pytest.raises(RecipeError, match=r"other\.pth do not fit"):
            load(tmp_path / "other.pth")


def test_inception_features_are_those_of_torchmetrics(tmp_path: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import NoTrainInceptionV3

    # The architecture with random weights: its own loader is passed by.
    torch.save({}, tmp_path / "empty.pth")
    with patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
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


def test_r3d_features_and_last_layer_are_the_network_of_torchvision(tmp_path: Path) -> None:
    from torchvision.models.video import R3D_18_Weights, r3d_18

    torch.manual_seed(0)
    random = r3d_18().eval()
    torch.save(random.state_dict(), tmp_path / "random.pth")
    network = networks.load_r3d(tmp_path / "random.pth")
    clips = torch.randint(256, (2, 3, 5, 16, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features = networks.r3d_features(network, clips)
    assert features.shape == (2, 512)
    assert networks.R3D.url == R3D_18_Weights.KINETICS400_V1.url
    # The whole network is the features and its last layer.
    usual = R3D_18_Weights.KINETICS400_V1.transforms(resize_size=(112, 112))
    prepared = usual(clips.transpose(1, 2).contiguous())
    torch.testing.assert_close(random.fc(features), random(prepared))
    torch.testing.assert_close(
        networks.r3d_features(network, clips[:1, :1]), networks.r3d_features(network, clips[:1, [0, 0, 0]])
    )


@pytest.mark.slow
def test_vggish_has_the_published_size_and_reads_sounds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    random = VGGish()
    # 72 million weights, as published.
    assert sum(parameter.numel() for parameter in random.parameters()) == 72_141_184
    torch.save(random.state_dict(), tmp_path / "random.pth")
    network = networks.load_vggish(tmp_path / "random.pth")
    sound = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0))
    assert vggish_features(network, sound, 8000).shape == (128,)
