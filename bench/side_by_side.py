"""Several categories of one run, one after another and side by side: the same command, both ways.

    python -m bench.side_by_side --dataset MVTEC_ROOT --weights WEIGHTS.pth \
        --categories bottle,capsule --processes 1 2 --set student.epochs=4

Each in a new store, cache and Prefect home, with the embedded server. Seconds are the command's;
images/s are those of its trainings, every pass counted, between the first one's beginning and the
last one's end, so that the scores made meanwhile cost both their time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path

from etstpm.splits import split_train_validation
from etstpm.storage import Store

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run each number of processes in turn and print a line for it."""
    arguments = parse_arguments()
    results = []
    for processes in arguments.processes:
        results.append(measure(arguments, processes))
        print("{processes} at once: {seconds:.0f} s, {rate:.1f} images/s".format(**results[-1]))
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def measure(arguments: argparse.Namespace, processes: int) -> dict[str, float]:
    """One run: its seconds, and the images/s that its students were trained with in all."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"{folder}/store")
        command = [sys.executable, "-m", "flows.full", "--store", store.uri]
        command += ["--dataset", str(arguments.dataset), "--weights", str(arguments.weights)]
        command += ["--categories", arguments.categories]
        command += [word for setting in arguments.set for word in ("--set", setting)]
        places = {"ETSTPM_CACHE": f"{folder}/cache", "PREFECT_HOME": folder}
        environment = os.environ | places | {"ETSTPM_CATEGORY_PROCESSES": str(processes)}
        started = time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        run_id = store.read_json("runs/latest.json")["run_id"]
        outcomes = store.read_json(f"runs/{run_id}/run.json")["outcomes"]
        scores = [store.get(outcome["scores_key"]).card for outcome in outcomes]
        students = [store.get(card["student"]).card for card in scores]
    images, spans = 0, list[tuple[datetime, datetime]]()
    for card in students:
        student = card["config"]["student"]
        training, _ = split_train_validation(
            card["train_images"], student["validation_fraction"], seed=0
        )
        images += len(training) * student["epochs"]
        ended = datetime.fromisoformat(card["created_at"])
        spans.append((ended - timedelta(seconds=card["seconds"]), ended))
    span = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return {
        "processes": processes,
        "seconds": seconds,
        "rate": images / span.total_seconds(),
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", type=Path, required=True, help="MVTec AD root")
    parser.add_argument("--weights", type=Path, required=True, help="ResNet-18 state dict")
    parser.add_argument("--categories", default="bottle,capsule")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
