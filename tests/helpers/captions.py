"""Pictures with captions in a manifest, and a text encoder of a few thousand random weights."""

from pathlib import Path

from PIL import Image as PILImage

from tests.helpers.tiny_text import tiny_encoder

COLORS = ["red", "green", "blue"]


def captioned_pictures(root: Path) -> list[str]:
    """Write 60 pictures, every fifth with an empty caption, and return the overrides that train on them."""
    tiny_encoder(root / "encoder")
    rows = []
    for number in range(60):
        color = COLORS[number % 3]
        path = root / "photos" / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        PILImage.new("L", (8, 8), 80 * (number % 3) + number % 7).save(path)
        rows.append(f"{path.name},{color},{'' if number % 5 == 4 else f'a {color} square'}")
    (root / "photos" / "list.csv").write_text("\n".join(["file,label,text", *rows]), encoding="utf-8")
    return [
        "data=folder", f"data.root={root / 'photos'}", "data.manifest=list.csv", "validation.holdout=12",
        "text=encoder", f"text.name={root / 'encoder'}", "text.max_tokens=8", f"text.cache={root / 'cache'}",
    ]  # fmt: skip
