"""The teacher's task."""

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from etstpm import stages
from etstpm.config import Config
from etstpm.storage import Store


@task(name="teacher", task_run_name="teacher {config.teacher.mode}", cache_policy=NO_CACHE)
def prepare_teacher(config: Config, dataset_key: str) -> str:
    """Prove and fine-tune the teacher; key of its frozen weights."""
    store = Store(config.store)
    key = stages.teacher(config, store, dataset_key)
    get_run_logger().info("teacher: %(description)s, %(summary)s", store.get(key).card)
    return key
