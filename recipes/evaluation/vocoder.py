"""Judge vocoders: how far their samples are from the recordings whose mel spectrograms they were drawn with."""

import torch
from torch import Tensor

from modalities.audio import Audio
from modalities.base import Dataset, Modality
from modalities.mel_condition import MelSpectrogram
from multisagd.metrics.bootstrap import bootstrap_error
from multisagd.metrics.log_spectral import log_spectral_distance
from recipes.config.build import Builder
from recipes.evaluation.ensemble import ensemble_unavailable
from recipes.evaluation.members import read_ensemble
from recipes.evaluation.task import EvaluateSettings, Result, Row, Task
from recipes.runs.assembly import build_derived_condition
from recipes.runs.run import Run


def condition_of(settings: EvaluateSettings, modality: Modality) -> MelSpectrogram | None:
    """Return the mel spectrogram with which a run was trained, or None if it has another condition or none.

    Raises RecipeError if the condition of the run's configuration cannot be built.
    """
    group = Run(settings.run_dir).config.get("condition") or {}
    derived = build_derived_condition(group, modality, Builder(settings.allow_targets).of_a_run())
    return derived if isinstance(derived, MelSpectrogram) else None


def distance_unavailable(train: Dataset, settings: EvaluateSettings) -> str | None:
    """Return why the log-spectral distance is unavailable, or None if it is available."""
    if condition_of(settings, train.modality) is None:
        return "the run is not a vocoder: it is not conditioned on mel spectrograms (condition=mel)"
    return ensemble_unavailable(train, settings)


def distance(task: Task) -> Result:
    """Return the log-spectral distance of samples, and that of Griffin-Lim, from the recordings of their condition.

    Raises:
        ValueError: If every recording is silent, or shorter than a window.
    """
    made, condition = read_ensemble(task), condition_of(task.settings, task.modality)
    assert condition is not None

    def distances(x0: Tensor) -> Tensor:
        """Return the distance of every item (items,) in dB; outside of short recordings, both are silent."""
        sounds, recordings = (sounds_of(task.modality, each, made.valid) for each in (x0, made.truth))
        return log_spectral_distance(sounds, recordings, condition.window, condition.hop)

    names = {"samples": torch.stack([distances(each) for each in made.members]).mean(0),
             made.plain_name: distances(made.plain)}  # fmt: skip
    audible = ~names["samples"].isnan()
    if not bool(audible.any()):
        raise ValueError("every recording is silent, so there is nothing to compare")
    names = {name: values[audible] for name, values in names.items()}
    rows = [distance_row(f"distance of {name}", values, task.settings.bootstrap) for name, values in names.items()]
    note = (
        f"log_spectral_distance: of {int(audible.sum())} held-out recordings, with {len(made.members)} samples for "
        f"each; {made.plain_name} has 32 iterations and starts from the same mel spectrograms; ± is a standard error "
        "over recordings; independent stretches of the same noise are 7.9 dB apart"
    )
    return Result(tuple(rows), {name: values.tolist() for name, values in names.items()}, (note,))


def sounds_of(modality: Modality, x0: Tensor, valid: Tensor | None) -> Tensor:
    """Return the sounds (items, channels, samples) of encoded items, silent where the recordings have no values."""
    kept = x0 if valid is None else x0.where(valid, 0.0)
    assert isinstance(modality, Audio)
    return torch.stack([modality.decode(each) for each in kept])


def distance_row(name: str, values: Tensor, resamples: int) -> Row:
    """Return the row of the mean of some values (items,) in dB, with its standard error over items."""
    error = bootstrap_error(lambda items, _: float(values[items].mean()), [len(values)], resamples)
    return Row(name, float(values.mean()), error, unit="dB")
