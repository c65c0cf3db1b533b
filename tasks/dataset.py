"""The dataset's task."""

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from etstpm import stages
from etstpm.config import Config
from etstpm.storage import Store


@task(name="validate", task_run_name="validate dataset", cache_policy=NO_CACHE)
def validate(config: Config) -> str:
    """Prove the dataset and whatever else the run needs; key of its manifest."""
    store = Store(config.store)
    key = stages.validate(config, store)
    for finding in stages.findings_of(store, key):
        get_run_logger().warning(
            "%(path)s: expected %(expected)s, found %(found)s; %(remedy)s", finding
        )
    return key
