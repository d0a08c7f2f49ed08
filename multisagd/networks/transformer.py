"""Implement a diffusion transformer with rotary positions, for grids of any number of dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from multisagd.condition import AnyCondition, as_condition
from multisagd.networks.attention import SelfAttention, rotary_positions
from multisagd.networks.dense import DenseInput, DenseRead, DenseTokens, input_channels, positioned, with_dense
from multisagd.networks.embedding import Conditioning
from multisagd.networks.layers import (
    check_input,
    checked_periodic,
    crop,
    pad_to_multiple,
    patchify,
    unpatchify,
    zero,
)
from multisagd.networks.text import CrossAttention, Text, TextInput, text_tokens


class Transformer(nn.Module):
    """A diffusion transformer (DiT, 2212.09748) with axial rotary positions, normalised queries and keys, and SwiGLU.

    Call it as `network(x, log_snr, condition)` with x (batch, channels, *grid) and log_snr (batch,). The condition is
    `None`; or labels (batch,), where the label `classes` means no class; or text embeddings (batch, tokens, context),
    where a row of zeros is not a token; or a `Condition` of these, of scalars (batch, scalars) and of a dense condition
    (batch, dense, *grid or coarser), NaN where it is unknown. It returns (batch, out_channels, *grid) in the dtype of
    x. Grids may have any size: they are padded to whole patches, and the output is cropped. Positions are relative, so
    a network also runs on sizes that it was not trained on. The output of an untrained network is exactly 0.

    Along a periodic axis, positions go around the circle: the output for data that are shifted around it, by whole
    patches, is the output shifted likewise, if the size of the axis is a multiple of the patch size.

    A patch of samples is one token, and the cost of attention grows with the square of the number of tokens.
    `Transformer(channels=3, dimensions=2)` has 32,405,388 parameters, and
    `Transformer(channels=1, dimensions=1, patch=4, width=64, depth=2, heads=2, classes=10)` has 169,668.

    Args:
        channels: channels of the data.
        dimensions: grid dimensions, 1 or more.
        patch: samples per patch along each axis, one number or one per axis.
        width: features of a token.
        depth: number of blocks of attention and MLP.
        heads: number of attention heads; it must divide the width, and leave at least two features per head and axis.
        classes: number of classes, or `None` for a network without classes.
        dropout: probability of dropping a feature at the end of each branch.
        attention: attention backend, "sdpa" or "xformers".
        strict: raise, instead of falling back to "sdpa", if the backend does not work.
        rotary_base: the slowest pair of features rotates by about 1 / base radians per token. 100 suits axes of up to a
            few hundred tokens, and 10,000 axes of many thousands, such as raw audio.
        out_channels: channels of the output; `channels` by default.
        context: width of text embeddings, or `None` for a network without text.
        periodic: whether each axis is a whole circle (`Grid.periodic`); by default, no axis is.
        scalars: number of scalars of a condition, or `None` for a network without scalars.
        dense: channels of the dense condition, or `None` for a network without one.
        dense_input: "concatenation" of the dense condition to x, or "attention" to its patches in every block.

    Raises:
        ValueError: If the architecture is invalid; from `forward`, if an input has an invalid shape or label.
        RuntimeError: If `strict` is true and the attention backend does not work.
    """

    def __init__(
        self,
        channels: int,
        dimensions: int,
        patch: int | Sequence[int] = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        classes: int | None = None,
        dropout: float = 0.0,
        attention: str = "sdpa",
        strict: bool = False,
        rotary_base: float = 100.0,
        out_channels: int | None = None,
        context: int | None = None,
        periodic: Sequence[bool] | None = None,
        scalars: int | None = None,
        dense: int | None = None,
        dense_input: DenseInput = "concatenation",
    ) -> None:
        super().__init__()
        if min(channels, width, depth, heads) < 1:
            raise ValueError(
                f"channels, width, depth and heads must be at least 1, got {channels}, {width}, {depth} and {heads}"
            )
        self.patch = (patch,) * dimensions if isinstance(patch, int) else tuple(patch)
        if dimensions < 1 or len(self.patch) != dimensions or min(self.patch) < 1:
            raise ValueError(f"patch must be one number or one per axis, at least 1; got {patch} for {dimensions} axes")
        self.periodic = checked_periodic(periodic, dimensions)
        self.channels, self.dimensions, self.out_channels = channels, dimensions, out_channels or channels
        self.dense = dense
        self.head_width, self.rotary_base = width // heads, rotary_base
        samples = math.prod(self.patch)
        self.conditioning = Conditioning(width, classes, scalars=scalars)
        self.text = None if context is None else TextInput(context, width)
        self.embed = nn.Linear(input_channels(channels, dense, dense_input) * samples, width)
        attends = dense is not None and dense_input == "attention"
        self.dense_tokens = DenseTokens(dense, self.patch, width) if dense is not None and attends else None
        self.blocks = nn.ModuleList(
            Block(width, heads, dropout, attention, strict, context, attends) for _ in range(depth)
        )
        self.head_modulation = zero(nn.Linear(width, 2 * width))
        self.head = zero(nn.Linear(width, self.out_channels * samples))
        rotary_positions(
            [1] * dimensions, self.head_width
        )  # raises here, not at the first step, if heads are too narrow

    def forward(self, x: Tensor, log_snr: Tensor, condition: AnyCondition = None) -> Tensor:
        """Return the prediction (batch, out_channels, *grid) at log-SNRs (batch,); see the class for the arguments."""
        check_input(x, self.channels, self.dimensions)
        parts = as_condition(condition, self.conditioning.classes is not None, self.text is not None)
        embedding = self.conditioning(log_snr, parts.labels, parts.scalars)
        text = text_tokens(self.text, parts.text, len(x))
        embedding = F.silu(embedding if text is None else embedding + text.summary)
        whole = with_dense(x.to(self.head.weight.dtype), parts.dense, self.dense, self.periodic)
        padded = pad_to_multiple(whole, self.patch, self.periodic)
        counts = [size // step for size, step in zip(padded.shape[2:], self.patch, strict=True)]
        positions = rotary_positions(counts, self.head_width, self.rotary_base, x.device, self.periodic)
        read = None
        if self.dense_tokens is not None:
            padded, condition_read = padded.tensor_split([self.channels], dim=1)
            patches = self.dense_tokens(condition_read)
            read = positioned(patches, counts, 1, self.head_width, self.periodic, self.rotary_base)
        tokens = self.embed(patchify(padded, self.patch))
        for block in self.blocks:
            tokens = block(tokens, embedding, positions, text, read)
        scale, shift = self.head_modulation(embedding)[:, None].chunk(2, dim=-1)
        tokens = self.head(modulate(tokens, scale, shift))
        return crop(unpatchify(tokens, counts, self.patch), x.shape[2:], self.patch, self.periodic).to(x.dtype)


class Block(nn.Module):
    """Apply attention and an MLP to tokens (batch, tokens, width), each scaled, shifted and gated by the embedding.

    All modulations, gates included, start at zero (adaLN-Zero, 2212.09748, section 3.2), so at first the block is the
    identity. The MLP is SwiGLU (2002.05202) with as many parameters as a plain MLP of four times the width. If
    `context`, the width of text embeddings, is given, attention to the text comes between the two (as in PixArt-α,
    2310.00426), and so does attention to a dense condition if `dense` is set.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        attention: str,
        strict: bool,
        context: int | None = None,
        dense: bool = False,
    ) -> None:
        super().__init__()
        hidden = 8 * math.ceil(width / 3)
        self.modulation = zero(nn.Linear(width, 6 * width))
        self.attention = SelfAttention(width, heads, attention, strict)
        self.text_attention = None if context is None else CrossAttention(width, context, heads)
        self.dense_attention = CrossAttention(width, width, heads) if dense else None
        self.widen = nn.Linear(width, 2 * hidden)
        self.narrow = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Tensor,
        embedding: Tensor,
        positions: tuple[Tensor, Tensor],
        text: Text | None = None,
        dense: DenseRead | None = None,
    ) -> Tensor:
        """Return the tokens after attention and MLP: features `(batch, tokens, width)` in and out.

        `embedding` `(batch, width)` encodes the noise level and the class.
        """
        modulation = self.modulation(embedding)[:, None]
        scale, shift, gate, mlp_scale, mlp_shift, mlp_gate = modulation.chunk(6, dim=-1)
        attended = self.attention(modulate(tokens, scale, shift), positions)
        tokens = tokens + gate * self.dropout(attended)
        if self.text_attention is not None and text is not None:
            read = self.text_attention(F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6), text)
            tokens = tokens + self.dropout(read)
        if self.dense_attention is not None and dense is not None:
            normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
            read = self.dense_attention(normed, dense.tokens, (dense.queries, dense.keys))
            tokens = tokens + self.dropout(read)
        value, switch = self.widen(modulate(tokens, mlp_scale, mlp_shift)).chunk(2, dim=-1)
        return tokens + mlp_gate * self.dropout(self.narrow(value * F.silu(switch)))


def modulate(tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise tokens (batch, tokens, width) to mean 0 and variance 1, scale them by 1 + `scale` and shift them."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift
