"""How long a reader of a year waits: each question of `etstpm results` over drawn nights.

    python -m bench.year [STORE] --nights 365

STORE: a folder or URI that `bench.fake_history` has filled; else one is drawn and thrown away. Each
question is timed as a command asks it: the store is opened anew, DuckDB is imported
already. Median of five, with the CPU time beside the wall clock's: on a busy machine they differ.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.fake_history import SICK, FakeHistory
from etstpm.history import read_history
from etstpm.results.database import Results
from etstpm.results.queries import list_runs, metric_history, run_metrics
from etstpm.storage import Store

LIMIT_SECONDS = 1.0
REPEATS = 5

QUESTIONS: dict[str, Callable[[Results], object]] = {
    "runs": list_runs,
    "metrics latest": run_metrics,
    f"history {SICK}": lambda results: metric_history(results, SICK),
    "history mean": lambda results: metric_history(results, "mean"),
    "sql: worst drop of each category": lambda results: results.query(
        "select category, min(change), arg_min(run_id, change) from nights group by 1"
    ),
}


def measure(store: Store) -> None:
    """Print each question's time against the limit of a second."""
    history = read_history(store)
    print(f"{len(history.runs)} runs, {len(history.months)} of them in months' files")
    print(f"{'question':<36} {'seconds':>8} {'CPU':>8} {'limit':>6}")
    for name, ask in QUESTIONS.items():
        walls, cpus = [], []
        for _ in range(REPEATS):
            wall, cpu = time.perf_counter(), time.process_time()
            with Results(store) as results:
                ask(results)
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
        seconds, used = statistics.median(walls), statistics.median(cpus)
        print(f"{name:<36} {seconds:>8.3f} {used:>8.3f} {LIMIT_SECONDS:>6.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Questions over a year of nights")
    parser.add_argument("store", nargs="?", help="filled by bench.fake_history")
    parser.add_argument("--nights", type=int, default=365)
    options = parser.parse_args()
    if options.store:
        measure(Store(options.store))
        return
    with tempfile.TemporaryDirectory(prefix="etstpm-year-") as folder:
        store = Store(str(Path(folder) / "store"))
        FakeHistory(store, nights=options.nights).draw()
        measure(store)


if __name__ == "__main__":
    main()
