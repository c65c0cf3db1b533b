"""deployments/prefect.yaml on a real server with a real worker."""

import json
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from etstpm.sample import draw_sample
from tests.prefect_server import Prefect, wait_until

RUN_SECONDS = 300.0
LOG_SECONDS = 30.0
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def test_run_publishes_the_tables(worker: Prefect, tmp_path: Path) -> None:
    root, store = tmp_path / "data", tmp_path / "store"
    draw_sample(root, image_size=64, train=16, test_good=4, per_defect=2)
    category = sorted(entry.name for entry in root.iterdir() if entry.is_dir())[0]

    run = _run(worker, _tiny_config(root, store, categories=[category]))

    assert run["state"]["type"] == "COMPLETED", _log(worker, run)
    (record,) = store.glob("runs/*/run.json")
    files = json.loads(record.read_text())["files"]
    scores = pd.read_parquet(store / files["image_scores"]["key"])
    metrics = pd.read_parquet(store / files["metrics"]["key"])
    assert scores["score"].notna().all()
    assert category in set(metrics["category"])
    shown = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    artifacts = {a["key"]: a["data"] for a in _post(worker, "artifacts/filter", shown)}
    assert set(artifacts) == {"auroc", f"hardest-{category}"}
    assert f"| {category} |" in artifacts["auroc"]
    assert "data:image/png;base64," in artifacts[f"hardest-{category}"]


def test_failed_run_says_what_and_where(worker: Prefect, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pth"

    run = _run(worker, {"teacher": {"weights": str(missing)}, "store": str(tmp_path / "store")})

    assert run["state"]["type"] == "FAILED", _log(worker, run)
    assert str(missing) in run["state"]["message"]
    assert "Traceback" not in _log(worker, run)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"seed": "zero"}, "config.seed"),
        ({"student": {"epoch": 1}}, "epoch"),
        ({"dataset": {"image_size": -1}}, "config.dataset.image_size"),
    ],
)
def test_wrong_parameter_is_refused_before_a_run_exists(
    deployed: Prefect, config: Mapping[str, object], complaint: str
) -> None:
    before = len(_post(deployed, "flow_runs/filter", {}))

    done = deployed("deployment", "run", "etstpm/full", "--param", f"config={json.dumps(config)}")

    assert done.returncode == 1
    assert complaint in done.stdout + done.stderr
    assert len(_post(deployed, "flow_runs/filter", {})) == before


def test_schedule_is_off_until_resumed_then_yields_a_run_at_two(deployed: Prefect) -> None:
    """Prefect 3.8.8 with SQLAlchemy 2.1 schedules nothing, and says nothing: hence the pins."""
    deployment = _get(deployed, "deployments/name/etstpm/full")
    (schedule,) = deployment["schedules"]
    assert not schedule["active"]
    assert schedule["schedule"]["timezone"] == "Europe/Berlin"

    resumed = deployed("deployment", "schedule", "resume", "etstpm/full", schedule["id"])
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    try:
        scheduled = {
            "deployments": {"id": {"any_": [deployment["id"]]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        }
        wait_until(
            lambda: bool(_post(deployed, "flow_runs/filter", scheduled)), 60, "a Scheduled run"
        )
        runs = _post(deployed, "flow_runs/filter", scheduled)
        starts = pd.to_datetime([run["expected_start_time"] for run in runs])
        assert {start.hour for start in starts.tz_convert("Europe/Berlin")} == {2}
    finally:
        paused = deployed("deployment", "schedule", "pause", "etstpm/full", schedule["id"])
    assert paused.returncode == 0, paused.stdout + paused.stderr


def _tiny_config(root: Path, store: Path, categories: list[str]) -> dict[str, object]:
    return {
        "dataset": {"root": str(root), "categories": categories, "image_size": 64},
        "teacher": {"weights": "random"},
        "student": {"epochs": 8, "batch_size": 4},  # fewer, and the loss does not fall enough
        "store": str(store),
        "seed": 0,
    }


def _run(prefect: Prefect, config: Mapping[str, object]) -> dict[str, Any]:
    """Start `etstpm/full` through the command line and wait for its end."""
    before = datetime.now().astimezone().isoformat()
    started = prefect("deployment", "run", "etstpm/full", "--param", f"config={json.dumps(config)}")
    assert started.returncode == 0, started.stdout + started.stderr
    query = {
        "flow_runs": {"expected_start_time": {"after_": before}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    (created,) = (
        run for run in _post(prefect, "flow_runs/filter", query) if not run["auto_scheduled"]
    )

    def state_type() -> str:
        return str(_get(prefect, f"flow_runs/{created['id']}")["state"]["type"])

    wait_until(lambda: state_type() in FINAL, RUN_SECONDS, f"the end of run {created['name']}")
    return dict(_get(prefect, f"flow_runs/{created['id']}"))


def _log(prefect: Prefect, run: Mapping[str, Any]) -> str:
    """The run's log and, last, its state's message; the log reaches the server in batches."""
    query = {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "sort": "TIMESTAMP_ASC"}

    def messages(of_flow_alone: bool) -> list[str]:
        return [
            record["message"]
            for record in _post(prefect, "logs/filter", query)
            if not of_flow_alone or record["task_run_id"] is None
        ]

    wait_until(
        lambda: any(message.startswith("Finished in state") for message in messages(True)),
        LOG_SECONDS,
        f"the end of the log of run {run['name']}",
    )
    return "\n".join([*messages(False), run["state"]["message"] or ""])


def _get(prefect: Prefect, path: str) -> Any:
    with urllib.request.urlopen(f"{prefect.api}/{path}", timeout=30) as answer:  # noqa: S310
        return json.load(answer)


def _post(prefect: Prefect, path: str, body: Mapping[str, object]) -> Any:
    request = urllib.request.Request(  # noqa: S310
        f"{prefect.api}/{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return json.load(answer)
