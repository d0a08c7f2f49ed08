"""Wrap U-Nets and transformers of the diffusers library as networks of this project.

They differ from this project's networks in their inputs: a timestep instead of the log-SNR, a class at every call, and
text tokens with a mask. `DiffusersNetwork` converts the inputs, so that one network serves training, guidance and
sampling:

    timestep = offset + scale · clock.time(log-SNR)

where the *clock* is the schedule whose times the network expects. A network trained from scratch gets times that are
linear in log-SNR. A network trained elsewhere keeps its own clock, whatever the schedule of training or sampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from multisagd.condition import AnyCondition, as_condition
from multisagd.integrations.architectures import (
    FOREIGN,
    KINDS,
    architecture,
    build,
    count_classes,
    embeds_fourier_features,
    strides,
)
from multisagd.networks.embedding import check_labels
from multisagd.networks.layers import check_input, crop, pad_to_multiple
from multisagd.schedule import Schedule, TabulatedSchedule

EVEN = TabulatedSchedule((20.0, -20.0))
"""A schedule whose time is linear in log-SNR."""


class DiffusersNetwork(nn.Module):
    """Wrap a diffusers network so that it is called as `network(x, log_snr, condition)`, like this project's networks.

    x is (batch, channels, *grid) and log_snr (batch,). The condition is `None`; or labels (batch,), where the label
    `classes` means no class; or text embeddings (batch, tokens, context), where a row of zeros is not a token. The
    output is (batch, out_channels, *grid); further channels, in which some networks predict a variance, are dropped.
    Grids may have any size: they are padded to a multiple of the network's stride, and the output is cropped.

    The supported classes are UNet1DModel (1-D), UNet2DModel (2-D, classes), UNet2DConditionModel (2-D, classes or
    text), UNet3DConditionModel (frames by 2-D) and DiTTransformer2DModel (2-D, classes; grids are padded to squares).
    Missing options are filled in: the channels, the number of classes, the width of text embeddings, and a small
    architecture if `options` do not specify one. U-Nets with cross-attention read one learned token where there is no
    text. Periodic axes are not supported, because these classes treat every axis as having edges.

    Args:
        channels: channels of the data.
        dimensions: number of grid dimensions; it must match the class.
        name: the class's name.
        options: parameters of the class, as in the config.json of a saved model.
        clock: schedule whose times give the timesteps; linear in log-SNR by default.
        scale: number of timesteps from time 0 to time 1 of the clock. By default 1,000, or 5 for the random Fourier
            features of UNet1DModel, which need small numbers.
        offset: timestep at time 0 of the clock. By default 0, or -scale/2 for random Fourier features.
        classes: number of classes, or `None` for a network without classes.
        context: width of text embeddings, or `None` for a network without text; classes and text are mutually
            exclusive.
        out_channels: number of channels of the output; `channels` by default.

    Raises:
        ImportError: If diffusers is not installed.
        ValueError: If the class or an option is unknown, the dimensions do not match the class, or the class does
            not support the condition; from `forward`, if an input has an invalid shape or label.
    """

    def __init__(
        self,
        channels: int,
        dimensions: int,
        name: str = "UNet2DModel",
        options: Mapping[str, Any] | None = None,
        clock: Schedule | None = None,
        scale: float | None = None,
        offset: float | None = None,
        classes: int | None = None,
        context: int | None = None,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        if name not in KINDS:
            raise ValueError(f"cannot use diffusers' {name!r}: choose one of {', '.join(KINDS)}")
        kind = KINDS[name]
        if kind.dimensions != dimensions:
            fitting = [each for each, other in KINDS.items() if other.dimensions == dimensions]
            hint = f"choose {' or '.join(fitting)}" if fitting else "use a network of multisagd.networks"
            raise ValueError(f"{name} is for {kind.dimensions} grid dimensions, but the data have {dimensions}: {hint}")
        given = {"in_channels": channels, **(options or {})}
        self.out_channels = out_channels or channels
        if given.get("out_channels") is None:
            given["out_channels"] = self.out_channels
        if given["in_channels"] != channels or given["out_channels"] < self.out_channels:
            channels_given = f"{given['in_channels']} in and {given['out_channels']} out"
            raise ValueError(
                f"{name}: the options specify {channels_given} channels, but {channels} in and {self.out_channels} out "
                "are needed: remove in_channels and out_channels from the options"
            )
        if unsupported := [option for option in FOREIGN if given.get(option) is not None]:
            raise ValueError(
                f"{name}: {unsupported[0]}={given[unsupported[0]]!r} requires a condition that is not supported here"
            )
        if context is not None and (not kind.text or classes is not None):
            both = "a network supports classes or text, not both: remove classes or context"
            raise ValueError(both if kind.text else f"{name} does not support text: remove text=encoder")
        given, fourier = architecture(name, given), embeds_fourier_features(name, given)
        self.channels, self.dimensions, self.classes = channels, dimensions, None
        if kind.classes is not None:
            self.classes = count_classes(name, kind, given, classes)
        elif classes is not None:
            raise ValueError(f"{name} does not support classes: set training.conditional=false")
        self.null: nn.Parameter | None = None
        self.reads_text = context is not None
        if kind.tokens:
            width = given.setdefault("cross_attention_dim", context or 64)
            if not isinstance(width, int):
                raise ValueError(f"{name}: cross_attention_dim={width!r:.80} must be a single number")
            if width != (context or width):
                raise ValueError(f"{name}: cross_attention_dim={width}, but the text embeddings have width {context}")
            self.null = nn.Parameter(nn.init.normal_(torch.empty(width), std=0.02))
        self.model = build(name, given)
        for module in self.model.modules():
            # diffusers transformers drop classes themselves, with the probability stored here.
            if type(module).__name__ == "LabelEmbedding":
                module.dropout_prob = 0.0  # type: ignore[assignment]
        self.strides, self.square = strides(name, given), name == "DiTTransformer2DModel"
        self.clock = clock or EVEN
        self.scale = scale if scale is not None else 5.0 if fourier else 1000.0
        self.offset = offset if offset is not None else -self.scale / 2 if fourier and scale is None else 0.0

    def forward(self, x: Tensor, log_snr: Tensor, condition: AnyCondition = None) -> Tensor:
        """Return `(batch, out_channels, *grid)` for x `(batch, channels, *grid)` at log-SNRs `(batch,)`."""
        check_input(x, self.channels, self.dimensions)
        if log_snr.shape != x.shape[:1]:
            raise ValueError(f"log_snr must have shape ({len(x)},), got {tuple(log_snr.shape)}")
        inputs: dict[str, Any] = {}
        labels, text, scalars, dense = as_condition(condition, self.classes is not None, self.reads_text)
        other = "scalars" if scalars is not None else "dense condition" if dense is not None else None
        if other is None and text is not None and not self.reads_text:
            other = "text"
        if other is not None:
            raise ValueError(f"this network takes no {other}, but got some: use network=unet or network=transformer")
        if self.classes is not None:
            if labels is None:
                labels = torch.full(log_snr.shape, self.classes, device=x.device)
            check_labels(labels, len(x), self.classes)
            inputs["class_labels"] = labels
        elif labels is not None:
            raise ValueError("this network takes no classes, but got labels: build it with classes")
        if self.null is not None:
            inputs |= self._tokens(text, len(x))
        wide = log_snr.to(torch.promote_types(log_snr.dtype, torch.float32))
        timestep = self.offset + self.scale * self.clock.time(wide)
        padded = pad_to_multiple(x.to(next(self.model.parameters()).dtype), self._multiples(x))
        output = self.model(padded, timestep=timestep, **inputs, return_dict=False)[0]
        return crop(output[:, : self.out_channels], x.shape[2:]).to(x.dtype)

    def called_apart(self) -> list[nn.Module]:
        """Return the modules that the network calls outside its blocks; they are sharded separately."""
        if not self.square:
            return []
        return [self.model.transformer_blocks[0].norm1.emb]  # type: ignore[union-attr, index]

    def _multiples(self, x: Tensor) -> tuple[int, ...]:
        stride = self.strides[0]
        return (-(-max(x.shape[2:]) // stride) * stride,) * self.dimensions if self.square else self.strides

    def _tokens(self, text: Tensor | None, batch: int) -> dict[str, Tensor]:
        """Return the tokens to attend to.

        The learned token is masked out if the prompt has tokens of its own.
        """
        assert self.null is not None
        null = self.null.expand(batch, 1, -1)
        if text is None:
            return {"encoder_hidden_states": null}
        width = self.null.shape[0]
        if text.ndim != 3 or len(text) != batch or text.shape[2] != width or not text.is_floating_point():
            raise ValueError(
                f"condition must be text embeddings, float of shape ({batch}, tokens, {width}); "
                f"got {text.dtype} of shape {tuple(text.shape)}"
            )
        given = (text != 0).any(-1)
        valid = torch.cat([~given.any(1, keepdim=True), given], dim=1)
        return {
            "encoder_hidden_states": torch.cat([null, text.to(null.dtype)], dim=1),
            "encoder_attention_mask": valid,
        }
