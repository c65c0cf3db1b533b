"""Where a run's teacher and categories are made: here, as children on a work pool, or on Ray.

It changes no result and so belongs to no digest: the same artifacts come out anywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import State
from pydantic import BaseModel, ConfigDict, Field

from etstpm.addresses import Made, find_scores, find_teacher
from etstpm.config import Config
from etstpm.errors import TrainingError
from etstpm.runs import Outcome
from etstpm.settings import settings
from etstpm.stages import categories_of
from etstpm.storage import Store
from flows.children import Job, run_children
from tasks.teacher import prepare_teacher

TEACHER = "etstpm-teacher/teacher"
STUDENT = "etstpm-student/student"

MakeCategory = Callable[[Config, str, str, str], Outcome]
"""(config, dataset's key, teacher's key, category) to what became of the category."""


class Fleet(BaseModel):
    """Who makes the teacher and the categories of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["here", "pool", "ray"] = Field(
        "here",
        description="'here': in the run's own process, or in ETSTPM_CATEGORY_PROCESSES. 'pool': a "
        "child run each, on the work pool of the deployments teacher and student. 'ray': tasks of "
        "a Ray cluster.",
    )
    at_once: Annotated[int, Field(ge=1, le=200)] = Field(
        64,
        description="Children that are begun and not ended, at the most. How many of them run is "
        "up to the pool's concurrency limit and its workers.",
    )
    starts: Annotated[int, Field(ge=1, le=10)] = Field(
        3, description="How often a child is started whose process dies (out of memory, lost node)."
    )
    deadline_minutes: Annotated[float, Field(gt=0.0)] = Field(
        240.0, description="A child's process is ended after this long, whatever it does."
    )
    ray_address: str | None = Field(
        None, description="'ray://host:10001' or 'auto'. Empty: Ray is started on this machine."
    )
    gpus_per_category: Annotated[float, Field(ge=0.0)] = Field(
        1.0,
        description="'ray' only: GPUs that a category needs; 0.5 puts two on one, 0 is the CPU.",
    )


HERE = Fleet()


def make_teacher(config: Config, fleet: Fleet, dataset: str) -> str:
    """The frozen teacher's key. Raises `TrainingError` with the reason of a child that failed."""
    if fleet.mode != "pool":
        return prepare_teacher(config, dataset)
    made = find_teacher(config, Store(config.store), dataset)
    if made is not None:
        return made
    digest = dataset.rsplit("/", 1)[-1]
    job = Job(
        "teacher",
        name=f"teacher {config.teacher.mode} {digest[:8]}",
        identity=f"teacher/{digest}",
        parameters={"config": config.model_dump(mode="json"), "dataset": dataset},
        stands=Store(config.store).has,
    )
    ((_, state),) = run_children(TEACHER, [job], fleet.at_once, fleet.starts)
    if not state.is_completed():
        raise TrainingError(f"the teacher's run ended {state.name}: {state.message}")
    return str(state.message)


def make_categories(
    make: MakeCategory, config: Config, fleet: Fleet, dataset: str, teacher: str
) -> list[Outcome]:
    """What became of every category, in their order; a failure is its own and stops no other."""
    categories = categories_of(Store(config.store), dataset)
    progress = cast(
        UUID,
        create_progress_artifact(
            0.0, key="categories", description=f"of {len(categories)} categories"
        ),
    )
    outcomes: dict[str, Outcome] = {}
    for outcome in _outcomes(make, config, fleet, dataset, teacher, categories):
        outcomes[outcome.category] = outcome
        update_progress_artifact(progress, 100.0 * len(outcomes) / len(categories))
    return [outcomes[category] for category in categories]


def make_damaged_anew(
    make: MakeCategory,
    config: Config,
    fleet: Fleet,
    dataset: str,
    teacher: str,
    outcomes: Sequence[Outcome],
) -> list[Outcome]:
    """The same outcomes, after scores that are damaged or gone were made once more.

    What is sound is left as it is, and so is a category that failed.
    """
    made = [outcome.category for outcome in outcomes if outcome.failure is None]
    anew = {o.category: o for o in _outcomes(make, config, fleet, dataset, teacher, made)}
    return [anew.get(outcome.category, outcome) for outcome in outcomes]


def _outcomes(
    make: MakeCategory,
    config: Config,
    fleet: Fleet,
    dataset: str,
    teacher: str,
    categories: Sequence[str],
) -> Iterator[Outcome]:
    processes = settings().category_processes
    if fleet.mode == "here" and processes == 1:
        yield from (make(config, dataset, teacher, category) for category in categories)
        return
    # A night without new images starts nothing.
    found = find_scores(config, Store(config.store), dataset, teacher, categories)
    yield from (Outcome(name, made.scores_key) for name, made in found.items() if made.scores_key)
    missing = {name: made for name, made in found.items() if made.scores_key is None}
    if fleet.mode == "pool":
        yield from _on_pool(config, fleet, dataset, teacher, missing)
    elif fleet.mode == "here":
        from flows.processes import side_by_side

        yield from side_by_side(make, config, dataset, teacher, list(missing), processes=processes)
    else:
        from flows.ray import on_ray

        yield from on_ray(
            make,
            config,
            dataset,
            teacher,
            list(missing),
            address=fleet.ray_address,
            gpus=fleet.gpus_per_category,
        )


def _on_pool(
    config: Config, fleet: Fleet, dataset: str, teacher: str, missing: dict[str, Made]
) -> Iterator[Outcome]:
    values, store = config.model_dump(mode="json"), Store(config.store)
    jobs = [
        Job(
            category,
            name=f"{category} {made.student_digest[:8]}",
            identity=f"{category}/{dataset}/{made.student_digest}",
            parameters={
                "config": values,
                "dataset": dataset,
                "teacher": teacher,
                "category": category,
                "deadline_minutes": fleet.deadline_minutes,
            },
            stands=store.has,
        )
        for category, made in missing.items()
    ]
    for category, state in run_children(STUDENT, jobs, fleet.at_once, fleet.starts):
        yield outcome_of(category, state)


def outcome_of(category: str, state: State) -> Outcome:
    """A child says in its last state's message which scores it made, or why it made none.

    Its return value would need a result storage that all machines share; the store is that already.
    """
    if state.is_completed():
        return Outcome(category, scores_key=state.message)
    return Outcome(category, failure=f"its run ended {state.name}: {state.message}")
