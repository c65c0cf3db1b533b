"""Pixel AUROC beside scikit-learn's, and all pixel metrics beside anomalib's AUPRO alone.

    python bench/metrics_speed.py --maps maps.npz --output result.json

160 drawn images of 512x512, 42 million pixels, are written to `--maps`, so that the peer in its
own environment (`peer_anomalib.py aupro`) reads the very same ones.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from bench.metrics_memory import draw
from etstpm.metrics import auroc, pixel_metrics


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
    }
    for name, work in cases.items():
        started = time.perf_counter()
        value = work()
        result[name] = {"value": value, "seconds": time.perf_counter() - started}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


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
