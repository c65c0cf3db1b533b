"""What a run is called: by its tables, and on its page."""

from datetime import UTC, datetime

from prefect.runtime import flow_run

from etstpm.config import Config


def new_run_id() -> str:
    """Time of the flow run's schedule and the start of its id: a retried flow run keeps it."""
    scheduled = flow_run.get_scheduled_start_time() or datetime.now(UTC)
    return f"{scheduled:%Y%m%dT%H%M%SZ}-{str(flow_run.get_id())[:8]}"


def name_run() -> str:
    """The run's id, as in its tables, and the start of its config's digest."""
    config = Config.model_validate(flow_run.get_parameters()["config"])
    return f"{new_run_id()} config {config.digest()[:8]}"
