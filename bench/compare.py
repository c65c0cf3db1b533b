"""etstpm beside its peers, in turn on the same images, weights and cores.

    make bench DATASET=MVTEC_ROOT WEIGHTS=WEIGHTS.pth

Each with its own defaults: batches of 32 there, of 8 here. Every result is kept in
bench/figures/compare.parquet as it comes. A group is measured anew as a whole, so that a ratio's
two sides are of one hour: `--only student` leaves the others as they are, `--only nothing` prints.
Prints medians, ratios, limits, and whether what was asked is reached.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from bench.cases import CASES, Case, Figure, Runs
from etstpm.tables import PAPER_SIDE

HERE = Path(__file__).parent
RESULTS = HERE / "figures" / "compare.parquet"
STEPS_AN_EPOCH = 7  # of 32 images, over bottle's 209

GROUPS = "student", "metrics", "memory", "fixed", "quality-bottle", "quality-screw", "run"

Command = list[str]


def main() -> None:
    """Measure the groups, `--runs` times in turn; then print the table."""
    arguments = parse_arguments()
    results = read_results()
    with tempfile.TemporaryDirectory() as folder:
        for name, commands in groups(arguments, Path(folder) / "maps.npz").items():
            if name not in arguments.only:
                continue
            results |= {system: [] for system in commands}
            # A whole run, and training until it is good, take minutes: once.
            once = name == "run" or name.startswith("quality")
            for repetition in range(1 if once else arguments.runs):
                for system, command in commands.items():
                    results[system].append(measure(command))
                    write_results(results)
                    sys.stderr.write(f"{name}, run {repetition + 1}: {system} done\n")
    print_table(results)


def groups(arguments: argparse.Namespace, maps: Path) -> Mapping[str, Mapping[str, Command]]:
    """Each group's systems, and the command that measures each."""
    own, peer = [sys.executable, "-m"], [str(arguments.peer_python)]
    images = ["--dataset", str(arguments.dataset), "--weights", str(arguments.weights)]
    size = ["--set", f"dataset.image_size={PAPER_SIDE}"]
    steps = ["--steps", str(STEPS_AN_EPOCH * 2), "--num-workers", str(arguments.num_workers)]
    peer_script = str(HERE / "peer_anomalib.py")
    return {
        "student": {
            "anomalib": [*peer, peer_script, "train", *images, *steps],
            "etstpm": [*own, "bench.own", *images],
        },
        "metrics": {
            "metrics": [*own, "bench.metrics_speed", "--maps", str(maps)],
            "peer metrics": [*peer, peer_script, "metrics", "--maps", str(maps)],
        },
        "memory": {"memory": [*own, "bench.metrics_memory", "--images", "160"]},
        "fixed": {"fixed": [*own, "bench.fixed_costs", "--runs", "3"]},
        **{
            f"quality-{category}": {
                f"quality-{category}": [
                    *(*own, "bench.time_to_quality", *images, "--category", category)
                ]
            }
            for category in ("bottle", "screw")
        },
        "run": {"run": [*own, "bench.bottle_run", *images, *size]},
    }


def measure(command: Command) -> dict[str, Any]:
    """One run's JSON."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        done = subprocess.run(
            [*command, "--output", str(output)],
            check=False,
            cwd=HERE.parent,
            env=os.environ | {"PYTHONPATH": str(HERE.parent)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        result: dict[str, Any] = json.loads(output.read_text())
    return result


def print_table(runs: Runs) -> None:
    """Each case beside its peer and its limit; then where it ran."""
    console = Console(width=max(160, Console().width))
    columns = "case", "unit", "peer", "theirs", "etstpm", "ratio", "limit", "of limit", "asked"
    table = Table(*columns, "reached")
    for case in CASES:
        table.add_row(*cells(case, runs))
    console.print(table)
    if runs.get("etstpm"):
        compute = runs["etstpm"][0]["compute"]
        console.print(f"{compute['device_name']}, {compute['precision']}, {os.cpu_count()} cores")


def cells(case: Case, runs: Runs) -> list[str]:
    """The row's cells; a dash where nothing is to be said, "?" where nothing was measured."""

    def number(figure: Figure | None, form: str = ".3g") -> str:
        if figure is None:
            return "-"
        try:
            return format(figure(runs), form)
        except KeyError:
            return "?"

    def ratio(other: Figure | None, form: str) -> str:
        return "-" if other is None else number(lambda runs: case.ratio(runs, other), form)

    limit = f"{number(case.limit)} ({case.limit_name})" if case.limit else "-"
    try:
        reached = {True: "yes", False: "not reached", None: "-"}[case.is_reached(runs)]
    except KeyError:
        reached = "not measured"
    return [
        *(case.name, case.unit, case.peer_name or "-", number(case.peer), number(case.own)),
        *(ratio(case.peer, ".2f"), limit, ratio(case.limit, ".0%"), case.asked(), reached),
    ]


def read_results() -> dict[str, list[dict[str, Any]]]:
    """What was measured before, by system."""
    results: dict[str, list[dict[str, Any]]] = {}
    if RESULTS.exists():
        for row in pq.read_table(RESULTS).to_pylist():
            results.setdefault(row["system"], []).append(json.loads(row["result"]))
    return results


def write_results(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Every run's JSON, one row each, and the table's rows beside them."""
    rows = [
        {"system": name, "repetition": number, "result": json.dumps(result)}
        for name, found in results.items()
        for number, result in enumerate(found)
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), RESULTS)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", type=Path, required=True, help="MVTec AD root")
    parser.add_argument("--weights", type=Path, required=True, help="ResNet-18 state dict")
    parser.add_argument("--peer-python", type=Path, required=True, help="of the peer's environment")
    parser.add_argument("--num-workers", type=int, default=0, help="of the peer's data loader")
    parser.add_argument("--runs", type=int, default=3, help="of each")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*GROUPS, "nothing"],
        default=GROUPS,
        help="groups to measure; the others' results stay as they are",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
