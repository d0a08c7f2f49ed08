"""Find models by folder, or by name on the Hugging Face Hub. Only the requested files are fetched, and no code.

Fetched files are kept in the Hub's cache. Nothing is fetched if a local folder with that name exists.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from multisagd.libraries import importing
from recipes.base.errors import RecipeError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""Names of repositories on the Hub: `owner/model`, or one word."""


def local_folder(name: str | Path, files: Sequence[str], revision: str | None = None) -> Path:
    """Return a local folder unchanged; for a model on the Hub, fetch its `files` and return their folder.

    `files` are names or patterns.

    Raises:
        BrokenLibraryError: If a model must be fetched, but huggingface_hub cannot be imported.
        RecipeError: If the model does not exist or cannot be fetched (no network, unknown revision).
    """
    folder = Path(name)
    if folder.is_dir():
        if revision is not None:
            raise RecipeError(
                f"revision={revision} applies only to models on the Hub, but {folder} is a local folder: remove "
                "revision"
            )
        return folder
    if isinstance(name, Path) or not NAME.fullmatch(name):
        raise RecipeError(f"there is no folder {name}, and it is not the name of a model on the Hub (owner/model)")
    with importing("huggingface_hub", f"there is no folder {name}, so it is fetched from the Hub"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RecipeError(
            f"there is no folder {name}, and it cannot be fetched from the Hub ({reason}): check the name and the "
            "network, or copy the model to this machine and specify its folder"
        ) from error
