"""diffusers' UNet2DModel, trained by its loop and sampled by its schedulers, for `benchmarks.search`.

Data, their order, batches, labels and label dropout are those of our own training; network, noise, loss, optimiser,
average of weights and samplers are diffusers'. The network has about as many parameters as ours, attention at the
coarsest level, and one more class, which means no class.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from omegaconf import OmegaConf
from torch import Tensor, nn

from benchmarks.peers.diffusers_loop import TIMESTEPS, DiffusersLoop, Guided, Peer, draw
from benchmarks.peers.setting import Setting
from benchmarks.runs import Run, train_run
from multisagd.seeds import derive, derive_many
from recipes.base.errors import RecipeError
from recipes.config.build import Builder

BATCH = 100
"""Number of samples drawn at a time."""


@dataclass(frozen=True)
class UNet2D(Peer):
    """A recipe for UNet2DModel and its training; the defaults are those of diffusers' `train_unconditional` example.

    That example is run with `--use_ema` and our batch size. `channels` are those of each level, finest first, and
    `layers` is the number of residual layers per level.
    """

    average: Literal["power", "example"] = "example"
    channels: tuple[int, ...] = (32, 40, 40)
    layers: int = 1
    batch: int = 32

    @classmethod
    def of(cls, words: Iterable[str]) -> UNet2D:
        """Return the recipe with these changes, such as `learning_rate=1e-3`. Raises RecipeError if one is invalid."""
        return Builder().settings(cls, OmegaConf.to_container(OmegaConf.from_dotlist(list(words))), "UNet2D")  # type: ignore[arg-type]

    def levels(self) -> Tensor:
        """Return what the network receives at every timestep: its number."""
        return torch.arange(TIMESTEPS)

    def network(self, setting: Setting) -> Labelled:
        """Return the network for the data of a run, with initial weights that its seed determines."""
        count, coarser = setting.data.modality.tensor_shape[0], len(self.channels) - 1
        classes = None if setting.null_label is None else setting.null_label + 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(setting.settings.seed, "unet2d"))
            network = UNet2DModel(
                in_channels=count, out_channels=count, block_out_channels=self.channels, layers_per_block=self.layers,
                down_block_types=("DownBlock2D",) * coarser + ("AttnDownBlock2D",),
                up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * coarser,
                norm_num_groups=8, num_class_embeds=classes,
            )  # fmt: skip
        return Labelled(network.to(setting.runtime.device))


class Labelled(nn.Module):
    """A UNet2DModel that is called as our networks are: `network(x, timesteps, labels)`."""

    def __init__(self, network: UNet2DModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """Return the prediction, in the shape of x."""
        made: Tensor = self.network(x, timesteps, class_labels=labels, return_dict=False)[0]
        return made


@dataclass(frozen=True)
class TrainedUNet2D:
    """A trained network, and a run of ours for its data, initial noise and judgement."""

    recipe: UNet2D
    network: nn.Module
    null_label: int | None
    run: Run
    seconds: float
    samples: int

    @classmethod
    def train(
        cls, folder: Path, arguments: list[str], words: Iterable[str], reference: int, threads: int | None
    ) -> TrainedUNet2D:
        """Train on the data of `multisagd train ARGUMENTS` with the recipe that `words` change."""
        recipe = UNet2D.of(words)
        arguments = [*arguments, f"training.batch={recipe.batch}"]
        # One step of our own training creates a run with the same data, statistics and classifier.
        train_run(folder, [*arguments, f"training.samples={recipe.batch}"])
        setting = Setting.of(arguments, threads)
        started = time.monotonic()
        training, seed = setting.settings.training, setting.settings.seed
        loop = DiffusersLoop(recipe.network(setting), recipe, training, setting.null_label, seed)
        for batch in setting.batches():
            loop.step(batch)
        seconds, samples = time.monotonic() - started, loop.steps * recipe.batch
        run = Run.load(folder, reference, threads)
        return cls(recipe, loop.average.module, setting.null_label, run, seconds, samples)

    def draw(self, described: Mapping[str, Any], seed: int, count: int) -> Tensor:
        """Draw samples as described in a search, from the noise from which ours start.

        Raises:
            RecipeError: If guidance is requested without classes.
        """
        network, guidance = self.network, described.get("guidance", 1.0)
        if guidance != 1:
            if self.null_label is None:
                raise RecipeError("guidance needs classes, but these data have none: remove guidance from the sampler")
            network = Guided(network, guidance, self.null_label)
        scheduler = self.recipe.sampler(described["sampler"], described.get("options"))
        shape = (count, self.run.statistics.mean.shape[0], *self.run.statistics.grid.shape)
        initial = self.run.denoiser.process.noise(shape, derive_many(seed, "sample", 0, range(count)))
        generator = torch.Generator().manual_seed(derive(seed, "unet2d/steps"))
        labels, steps = self.run.labels(count), described["steps"]
        return draw(network, scheduler, initial, labels, steps, BATCH, self.recipe.levels(), generator)

    def values(self) -> dict[str, Any]:
        """Return what a row states about training."""
        parameters = sum(each.numel() for each in self.network.parameters())
        return {"training_seconds": self.seconds, "parameters": parameters, "samples_seen": self.samples}
