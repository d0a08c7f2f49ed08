"""Define VGGish (1609.09430), the network of the Fréchet audio distance (1812.08466), and compute its inputs.

The input is a patch of 96 frames of 10 ms by 64 mel bands. The 128 features are the last layer before its activation,
averaged over the patches of a longer recording.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multisagd.libraries import importing

RATE, WINDOW, HOP, TRANSFORM = 16_000, 400, 160, 512
BANDS, LOWEST, HIGHEST = 64, 125.0, 7_500.0
FRAMES = 96
OFFSET = 0.01
"""Added to the magnitudes before the logarithm."""


class VGGish(nn.Module):
    """Map patches `(batch, 1, 96, 64)` to features `(batch, 128)` with six convolutions and three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        # Every stage ends in a pooling layer; the last two stages have two convolutions.
        for width, convolutions in ((64, 1), (128, 1), (256, 2), (512, 2)):
            for _ in range(convolutions):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128)
        )

    def forward(self, log_mel: Tensor) -> Tensor:
        """Return the features `(patches, 128)` of patches of log-mel amplitudes `(patches, 1, 96, 64)`."""
        # The weights come from TensorFlow, where channels are last.
        embedding: Tensor = self.embeddings(self.features(log_mel).permute(0, 2, 3, 1).flatten(1))
        return embedding


@torch.no_grad()
def vggish_features(network: nn.Module, waveform: Tensor, rate: int) -> Tensor:
    """Return the mean features `(128,)` of a recording `(channels, samples)`, padded with silence if short."""
    with importing("torchaudio", "vggish"):
        from torchaudio.functional import resample
    device = next(network.parameters()).device
    pieces = log_mel(resample(waveform.float().mean(0), rate, RATE))
    embedding: Tensor = network(pieces[:, None].to(device)).mean(0)
    return embedding.cpu()


def log_mel(waveform: Tensor) -> Tensor:
    """Return the log-mel spectrogram of a 16 kHz waveform `(samples,)` as patches `(patches, 96, 64)`.

    Values are natural logarithms of amplitudes. An incomplete last patch is dropped.
    """
    needed = WINDOW + (FRAMES - 1) * HOP
    waveform = torch.nn.functional.pad(waveform, (0, max(0, needed - len(waveform))))
    frames = waveform.unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW)
    magnitudes = torch.fft.rfft(frames, TRANSFORM).abs()
    bands = (magnitudes @ mel_bands().T + OFFSET).log()
    whole = len(bands) // FRAMES
    return bands[: whole * FRAMES].reshape(whole, FRAMES, BANDS)


def mel_bands() -> Tensor:
    """Return triangular weights over the bins of the transform, linear in mel, with height 1: `(bands, bins)`."""
    bins = _mel(torch.linspace(0, RATE / 2, TRANSFORM // 2 + 1))
    edges = torch.linspace(float(_mel(torch.tensor(LOWEST))), float(_mel(torch.tensor(HIGHEST))), BANDS + 2)
    low, centre, high = (edges[start : start + BANDS, None] for start in range(3))
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)


def _mel(frequency: Tensor) -> Tensor:
    return 1127 * (1 + frequency / 700).log()
