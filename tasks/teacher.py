"""The teacher's task."""

from prefect import get_run_logger

from etstpm import stages
from etstpm.config import Config
from etstpm.storage import Store
from tasks.stage import stage_task


@stage_task("teacher", "teacher {config.teacher.mode}")
def prepare_teacher(config: Config, dataset_key: str) -> str:
    """Prove and fine-tune the teacher; key of its frozen weights."""
    store = Store(config.store)
    key = stages.teacher(config, store, dataset_key)
    get_run_logger().info("teacher: %(description)s, %(summary)s", store.get(key).card)
    return key
