"""How padding and refinement come from a configuration to the noise, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modalities.base import Modality
from modalities.image import Image
from multisagd import DataStatistics, PaddedCovariance, Refinement, SpectralCovariance
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.assembly import Assembly, check_refinement
from recipes.runs.settings import ModelSettings


def assembly(tmp_path: Path, *overrides: str) -> Assembly:
    words = ["modality=video", "modality.frames=4", "modality.size=6", f"run_dir={tmp_path}", *overrides]
    config = configuration.load("train", words)
    modality = Builder().build(config["modality"], Modality, "modality")  # type: ignore[type-abstract]
    statistics = DataStatistics.measure([torch.randn(5, 3, 4, 6, 6)], modality.grid())
    return Assembly(ModelSettings.of(config, Builder()), Builder(), modality, statistics, None)


def test_padding_reaches_the_noise(tmp_path: Path) -> None:
    plain = assembly(tmp_path, "spectrum=progressive").process()
    assert type(plain.covariance) is SpectralCovariance
    padded = assembly(tmp_path, "spectrum=progressive", "padding={frame:5}").process()
    assert isinstance(padded.covariance, PaddedCovariance)
    assert padded.covariance.padding == {"frame": 5, "height": 0, "width": 0}
    assert padded.noise((2, 3, 4, 6, 6), [1, 2]).shape == (2, 3, 4, 6, 6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["padding={time:5}"], "padding: the grid has no axis 'time'"),
        (["padding={frame:-1}"], "padding: padding of frame"),
        (
            ["padding={frame:many}"],
            "padding: padding of frame must be a whole number of samples of at least 0, got 'many'",
        ),
        (["spectrum=pink", "padding={frame:5}"], "spectrum: the grid has no axis 'time'"),
        (["padding={frame:5}", "loss=mahalanobis"], "cannot be whitened"),
        (["spectrum=pink"], "spectrum: the grid has no axis 'time'"),
    ],
    ids=["axis", "negative", "text", "spectrum and padding", "loss", "spectrum of another medium"],
)
def test_what_cannot_be_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        assembly(tmp_path, *words).process()


def test_a_refinement_for_videos_is_refused_for_images(tmp_path: Path) -> None:
    config = configuration.load("sample", ["refine=free_init", f"run_dir={tmp_path}"])
    refinement = Builder().build(config["refine"], Refinement, "refine")
    check_refinement(refinement, assembly(tmp_path).modality.grid())
    with pytest.raises(RecipeError, match="refine: the grid has no axis 'frame'"):
        check_refinement(refinement, Image().grid())


class Deaf(torch.nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()


def test_a_network_without_ears_for_texts_is_refused(tmp_path: Path) -> None:
    made = assembly(tmp_path, "allow_targets=[test_assemble]")
    settings = replace(made.settings, network={"_target_": "test_assemble.Deaf"})
    told = Assembly(settings, Builder(("test_assemble",)), made.modality, made.statistics, None, context=8)
    with pytest.raises(RecipeError, match="Deaf does not accept text"):
        told.network()
