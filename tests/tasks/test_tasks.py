"""What holds for every task."""

import pytest
from prefect import Task
from prefect.cache_policies import NO_CACHE

from tasks import dataset, gate, publish, report, student, teacher

TASKS = {
    value.name: value
    for module in (dataset, gate, publish, report, student, teacher)
    for value in vars(module).values()
    if isinstance(value, Task)
}


def test_there_is_one_task_a_stage() -> None:
    assert set(TASKS) == {"validate", "teacher", "student", "scores", "publish", "gate", "report"}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_prefect_caches_none(name: str) -> None:
    """The store decides what is done already; see ARCHITECTURE.md, What is not there."""
    assert TASKS[name].cache_policy == NO_CACHE
    assert not TASKS[name].persist_result
