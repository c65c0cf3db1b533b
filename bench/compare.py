"""etstpm beside its peers, in turn on the same images (bottle), weights and cores.

    make bench DATASET=MVTEC_ROOT WEIGHTS=WEIGHTS.pth

Each with its own defaults: batches of 32 there, of 4 here. Scoring goes from PNG files to maps and
scores. Prints medians and ratios, then the fixed costs, and writes every run to
bench/results/compare.parquet.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from bench.cases import CASES, Runs, median_of

HERE = Path(__file__).parent
STEPS_AN_EPOCH = 7  # of 32 images, over bottle's 209
FIXED_COSTS = {
    "import etstpm": (("fixed", "seconds", "import"), 0.3),
    "etstpm --help": (("fixed", "seconds", "help"), 0.4),
    "Prefect around a run of three categories": (("fixed", "seconds", "overhead"), None),
}
"""Where each stands in seconds, and the most that was asked for."""


def main() -> None:
    """Alternate the systems, then print medians and ratios."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        runs = run_all(arguments, Path(folder) / "maps.npz")
    write_results(runs)
    print_tables(runs)


def run_all(arguments: argparse.Namespace, maps: Path) -> Runs:
    """Every system's results, as many as `--runs` of each."""
    own, peer = [sys.executable], [str(arguments.peer_python)]
    images = ["--dataset", str(arguments.dataset), "--weights", str(arguments.weights)]
    steps = ["--steps", str(STEPS_AN_EPOCH * 2), "--num-workers", str(arguments.num_workers)]
    commands = {
        "anomalib": [*peer, str(HERE / "peer_anomalib.py"), "train", *images, *steps],
        "etstpm": [*own, str(HERE / "own.py"), *images],
        "metrics": [*own, str(HERE / "metrics_speed.py"), "--maps", str(maps)],
        "anomalib AUPRO": [*peer, str(HERE / "peer_anomalib.py"), "aupro", "--maps", str(maps)],
        "fixed": [*own, str(HERE / "fixed_costs.py"), "--runs", "3"],
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for repetition in range(arguments.runs):
        for name, command in commands.items():
            runs[name].append(measure(command))
            sys.stderr.write(f"run {repetition + 1} of {arguments.runs}: {name} done\n")
    return runs


def measure(command: list[str]) -> dict[str, Any]:
    """One run's JSON."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        subprocess.run(
            [*command, "--output", str(output)],
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        result: dict[str, Any] = json.loads(output.read_text())
    return result


def print_tables(runs: Runs) -> None:
    """Each case beside its peer, and the fixed costs; then where it ran."""
    console = Console()
    cases = Table("case", "unit", "peer", "theirs", "etstpm", "ratio", "asked", "limit")
    for case in CASES:
        figures = [median_of(runs, where) for where in (case.peer, case.own)]
        limit = f"{median_of(runs, case.limit):.1f}" if case.limit else "-"
        cases.add_row(
            *(case.name, case.unit, case.peer_name),
            *(f"{figure:.1f}" for figure in figures),
            *(f"{case.ratio(runs):.2f}", f"{case.must:g}", limit),
        )
    console.print(cases)
    fixed = Table("fixed cost", "seconds", "asked")
    for name, (where, most) in FIXED_COSTS.items():
        fixed.add_row(name, f"{median_of(runs, where):.2f}", f"{most}" if most else "-")
    console.print(fixed)
    compute = runs["etstpm"][0]["compute"]
    console.print(f"{compute['device_name']}, {compute['precision']}, {os.cpu_count()} cores")


def write_results(runs: Runs) -> None:
    """Every run's JSON, one row each."""
    rows = [
        {"system": name, "repetition": number, "result": json.dumps(result)}
        for name, results in runs.items()
        for number, result in enumerate(results)
    ]
    path = HERE / "results" / "compare.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", type=Path, required=True, help="MVTec AD root")
    parser.add_argument("--weights", type=Path, required=True, help="ResNet-18 state dict")
    parser.add_argument("--peer-python", type=Path, required=True, help="of the peer's environment")
    parser.add_argument("--num-workers", type=int, default=0, help="of the peer's data loader")
    parser.add_argument("--runs", type=int, default=2, help="of each")
    return parser.parse_args()


if __name__ == "__main__":
    main()
