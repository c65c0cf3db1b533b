"""What every stage's task has in common: no cache of Prefect's, retries of what may pass."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from etstpm.apart import Apart, share_of_threads
from etstpm.errors import EtstpmError

RETRIES = 2
DELAYS_SECONDS = [10.0, 60.0]
JITTER = 0.5
"""Share of a delay that it may be longer: a fleet that failed at once waits apart."""

at_once: ContextVar[int] = ContextVar("at_once", default=1)
"""Categories that this run makes at a time; where more than one, each stage is a process."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def stage_task(
    name: str, run_name: str
) -> Callable[[Callable[Parameters, Result]], Task[Parameters, Result]]:
    """Make a stage's function a task; `run_name` may name its arguments: 'student {category}'."""
    return task(
        name=name,
        task_run_name=run_name,
        cache_policy=NO_CACHE,
        retries=RETRIES,
        retry_delay_seconds=DELAYS_SECONDS,
        retry_jitter_factor=JITTER,
        retry_condition_fn=may_pass,
    )


def run_stage(stage: Callable[..., str], *arguments: object) -> str:
    """A stage's result, made here or, where a run makes several categories at a time, apart."""
    if (processes := at_once.get()) == 1:
        return stage(*arguments)
    return Apart(stage, *arguments, threads=share_of_threads(processes)).result()


def may_pass(_task: "Task[..., object]", _run: TaskRun, state: "State[object]") -> bool:
    """Whether trying again may help: not where the images, the config or the training are at fault.

    The store's own faults were tried again by the store, with backoff. What is left is a GPU that
    hangs, memory that another process held, a bug that depends on timing.
    """
    return not isinstance(state.result(raise_on_failure=False), EtstpmError)
