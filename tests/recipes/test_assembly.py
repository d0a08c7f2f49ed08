"""An assembly pads the noise as configured, refuses parts that do not fit one another, and notes doubtful ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import multisagd as ms
from modalities.base import Modality
from modalities.image import Image
from modalities.image_sets import Digits
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.assembly import Assembly, check_refinement, process_notes
from recipes.runs.settings import ModelSettings


def assembly(tmp_path: Path, *overrides: str) -> Assembly:
    words = ["modality=video", "modality.frames=4", "modality.size=6", f"run_dir={tmp_path}", *overrides]
    config = configuration.load("train", words)
    modality = Builder().build(config["modality"], Modality, "modality")  # type: ignore[type-abstract]
    statistics = ms.DataStatistics.measure([torch.randn(5, 3, 4, 6, 6)], modality.grid())
    return Assembly(ModelSettings.of(config, Builder()), Builder(), modality, statistics, None)


def test_assembly_pads_the_noise_as_configured(tmp_path: Path) -> None:
    plain = assembly(tmp_path, "spectrum=progressive").process()
    assert type(plain.covariance) is ms.SpectralCovariance
    padded = assembly(tmp_path, "spectrum=progressive", "padding={frame:5}").process()
    assert isinstance(padded.covariance, ms.PaddedCovariance)
    assert padded.covariance.padding == {"frame": 5, "height": 0, "width": 0}
    assert padded.noise((2, 3, 4, 6, 6), [1, 2]).shape == (2, 3, 4, 6, 6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["padding={time:5}"], "padding: the grid has no axis 'time'"),
        (["padding={frame:-1}"], "padding: padding of frame"),
        (["padding={frame:many}"], "padding: padding of frame must be a non-negative integer"),
        (["spectrum=pink", "padding={frame:5}"], "spectrum: the grid has no axis 'time'"),
        (["padding={frame:5}", "loss=mahalanobis"], "cannot be whitened"),
        (["spectrum=pink"], "spectrum: the grid has no axis 'time'"),
    ],
)
def test_assembly_refuses_parts_that_do_not_fit(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        assembly(tmp_path, *words).process()


class Textless(torch.nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()


def test_assembly_refuses_networks_that_do_not_accept_text(tmp_path: Path) -> None:
    made = assembly(tmp_path, "allow_targets=[test_assembly]")
    settings = replace(made.settings, network={"_target_": "test_assembly.Textless"})
    with_text = Assembly(settings, Builder(("test_assembly",)), made.modality, made.statistics, None, context=8)
    with pytest.raises(RecipeError, match="Textless does not accept text"):
        with_text.network()


def test_check_refinement_refuses_one_for_videos_on_images(tmp_path: Path) -> None:
    config = configuration.load("sample", ["refine=free_init", f"run_dir={tmp_path}"])
    refinement = Builder().build(config["refine"], ms.Refinement, "refine")
    check_refinement(refinement, assembly(tmp_path).modality.grid())
    with pytest.raises(RecipeError, match="refine: the grid has no axis 'frame'"):
        check_refinement(refinement, Image().grid())


def test_process_notes_mention_estimates_that_are_doubtful_at_pure_noise() -> None:
    digits = Digits(Image(size=16, channels=1))
    grid = digits.modality.grid()
    statistics = ms.DataStatistics.measure([digits.batch(range(500)).x0], grid)
    for schedule, prediction, noted in (
        (ms.KarrasSchedule(), "v", "sigma=80"),
        (ms.CosineSchedule(), "noise", "log-SNR of -20"),
        (ms.CosineSchedule(log_snr_range=(-10.0, 20.0)), "noise", None),
        (ms.FlowSchedule(), "v", None),
        (ms.CosineSchedule(), "v", None),
    ):
        process = ms.Process(schedule, ms.SpectralCovariance(ms.Flat(), grid))
        plain = ms.Denoiser(torch.nn.Identity(), process, prediction)  # type: ignore[arg-type]
        notes = [note for note in process_notes(process, plain, statistics) if "denoiser=" in note]
        assert len(notes) == (noted is not None), schedule
        assert noted is None or noted in notes[0]
        karras = ms.Denoiser(torch.nn.Identity(), process, preconditioning="karras", statistics=statistics)
        assert not [note for note in process_notes(process, karras, statistics) if "denoiser=" in note], schedule
    for corner in (None, 1 / 16):
        covariance = ms.SpectralCovariance(ms.PowerLaw(exponent=-1.0, corner=corner), grid)
        process = ms.Process(ms.CosineSchedule(), covariance)
        notes = process_notes(process, ms.Denoiser(torch.nn.Identity(), process), statistics)
        assert any("zero frequency" in note for note in notes) == (corner is None), corner
