"""Runs that are published: their `run.json`, which of them is the latest, and who decided so.

A run exists from the moment its `run.json` does. It is put last and removed first, so that the
tables it names are there and are the ones whose hashes it holds.
"""

import getpass
import json
import re
import socket
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from etstpm.errors import ResultsError, StorageError
from etstpm.storage import Artifact, Store
from etstpm.tables import SCHEMA_VERSION

LATEST = "latest"
LATEST_KEY = "runs/latest.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Record = dict[str, Any]
"""What `run.json` says: see `etstpm.publishing`."""


@dataclass(frozen=True)
class Outcome:
    """What became of a category: the key of its scores, or why it failed."""

    category: str
    scores_key: str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Decision:
    """A move of `runs/latest.json` by hand. Kept for ever, a file each below `decisions/`."""

    action: Literal["promote", "rollback"]
    run_id: str
    previous: str | None
    """The run that was the latest before."""
    who: str
    why: str
    at: str
    """ISO 8601, UTC."""


def scores_of(store: Store, outcomes: Iterable[Outcome]) -> dict[str, Artifact]:
    """The artifact of each category that has scores."""
    return {
        outcome.category: store.get(outcome.scores_key)
        for outcome in outcomes
        if outcome.scores_key is not None
    }


def run_key(run_id: str) -> str:
    """Where a run's `run.json` lies. Raises `ResultsError` for what cannot be a run's id."""
    if NAME.fullmatch(run_id) is None:
        raise ResultsError(
            f"{run_id!r} cannot be a run's id, which has letters, digits, '.', '_' and '-' only; "
            "see 'etstpm results runs'"
        )
    return f"runs/{run_id}/run.json"


def table_key(name: str, run_id: str) -> str:
    """Where a run's table lies."""
    return f"tables/{name}/run_id={run_id}/{name}.parquet"


def published_runs(store: Store) -> dict[str, str]:
    """The id of every published run, in ascending order, and the stamp of its `run.json`."""
    found = {}
    for key, stamp in store.list_files("runs").items():
        parts = key.split("/")
        if len(parts) == 3 and parts[2] == "run.json" and NAME.fullmatch(parts[1]):
            found[parts[1]] = stamp
    return dict(sorted(found.items()))


def read_runs(store: Store, run_ids: Iterable[str]) -> dict[str, Record]:
    """The records of these runs, read side by side; one that is gone is left out."""
    keys = {run_key(run_id): run_id for run_id in run_ids}
    return {
        keys[key]: _parse(store, key, content) for key, content in store.read_files(keys).items()
    }


def read_run(store: Store, run: str = LATEST) -> Record:
    """The record of a run, given by its id or as 'latest'.

    Raises `ResultsError` if it is not there, or of a newer schema version than this code knows.
    """
    run_id = latest_run(store) if run == LATEST else run
    if run_id is None:
        name = newest_runs(store)[0]
        raise ResultsError(
            f"store {store.uri}: no run has passed the gate yet; name one, as {name}, or "
            "promote it with 'etstpm runs promote'"
        )
    record = read_runs(store, [run_id]).get(run_id)
    if record is None:
        newest = ", ".join(newest_runs(store))
        raise ResultsError(
            f"store {store.uri}: no run {run_id!r}; the newest are {newest}; see "
            "'etstpm results runs'"
        )
    refuse_newer(store, run_id, record["schema_version"])
    return record


def latest_run(store: Store) -> str | None:
    """The run that `runs/latest.json` names: the last one that passed, or that a person chose."""
    content = store.read_files([LATEST_KEY]).get(LATEST_KEY)
    return None if content is None else str(_parse(store, LATEST_KEY, content)["run_id"])


def refuse_newer(store: Store, run_id: str, schema_version: int) -> None:
    """Raise `ResultsError` if a run's tables are of a schema version that this code cannot know."""
    if schema_version > SCHEMA_VERSION:
        raise ResultsError(
            f"store {store.uri}: the tables of run {run_id} have schema version {schema_version}, "
            f"this etstpm reads up to {SCHEMA_VERSION}; upgrade etstpm"
        )


def move_latest(
    store: Store, action: Literal["promote", "rollback"], run_id: str, why: str, who: str = ""
) -> Decision:
    """Make a published run the latest, by hand; the decision is recorded before it takes effect.

    who: the user of this machine, where it is left out. Raises `ResultsError` for an unknown run,
    one that is the latest already, or no reason.
    """
    if not why.strip():
        raise ResultsError(f"{action} {run_id}: no reason; give one with --why, it is recorded")
    record = read_run(store, run_id)
    previous = latest_run(store)
    if record["run_id"] == previous:
        raise ResultsError(f"store {store.uri}: run {previous} is the latest already")
    now = datetime.now(UTC)
    decision = Decision(
        action, record["run_id"], previous, who or _user(), why.strip(), now.isoformat()
    )
    store.write_json(
        f"decisions/{now:%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:8]}.json", asdict(decision)
    )
    store.write_json(LATEST_KEY, {"run_id": decision.run_id})
    return decision


def decisions(store: Store) -> list[Decision]:
    """Every move of the latest run by hand, oldest first."""
    found = store.read_files(sorted(store.list_files("decisions")))
    return [Decision(**_parse(store, key, content)) for key, content in sorted(found.items())]


def newest_runs(store: Store) -> list[str]:
    """Ids of the last three published runs, newest first; raises `ResultsError` without any."""
    runs = published_runs(store)
    if not runs:
        raise ResultsError(
            f"store {store.uri} holds no published run; check its address, or publish one with "
            "'make run STORE=...'"
        )
    return sorted(runs, reverse=True)[:3]


def _parse(store: Store, key: str, content: bytes) -> Record:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise StorageError(
            f"store {store.uri}: {key} is damaged ({error}); restore it, or remove it and run again"
        ) from None
    if not isinstance(value, dict):
        raise StorageError(
            f"store {store.uri}: {key} is damaged (not an object); restore it, or remove it and "
            "run again"
        )
    return value


def _user() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a container's user that has no name
        name = "unknown"
    return f"{name}@{socket.gethostname()}"
