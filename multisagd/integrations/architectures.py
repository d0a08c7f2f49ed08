"""List the supported diffusers network classes, and complete their options with defaults.

diffusers' own defaults give large models with hundreds of millions of parameters. The defaults here are small, and
remain consistent with each other if only some options are given.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from multisagd.libraries import importing


@dataclass(frozen=True)
class Architecture:
    """Properties of a diffusers network class.

    `dimensions` is the number of grid dimensions, `classes` the option that sets the number of classes, and
    `counts_null` whether that number includes "no class". `tokens` is whether the network attends to tokens, and `text`
    whether these may be text tokens, which need a mask.
    """

    dimensions: int
    classes: str | None = None
    counts_null: bool = True
    tokens: bool = False
    text: bool = False


KINDS = {
    "UNet1DModel": Architecture(1),
    "UNet2DModel": Architecture(2, "num_class_embeds"),
    "UNet2DConditionModel": Architecture(2, "num_class_embeds", tokens=True, text=True),
    "UNet3DConditionModel": Architecture(3, tokens=True),
    "DiTTransformer2DModel": Architecture(2, "num_embeds_ada_norm", counts_null=False),
}
"""Supported classes: they need no inputs other than the ones that this project's networks receive."""

FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Current names of diffusers' attention layers, by their names before 2023, which classes in `NAMES_KEPT` still use."""

NAMES_KEPT = ("UNet1DModel",)

FOREIGN = ("class_embed_type", "addition_embed_type", "encoder_hid_dim", "encoder_hid_dim_type")
"""Options that make a diffusers network require further inputs."""


def defaults(name: str) -> dict[str, Any]:
    """Return the default values of a class's options in diffusers, as JSON values.

    Raises:
        ImportError: If diffusers is not installed.
    """
    known = inspect.signature(_class_of(name)).parameters.values()
    defaults = {each.name: each.default for each in known if each.default is not each.empty}
    return {option: list(value) if isinstance(value, tuple) else value for option, value in defaults.items()}


def embeds_fourier_features(name: str, options: Mapping[str, Any]) -> bool:
    """Whether the network embeds the timestep with random Fourier features.

    Raises:
        ValueError: If the network accepts integer timesteps only.
    """
    kind = options.get("time_embedding_type", "fourier" if name == "UNet1DModel" else "positional")
    if name == "UNet2DModel" and kind != "positional":
        # With other types it divides its output by the timestep, or looks the timestep up in a table.
        raise ValueError(
            f"{name}: time_embedding_type={kind!r} accepts only integer timesteps: use time_embedding_type=positional"
        )
    return bool(kind == "fourier")


def architecture(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options, completed to a small architecture with attention at the coarsest level.

    Raises:
        ValueError: If the widths are invalid.
    """
    given = dict(options)
    if name == "DiTTransformer2DModel":
        small = {"num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 6, "norm_num_groups": 1}
        return {**small, **given}
    widths = given.setdefault("block_out_channels", [32, 64, 64])
    if not isinstance(widths, list | tuple) or not widths or not all(type(each) is int and each > 0 for each in widths):
        raise ValueError(f"{name}: block_out_channels={widths!r:.80} must be a list with the width of each level")
    finer = len(widths) - 1
    if name == "UNet1DModel":
        given.setdefault("down_block_types", ["DownBlock1DNoSkip", *["DownBlock1D"] * (finer - 1), "AttnDownBlock1D"])
        given.setdefault("up_block_types", ["AttnUpBlock1D", *["UpBlock1D"] * (finer - 1), "UpBlock1DNoSkip"])
        if not given.get("use_timestep_embedding"):
            # The first block takes the time features as additional channels of the input.
            fourier = given.get("time_embedding_dim") or 2 * widths[0]
            given.setdefault("extra_in_channels", fourier if embeds_fourier_features(name, given) else widths[0])
        return given
    down, up, attentive = {
        "UNet2DModel": ("DownBlock2D", "UpBlock2D", "Attn"),
        "UNet2DConditionModel": ("DownBlock2D", "UpBlock2D", "CrossAttn"),
        "UNet3DConditionModel": ("DownBlock3D", "UpBlock3D", "CrossAttn"),
    }[name]
    given.setdefault("down_block_types", [*[down] * finer, attentive + down])
    given.setdefault("up_block_types", [attentive + up, *[up] * finer])
    given.setdefault("attention_head_dim", 8 if name != "UNet3DConditionModel" else 16)
    # diffusers adds the time features to each channel and then normalises groups of channels. In groups of one channel
    # (its default of 32 groups, with 32 channels) the normalisation would remove them again.
    maximum = max(1, min(32, min(widths) // 4))
    given.setdefault("norm_num_groups", max(n for n in range(1, maximum + 1) if all(w % n == 0 for w in widths)))
    return given


def count_classes(name: str, kind: Architecture, given: dict[str, Any], classes: int | None) -> int | None:
    """Set the number of classes in the options and return it; return None if the network has no classes."""
    assert kind.classes is not None
    null = 1 if kind.counts_null else 0
    fixed = given.get(kind.classes)
    if fixed is None:
        if classes is None and kind.counts_null:
            return None
        given[kind.classes] = (classes or 1) + null
        return classes or 1
    if classes is not None and classes + null != fixed:
        raise ValueError(
            f"{name}: {kind.classes}={fixed} means {fixed - null} classes{' and the null class' * null}, but the data "
            f"have {classes}: change one of them, or train without classes (training.conditional=false)"
        )
    return int(fixed) - null


def add_null_class(name: str, options: dict[str, Any]) -> str | None:
    """Add the class "no class" to the number of classes; return the name of the weight that needs one more row.

    Return None, and leave the options unchanged, if the class or the options have no classes.
    """
    kind = KINDS[name]
    if kind.classes is None or not kind.counts_null or not isinstance(options.get(kind.classes), int):
        return None
    options[kind.classes] += 1
    return "class_embedding.weight"


def current_name(name: str, weight: str) -> str:
    """Return diffusers' current name of a weight of the class `name`, for models that were saved with an old name."""
    parts = weight.rsplit(".", 2)
    if name not in NAMES_KEPT and len(parts) == 3 and parts[1] in FORMER and "attentions" in weight:
        return f"{parts[0]}.{FORMER[parts[1]]}.{parts[2]}"
    return weight


def strides(name: str, given: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the stride of each axis; the network requires sizes that are multiples of it."""
    if name == "DiTTransformer2DModel":
        return (given.get("patch_size", 2),) * 2
    levels = len(given["block_out_channels"])
    if name == "UNet1DModel":
        return (2**levels,)  # the middle block is one level deeper
    return {2: (), 3: (1,)}[KINDS[name].dimensions] + (2 ** (levels - 1),) * 2


def build(name: str, given: Mapping[str, Any]) -> nn.Module:
    """Build a network of the diffusers class `name`, one of `KINDS`.

    Raises:
        ImportError: If diffusers is not installed.
        ValueError: If the class does not have one of the options, or cannot be built with them.
    """
    kind = _class_of(name)
    known = inspect.signature(kind).parameters
    if unknown := [option for option in given if option not in known]:
        raise ValueError(f"{name} has no option {unknown[0]!r}; it has {', '.join(known)}")
    try:
        return kind(**given)
    except (AttributeError, KeyError, IndexError, NameError, RuntimeError) as error:
        # diffusers checks few options; other invalid options fail wherever they are used.
        raise ValueError(f"{name} cannot be built with these options ({error!r:.200})") from error


def _class_of(name: str) -> type[nn.Module]:
    with importing("diffusers", "diffusers networks"):
        import diffusers  # takes seconds

        kind: type[nn.Module] = getattr(diffusers, name)  # imports more modules
    return kind
