"""Validation beside what all cores can merely decode, and again when nothing or little is new.

    python -m bench.data_speed --folder /tmp/tree --output result.json --photographs /data/mvtec_ad

Makes a root once (5,354 images of 1024x1024 in 15 categories: `--images`, `--side`) with a mask for
each defective image, and leaves it for the next call. The images are a dataset's train/good, each
time another window of one, enlarged; without `--photographs` a gradient with noise, which is
decoded in two thirds of the time. Pure decoding is Pillow's `load` in a process a core. Each
category is decoded and validated in turn, the order changing, so that a machine whose speed drifts
is as fast for the one as for the other.
"""

import argparse
import json
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from etstpm.dataset import image_files, scan_dataset
from etstpm.decoded import load_pixels
from etstpm.settings import settings
from etstpm.tables import PAPER_SIDE

PARTS = [f"part-{number:02}" for number in range(15)]
"""The categories' names."""


def main() -> None:
    """Draw, decode, validate, validate again, add ten images, build the training cache."""
    arguments = parse_arguments()
    source: Path | None = arguments.photographs
    photographs = sorted(source.glob("*/train/good/*.png")) if source else []
    if source and not photographs:
        raise SystemExit(f"{source}: no */train/good/*.png in it")
    kind = "photographs" if photographs else "drawn"
    root: Path = arguments.folder / f"{kind}-{arguments.images}-{arguments.side}"
    draw_tree(root, arguments.images, arguments.side, photographs)
    files = sorted(root.rglob("*.png"))
    result: dict[str, float] = {"files": len(files), "load_at_start": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        cache = Path(folder)
        with AnonymousMemory() as memory:
            result |= decode_and_validate(root, cache)
        result["grown_megabytes"] = memory.peak - memory.before
        started = time.perf_counter()
        scan_dataset(root, None, PAPER_SIDE, cache).require("fail")
        result["again_seconds"] = time.perf_counter() - started
        new = [root / f"part-00/train/good/new-{number}.png" for number in range(10)]
        for number, path in enumerate(new):
            draw_one((path, 10**6 + number, arguments.side, photographs))
        started = time.perf_counter()
        dataset = scan_dataset(root, None, PAPER_SIDE, cache).require("fail")
        result["ten_new_seconds"] = time.perf_counter() - started
        started = time.perf_counter()
        for part in PARTS:
            training = image_files(root, dataset.manifest, part, "train")
            load_pixels(f"{part}/train", training, PAPER_SIDE, cache)
        result["cache_build_seconds"] = time.perf_counter() - started
        for path in new:
            path.unlink()
    result["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result["share_of_decoding"] = result["decode_seconds"] / result["validate_seconds"]
    result["share_of_decoding_cpu"] = result["decode_cpu_seconds"] / result["validate_cpu_seconds"]
    result["times_as_fast_again"] = result["validate_seconds"] / result["again_seconds"]
    result["files_a_second"] = len(files) / result["validate_seconds"]
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    for key, value in result.items():
        print(f"{key:<20} {value:.3f}")


def drawn(seed: int, side: int) -> Image.Image:
    """An RGB image (side, side) of its own: a gradient and a sensor's noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    plane = 90 + 60 * np.sin(x / 97 + seed) + 50 * np.cos(y / 131)
    noise = rng.normal(0, 1.5, (side, side, 3)).astype(np.float32)
    return Image.fromarray((plane[:, :, None] + noise).clip(0, 255).astype(np.uint8))


def enlarged(seed: int, side: int, photographs: Sequence[Path]) -> Image.Image:
    """A window of a photograph at (side, side), in its own mode: no two seeds give the same."""
    rng = np.random.default_rng(seed)
    with Image.open(photographs[seed % len(photographs)]) as image:
        left, top, right, bottom = rng.uniform(0, 0.05, 4) * [*image.size, *image.size]
        box = (left, top, image.width - right, image.height - bottom)
        return image.resize((side, side), Image.Resampling.BICUBIC, box)


def draw_one(job: tuple[Path, int, int, Sequence[Path]]) -> None:
    """Write an image, and its mask if it is to have a defect."""
    path, seed, side, photographs = job
    picture = enlarged(seed, side, photographs) if photographs else drawn(seed, side)
    picture.save(path, compress_level=1)
    if "defect" in path.parts:
        mask = np.zeros((side, side), np.uint8)
        mask[side // 4 : side // 2, side // 3 : side // 2] = 255
        Image.fromarray(mask).save(mask_of(path))


def mask_of(path: Path) -> Path:
    return path.parents[2] / "ground_truth" / "defect" / f"{path.stem}_mask.png"


def draw_tree(root: Path, images: int, side: int, photographs: Sequence[Path]) -> None:
    """Two thirds train/good, and of the test images three quarters defective, as in MVTec AD."""
    if root.exists():
        return
    partial = root.with_name(f"{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part in PARTS:
        for name in ("train/good", "test/good", "test/defect", "ground_truth/defect"):
            (partial / part / name).mkdir(parents=True)
    kinds = ["train/good"] * 8 + ["test/good"] + ["test/defect"] * 3
    jobs = [
        (
            partial
            / PARTS[number // len(kinds) % len(PARTS)]
            / kinds[number % len(kinds)]
            / f"{number:05}.png",
            number,
            side,
            photographs,
        )
        for number in range(images)
    ]
    with ProcessPoolExecutor(settings().threads) as pool:
        list(pool.map(draw_one, jobs, chunksize=16))
    partial.rename(root)


def decode(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def decode_all(files: list[Path]) -> float:
    """Decode these; the CPU time it took, seconds."""
    cpu = time.process_time()
    for path in files:
        decode(path)
    return time.process_time() - cpu


def decode_and_validate(root: Path, cache: Path) -> dict[str, float]:
    """Seconds by the clock and of CPU of either, summed over the categories."""
    spent = dict.fromkeys(
        ("decode_seconds", "decode_cpu_seconds", "validate_seconds", "validate_cpu_seconds"), 0.0
    )
    with ProcessPoolExecutor(settings().threads) as pool:

        def decoding(part: str) -> float:
            files = sorted((root / part).rglob("*.png"))
            pieces = [files[place : place + 16] for place in range(0, len(files), 16)]
            return sum(pool.map(decode_all, pieces))

        def validation(part: str) -> float:
            cpu = time.process_time()
            scan_dataset(root, [part], PAPER_SIDE, cache).require("fail")
            return time.process_time() - cpu

        decoding(PARTS[0])  # the processes start, and the files come into the page cache
        for number, part in enumerate(PARTS):
            steps = [("decode", decoding), ("validate", validation)]
            for name, step in steps if number % 2 else steps[::-1]:
                started = time.perf_counter()
                spent[f"{name}_cpu_seconds"] += step(part)
                spent[f"{name}_seconds"] += time.perf_counter() - started
    return spent


class AnonymousMemory:
    """The most memory (MB) that the process held of its own in a block, without mapped files.

    Pages of the cache that is being written count as resident, and go when others want the room.
    """

    def __enter__(self) -> "AnonymousMemory":
        self.before = self.peak = self._now()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=5354, help="without masks")
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    parser.add_argument("--photographs", type=Path, help="root in MVTec layout")
    parser.add_argument("--folder", type=Path, required=True, help="where the tree is drawn")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
