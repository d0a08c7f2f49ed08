"""The classes of the diffusers library that serve as networks here, and what of their options is left open.

diffusers' own defaults are the models that its classes were first made for, hundreds of millions of parameters. Here
they are small, and fit one another when only some are given.
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
    """A class of diffusers: grid dimensions, the option that counts its classes, whether that counts "no class" too.

    `tokens` tells whether it attends to tokens, and `text` whether these may be a text's: that needs a mask.
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
"""What is supported: classes that are told nothing beyond what a network here is told."""

FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What diffusers called the parts of attention before 2023, and what it calls them now, except in `NAMES_KEPT`."""

NAMES_KEPT = ("UNet1DModel",)

FOREIGN = ("class_embed_type", "addition_embed_type", "encoder_hid_dim", "encoder_hid_dim_type")
"""Options by which a network of diffusers asks for more than that."""


def defaults(name: str) -> dict[str, Any]:
    """Return what diffusers takes for the options of a class that are not told, as JSON would hold it.

    Raises:
        ImportError: without diffusers.
    """
    known = inspect.signature(_found(name)).parameters.values()
    told = {each.name: each.default for each in known if each.default is not each.empty}
    return {option: list(value) if isinstance(value, tuple) else value for option, value in told.items()}


def embeds_fourier_features(name: str, options: Mapping[str, Any]) -> bool:
    """Tell whether a network is told its timestep by random Fourier features.

    Raises:
        ValueError: if it takes something else than timesteps.
    """
    kind = options.get("time_embedding_type", "fourier" if name == "UNet1DModel" else "positional")
    if name == "UNet2DModel" and kind != "positional":
        # It divides its output by what it is told, or looks it up in a table.
        raise ValueError(f"{name}: time_embedding_type={kind!r} takes no timesteps between whole ones: use positional")
    return bool(kind == "fourier")


def architecture(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with a small architecture where they leave it open, with attention at the coarsest level.

    Raises:
        ValueError: for widths that are none.
    """
    given = dict(options)
    if name == "DiTTransformer2DModel":
        small = {"num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 6, "norm_num_groups": 1}
        return {**small, **given}
    widths = given.setdefault("block_out_channels", [32, 64, 64])
    if not isinstance(widths, list | tuple) or not widths or not all(type(each) is int and each > 0 for each in widths):
        raise ValueError(f"{name}: block_out_channels={widths!r:.80} must list the width of each level")
    finer = len(widths) - 1
    if name == "UNet1DModel":
        given.setdefault("down_block_types", ["DownBlock1DNoSkip", *["DownBlock1D"] * (finer - 1), "AttnDownBlock1D"])
        given.setdefault("up_block_types", ["AttnUpBlock1D", *["UpBlock1D"] * (finer - 1), "UpBlock1DNoSkip"])
        if not given.get("use_timestep_embedding"):
            # Its first block reads the features of time as further channels of the datum.
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
    # diffusers adds the features of time to each channel and normalises next: in groups of one channel, which its
    # default of 32 makes of 32 channels, that would take them away again.
    most = max(1, min(32, min(widths) // 4))
    given.setdefault("norm_num_groups", max(n for n in range(1, most + 1) if all(w % n == 0 for w in widths)))
    return given


def count_classes(name: str, kind: Architecture, given: dict[str, Any], classes: int | None) -> int | None:
    """Return how many classes the network knows, and let the options say so; None if it knows none."""
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
            f"{name}: {kind.classes}={fixed} are {fixed - null} classes{' and that of none' * null}, and the data have "
            f"{classes}: change the one or the other, or train without classes (training.conditional=false)"
        )
    return int(fixed) - null


def add_null_class(name: str, options: dict[str, Any]) -> str | None:
    """Count "no class" among the classes of the options; return the weight that then needs one row more.

    None, with the options as they were, for a class of diffusers or options without classes.
    """
    kind = KINDS[name]
    if kind.classes is None or not kind.counts_null or not isinstance(options.get(kind.classes), int):
        return None
    options[kind.classes] += 1
    return "class_embedding.weight"


def current_name(name: str, weight: str) -> str:
    """Return what diffusers calls a weight of the class `name` now, where a model was saved with a former name."""
    parts = weight.rsplit(".", 2)
    if name not in NAMES_KEPT and len(parts) == 3 and parts[1] in FORMER and "attentions" in weight:
        return f"{parts[0]}.{FORMER[parts[1]]}.{parts[2]}"
    return weight


def strides(name: str, given: Mapping[str, Any]) -> tuple[int, ...]:
    """Return what the size of each axis must be a multiple of."""
    if name == "DiTTransformer2DModel":
        return (given.get("patch_size", 2),) * 2
    levels = len(given["block_out_channels"])
    if name == "UNet1DModel":
        return (2**levels,)  # its middle goes one level deeper
    return {2: (), 3: (1,)}[KINDS[name].dimensions] + (2 ** (levels - 1),) * 2


def build(name: str, given: Mapping[str, Any]) -> nn.Module:
    """Return a network of the class of this name, which is one of `KINDS`.

    Raises:
        ImportError: without diffusers.
        ValueError: for options that the class does not have, or of which it makes nothing.
    """
    found = _found(name)
    known = inspect.signature(found).parameters
    if unknown := [option for option in given if option not in known]:
        raise ValueError(f"{name} has no option {unknown[0]!r}; it has {', '.join(known)}")
    try:
        return found(**given)
    except (AttributeError, KeyError, IndexError, NameError, RuntimeError) as error:
        # diffusers checks few of its options, and stumbles over the others wherever they are used.
        raise ValueError(f"{name} cannot be built with these options ({error!r:.200})") from error


def _found(name: str) -> type[nn.Module]:
    with importing("diffusers", "networks of diffusers"):
        import diffusers  # takes seconds

        found: type[nn.Module] = getattr(diffusers, name)  # and imports more
    return found
