"""Several categories of one run, one after another and side by side: the same command, both ways.

    python -m bench.side_by_side --dataset MVTEC_ROOT --weights WEIGHTS.pth \
        --categories bottle,capsule --processes 1 2 --set student.epochs=4

Each in a new store, cache and Prefect home, with the embedded server. Seconds are the whole
command's, so that what each way costs besides its trainings counts.
"""

import argparse
import json
import tempfile
from pathlib import Path

from bench.bottle_run import run_flow


def main() -> None:
    """Run each number of processes in turn and print a line for it."""
    arguments = parse_arguments()
    results = []
    for processes in arguments.processes:
        settings = {"ETSTPM_CATEGORY_PROCESSES": str(processes)}
        with tempfile.TemporaryDirectory() as folder:
            seconds = run_flow(arguments, arguments.categories, folder, settings)
        results.append({"processes": processes, "seconds": seconds})
        print(f"{processes} at once: {seconds:.0f} s")
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


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
