"""The smallest run of every modality, and of every network."""

from pathlib import Path

import torch

from modalities.video import Video

MODALITIES = {
    "image": ["modality=image", "modality.size=8", "data=digits"],
    "spectrogram": [
        "modality=audio", "modality.rate=4000", "modality.seconds=0.016", "modality.representation.window=16",
        "modality.representation.hop=8", "data=plucked_strings", "data.count=8",
    ],
    "log-mel": [
        "modality=audio_mel", "modality.rate=4000", "modality.seconds=0.056", "modality.representation.window=64",
        "modality.representation.hop=32", "modality.representation.bands=7", "data=plucked_strings", "data.count=8",
    ],
    "waveform": [
        "modality=audio_waveform", "modality.rate=4000", "modality.seconds=0.01", "data=plucked_strings",
        "data.count=8",
    ],
    "latent": [
        "modality=cached_video", "modality.statistics=null", "modality.modality.frames=4", "modality.modality.size=8",
        "data=folder", "data.labels=none",
    ],
    "video": ["modality=video", "modality.frames=5", "modality.size=8", "data=moving_digits", "data.count=8"],
}  # fmt: skip
NETWORKS = {
    "unet": ["network=unet", "network.width=8", "network.multipliers=[1,2]", "network.blocks=1", "network.heads=1"],
    "transformer": ["network=transformer", "network.width=12", "network.depth=1", "network.heads=1"],
}
# Spectra that name axes of a medium: the axes of the others to write them on, space and then time.
AXES = {
    "image": ("height", "width"),
    "spectrogram": ("frequency", "time"),
    "log-mel": ("mel", "time"),
    "waveform": (None, "time"),
    "latent": ("width", "frame"),
    "video": ("width", "frame"),
}


def save_clips(root: Path) -> None:
    """Make a folder of eight clips: latents are those of files."""
    video = Video(frames=6, size=8)
    for number in range(8):
        colours = torch.rand(3, 6, 8, 8, generator=torch.Generator().manual_seed(number))
        video.save((255 * colours).to(torch.uint8), root / f"{number}.mp4")
