"""The flow `etstpm-student`: one category in a process of its own, as a child of `etstpm`."""

import faulthandler

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from etstpm.config import Config


@flow(name="etstpm-student")
def make_student(
    config: Config,
    dataset: str,
    teacher: str,
    category: str,
    deadline_minutes: float | None = None,
) -> State:
    """Train and score one category; the last state's message is its scores' key or its fault."""
    if deadline_minutes is not None:
        # A timer of C, not of Prefect or Python: it ends a process that hangs in a CUDA call too,
        # and the worker's log gets the lines that every thread stood in. The process dies with it.
        faulthandler.dump_traceback_later(60 * deadline_minutes, exit=True)
    # Here: a worker loads this file to look for hooks when a child has crashed, and needs no torch.
    from flows.full import train_and_score

    outcome = train_and_score(config, dataset, teacher, category)
    if outcome.failure is not None:
        return Failed(message=outcome.failure)
    return Completed(message=outcome.scores_key)
