"""Peak memory and time of a category's metrics, and of scikit-learn's AUROC on the same pixels.

    python -m bench.metrics_memory                    # 200 images at 1024x1024
    python -m bench.metrics_memory --images 50 --size 512

Each runs in a process of its own. Ours is all that a category's card holds under `mvtec-official`:
every pixel metric over all images and by defect type, with intervals, maps upsampled as they are
asked for; `streamed` is the histogram's bounds of the same pixels. scikit-learn's is one AUROC.
The peak is the process's, PyTorch and masks included, beside the size of the scores in float32; the
time is the processor's, which a busy machine lengthens less than a clock's.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from etstpm.evaluation import evaluate
from etstpm.scoring import ResizedMaps
from etstpm.streaming import PixelHistogram
from etstpm.tables import OFFICIAL

TYPES = "broken_large", "broken_small", "contamination", "scratch", "thread"
GOOD_SHARE = 0.3
SYSTEMS = "etstpm", "streamed", "scikit-learn"
Masks = list[npt.NDArray[np.bool_]]


def draw(images: int, size: int) -> tuple[list[str | None], Masks, ResizedMaps]:
    """Defect types, masks of a disc or two, and maps at 256x256 that half agree with them."""
    rng = np.random.default_rng(0)
    good = round(GOOD_SHARE * images)
    groups = [None if n < good else TYPES[n % len(TYPES)] for n in range(images)]
    rows, columns = np.ogrid[:size, :size]
    masks = []
    maps = np.exp(rng.normal(size=(images, 256, 256)).astype(np.float32))
    for number, group in enumerate(groups):
        mask = np.zeros((size, size), bool)
        for _ in range(0 if group is None else rng.integers(1, 3)):
            row, column, radius = rng.uniform(0.2, 0.8) * size, rng.uniform(0.2, 0.8) * size, 0.12
            mask |= (rows - row) ** 2 + (columns - column) ** 2 < (radius * size) ** 2
        masks.append(mask)
        places = np.arange(256) * size // 256
        maps[number] *= 1 + 3 * mask[places][:, places]
    return groups, masks, ResizedMaps(maps, [mask.shape for mask in masks])


def measure(which: str, images: int, size: int) -> dict[str, float | str]:
    """One of them, in this process."""
    groups, masks, maps = draw(images, size)
    share = sum(int(mask.sum()) for mask in masks) / (images * size**2)
    started = time.process_time()
    if which == "etstpm":
        found = evaluate("bench", groups, {}, {OFFICIAL: (masks, maps)}).figures
        value = found["values"][OFFICIAL]["pixel"]["auroc"]
    elif which == "streamed":
        bounds = PixelHistogram.of(masks, maps).metrics()["auroc"]
        value = bounds.value if bounds else float("nan")
    else:
        from sklearn.metrics import roc_auc_score

        pooled = np.concatenate([maps[number].ravel() for number in range(images)])
        value = roc_auc_score(np.concatenate([mask.ravel() for mask in masks]), pooled)
    seconds = time.process_time() - started
    kilobyte = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte
    times = peak / (4 * images * size**2)
    print(
        f"{which:<13} {images} images at {size}x{size}, {share:.1%} of the pixels defective: "
        f"{seconds:.1f} s of CPU time, peak RSS {peak / 1e9:.2f} GB, {times:.2f} times the scores, "
        f"AUROC {value:.12f}"
    )
    return {"cpu_seconds": seconds, "peak_rss_gb": peak / 1e9, "times_the_scores": times}


def main() -> None:
    """Measure each in a new process; or the one that is named in this one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=1024, help="pixels a side")
    parser.add_argument("--only", choices=SYSTEMS)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.only:
        found = measure(arguments.only, arguments.images, arguments.size)
        if arguments.output:
            arguments.output.write_text(json.dumps(found) + "\n")
        return
    results = {}
    sizes = ["--images", str(arguments.images), "--size", str(arguments.size)]
    with tempfile.TemporaryDirectory() as folder:
        for which in SYSTEMS:
            output = Path(folder) / "result.json"
            command = [sys.executable, "-m", "bench.metrics_memory", *sizes, "--only", which]
            subprocess.run([*command, "--output", str(output)], check=True)
            results[which] = json.loads(output.read_text())
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
