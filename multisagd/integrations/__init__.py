"""Use multisagd with other libraries: coloured noise in diffusers, and this project's models with diffusers samplers.

Importing this package does not import those libraries. Import it before diffusers' `from_pretrained` loads a saved
scheduler with coloured noise.
"""

from multisagd.integrations.karras import KarrasDenoiser
from multisagd.integrations.pipelines import shape_pipeline
from multisagd.integrations.scheduled import ScheduledDenoiser
from multisagd.integrations.schedulers import shape_scheduler
from multisagd.integrations.shaped_noise import ShapedNoise

__all__ = ["KarrasDenoiser", "ScheduledDenoiser", "ShapedNoise", "shape_pipeline", "shape_scheduler"]
