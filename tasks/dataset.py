"""The dataset's task."""

from prefect import get_run_logger
from prefect.events import emit_event

from etstpm import stages
from etstpm.config import Config
from etstpm.storage import Store
from tasks.stage import stage_task

FINDING = "%(path)s: expected %(expected)s, found %(found)s; %(remedy)s"


@stage_task("validate", "validate dataset")
def validate(config: Config) -> str:
    """Prove the dataset and whatever else the run needs; key of its manifest."""
    store = Store(config.store)
    key = stages.validate(config, store)
    findings = stages.findings_of(store, key)
    for finding in findings:
        get_run_logger().warning(FINDING, finding)
    if findings:
        emit_event(
            "etstpm.data.findings",
            resource={"prefect.resource.id": f"etstpm.{key}", "prefect.resource.name": key},
            payload={"findings": len(findings), "first": FINDING % findings[0]},
        )
    return key
