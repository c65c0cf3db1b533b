"""A night without Prefect: the stages of every category, published as a run. Benches use it too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from etstpm import stages
from etstpm.config import Config
from etstpm.publishing import publish_run
from etstpm.runs import Outcome
from etstpm.storage import Store
from etstpm.summary import Run
from etstpm.warm_start import pin_run


@dataclass(frozen=True)
class Night:
    """A published run, and the keys of what it is made of; students and scores by category."""

    run: Run
    dataset: str
    teacher: str
    students: dict[str, str]
    scores: dict[str, str]


def publish_night(
    config: Config,
    run_id: str,
    started_at: datetime | None = None,
    *,
    categories: Sequence[str] | None = None,
    failures: Mapping[str, str] | None = None,
) -> Night:
    """Make what is not there yet of the root's categories, or of these, and publish it.

    `started_at` is the time that the run says of itself, else now. `failures`: categories that are
    not made but published as failed, and why.
    """
    store, failed = Store(config.store), failures or {}
    started_at = started_at or datetime.now(UTC)
    config = pin_run(config, store)
    dataset = stages.validate(config, store)
    teacher = stages.teacher(config, store, dataset)
    students, scores = {}, {}
    for category in categories or stages.categories_of(store, dataset):
        if category not in failed:
            students[category] = stages.student(config, store, dataset, teacher, category)
            scores[category] = stages.scores(config, store, dataset, students[category], category)
    run = publish_run(
        store,
        config,
        run_id=run_id,
        started_at=started_at,
        dataset_key=dataset,
        teacher_key=teacher,
        outcomes=[Outcome(category, scores_key=key) for category, key in scores.items()]
        + [Outcome(category, failure=reason) for category, reason in failed.items()],
    )
    return Night(run, dataset, teacher, students, scores)
