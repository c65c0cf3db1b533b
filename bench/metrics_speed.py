"""Pixel AUROC beside scikit-learn's, and all pixel metrics beside anomalib's AUPRO alone.

    python -m bench.metrics_speed --maps maps.npz --output result.json

160 drawn images of 512x512, 42 million pixels, are written to `--maps`, so that the peer in its
own environment (`peer_anomalib.py metrics`) reads the very same ones. The limits: one sort of all
scores, and the regions of all masks found.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from bench.metrics_memory import Masks, draw
from etstpm.metrics import auroc, pixel_metrics
from etstpm.ranking import EIGHT_NEIGHBOURS, Scores
from etstpm.streaming import PixelHistogram


def main() -> None:
    """Draw, measure each once, write the seconds and the values."""
    arguments = parse_arguments()
    load_at_start = os.getloadavg()[0]
    _, masks, upsampled = draw(arguments.images, arguments.size)
    maps = [upsampled[number] for number in range(arguments.images)]
    if not arguments.maps.exists():
        np.savez(arguments.maps, maps=np.stack(maps), masks=np.stack(masks))
    labels, scores = np.stack(masks), np.stack(maps)
    result: dict[str, object] = {"load_at_start": load_at_start, "pixels": scores.size}
    cases: dict[str, Callable[[], object]] = {
        "auroc": lambda: auroc(labels, scores),
        "scikit_learn_auroc": lambda: roc_auc_score(labels.ravel(), scores.ravel()),
        "pixel_metrics": lambda: pixel_metrics(masks, maps)["aupro"],
        "streamed": lambda: streamed(masks, maps),
        "sort": lambda: np.sort(scores, axis=None).size,
        "sort_and_label": lambda: sort_and_label(masks, scores),
    }
    for name, work in cases.items():
        started = time.perf_counter()
        value = work()
        result[name] = {"value": value, "seconds": time.perf_counter() - started}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def streamed(masks: Masks, maps: Sequence[Scores]) -> list[float]:
    """Both bounds of AUPRO."""
    bounds = PixelHistogram.of(masks, maps).metrics()["aupro"]
    return [] if bounds is None else [bounds.low, bounds.high]


def sort_and_label(masks: Masks, scores: Scores) -> int:
    """How many regions there are; the scores are sorted for the time it takes."""
    np.sort(scores, axis=None)
    return sum(ndimage.label(mask, EIGHT_NEIGHBOURS)[1] for mask in masks)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    parser.add_argument("--maps", type=Path, required=True, help=".npz, written if not there")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
