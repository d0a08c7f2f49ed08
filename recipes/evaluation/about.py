"""What each kind of metric is about, apart from what computes it, so that it can be listed without importing that."""

from __future__ import annotations

ABOUT = {
    "classifier": "features of a classifier trained on the data",
    "inception": "features of FID's Inception network",
    "vggish": "features of VGGish",
    "r3d": "features of the video network R3D-18",
    "components": "principal components of the data",
    "sliced": "random lines through the data",
    "spectrum": "power spectrum",
    "bands": "samples told from data by one band",
    "classes": "classes, by that classifier",
    "neighbours": "nearest training examples",
    "likelihood": "bits per dimension of held-out data",
}
"""What can be named in `metrics=[…]` of `multisagd evaluate`."""
