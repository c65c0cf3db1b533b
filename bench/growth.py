"""What a category costs when there are many: seconds and peak memory from 1 to 200 categories.

    python -m bench.growth                        # the stages, one process a size
    python -m bench.growth --flow --sizes 1 50    # the whole command, Prefect included

Drawn, tiny categories (64x64, 12 training images, three epochs), so that what is around the
training shows. A line a size: it grows with the number of categories where the last columns do.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from etstpm.sample import MARKER, draw_sample

ROOT = Path(__file__).parents[1]
DRAWN = 3  # categories in each drawn sample
SETTINGS = (
    "dataset.image_size=64",
    "teacher.mode=imagenet",
    "teacher.weights=formula",
    "student.epochs=3",
    "student.batch_size=2",
    "device=cpu",
)
STAGES = """
import sys
from etstpm.config import Config
from tests.nights import publish_night
root, store = sys.argv[1:3]
publish_night(Config.load("sample", sys.argv[3:], {"dataset.root": root, "store": store}), "growth")
"""


def main() -> None:
    """Draw once, then run each size in a process, a store and a cache of its own."""
    arguments = parse_arguments()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "all"
        draw(root, max(arguments.sizes))
        for size in arguments.sizes:
            results.append(measure(root, size, Path(folder) / str(size), is_flow=arguments.flow))
            print(
                "{categories:4} categories: {seconds:7.1f} s, {each:6.3f} s each, "
                "peak RSS {peak_rss_mb:.0f} MB".format(**results[-1]),
                flush=True,
            )
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def draw(root: Path, count: int) -> None:
    """So many categories in one root, three a seed."""
    root.mkdir()
    for seed in range(-(-count // DRAWN)):
        drawn = root.with_name(f"drawn-{seed}")
        draw_sample(drawn, seed=seed, image_size=64, train=12, test_good=2, per_defect=1)
        shutil.copy(drawn / MARKER, root)
        for path in sorted(drawn.iterdir()):
            if path.is_dir():
                path.rename(root / f"{path.name}-{seed:03d}")
        shutil.rmtree(drawn)


def measure(root: Path, size: int, folder: Path, *, is_flow: bool) -> dict[str, float]:
    """Seconds and peak memory of a run over the first `size` categories."""
    folder.mkdir()
    names = sorted(path.name for path in root.iterdir() if path.is_dir())[:size]
    settings = [*SETTINGS, f"dataset.categories={json.dumps(names)}"]
    if is_flow:
        command = [sys.executable, "-m", "flows.full", "--config", "sample"]
        command += ["--dataset", str(root), "--store", f"{folder}/store"]
        command += [word for setting in settings for word in ("--set", setting)]
    else:
        command = [sys.executable, "-c", STAGES, str(root), f"{folder}/store", *settings]
    places = {"ETSTPM_CACHE": f"{folder}/cache", "PREFECT_HOME": f"{folder}/prefect"}
    started = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | places, stdout=subprocess.DEVNULL
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{size} categories ended with {process.returncode}")
    seconds = time.perf_counter() - started
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return {
        "categories": size,
        "seconds": seconds,
        "each": seconds / size,
        "peak_rss_mb": usage.ru_maxrss * kilobyte / 1e6,
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 50, 200])
    parser.add_argument("--flow", action="store_true", help="the command, with Prefect")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
