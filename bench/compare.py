"""etstpm beside anomalib's STFPM, in turn on the same images (bottle), weights and cores.

    make bench DATASET=MVTEC_ROOT WEIGHTS=WEIGHTS.pth

Each with its own defaults: batches of 32 there, of 8 here. Scoring goes from PNG files to maps and
scores. Prints a table of medians and ratios and writes every run to bench/results/compare.parquet.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
STEPS_AN_EPOCH = 7  # of 32 images, over bottle's 209
Where = tuple[str, ...]
ROWS: dict[str, tuple[Where, Where]] = {
    "student training, images/s": (
        ("training", "images_per_second"),
        ("training", "images_per_second"),
    ),
    "scoring from PNG, images/s": (
        ("evaluation", "predict_images_per_second"),
        ("scoring", "images_per_second"),
    ),
    "peak memory, MB": (("evaluation", "peak_rss_mb", "main"), ("peak_rss_mb",)),
}
"""Where each case's figure stands in the peer's result and in ours."""
LIMIT = ("training", "limit_images_per_second")


def main() -> None:
    """Alternate the two, then print medians and ratios."""
    arguments = parse_arguments()
    common = ["--dataset", str(arguments.dataset), "--weights", str(arguments.weights)]
    commands = {
        "anomalib": [
            str(arguments.peer_python), str(HERE / "peer_anomalib.py"), "train", *common,
            "--steps", str(STEPS_AN_EPOCH * 2), "--num-workers", str(arguments.num_workers),
        ],
        "etstpm": [sys.executable, str(HERE / "own.py"), *common],
    }  # fmt: skip
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for repetition in range(arguments.runs):
        for name, command in commands.items():
            runs[name].append(measure(command))
            sys.stderr.write(f"run {repetition + 1} of {arguments.runs}: {name} done\n")
    write_results(runs)
    print_table(runs)


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


def median_of(results: list[dict[str, Any]], where: Where) -> float:
    """The median over the runs of the figure that stands there."""
    values = []
    for result in results:
        value: Any = result
        for key in where:
            value = value[key]
        values.append(float(value))
    return statistics.median(values)


def print_table(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Medians, their ratio, and the limit beside."""
    table = Table("case", "anomalib", "etstpm", "ratio", "limit")
    for case, (peer_where, own_where) in ROWS.items():
        peer, own = median_of(runs["anomalib"], peer_where), median_of(runs["etstpm"], own_where)
        limit = f"{median_of(runs['etstpm'], LIMIT):.1f}" if own_where[0] == "training" else "-"
        table.add_row(case, f"{peer:.1f}", f"{own:.1f}", f"{own / peer:.2f}", limit)
    console = Console()
    console.print(table)
    compute = runs["etstpm"][0]["compute"]
    console.print(f"{compute['device_name']}, {compute['precision']}, {os.cpu_count()} cores")


def write_results(runs: dict[str, list[dict[str, Any]]]) -> None:
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
