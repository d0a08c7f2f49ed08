"""The table of metrics of `multisagd evaluate`.

It imports nothing from recipes: functions are given by name and imported when they are used. Listing the metrics is
therefore fast, and a missing library affects only the metrics that need it.
"""

from dataclasses import dataclass

FEATURES, SPECTRA = "recipes.evaluation.features", "recipes.evaluation.spectra"
PRETRAINED, FIELDS = "recipes.evaluation.pretrained", "recipes.evaluation.fields"


@dataclass(frozen=True)
class Metric:
    """A metric of `multisagd evaluate`.

    `compute`, in the form `module:function`, takes a `Task` and returns a `Result`. `unavailable_reason`, in the same
    form, takes the training data and the settings, and returns why the metric is unavailable or None; metrics that are
    always available have "" instead. `library` is a module that only this metric needs, or "". A metric of `ensembles`
    compares several samples for each of some held-out examples with that example, instead of sets with sets.
    """

    description: str
    compute: str
    unavailable_reason: str = ""
    library: str = ""
    ensembles: bool = False


METRICS = {
    "classifier": Metric(
        "features of a classifier trained on the data",
        f"{FEATURES}:classifier_features", f"{FEATURES}:classes_unavailable",
    ),
    "inception": Metric(
        "features of FID's Inception network", f"{PRETRAINED}:inception", f"{PRETRAINED}:inception_unavailable",
        "torch_fidelity.feature_extractor_inceptionv3",
    ),
    "vggish": Metric(
        "features of VGGish", f"{PRETRAINED}:vggish", f"{PRETRAINED}:vggish_unavailable", "torchaudio.functional"
    ),
    "r3d": Metric(
        "features of the video network R3D-18", f"{PRETRAINED}:r3d", f"{PRETRAINED}:r3d_unavailable",
        "torchvision.models.video",
    ),
    "components": Metric(
        "principal components of the data", f"{FEATURES}:principal_components", library="sklearn.decomposition"
    ),
    "sliced": Metric("random projections of the data", f"{FEATURES}:sliced"),
    "spectrum": Metric("power spectrum", f"{SPECTRA}:spectrum"),
    "axes": Metric("differences between neighbours, and power in bands, along every axis", f"{SPECTRA}:axes"),
    "bands": Metric(
        "how well samples and data can be distinguished in each band", f"{SPECTRA}:band_tests",
        library="sklearn.linear_model",
    ),
    "rings": Metric(
        "power of every variable in every ring of frequency", f"{FIELDS}:rings", f"{FIELDS}:variables_unavailable"
    ),
    "distribution": Metric(
        "distribution of the values of every variable, and of differences between neighbours",
        f"{FIELDS}:distribution", f"{FIELDS}:variables_unavailable",
    ),
    "increments": Metric(
        "structure functions of every variable along every axis", f"{FIELDS}:increments",
        f"{FIELDS}:variables_unavailable",
    ),
    "coherence": Metric(
        "correlation between variables in every frequency band", f"{FIELDS}:coherence",
        f"{FIELDS}:coherence_unavailable",
    ),
    "classes": Metric(
        "classes predicted by the same classifier", f"{FEATURES}:classes", f"{FEATURES}:classes_unavailable"
    ),
    "neighbours": Metric("nearest training examples", "recipes.evaluation.neighbours:neighbours"),
    "likelihood": Metric(
        "bits per dimension of held-out data", "recipes.evaluation.likelihood:likelihood",
        "recipes.evaluation.likelihood:likelihood_unavailable",
    ),
    "ensemble": Metric(
        "several samples for each of some dense conditions, compared with the truth",
        "recipes.evaluation.ensemble:ensemble", "recipes.evaluation.ensemble:ensemble_unavailable", ensembles=True,
    ),
    "log_spectral_distance": Metric(
        "distance of a vocoder's samples from the recordings, over time and frequency",
        "recipes.evaluation.vocoder:distance", "recipes.evaluation.vocoder:distance_unavailable",
        "torchaudio.functional", ensembles=True,
    ),
}  # fmt: skip
"""The metrics for `metrics=[…]`, in the order of computation."""
