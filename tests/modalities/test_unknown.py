"""What is unknown in media, as users describe it: boxes in units, pictures and arrays."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from modalities.audio import Audio
from modalities.autoencoders import Identity
from modalities.field import Field
from modalities.field_layout import FieldAxis
from modalities.image import Image
from modalities.latent import Latent
from modalities.representation import Stft, Waveform
from modalities.unknown import check_same_place, known_in_file, known_outside
from modalities.variables import Variable
from modalities.video import Video

FIELD = Field((FieldAxis("lat", 6, 10.0, "degree", start=-30.0), FieldAxis("lon", 4, 90.0, "degree")), (Variable("t"),))
CLIP = Video(frames=6, fps=10, size=4, channels=1)
SOUND = Audio(rate=1000, seconds=0.3, representation=Waveform())


def test_boxes_are_in_units_of_the_axes_and_end_before_their_second_number():
    image = known_outside([{"height": (1, 3), "width": (0, 2)}, {"height": (7, None)}], Image(size=8))
    expected = torch.ones(1, 8, 8, dtype=torch.bool)
    expected[:, 1:3, :2] = expected[:, 7:] = False
    assert torch.equal(image, expected)
    assert known_outside([{"frame": (0.2, 0.4)}], CLIP)[0, :, 0, 0].tolist() == [True, True, False, False, True, True]
    assert known_outside([{"lat": (None, 0)}], FIELD)[0, :, 0].tolist() == [False] * 3 + [True] * 3
    hidden = ~known_outside([{"time": (0.1, 0.2)}], SOUND)[0]
    assert hidden.nonzero().flatten().tolist() == [*range(100, 200)]


def test_boxes_hide_every_value_that_depends_on_them():
    stft = Audio(rate=1000, seconds=1.0, representation=Stft(window=64, hop=16))
    known = known_outside([{"time": (0.5, None)}], stft)
    sound = torch.rand(1, 1000, generator=torch.Generator().manual_seed(0)) - 0.5
    other = sound.clone()
    other[:, 500:] *= -0.3
    first, second = (stft.encode(each).masked_fill(~known, 0.0) for each in (sound, other))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
    assert 20 < int(known[0, 0].sum()) < 500 / 16
    latent = Latent(CLIP, Identity())
    assert torch.equal(known_outside([{"frame": (0.2, 0.4)}], latent), known_outside([{"frame": (0.2, 0.4)}], CLIP))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ({"time": (0, 1)}, r"no axis 'time'; the axes are frame from 0 to 0.6 s, height from 0 to 4 pixel"),
        ({"frame": (0.4, 0.2)}, r"frame=\[0.4,0.2\] is empty"),
        ({"frame": (0.6, None)}, r"frame=\[0.6,null\] contains no sample; the axis is frame from 0 to 0.6 s"),
    ],
)
def test_boxes_that_contain_nothing_are_refused(box, message):
    with pytest.raises(ValueError, match=message):
        known_outside([box], CLIP)


def test_pictures_are_cropped_like_the_media_and_white_is_unknown(tmp_path: Path):
    white = Picture.new("L", (12, 8), 0)
    white.paste(255, (2, 0, 6, 8))
    white.save(tmp_path / "mask.png")
    known = known_in_file(tmp_path / "mask.png", Image(size=8))
    assert known[0].sum(0).tolist() == [0] * 4 + [8] * 4
    assert torch.equal(known_in_file(tmp_path / "mask.png", Video(frames=3, size=8))[:, 2], known)
    Picture.new("RGB", (12, 8)).save(tmp_path / "photo.png")
    check_same_place(tmp_path / "mask.png", tmp_path / "photo.png", Image(size=8))
    Picture.new("RGB", (12, 9)).save(tmp_path / "other.png")
    with pytest.raises(ValueError, match=r"12 × 8 pixels, but .*other\.png has 12 × 9"):
        check_same_place(tmp_path / "mask.png", tmp_path / "other.png", Image(size=8))
    with pytest.raises(ValueError, match=r"12 × 8 pixels, but the samples have 8 × 8: draw it in their size"):
        check_same_place(tmp_path / "mask.png", None, Image(size=8))  # held-out media, cropped already
    with pytest.raises(ValueError, match=r"use a \.npy file of shape 6 × 4, or intervals"):
        known_in_file(tmp_path / "mask.png", FIELD)


def test_arrays_have_the_shape_of_the_grid_and_are_not_0_where_unknown(tmp_path: Path):
    unknown = np.zeros((6, 4), bool)
    unknown[2, 1:] = True
    np.save(tmp_path / "mask.npy", unknown)
    np.savez(tmp_path / "mask.npz", mask=unknown[None].astype(np.uint8))
    for name in ("mask.npy", "mask.npz"):
        assert torch.equal(known_in_file(tmp_path / name, FIELD), ~torch.from_numpy(unknown)[None])
    np.save(tmp_path / "large.npy", np.zeros((7, 4)))
    with pytest.raises(ValueError, match=r"numbers of shape \(6, 4\)"):
        known_in_file(tmp_path / "large.npy", FIELD)
    with pytest.raises(ValueError, match="ending is none of"):
        known_in_file(tmp_path / "mask.txt", FIELD)
