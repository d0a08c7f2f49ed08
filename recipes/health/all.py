"""All checks, in the order in which they are shown; a later one may rest on what an earlier one tells."""

from __future__ import annotations

from recipes.health import company, compute, media, packages, places, run_folder
from recipes.health.findings import Check

PACKAGES, COMPUTING, MEDIA = "Python and packages", "Computing", "Media"
PLACES, COMPANY, OPTIONAL, RUN = "Files and limits", "Several processes and machines", "Optional features", "Run folder"

CHECKS = (
    Check(PACKAGES, "Python", packages.python, essential=True),
    Check(PACKAGES, "packages", packages.requirements, essential=True),
    Check(PACKAGES, "names", packages.names, essential=True),
    Check(PACKAGES, "PyTorch", packages.torch_itself, essential=True),
    Check(PACKAGES, "torchvision, torchaudio", packages.torch_family, essential=True),
    Check(PACKAGES, "imports", packages.imports, essential=True),
    Check(PACKAGES, "commands", compute.commands, essential=True),
    Check(COMPUTING, "training", compute.core, essential=True),
    Check(COMPUTING, "CPU", compute.processor),
    Check(COMPUTING, "GPU", compute.graphics),
    Check(COMPUTING, "attention", compute.attention, essential=True),
    Check(COMPUTING, "compiler", compute.compiler),
    Check(MEDIA, "images", media.images, essential=True),
    Check(MEDIA, "sounds", media.sounds),
    Check(MEDIA, "videos", media.videos),
    Check(PLACES, "folders", places.folders, essential=True),
    Check(PLACES, "memory", places.memory),
    Check(PLACES, "MULTISAGD_DATA", places.data),
    Check(PLACES, "encoding", places.encoding),
    Check(COMPANY, "several processes", company.distribution),
    Check(COMPANY, "variables", company.leftovers),
    Check(COMPANY, "schedulers", company.schedulers),
    Check(COMPANY, "model hub", company.hub),
    Check(OPTIONAL, "optional packages", packages.extras),
    Check(OPTIONAL, "imports", packages.extra_imports),
    Check(RUN, "run", run_folder.folder, essential=True),
)
