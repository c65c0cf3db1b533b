"""Several categories of one run, one after another and side by side: the same command, both ways.

    python -m bench.side_by_side --dataset MVTEC_ROOT --weights WEIGHTS.pth \
        --categories bottle,capsule --processes 1 2 --set student.epochs=4

Each in a new store, cache and Prefect home, with the embedded server. Seconds are the whole
command's, so that what each way costs besides its trainings counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run each number of processes in turn and print a line for it."""
    arguments = parse_arguments()
    results = []
    for processes in arguments.processes:
        results.append(measure(arguments, processes))
        print("{processes} at once: {seconds:.0f} s".format(**results[-1]))
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def measure(arguments: argparse.Namespace, processes: int) -> dict[str, float]:
    """One run: its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "flows.full", "--store", f"{folder}/store"]
        command += ["--dataset", str(arguments.dataset), "--weights", str(arguments.weights)]
        command += ["--categories", arguments.categories]
        command += [word for setting in arguments.set for word in ("--set", setting)]
        places = {"ETSTPM_CACHE": f"{folder}/cache", "PREFECT_HOME": folder}
        environment = os.environ | places | {"ETSTPM_CATEGORY_PROCESSES": str(processes)}
        started = time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
    return {"processes": processes, "seconds": seconds}


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
