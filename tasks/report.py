"""The report's task."""

from prefect import get_run_logger, task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE

from etstpm import report
from etstpm.config import Config
from etstpm.storage import Store


@task(name="report", task_run_name="report {run_id}", cache_policy=NO_CACHE)
def write_report(config: Config, run_id: str) -> str:
    """Write a published run's HTML report; where it lies."""
    place = report.write_report(Store(config.store), run_id)
    get_run_logger().info("report: %s", place)
    create_link_artifact(key="report", link=place, description=f"run {run_id}: report")
    return place
