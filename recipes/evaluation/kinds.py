"""The kinds of metrics that `multisagd evaluate` knows: what each needs, and what computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from modalities.base import Dataset
from recipes.evaluation import likelihood, pretrained
from recipes.evaluation.about import ABOUT
from recipes.evaluation.classes import classes
from recipes.evaluation.features import classifier_features, principal_components, sliced
from recipes.evaluation.neighbours import neighbours
from recipes.evaluation.rows import Result
from recipes.evaluation.spectra import band_tests, spectrum
from recipes.evaluation.task import EvaluateSettings, Task

INCEPTION = "torch_fidelity.feature_extractor_inceptionv3"


def _needs_classes(train: Dataset, settings: EvaluateSettings) -> str | None:
    return "the data have no classes to train a classifier on" if train.classes is None else None


def _needs_nothing(train: Dataset, settings: EvaluateSettings) -> str | None:
    return None


@dataclass(frozen=True)
class Kind:
    """One kind of metric: what it is about, why it cannot be had (None: it can), and how it is computed.

    `module` is that of a library that it alone needs, "" for none.
    """

    about: str
    lacking: Callable[[Dataset, EvaluateSettings], str | None]
    run: Callable[[Task], Result]
    module: str = ""


KINDS = {
    "classifier": Kind(ABOUT["classifier"], _needs_classes, classifier_features),
    "inception": Kind(ABOUT["inception"], pretrained.lacking("inception"), pretrained.inception_features, INCEPTION),
    "vggish": Kind(ABOUT["vggish"], pretrained.lacking("vggish"), pretrained.vggish_features, "torchaudio.functional"),
    "r3d": Kind(ABOUT["r3d"], pretrained.lacking("r3d"), pretrained.r3d_features, "torchvision.models.video"),
    "components": Kind(ABOUT["components"], _needs_nothing, principal_components, "sklearn.decomposition"),
    "sliced": Kind(ABOUT["sliced"], _needs_nothing, sliced),
    "spectrum": Kind(ABOUT["spectrum"], _needs_nothing, spectrum),
    "bands": Kind(ABOUT["bands"], _needs_nothing, band_tests, "sklearn.linear_model"),
    "classes": Kind(ABOUT["classes"], _needs_classes, classes),
    "neighbours": Kind(ABOUT["neighbours"], _needs_nothing, neighbours),
    "likelihood": Kind(ABOUT["likelihood"], likelihood.lacking, likelihood.likelihood),
}
"""What can be named in `metrics=[…]`."""
