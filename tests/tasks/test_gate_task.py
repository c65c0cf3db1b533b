"""The gate's task, run by Prefect itself, and the event as the server received it."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from etstpm.runs import latest_run
from etstpm.storage import Store
from tests.prefect_server import REPOSITORY, Prefect, wait_until
from tests.published import add_category, publish

GOOD, BAD = "20261123T020000Z-00000001", "20261124T020000Z-00000002"
PROGRAM = """
import json, sys
from prefect import flow
from etstpm.config import Config
from tasks.gate import announce_verdict

@flow
def gate(store: str) -> dict:
    config = Config(store=store)
    return {run: announce_verdict(config, run) for run in sys.argv[2:]}

print(json.dumps(gate(sys.argv[1])))
"""


def test_a_regressed_run_is_an_event_and_a_good_one_is_none(
    prefect_server: Prefect, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "store"))
    publish(store, [add_category(store, separation=2.0)], GOOD)
    publish(store, [add_category(store, separation=0.5)], BAD)

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, store.uri, GOOD, BAD],
        cwd=REPOSITORY,
        env=prefect_server.environment,
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said[GOOD] is None
    assert said[BAD].startswith("screw: image AUROC fell by 0.")
    assert latest_run(store) == GOOD
    wait_until(lambda: bool(events_of(prefect_server, BAD)), 60, "the event")
    (event,) = events_of(prefect_server, BAD)
    assert event["payload"]["reason"] == said[BAD]
    assert event["payload"]["findings"][0]["change"]["category"] == "screw"
    assert events_of(prefect_server, GOOD) == []


def events_of(server: Prefect, run_id: str) -> list[dict[str, Any]]:
    """What the server has received about a run."""
    chosen = {
        "event": {"name": ["etstpm.auroc.regressed"]},
        "resource": {"id": [f"etstpm.run.{run_id}"]},
    }
    request = urllib.request.Request(  # noqa: S310 - the test's own server
        f"{server.api}/events/filter",
        json.dumps({"filter": chosen}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        events: list[dict[str, Any]] = json.load(response)["events"]
    return events
