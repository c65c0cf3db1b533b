"""Nights that were missed do not pile up: a run that starts takes the place of those that wait."""

from datetime import UTC, datetime

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled


def cancel_late_runs() -> None:
    """Cancel what the schedule of this run's deployment began before now and nobody has started.

    After a week without workers the newest images are retrained once, not seven times. Runs that a
    person began or began again stay. Does nothing in a run without a deployment.
    """
    if deployment.get_id() is None:
        return
    late = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
    )
    this = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.get_id()]))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=late, deployment_filter=this):
            if run.auto_scheduled and not run.run_count and str(run.id) != flow_run.get_id():
                message = f"run {flow_run.get_name()} started in its place"
                client.set_flow_run_state(run.id, Cancelled(message=message))
                get_run_logger().info("cancelled %s, which was late: %s", run.name, message)
