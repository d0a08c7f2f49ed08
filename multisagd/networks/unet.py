"""Implement a convolutional U-Net with adaptive normalisation, for grids of one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multisagd.condition import AnyCondition, as_condition
from multisagd.networks.attention import SelfAttention, rotary_positions
from multisagd.networks.dense import DenseInput, DenseRead, DenseTokens, input_channels, positioned, with_dense
from multisagd.networks.embedding import Conditioning
from multisagd.networks.layers import (
    CONVOLUTIONS,
    channels_last,
    check_input,
    checked_periodic,
    crop,
    group_norm,
    pad_to_multiple,
    padded_by_one,
    three_samples,
    zero,
)
from multisagd.networks.text import CrossAttention, Text, TextInput, text_tokens


class UNet(nn.Module):
    """A U-Net in the tradition of ADM (2105.05233), EDM (2206.00364) and simple diffusion (2301.11093).

    Call it as `network(x, log_snr, condition)` with x (batch, channels, *grid) and log_snr (batch,). The condition is
    `None`; or labels (batch,), where the label `classes` means no class; or text embeddings (batch, tokens, context),
    where a row of zeros is not a token; or a `Condition` of these, of scalars (batch, scalars) and of a dense condition
    (batch, dense, *grid or coarser), NaN where it is unknown. It returns (batch, out_channels, *grid) in the dtype of
    x. Grids may have any size: they are padded to the network's stride, 2 to the power of (levels - 1), and the output
    is cropped. The output of an untrained network is exactly 0.

    Along a periodic axis there is no edge: the output for data that are shifted around the circle, by a multiple of the
    stride, is the output shifted likewise, if the size of the axis is a multiple of the stride.

    A level has `blocks` residual blocks on the way down and as many on the way up, and `width * multiplier` channels.
    The number of channels changes at the coarser of two resolutions, where convolutions are cheap. With the default
    width, `UNet(channels=1, dimensions=2)` has 961,281 parameters and `UNet(channels=3, dimensions=2, classes=10)` has
    963,843.

    Args:
        channels: channels of the data.
        dimensions: grid dimensions, 1 to 3.
        width: channels at the finest level.
        multipliers: channels at each level, finest first, as multiples of the width.
        blocks: residual blocks per level and direction.
        attention_levels: indices of the levels with self-attention, where 0 is the finest; the coarsest by default. The
            cost grows with the square of the number of samples at a level. `()` gives a purely convolutional network.
        heads: number of attention heads; it must divide the channels of every level with attention.
        classes: number of classes, or `None` for a network without classes.
        dropout: probability of dropping a feature inside residual blocks.
        attention: attention backend, "sdpa" or "xformers".
        strict: raise, instead of falling back to "sdpa", if the backend does not work.
        out_channels: channels of the output; `channels` by default.
        context: width of text embeddings, or `None` for a network without text.
        periodic: whether each axis is a whole circle (`Grid.periodic`); by default, no axis is.
        scalars: number of scalars of a condition, or `None` for a network without scalars.
        dense: channels of the dense condition, or `None` for a network without one.
        dense_input: "concatenation" of the dense condition to x, or "attention" to its patches, whose size is the
            stride, at the levels with attention.

    Raises:
        ValueError: If the architecture is invalid; from `forward`, if an input has an invalid shape or label.
        RuntimeError: If `strict` is true and the attention backend does not work.
    """

    def __init__(
        self,
        channels: int,
        dimensions: int,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention_levels: Sequence[int] | None = None,
        heads: int = 4,
        classes: int | None = None,
        dropout: float = 0.0,
        attention: str = "sdpa",
        strict: bool = False,
        out_channels: int | None = None,
        context: int | None = None,
        periodic: Sequence[bool] | None = None,
        scalars: int | None = None,
        dense: int | None = None,
        dense_input: DenseInput = "concatenation",
    ) -> None:
        super().__init__()
        if dimensions not in CONVOLUTIONS:
            raise ValueError(f"UNet supports 1 to 3 grid dimensions, got {dimensions}: use Transformer instead")
        if not multipliers or min(*multipliers, channels, width, blocks, heads) < 1:
            raise ValueError(
                "channels, width, multipliers, blocks and heads must be at least 1, got "
                f"{channels}, {width}, {list(multipliers)}, {blocks} and {heads}"
            )
        coarsest = len(multipliers) - 1
        attentive = {coarsest} if attention_levels is None else set(attention_levels)
        if not attentive <= set(range(len(multipliers))):
            raise ValueError(f"attention_levels must lie in 0 to {coarsest}, got {sorted(attentive)}")
        self.channels, self.dimensions, self.stride = channels, dimensions, 2**coarsest
        self.dense = dense
        token_width = width * multipliers[-1] if dense is not None and dense_input == "attention" else None
        if token_width is not None and not attentive:
            raise ValueError("dense_input=attention needs a level with attention: set attention_levels")
        self.periodic = checked_periodic(periodic, dimensions)
        self.conditioning = Conditioning(4 * width, classes, scalars=scalars)
        self.text = None if context is None else TextInput(context, 4 * width)

        def stage(level: int, count: int) -> Stage:
            size = width * multipliers[level]
            heads_here = heads if level in attentive else 0
            return Stage(
                Block(self.periodic, size, 4 * width, dropout, heads_here, attention, strict, context, token_width)
                for _ in range(count)
            )

        convolution = CONVOLUTIONS[dimensions]
        sizes = [width * multiplier for multiplier in multipliers]
        self.stem = three_samples(input_channels(channels, dense, dense_input), sizes[0], self.periodic)
        self.down = nn.ModuleList(stage(level, blocks) for level in range(coarsest))
        self.coarsen = nn.ModuleList(convolution(fine, coarse, 2, stride=2) for fine, coarse in pairwise(sizes))
        self.bottom = stage(coarsest, 2 * blocks)
        self.refine = nn.ModuleList(convolution(coarse, fine, 1) for fine, coarse in pairwise(sizes))
        self.skip = nn.ModuleList(convolution(size, size, 1, bias=False) for size in sizes[:-1])
        self.up = nn.ModuleList(stage(level, blocks) for level in range(coarsest))
        self.head_norm = group_norm(sizes[0])
        self.head = zero(three_samples(sizes[0], out_channels or channels, self.periodic))
        self.dense_tokens: DenseTokens | None = None
        self.head_widths = [size // heads if level in attentive else None for level, size in enumerate(sizes)]
        if dense is not None and token_width is not None:
            self.dense_tokens = DenseTokens(dense, (self.stride,) * dimensions, token_width)
            for features in filter(None, self.head_widths):
                rotary_positions([1] * dimensions, features)  # raises here, not at the first step

    def forward(self, x: Tensor, log_snr: Tensor, condition: AnyCondition = None) -> Tensor:
        """Return the prediction (batch, out_channels, *grid) at log-SNRs (batch,); see the class for the arguments."""
        check_input(x, self.channels, self.dimensions)
        parts = as_condition(condition, self.conditioning.classes is not None, self.text is not None)
        embedding = self.conditioning(log_snr, parts.labels, parts.scalars)
        text = text_tokens(self.text, parts.text, len(x))
        embedding = F.silu(embedding if text is None else embedding + text.summary)
        strides = (self.stride,) * self.dimensions
        read = with_dense(x.to(self.head.weight.dtype), parts.dense, self.dense, self.periodic)
        padded = pad_to_multiple(read, strides, self.periodic)
        padded, reads = self._read_dense(padded)
        hidden = self.stem(padded_by_one(channels_last(padded), self.periodic))
        skips = []
        for stage, coarsen, dense in zip(self.down, self.coarsen, reads[:-1], strict=True):
            hidden = stage(hidden, embedding, text, dense)
            skips.append(hidden)
            hidden = coarsen(hidden)
        hidden = self.bottom(hidden, embedding, text, reads[-1])
        for stage, refine, skip, dense in reversed(list(zip(self.up, self.refine, self.skip, reads[:-1], strict=True))):
            # The sum of two 1x1 convolutions equals one convolution of the concatenated features, but features from
            # below are convolved before upsampling, with 2^dimensions times fewer samples.
            hidden = skip(skips.pop()) + F.interpolate(refine(hidden), scale_factor=2.0, mode="nearest")
            hidden = stage(hidden, embedding, text, dense)
        output = self.head(padded_by_one(F.silu(self.head_norm(hidden)), self.periodic))
        return crop(output, x.shape[2:], strides, self.periodic).to(x.dtype)

    def _read_dense(self, padded: Tensor) -> tuple[Tensor, list[DenseRead | None]]:
        """Return the input of the stem, and what every level attends to, finest first."""
        if self.dense_tokens is None:
            return padded, [None] * len(self.head_widths)
        x, read = padded.tensor_split([self.channels], dim=1)
        tokens, counts = self.dense_tokens(read), [size // self.stride for size in padded.shape[2:]]

        def at(level: int, features: int | None) -> DenseRead | None:
            finer = self.stride >> level
            return None if features is None else positioned(tokens, counts, finer, features, self.periodic)

        return x, [at(level, features) for level, features in enumerate(self.head_widths)]


class Stage(nn.ModuleList):
    """Apply blocks in sequence, all with the same embedding, text and dense condition."""

    def forward(self, x: Tensor, embedding: Tensor, text: Text | None = None, dense: DenseRead | None = None) -> Tensor:
        """Return the output of the last block, features `(batch, out_channels, *grid)`."""
        for block in self:
            x = block(x, embedding, text, dense)
        return x


class Block(nn.Module):
    """Apply a residual block with scale and shift from the embedding, then self-attention unless `heads` is 0.

    Takes (batch, channels, *grid) and (batch, embedding), and returns (batch, channels, *grid). If `context`, the width
    of text embeddings, is given, attention to the text follows, and then to a dense condition if `dense`, the width of
    its tokens, is given. The last layer of every branch starts at zero, so at first the block is the identity.
    """

    def __init__(
        self,
        periodic: Sequence[bool],
        channels: int,
        embedding: int,
        dropout: float,
        heads: int,
        attention: str,
        strict: bool,
        context: int | None = None,
        dense: int | None = None,
    ) -> None:
        super().__init__()
        self.periodic = tuple(periodic)
        self.norm = group_norm(channels)
        self.conv = three_samples(channels, channels, periodic)
        self.modulation = nn.Linear(embedding, 2 * channels)
        self.modulated_norm = group_norm(channels)
        self.dropout = nn.Dropout(dropout)
        self.last_conv = zero(three_samples(channels, channels, periodic))
        self.attention = None
        if heads:
            self.attention_norm = group_norm(channels)
            self.attention = SelfAttention(channels, heads, attention, strict)
            zero(self.attention.out)
        self.text_attention = None
        if heads and context is not None:
            self.text_norm = group_norm(channels)
            self.text_attention = CrossAttention(channels, context, heads)
        self.dense_attention = None
        if heads and dense is not None:
            self.dense_norm = group_norm(channels)
            self.dense_attention = CrossAttention(channels, dense, heads)

    def forward(self, x: Tensor, embedding: Tensor, text: Text | None = None, dense: DenseRead | None = None) -> Tensor:
        """Return features `(batch, out_channels, *grid)` for features x `(batch, channels, *grid)`.

        `embedding` `(batch, width)` encodes the noise level and the condition.
        """
        scale, shift = self.modulation(embedding)[(...,) + (None,) * (x.ndim - 2)].chunk(2, dim=1)
        hidden = self.modulated_norm(self.conv(padded_by_one(F.silu(self.norm(x)), self.periodic)))
        hidden = F.silu(torch.addcmul(shift, hidden, 1 + scale))
        x = x + self.last_conv(padded_by_one(self.dropout(hidden), self.periodic))
        if self.attention is not None:
            tokens = self.attention_norm(x).flatten(2).transpose(1, 2)
            x = x + self.attention(tokens).transpose(1, 2).reshape(x.shape)
        if self.text_attention is not None and text is not None:
            tokens = self.text_norm(x).flatten(2).transpose(1, 2)
            x = x + self.text_attention(tokens, text).transpose(1, 2).reshape(x.shape)
        if self.dense_attention is not None and dense is not None:
            tokens = self.dense_norm(x).flatten(2).transpose(1, 2)
            attended = self.dense_attention(tokens, dense.tokens, (dense.queries, dense.keys))
            x = x + attended.transpose(1, 2).reshape(x.shape)
        return x
