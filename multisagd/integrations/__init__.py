"""multisagd beside other libraries: coloured noise in diffusers, and this project's models under its samplers.

Importing this package imports none of them. Having imported it is what `from_pretrained` of diffusers needs to load a
saved scheduler of a colour.
"""

from multisagd.integrations.karras import KarrasDenoiser
from multisagd.integrations.pipelines import shape_pipeline
from multisagd.integrations.scheduled import ScheduledDenoiser
from multisagd.integrations.schedulers import shape_scheduler
from multisagd.integrations.shaped_noise import ShapedNoise

__all__ = ["KarrasDenoiser", "ScheduledDenoiser", "ShapedNoise", "shape_pipeline", "shape_scheduler"]
