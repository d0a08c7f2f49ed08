"""Provide networks for grids of any number of dimensions, and their components.

A network is any `nn.Module` called as `network(x, log_snr, condition)`, with x (batch, channels, *grid), log_snr
(batch,) and condition `None`, labels (batch,) or text embeddings (batch, tokens, context), that returns a tensor of the
same shape as x or an object with such a tensor as `.sample`.
"""

from multisagd.networks.attention import SelfAttention, attend, rotary_positions, rotate
from multisagd.networks.embedding import Conditioning, NoiseLevelFeatures
from multisagd.networks.text import CrossAttention, TextInput
from multisagd.networks.transformer import Transformer
from multisagd.networks.unet import UNet

__all__ = [
    "Conditioning",
    "CrossAttention",
    "NoiseLevelFeatures",
    "SelfAttention",
    "TextInput",
    "Transformer",
    "UNet",
    "attend",
    "rotary_positions",
    "rotate",
]
