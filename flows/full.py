"""The flow `etstpm`: validate, teacher, students, scores, tables. One screen names the pipeline.

    python -m flows.full --config default --dataset /data/mvtec_ad --set student.epochs=30

With a Prefect server configured it reports there, else to one that lives as long as the run.
"""

if __name__ == "__main__":
    # The command starts Prefect's server first, so that it boots while torch is imported below.
    from flows.command import main

    main()
    raise SystemExit

from datetime import UTC, datetime

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from etstpm.config import Config
from etstpm.errors import DamagedArtifactError, reason_of
from etstpm.runs import Outcome
from etstpm.storage import Store
from etstpm.summary import load_run
from etstpm.warm_start import pin_run
from flows.faults import log_faults_in_one_line
from flows.fleet import HERE, Fleet, make_categories, make_damaged_anew, make_teacher
from flows.late import cancel_late_runs
from flows.logs import label_records, logs_about
from flows.names import name_run, new_run_id
from tasks.dataset import validate
from tasks.gate import announce_verdict
from tasks.publish import publish
from tasks.report import write_report
from tasks.student import distil_student, score_category

log_faults_in_one_line()
label_records()


@flow(name="etstpm", flow_run_name=name_run)
def etstpm(config: Config, fleet: Fleet = HERE) -> State:
    """From a folder of images to published tables; ends failed if a category has failed."""
    started_at = datetime.now(UTC)
    cancel_late_runs()
    config = pin_run(config, Store(config.store))
    dataset = validate(config)
    teacher = make_teacher(config, fleet, dataset)
    outcomes = make_categories(train_and_score, config, fleet, dataset, teacher)
    run_id = publish_sound(config, fleet, started_at, dataset, teacher, outcomes)
    write_report(config, run_id, return_state=True)  # a fault of the report is not the run's
    kept_back = announce_verdict(config, run_id)
    summary = load_run(Store(config.store), run_id).summary  # with what the dataset has left out
    failed = [f"{row.category} ({row.failure})" for row in summary if row.failure is not None]
    if failed:
        return Failed(message=f"run {run_id} is incomplete: {'; '.join(failed)}", data=run_id)
    standing = f", but not the latest: {kept_back}" if kept_back else ""
    return Completed(message=f"run {run_id} is complete{standing}", data=run_id)


def train_and_score(config: Config, dataset: str, teacher: str, category: str) -> Outcome:
    """One category from its images to its scores, here or in a child; a failure is its own."""
    with logs_about(category):
        student = distil_student(config, dataset, teacher, category, return_state=True)
        if not student.is_completed():
            return Outcome(category, failure=failure_of(student))
        scores = score_category(config, dataset, student.result(), category, return_state=True)
        if not scores.is_completed():
            return Outcome(category, failure=failure_of(scores))
        return Outcome(category, scores_key=scores.result())


def publish_sound(
    config: Config,
    fleet: Fleet,
    started_at: datetime,
    dataset: str,
    teacher: str,
    outcomes: list[Outcome],
) -> str:
    """Publish the run; its id. Scores found damaged are made anew, once: a disk may be failing."""
    run_id = new_run_id()
    published = publish(config, run_id, started_at, dataset, teacher, outcomes, return_state=True)
    fault = published.result(raise_on_failure=False)
    if isinstance(fault, DamagedArtifactError):
        get_run_logger().warning("%s: now, in this run", fault)
        sound = make_damaged_anew(train_and_score, config, fleet, dataset, teacher, outcomes)
        return publish(config, run_id, started_at, dataset, teacher, sound)
    return published.result()


def failure_of(state: State) -> str:
    """Why a task failed, in one line."""
    return reason_of(state.result(raise_on_failure=False))
