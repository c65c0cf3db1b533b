"""A night of many tiny categories through a real server: what is lost, what does it cost?

    python -m bench.soak --categories 200

Starts PostgreSQL, a Prefect server and workers of its own, runs `etstpm/full` once, and prints
throughput, memory and what the database grew by, for a child each. Each category is 32 pixels wide
and trained for two epochs: what is measured is orchestration.
"""

import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from etstpm.sample import draw_sample
from tests.prefect_server import FINAL, Prefect, running_prefect, worker_on
from tests.processes import children_of, processes_of
from tests.services import Service

SAMPLE_SECONDS = 5.0
NIGHT_SECONDS = 4 * 3600.0


def soak(
    categories: Annotated[int, typer.Option(help="How many tiny categories.")] = 100,
    at_a_time: Annotated[int, typer.Option(help="Children that run side by side.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the drawn images.")] = 0,
) -> None:
    """Run one night of many categories and print what it cost."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="etstpm-soak-")))
        folder.chmod(0o755)
        _draw(folder / "data", categories, seed)
        prefect = stack.enter_context(running_prefect(folder, has_ui=True))
        print(f"to look at  {prefect.api.removesuffix('/api')}", flush=True)
        deployed = prefect.command("make", "deploy")
        if deployed.returncode:
            raise SystemExit(deployed.stdout + deployed.stderr)
        for pool, limit in (("cpu", 1), ("gpu", at_a_time)):
            stack.enter_context(_running(worker_on(prefect, pool, limit, folder, {})))
        before = _database_bytes(prefect)
        run, peaks = _night(prefect, folder)
        _report(prefect, run, categories, peaks, _database_bytes(prefect) - before)


@contextmanager
def _running(service: Service) -> Iterator[None]:
    service.start()
    try:
        yield
    finally:
        service.stop()


def _draw(root: Path, categories: int, seed: int) -> None:
    """The drawn sample, its products copied under as many names as wanted."""
    draw_sample(root, seed=seed, image_size=64, train=4, test_good=2, per_defect=1)
    products = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    for number in range(categories):
        product = products[number % len(products)]
        shutil.copytree(root / product, root / f"c{number:04d}-{product}")
    for product in products:
        shutil.rmtree(root / product)


def _night(prefect: Prefect, folder: Path) -> tuple[dict[str, Any], dict[str, int]]:
    config = {
        "dataset": {"root": str(folder / "data"), "image_size": 32},
        "teacher": {"weights": "formula"},
        "student": {"epochs": 2, "least_images": 0, "batch_size": 1},
        "store": str(folder / "store"),
        "device": "cpu",
    }
    started = time.monotonic()
    begun = prefect.begin("etstpm/full", config=config)
    peaks: dict[str, int] = {}
    while prefect.state(begun["id"]) not in FINAL:
        for name, size in _resident(prefect, begun["id"]).items():
            peaks[name] = max(peaks.get(name, 0), size)
        if time.monotonic() - started > NIGHT_SECONDS:
            raise SystemExit("the night has not ended in four hours")
        time.sleep(SAMPLE_SECONDS)
    return prefect.run(begun["id"]), peaks


def _resident(prefect: Prefect, parent: str) -> dict[str, int]:
    """Bytes of memory: the parent's process, Prefect's server, PostgreSQL and all workers."""
    groups = {"parent": processes_of(parent)}
    for service in (prefect.server, prefect.database):
        if service is not None and service.process is not None:
            groups[service.name] = _descendants(service.process.pid)
    return {name: sum(map(_resident_of, pids)) for name, pids in groups.items()}


def _descendants(process: int) -> list[int]:
    """A process and all that came of it: PostgreSQL puts each of its own into a new session."""
    found = newest = [process]
    while newest:
        newest = children_of(*newest)
        found = found + newest
    return found


def _resident_of(process: int) -> int:
    """Its share of memory: pages that PostgreSQL's processes have in common count once."""
    with suppress(OSError):
        found = re.search(
            r"^Pss:\s+(\d+) kB", Path(f"/proc/{process}/smaps_rollup").read_text(), re.M
        )
        if found:
            return 1024 * int(found[1])
    return 0


def _database_bytes(prefect: Prefect) -> int:
    """Size of PostgreSQL's files, its log of transactions apart; 0 with SQLite."""
    if prefect.database is None:
        return 0
    base = prefect.database.folder / "data" / "base"
    return sum(path.stat().st_size for path in base.rglob("*") if path.is_file())


def _report(
    prefect: Prefect,
    run: dict[str, Any],
    categories: int,
    peaks: dict[str, int],
    grown: int,
) -> None:
    children: list[dict[str, Any]] = []
    while page := prefect.post(
        "flow_runs/filter",
        {
            "flow_runs": {"parent_flow_run_id": {"any_": [run["id"]]}},
            "sort": "ID_DESC",
            "offset": len(children),
        },
    ):
        children += page
    made = Counter(child["name"] for child in children if child["name"].startswith("c"))
    doubled = [name for name, count in made.items() if count > 1]
    states = Counter(child["state"]["type"] for child in children)
    seconds = run["total_run_time"]
    print(f"state       {run['state']['type']}: {run['state']['message'][:200]}")
    print(f"children    {len(made)} of {categories}, doubled {len(doubled)}, states {dict(states)}")
    print(f"throughput  {len(made) / seconds:.2f} children/s, {seconds:.0f} s in all")
    for name, size in peaks.items():
        print(f"memory      {name}: {size / 2**20:.0f} MiB at its peak")
    print(
        f"database    {grown / 2**20:.1f} MiB, {grown / 1024 / max(len(made), 1):.0f} KiB a child"
    )
    if len(made) != categories or doubled or run["state"]["type"] != "COMPLETED":
        raise SystemExit("a child was lost or doubled, or the night did not complete")


if __name__ == "__main__":
    typer.run(soak)
