"""The kinds of metrics that `multisagd evaluate` knows, in one table.

A leaf: what computes them is named, and imported when it is asked for, so that the list of them appears at once and a
library that one metric needs is missed by that metric only.
"""

from dataclasses import dataclass

FEATURES, SPECTRA = "recipes.evaluation.features", "recipes.evaluation.spectra"
PRETRAINED = "recipes.evaluation.pretrained"


@dataclass(frozen=True)
class Metric:
    """One kind of metric.

    `compute`, written `module:function`, takes a `Task` and returns a `Result`. `lacking`, written alike, takes the
    training data and the settings and returns why the metric cannot be had, None if it can; "" where it always can.
    `library` is a module that this metric alone needs, "" for none.
    """

    about: str
    compute: str
    lacking: str = ""
    library: str = ""


METRICS = {
    "classifier": Metric(
        "features of a classifier trained on the data", f"{FEATURES}:classifier_features", f"{FEATURES}:lacks_classes"
    ),
    "inception": Metric(
        "features of FID's Inception network", f"{PRETRAINED}:inception", f"{PRETRAINED}:lacks_inception",
        "torch_fidelity.feature_extractor_inceptionv3",
    ),
    "vggish": Metric(
        "features of VGGish", f"{PRETRAINED}:vggish", f"{PRETRAINED}:lacks_vggish", "torchaudio.functional"
    ),
    "r3d": Metric(
        "features of the video network R3D-18", f"{PRETRAINED}:r3d", f"{PRETRAINED}:lacks_r3d",
        "torchvision.models.video",
    ),
    "components": Metric(
        "principal components of the data", f"{FEATURES}:principal_components", library="sklearn.decomposition"
    ),
    "sliced": Metric("random lines through the data", f"{FEATURES}:sliced"),
    "spectrum": Metric("power spectrum", f"{SPECTRA}:spectrum"),
    "axes": Metric("neighbours, and power in bands, along every axis", f"{SPECTRA}:axes"),
    "bands": Metric("samples told from data by one band", f"{SPECTRA}:band_tests", library="sklearn.linear_model"),
    "classes": Metric("classes, by that classifier", f"{FEATURES}:classes", f"{FEATURES}:lacks_classes"),
    "neighbours": Metric("nearest training examples", "recipes.evaluation.neighbours:neighbours"),
    "likelihood": Metric(
        "bits per dimension of held-out data", "recipes.evaluation.likelihood:likelihood",
        "recipes.evaluation.likelihood:lacks_likelihood",
    ),
}  # fmt: skip
"""What can be named in `metrics=[…]`, in the order in which they are computed."""
