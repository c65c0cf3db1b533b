"""A whole run over one category, as `make run` does it: seconds, peak memory, AUROC.

    python -m bench.bottle_run --dataset MVTEC_ROOT --weights WEIGHTS.pth --output result.json

In a new store, cache and Prefect home, with the preset `default` and the embedded server. The peak
is that of the largest process; Prefect's server is another one, of about 230 MB.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from etstpm.metric_rows import value_of
from etstpm.storage import Store
from etstpm.tables import PAPER

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run it, then read its cards."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"{folder}/store")
        seconds = run_flow(arguments, arguments.category, folder, {})
        run_id = store.read_json("runs/latest.json")["run_id"]
        outcome = store.read_json(f"runs/{run_id}/run.json")["outcomes"][0]
        scores = store.get(outcome["scores_key"]).card
        student = store.get(scores["student"]).card
    kilobyte = 1 if sys.platform == "darwin" else 1024
    result = {
        "seconds": seconds,
        "student_seconds": student["seconds"],
        "scores_seconds": scores["seconds"],
        "image_auroc": value_of(scores["metrics"], PAPER, "image", "auroc"),
        "pixel_auroc": value_of(scores["metrics"], PAPER, "pixel", "auroc"),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * kilobyte / 1e6,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def run_flow(
    arguments: argparse.Namespace, categories: str, folder: str, settings: Mapping[str, str]
) -> float:
    """Seconds of the whole command; store, cache and Prefect's home are in `folder`, and new."""
    command = [sys.executable, "-m", "flows.full", "--store", f"{folder}/store"]
    command += ["--dataset", str(arguments.dataset), "--weights", str(arguments.weights)]
    command += ["--categories", categories]
    command += [word for setting in arguments.set for word in ("--set", setting)]
    places = {"ETSTPM_CACHE": f"{folder}/cache", "PREFECT_HOME": folder}
    environment = {**os.environ, **places, **settings}
    started = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", type=Path, required=True, help="MVTec AD root")
    parser.add_argument("--weights", type=Path, required=True, help="ResNet-18 state dict")
    parser.add_argument("--category", default="bottle")
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
