"""Child runs on a work pool: started, awaited, started again where their process died.

No child is lost or doubled: each carries an idempotency key made of the parent run, of what it is
to make and of how often that was begun, so that a parent that is run again finds its children.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.runtime import flow_run

from flows.embedded import PrefectError

POLL_SECONDS = 2.0  # one request for all children together
OUTAGE_SECONDS = 1800.0  # a server or database that is away for longer ends the parent
FIRST_DELAY_SECONDS = 10.0  # before a second start, doubled each time, half of it to twice that


@dataclass(frozen=True)
class Job:
    """What one child is to make.

    identity: the same for the same work on the same inputs, so that a parent's retry finds it.
    stands: whether what a child has made, by its last state's message, is there still.
    """

    subject: str
    name: str
    identity: str
    parameters: dict[str, Any]
    stands: Callable[[str], bool]


@dataclass
class _Child:
    job: Job
    number: int = 0
    """How often this parent run has begun this job, all its own attempts counted."""
    starts: int = 0
    """How often in this attempt of the parent."""
    not_before: datetime = field(default_factory=lambda: datetime.now(UTC))


def run_children(
    deployment: str, jobs: Sequence[Job], at_once: int, starts: int
) -> Iterator[tuple[str, State]]:
    """Each job's subject and its child's last state, as they end; at most `at_once` are begun.

    A child that crashed (its process died: out of memory, a lost node, its deadline) is started
    again until it was started `starts` times. One that failed is not: what may pass was tried again
    in its own process. Raises `PrefectError` if there is no such deployment, or if Prefect's API
    has been away for half an hour.
    """
    waiting = deque(_Child(job) for job in jobs)
    running: dict[UUID, _Child] = {}
    heard = time.monotonic()
    while waiting or running:
        ended: dict[UUID, State] = {}
        try:
            while waiting and len(running) < at_once:
                running[_start(deployment, waiting[0])] = waiting[0]
                waiting.popleft()
            ended = _final_states(list(running))
            heard = time.monotonic()
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            _endure(error, heard)
        for run_id, state in ended.items():
            child = running.pop(run_id)
            if state.is_crashed() and child.starts < starts:
                waiting.append(_after_a_while(child, state))
            else:
                yield child.job.subject, state
        if running and not ended:
            time.sleep(POLL_SECONDS)


def _start(deployment: str, child: _Child) -> UUID:
    """Begin a child or find the one that this parent has begun before, if it did well."""
    while True:
        try:
            run = cast(
                FlowRun,  # outside of an event loop, as here
                run_deployment(
                    deployment,
                    parameters=child.job.parameters,
                    flow_run_name=child.job.name,
                    scheduled_time=child.not_before,
                    timeout=0,
                    idempotency_key=f"{flow_run.get_id()}/{child.job.identity}/{child.number}",
                ),
            )
        except ObjectNotFound as error:
            raise PrefectError(
                f"there is no deployment {deployment!r} on this Prefect server; 'make deploy' puts "
                "all of them there, or run with fleet.mode = 'here'"
            ) from error
        if not _is_spent(child.job, run):
            child.starts += 1
            return run.id
        child.number += 1


def _is_spent(job: Job, run: FlowRun) -> bool:
    """Whether a child has ended and left nothing: it failed, or what it made is damaged or gone."""
    if run.state is None or not run.state.is_final():
        return False
    return not (run.state.is_completed() and job.stands(str(run.state.message)))


def _after_a_while(child: _Child, state: State) -> _Child:
    delay = FIRST_DELAY_SECONDS * 2 ** (child.starts - 1) * random.uniform(0.5, 2.0)  # noqa: S311
    get_run_logger().warning(
        "%s: its process died (%s); it is started again in %.0f s",
        child.job.subject,
        state.message,
        delay,
    )
    child.number += 1
    child.not_before = datetime.now(UTC) + timedelta(seconds=delay)
    return child


def _final_states(runs: list[UUID]) -> dict[UUID, State]:
    chosen = FlowRunFilter(
        id=FlowRunFilterId(any_=runs),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(TERMINAL_STATES))),
    )
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=chosen, limit=len(runs)) if runs else []
    return {run.id: run.state for run in found if run.state is not None}


def _endure(error: httpx.TransportError | PrefectHTTPStatusError, heard: float) -> None:
    """Wait for an API that is away. Raises what is not an outage, and an outage that lasts."""
    if isinstance(error, PrefectHTTPStatusError) and error.response.status_code < 500:
        raise error
    if time.monotonic() - heard > OUTAGE_SECONDS:
        raise PrefectError(
            f"Prefect's API has not answered for {OUTAGE_SECONDS / 60:.0f} minutes ({error}); when "
            "it is back, 'prefect flow-run retry' goes on with this run"
        ) from error
    get_run_logger().warning("Prefect's API does not answer (%s); waiting for it", error)
    time.sleep(POLL_SECONDS)
