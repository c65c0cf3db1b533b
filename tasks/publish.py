"""The publishing task."""

from datetime import datetime

from etstpm.config import Config
from etstpm.publishing import publish_run
from etstpm.runs import Outcome
from etstpm.storage import Store
from tasks.artifacts import show_summary
from tasks.stage import stage_task


@stage_task("publish", "publish {run_id}")
def publish(
    config: Config,
    run_id: str,
    started_at: datetime,
    dataset_key: str,
    teacher_key: str,
    outcomes: list[Outcome],
) -> str:
    """Write the run's tables and then its `run.json`; the run's id."""
    run = publish_run(
        Store(config.store),
        config,
        run_id=run_id,
        started_at=started_at,
        dataset_key=dataset_key,
        teacher_key=teacher_key,
        outcomes=outcomes,
    )
    show_summary(run)
    return run.run_id
