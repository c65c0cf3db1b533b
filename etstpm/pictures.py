"""Pictures of scored images: the image, its ground truth, its heatmap."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from etstpm.config import ScoringConfig
from etstpm.images import Pixels
from etstpm.scoring import Maps, ScoredImages, map_threshold

Value = TypeVar("Value", bound=np.generic)

COLD = 0.9
"""Share of the pixels of good images that have no heat at all."""
SHOWN = 5
SIDE = 256
MARGIN = 12
LINE = 18
BACKGROUND, INK, FAULT = (250, 250, 248), (38, 38, 42), (176, 32, 32)
TRUTH = np.array([0, 190, 255], np.float32)

# Dark blue over magenta to yellow: even in lightness, and readable without colour vision.
_STOPS = np.array(
    [[0, 0, 4], [60, 9, 101], [136, 34, 106], [203, 65, 73], [249, 142, 9], [252, 255, 164]],
    np.float32,
)


def colour(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Values in [0, 1], any shape, to colours (..., 3), float32, [0, 255]."""
    position = np.clip(values, 0, 1) * (len(_STOPS) - 1)
    levels = np.arange(len(_STOPS))
    channels = [np.interp(position, levels, _STOPS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


@dataclass(frozen=True)
class HeatScale:
    """Which values of anomaly maps are cold and which are hot, from held-out good images."""

    cold: float
    """`COLD` of their pixels lie below."""
    threshold: float
    """`scoring.map_threshold` of their maps."""

    @classmethod
    def of(cls, maps: Maps, config: ScoringConfig) -> "HeatScale":
        """The scale of good images' maps (N, H, W)."""
        return cls(float(np.quantile(maps, COLD)), map_threshold(maps, config))


def heat(maps: Maps, scale: HeatScale) -> npt.NDArray[np.float32]:
    """Anomaly maps to [0, 1] on a logarithmic scale: 0 up to what is cold, 0.5 at the threshold.

    As far beyond the threshold as that lies beyond what is cold it is 1, at twice the threshold at
    the least. A product of distances spans decades, a sum of them less than one.
    """
    threshold = max(scale.threshold, 1e-30)
    cold = np.clip(scale.cold / threshold, 1e-4, 0.9)
    ratios = np.maximum(maps, np.finfo(np.float32).tiny) / threshold
    heats = np.interp(np.log(ratios), np.log([cold, 1, max(1 / cold, 2)]), [0, 0.5, 1])
    return heats.astype(np.float32)


def overlay(image: npt.NDArray[np.uint8], heat_map: npt.NDArray[np.float32]) -> Pixels:
    """An image (H, W, 3) under its heat (H, W): opaque where hot, clear where cold."""
    alpha = _opacity(heat_map)[..., None]
    blended = (1 - alpha) * image + alpha * colour(heat_map)
    result: Pixels = blended.round().astype(np.uint8)
    return result


def tint(heat_map: npt.NDArray[np.float32]) -> Pixels:
    """The heat (H, W) as a layer (H, W, 4): over an image it gives what `overlay` does."""
    layer = np.concatenate([colour(heat_map), 255 * _opacity(heat_map)[..., None]], axis=-1)
    result: Pixels = layer.round().astype(np.uint8)
    return result


def _opacity(heat_map: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    opacity: npt.NDArray[np.float32] = 0.85 * np.clip(heat_map * 1.4, 0, 1)
    return opacity


def outline(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> Pixels:
    """An image (H, W, 3) with the border of its mask (H, W) drawn two pixels wide."""
    drawn = image.copy()
    drawn[border(mask)] = TRUTH
    return drawn


def border(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Where a mask (H, W) begins or ends, two pixels wide: one inside, one outside."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    outside = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | mask
    edge: npt.NDArray[np.bool_] = outside & ~inside
    return edge


def hardest(
    labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64], count: int
) -> list[int]:
    """The images that were judged worst: furthest on the wrong side, else nearest to it.

    An image's error is the share of the other class that it is on the wrong side of; ties go by
    how near its score lies to the other class, as a ratio: scores span decades.
    """
    good, defective = np.sort(scores[~labels]), np.sort(scores[labels])
    wrong = np.where(
        labels,
        (good.size - np.searchsorted(good, scores)) / max(1, good.size),
        np.searchsorted(defective, scores) / max(1, defective.size),
    )
    logs = np.log(np.maximum(scores, np.finfo(np.float64).tiny))
    highest_good = logs[~labels].max() if good.size else 0.0
    lowest_defective = logs[labels].min() if defective.size else 0.0
    closeness = np.where(labels, highest_good - logs, logs - lowest_defective)
    order: list[int] = np.lexsort((-closeness, -wrong))[:count].tolist()
    return order


def draw_hardest(
    pixels: Pixels,
    masks: npt.NDArray[np.bool_],
    scored: ScoredImages,
    *,
    labels: npt.NDArray[np.bool_],
    names: Sequence[str],
    threshold: float,
    scale: HeatScale,
) -> Image.Image:
    """The five test images that were judged worst: ground truth above, heatmap below."""
    chosen = hardest(labels, scored.scores, SHOWN)
    heats = heat(scored.maps[chosen], scale)
    # Small inputs are shown enlarged: the lines of text below need the room.
    times = max(1, SIDE // pixels.shape[1])
    side = times * pixels.shape[1]
    width = len(chosen) * (side + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, 2 * side + 3 * MARGIN + 2 * LINE), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, index in enumerate(chosen):
        left = MARGIN + column * (side + MARGIN)
        image = _enlarge(np.asarray(pixels[index]), times)
        is_called_defective = scored.scores[index] > threshold
        is_right = is_called_defective == labels[index]
        verdict = "called defective" if is_called_defective else "called good"
        draw.text((left, MARGIN // 2), names[index], INK, font)
        sheet.paste(
            Image.fromarray(outline(image, _enlarge(masks[index], times))), (left, LINE + MARGIN)
        )
        sheet.paste(
            Image.fromarray(overlay(image, _enlarge(heats[column], times))),
            (left, LINE + 2 * MARGIN + side),
        )
        draw.text(
            (left, LINE + 2 * MARGIN + 2 * side + 4),
            f"{verdict}, score {scored.scores[index] / threshold:.2f} x threshold",
            INK if is_right else FAULT,
            font,
        )
    return sheet


def _enlarge(array: npt.NDArray[Value], times: int) -> npt.NDArray[Value]:
    return array.repeat(times, axis=0).repeat(times, axis=1)
