"""Condition networks on text: every attention block reads the tokens of a text encoder, and their mean is embedded.

A text condition is a float tensor (batch, tokens, context) in which a row of zeros is not a token. So prompts of
different lengths share a batch, and padding has no effect.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multisagd.networks.attention import attend, normalize, rotate
from multisagd.networks.layers import zero


class Text(NamedTuple):
    """Tokens (batch, tokens, context), a mask of valid tokens (batch, tokens), and their summary (batch, width)."""

    tokens: Tensor
    valid: Tensor
    summary: Tensor


class TextInput(nn.Module):
    """Convert text embeddings to normalised tokens and a projection of their mean (batch, width).

    A prompt without tokens, or no condition, becomes one learned token, which means "no text". So one network serves
    both sides of classifier-free guidance (2207.12598). Tokens are normalised one by one, because the scale of
    embeddings differs a hundredfold among text encoders. The projection of their mean is added to the embedding of the
    noise level, like a class embedding (as in Imagen, 2205.11487, section 2.3).

    Raises:
        ValueError: If `context` is below 1; from `forward`, if embeddings have the wrong shape or dtype.
    """

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        if context < 1:
            raise ValueError(f"context, the width of text embeddings, must be at least 1, got {context}")
        self.context = context
        self.null = nn.Parameter(nn.init.normal_(torch.empty(context)))
        self.summary = nn.Linear(context, width)
        # As large as other features, as for classes: the features of normalised tokens have unit variance.
        nn.init.normal_(self.summary.weight, std=context**-0.5)
        nn.init.zeros_(self.summary.bias)

    def forward(self, embeddings: Tensor | None, batch: int) -> Text:
        """Return the tokens of captions, features `(batch, tokens, context)`, with mask and summary (see `Text`)."""
        null = self.null.expand(batch, 1, -1)
        if embeddings is None:
            tokens, valid = null, torch.ones(batch, 1, dtype=torch.bool, device=null.device)
        else:
            fits = embeddings.ndim == 3 and len(embeddings) == batch and embeddings.shape[2] == self.context
            if not (fits and embeddings.is_floating_point()):
                raise ValueError(
                    f"condition must be text embeddings, float of shape ({batch}, tokens, {self.context}); "
                    f"got {embeddings.dtype} of shape {tuple(embeddings.shape)}"
                )
            given = (embeddings != 0).any(-1)
            # The learned token is always present but valid only if no other is, so shapes never depend on values.
            tokens = torch.cat([null, embeddings.to(null.dtype)], dim=1)
            valid = torch.cat([~given.any(1, keepdim=True), given], dim=1)
        tokens = F.layer_norm(tokens, (self.context,))
        weight = valid[..., None].to(tokens.dtype)
        return Text(tokens, valid, self.summary((tokens * weight).sum(1) / weight.sum(1)))


class Tokens(NamedTuple):
    """Tokens (batch, tokens, context), and a mask of valid tokens (batch, tokens)."""

    tokens: Tensor
    valid: Tensor


class CrossAttention(nn.Module):
    """Let the samples of a grid, features (batch, samples, width), attend to the tokens of a prompt or other tokens.

    Queries and keys are normalised as in `SelfAttention`. The last layer starts at zero, so at first prompts have no
    effect (as in PixArt-α, 2310.00426). This layer always uses PyTorch's own attention, the only backend that takes
    masks without copying them for every head and query.

    Raises:
        ValueError: If `heads` does not divide `width`.
    """

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide the attention width, got {heads} heads for a width of {width}")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context, 2 * width)
        self.query_gain = nn.Parameter(torch.ones(width // heads))
        self.key_gain = nn.Parameter(torch.ones(width // heads))
        self.out = zero(nn.Linear(width, width))

    def forward(
        self, samples: Tensor, text: Text | Tokens, positions: tuple[tuple[Tensor, Tensor], ...] | None = None
    ) -> Tensor:
        """Let every sample attend to the tokens of its caption: features (batch, samples, width) in and out.

        `positions`, from `rotary_positions`, are those of the samples and those of the tokens, if they have any.
        """
        query = self.query(samples).unflatten(-1, (self.heads, -1))
        key, value = self.key_value(text.tokens).unflatten(-1, (2, self.heads, -1)).unbind(2)
        query, key = normalize(query, self.query_gain), normalize(key, self.key_gain)
        if positions is not None:
            query, key = rotate(query, positions[0]), rotate(key, positions[1])
        return self.out(attend(query, key, value, mask=text.valid).flatten(2))


def text_tokens(text: TextInput | None, embeddings: Tensor | None, batch: int) -> Text | None:
    """Return the tokens of text embeddings, features `(batch, tokens, context)`, or None for a network without text.

    Raises:
        ValueError: If the network has no text but there are embeddings.
    """
    if text is not None:
        return text(embeddings, batch)
    if embeddings is not None:
        raise ValueError("this network takes no text, but got text embeddings: build it with context=WIDTH")
    return None
