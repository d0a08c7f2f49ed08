"""Models by folder, or by name from the Hugging Face hub: of these only named files are fetched, none that could run.

What is fetched is kept in the hub's own cache. Nothing is fetched for a name that is a folder here.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from multisagd.libraries import importing
from recipes.base.errors import RecipeError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""What the hub calls a repository: `owner/model`, or one word."""


def local_folder(name: str | Path, files: Sequence[str], revision: str | None = None) -> Path:
    """Return a folder as it is; of a model on the hub, a folder of those `files` (names or patterns) that it has.

    Raises:
        BrokenLibraryError: if it is to be fetched, and huggingface_hub cannot be imported.
        RecipeError: if there is neither, or it cannot be fetched: no network, no such revision.
    """
    folder = Path(name)
    if folder.is_dir():
        if revision is not None:
            raise RecipeError(f"revision={revision} is one of the hub's, and {folder} is a folder here: leave it out")
        return folder
    if isinstance(name, Path) or not NAME.fullmatch(name):
        raise RecipeError(f"there is no folder {name}, and it is no name of a model on the hub (owner/model)")
    with importing("huggingface_hub", f"there is no folder {name}, so it is fetched from the hub"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RecipeError(
            f"there is no folder {name}, and it cannot be fetched from the hub ({reason}): check the name and the "
            "network, or copy the model here and name its folder"
        ) from error
