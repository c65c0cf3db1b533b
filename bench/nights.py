"""A night without Prefect: the stages of every category, published as a run."""

from collections.abc import Sequence
from datetime import UTC, datetime

from etstpm import stages
from etstpm.config import Config
from etstpm.publishing import Outcome, publish_run
from etstpm.storage import Artifact, Store
from etstpm.warm_start import pin_run


def publish_night(
    config: Config,
    run_id: str,
    started_at: datetime | None = None,
    categories: Sequence[str] | None = None,
) -> dict[str, tuple[Artifact, Artifact]]:
    """Student and scores of each category (of the root's, or these); the run stands in the store.

    `started_at` is the time that the run says of itself, else now.
    """
    store = Store(config.store)
    started_at = started_at or datetime.now(UTC)
    config = pin_run(config, store)
    dataset = stages.validate(config, store)
    teacher = stages.teacher(config, store, dataset)
    made, outcomes = {}, []
    for category in categories or stages.categories_of(store, dataset):
        student = stages.student(config, store, dataset, teacher, category)
        scores = stages.scores(config, store, dataset, student, category)
        made[category] = store.get(student), store.get(scores)
        outcomes.append(Outcome(category, scores))
    publish_run(
        store,
        config,
        run_id=run_id,
        started_at=started_at,
        dataset_key=dataset,
        teacher_key=teacher,
        outcomes=outcomes,
    )
    return made
