"""What it costs to look for an artifact in a store with few and with many: it must not grow.

    python -m bench.store_lookup                     a folder in the temporary directory
    python -m bench.store_lookup --store s3://bucket/prefix

Fills two stores side by side and then asks both in turn for the same ten artifacts: `find` of one
that is there, of one that is not, and `get` with its weights' hash verified. Medians.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from etstpm.storage import Store

FEW, MANY = 10, 10_000
WEIGHTS_BYTES = 100_000
CATEGORIES = 15
NOWHERE = 10**9


def main(
    store: Annotated[str, typer.Option(help="An empty place; a temporary folder if empty.")] = "",
    many: Annotated[int, typer.Option(min=FEW + 1, help="Artifacts in the fuller store.")] = MANY,
    repeats: Annotated[int, typer.Option(min=1)] = 200,
) -> None:
    """Print the medians in both, and their ratio."""
    with tempfile.TemporaryDirectory(prefix="etstpm-bench-") as folder:
        stores = {count: Store(f"{store or folder}/{count}") for count in (FEW, many)}
        for count, opened in stores.items():
            fill(opened, count)
        table = Table("operation", *(f"{count} artifacts, ms" for count in stores), "ratio")
        for name, operation in OPERATIONS.items():
            few, full = medians(operation, stores.values(), repeats)
            table.add_row(name, f"{1e3 * few:.2f}", f"{1e3 * full:.2f}", f"{full / few:.2f}")
        Console().print(table)


def key_of(number: int) -> str:
    """Spread over the categories, as a year of nights is."""
    return f"students/category-{number % CATEGORIES:02}/{number:064x}"


def fill(store: Store, count: int) -> None:
    """Commit so many artifacts."""
    with tempfile.TemporaryDirectory(prefix="etstpm-bench-") as made:
        (Path(made) / "weights.safetensors").write_bytes(bytes(WEIGHTS_BYTES))

        def commit(number: int) -> None:
            store.commit(key_of(number), Path(made), {"stage": "student", "seed": number})

        with ThreadPoolExecutor(16) as pool:
            for _ in pool.map(commit, range(count)):
                pass


def get_and_verify(store: Store, number: int) -> None:
    """As a stage reads a network."""
    with store.open(store.get(key_of(number)), "weights.safetensors"):
        pass


OPERATIONS: dict[str, Callable[[Store, int], object]] = {
    "find, there": lambda store, number: store.find(key_of(number)),
    "find, not there": lambda store, number: store.find(key_of(NOWHERE + number)),
    "get and verify 100 kB": get_and_verify,
}


def medians(
    operation: Callable[[Store, int], object], stores: Iterable[Store], repeats: int
) -> list[float]:
    """Seconds that one call takes in each store, the stores in turn."""
    seconds: list[list[float]] = [[] for _ in stores]
    for number in range(repeats):
        for store, times in zip(stores, seconds, strict=True):
            started = time.perf_counter()
            operation(store, number % FEW)
            times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds]


if __name__ == "__main__":
    typer.run(main)
