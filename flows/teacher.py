"""The flow `etstpm-teacher`: the teacher in a process of its own, as a child of `etstpm`."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from etstpm.config import Config
from flows.faults import log_faults_in_one_line
from tasks.teacher import prepare_teacher

log_faults_in_one_line()


@flow(name="etstpm-teacher")
def make_teacher(config: Config, dataset: str) -> State:
    """Prove and fine-tune the teacher; the last state's message is its key."""
    return Completed(message=prepare_teacher(config, dataset))
