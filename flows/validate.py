"""The flow `etstpm-validate`: prove the dataset and the rest of a run's inputs, and stop there."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from etstpm.config import Config
from etstpm.storage import Store
from flows.faults import log_faults_in_one_line
from tasks.dataset import validate

log_faults_in_one_line()


@flow(name="etstpm-validate")
def validate_dataset(config: Config) -> State:
    """Every image decoded, every finding explained; the last state's message counts them."""
    key = validate(config)
    card = Store(config.store).get(key).card
    return Completed(message="{images} images, {findings} findings: ".format(**card) + key)
