"""deployments/prefect.yaml on a real server with real workers: a night on which all is well."""

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from urllib.error import HTTPError

import pandas as pd
import pytest
import yaml

from etstpm.config import Config
from tests.deployments.conftest import OF_ONE_RUN, Night
from tests.prefect_server import REPOSITORY, Prefect, wait_until
from tests.processes import paused


def test_night_fans_out_and_publishes(workers: Prefect, night: Night) -> None:
    scores = night.undisturbed("image_scores")
    assert scores["score"].notna().all()
    children = {child["name"].split()[0]: child for child in workers.children(night.run)}
    assert set(children) == {*night.categories, "teacher"}
    digests = scores.groupby("category", observed=True)["student_digest"].first()
    for category, digest in digests.items():
        assert children[category]["name"] == f"{category} {digest[:8]}"
        assert children[category]["state"]["message"].startswith(f"scores/{category}/")
    assert night.run["name"].startswith(night.record["run_id"])


def test_page_of_a_run_shows_table_progress_and_pictures(workers: Prefect, night: Night) -> None:
    runs = [night.run, *workers.children(night.run)]
    query = {"flow_runs": {"id": {"any_": [run["id"] for run in runs]}}}
    artifacts = {a["key"]: a["data"] for a in workers.post("artifacts/filter", query)}

    assert artifacts.keys() >= {"auroc", "categories", *(f"hardest-{c}" for c in night.categories)}
    assert artifacts["categories"] == 100.0
    for category in night.categories:
        assert f"| {category} |" in artifacts["auroc"]
        assert "data:image/png;base64," in artifacts[f"hardest-{category}"]


def test_night_without_new_data_starts_no_child(workers: Prefect, night: Night) -> None:
    config = night.config(str(night.store))
    before = sorted(night.store.rglob("card.json"))
    record = night.record

    again = workers.finish(workers.begin("etstpm/full", config=config))

    try:
        assert again["state"]["type"] == "COMPLETED", workers.log(again)
        assert workers.children(again) == []
        assert sorted(night.store.rglob("card.json")) == before
    finally:  # `night` is shared: one run.json
        for path in night.store.glob("runs/*/run.json"):
            if path.parent.name != record["run_id"]:
                path.unlink()


def test_scores_damaged_before_they_are_published_are_made_again_in_the_same_night(
    workers: Prefect, night: Night, tmp_path: Path
) -> None:
    """A bit flips in the first category's scores while the last one's child is still at work."""
    store = tmp_path / "store"
    shutil.copytree(night.store, store)
    first, *_, last = night.categories
    for category in (first, last):
        (card,) = store.glob(f"scores/{category}/*/card.json")
        card.unlink()
    run = workers.begin("etstpm/full", config=night.config(str(store)))

    with paused(workers.wait_for_child(run, last)):
        workers.wait_for_child(run, first, "COMPLETED")
        (scores,) = store.glob(f"scores/{first}/*/image_scores.parquet")
        content = scores.read_bytes()
        scores.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    ended = workers.finish(run)

    assert ended["state"]["type"] == "COMPLETED", workers.log(ended)
    begun = Counter(child["name"].split()[0] for child in workers.children(run))
    assert begun == {first: 2, last: 1}
    log = workers.log(ended)
    assert f"{scores.parent.relative_to(store)}/image_scores.parquet is missing or damaged" in log
    assert "Traceback" not in log
    run_id = ended["name"].split()[0]
    published = pd.read_parquet(store / f"tables/image_scores/run_id={run_id}")
    pd.testing.assert_frame_equal(
        published.drop(columns=OF_ONE_RUN, errors="ignore"),
        night.undisturbed("image_scores").drop(columns=OF_ONE_RUN, errors="ignore"),
        check_categorical=False,
    )


def test_fault_of_the_inputs_is_the_runs_own_message(workers: Prefect, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pth"
    config = {"teacher": {"weights": str(missing)}, "store": str(tmp_path / "store")}

    run = workers.finish(workers.begin("etstpm-validate/validate", config=config))

    assert run["state"]["type"] == "FAILED", workers.log(run)
    assert str(missing) in run["state"]["message"]
    assert "Traceback" not in workers.log(run)


@pytest.mark.parametrize(
    ("parameter", "value", "complaint"),
    [
        ("config", {"seed": "zero"}, "config.seed"),
        ("config", {"student": {"epoch": 1}}, "epoch"),
        ("config", {"dataset": {"image_size": -1}}, "config.dataset.image_size"),
        ("fleet", {"mode": "moon"}, "fleet.mode"),
    ],
)
def test_wrong_parameter_is_refused_before_a_run_exists(
    deployed: Prefect, parameter: str, value: Mapping[str, object], complaint: str
) -> None:
    before = deployed.post("flow_runs/count", {})

    with pytest.raises(HTTPError) as refused:
        deployed.begin("etstpm/full", **{parameter: value})

    assert refused.value.code == 409
    assert complaint in refused.value.read().decode()
    assert deployed.post("flow_runs/count", {}) == before


def test_wrong_parameter_ends_prefects_command(deployed: Prefect) -> None:
    wrong = 'config={"student": {"epoch": 1}}'
    done = deployed("deployment", "run", "etstpm/full", "--param", wrong)

    assert done.returncode == 1
    assert "epoch" in done.stdout + done.stderr


def test_schedule_is_off_until_resumed_then_yields_a_run_at_two(deployed: Prefect) -> None:
    """Prefect 3.8.8 with SQLAlchemy 2.1 schedules nothing, and says nothing: hence the pins."""
    deployment = deployed.get("deployments/name/etstpm/full")
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
            lambda: bool(deployed.post("flow_runs/filter", scheduled)), 60, "a Scheduled run"
        )
        runs = deployed.post("flow_runs/filter", scheduled)
        starts = pd.to_datetime([run["expected_start_time"] for run in runs])
        assert {start.hour for start in starts.tz_convert("Europe/Berlin")} == {2}
    finally:
        paused = deployed("deployment", "schedule", "pause", "etstpm/full", schedule["id"])
    assert paused.returncode == 0, paused.stdout + paused.stderr


def test_smoke_is_the_preset_sample() -> None:
    declared = yaml.safe_load((REPOSITORY / "deployments" / "prefect.yaml").read_text())
    (smoke,) = (each for each in declared["deployments"] if each["name"] == "smoke")

    given = Config.model_validate(smoke["parameters"]["config"])

    assert given.model_copy(update={"store": "-"}) == Config.load("sample", given={"store": "-"})
