"""Use multisagd with other libraries: coloured noise in diffusers, and this project's models with diffusers samplers.

Importing this package imports no other library. Import it before loading a saved scheduler with coloured noise by
diffusers' `from_pretrained`.
"""

from multisagd.integrations.karras import KarrasDenoiser
from multisagd.integrations.pipelines import shape_pipeline
from multisagd.integrations.scheduled import ScheduledDenoiser
from multisagd.integrations.schedulers import shape_scheduler
from multisagd.integrations.shaped_noise import ShapedNoise

__all__ = ["KarrasDenoiser", "ScheduledDenoiser", "ShapedNoise", "shape_pipeline", "shape_scheduler"]
