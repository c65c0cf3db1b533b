"""A category's gallery as JSON: thumbnails by their error, within what a page affords."""

import base64
from collections.abc import Iterator
from typing import Any

from etstpm.report.content import CategoryContent, Picture, ScoredImage


def gallery(category: CategoryContent, budget: int) -> dict[str, Any]:
    """`items`, wrong decisions first, and the `total` of test images.

    budget: bytes of pictures as text in the page; those that are least wrong go first.
    """
    return {"items": list(_items(category, budget)), "total": len(category.images)}


def _items(category: CategoryContent, budget: int) -> Iterator[dict[str, Any]]:
    spent = 0
    for image in category.by_error():
        picture = category.pictures.get(image.path)
        if picture is None:
            continue
        layers = _layers(picture)
        spent += sum(map(len, layers.values()))
        if spent > budget:
            return
        yield {
            "path": image.path,
            "type": image.defect_type,
            "kind": _kind(image),
            "factor": f"{image.score / category.threshold:.2f}",
            **layers,
        }


def _layers(picture: Picture) -> dict[str, str]:
    parts = {"image": picture.image, "heat": picture.heat, "outline": picture.outline}
    return {
        name: base64.b64encode(part).decode() for name, part in parts.items() if part is not None
    }


def _kind(image: ScoredImage) -> str:
    if image.is_right:
        return "right"
    return "missed" if image.is_defective else "alarm"
