"""Autoencoders of diffusers with a few thousand random weights, saved in a folder as a pretrained one would be."""

from pathlib import Path
from typing import Any

import torch

BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
KL = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, **BLOCKS}
OPTIONS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {**KL, "latent_channels": 4},
    "VQModel": {**KL, "latent_channels": 3, "num_vq_embeddings": 16},
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1),
    },
    "AutoencoderKLTemporalDecoder": {
        "block_out_channels": (32, 32), "layers_per_block": 1, "down_block_types": BLOCKS["down_block_types"],
    },
    "AutoencoderKLWan": {
        "base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [True, True],
        "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4,
    },
    "AutoencoderKLCogVideoX": {
        "block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4,
    },
    "AutoencoderOobleck": {
        "encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "channel_multiples": [1, 2], "decoder_channels": 8,
        "decoder_input_channels": 4, "audio_channels": 2,
    },
}  # fmt: skip


def save_tiny(kind: str, folder: Path, seed: int = 0, **more: Any) -> str:
    """Save a random autoencoder of a kind and return its folder."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        getattr(diffusers, kind)(**{**OPTIONS[kind], **more}).save_pretrained(folder)
    return str(folder)
