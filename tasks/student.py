"""A category's tasks: distil its student, score its test images."""

from prefect import get_run_logger

from etstpm import stages
from etstpm.config import Config
from etstpm.storage import Store
from tasks.artifacts import show_hardest
from tasks.stage import run_stage, stage_task


@stage_task("student", "student {category}")
def distil_student(config: Config, dataset_key: str, teacher_key: str, category: str) -> str:
    """Distil one category's student; key of its weights."""
    store = Store(config.store)
    key = run_stage(stages.student, config, store, dataset_key, teacher_key, category)
    if (retried := store.get(key).card.get("retried")) is not None:
        get_run_logger().warning("%s; it was begun again and ended well", retried)
    return key


@stage_task("scores", "scores {category}")
def score_category(config: Config, dataset_key: str, student_key: str, category: str) -> str:
    """Score one category's test images; key of their scores."""
    store = Store(config.store)
    key = run_stage(stages.scores, config, store, dataset_key, student_key, category)
    show_hardest(store, key, category)
    return key
