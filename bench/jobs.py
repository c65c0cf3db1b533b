"""Trials as jobs: one process each, several at a time, and no student trained twice.

Trials that differ in their scoring alone are one job, which trains their student once. A teacher's
fine-tuning is a job of its own; the students that need it wait for it.
"""

import traceback
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

from bench.experiments import Trial
from bench.records import Origins, Places
from etstpm import apart, stages
from etstpm.config import Config, digest_of
from etstpm.errors import EtstpmError, reason_of
from etstpm.runs import Outcome
from etstpm.storage import Store


@dataclass(frozen=True)
class Job:
    """A process's work: a teacher, or a category's student and each way to score it."""

    name: str
    dataset_key: str
    config: Config
    category: str = ""
    trials: tuple[Trial, ...] = ()
    scorings: tuple[Config, ...] = ()
    """The config of each trial, with its places."""
    needs: str | None = None
    """The teacher's job."""


Jobs = dict[str, Job]


def plan_jobs(trials: Iterable[Trial], places: Places, origins: Origins) -> Jobs:
    """The jobs of these trials, in the trials' order; a teacher before the first that needs it."""
    jobs: Jobs = {}
    for trial in trials:
        config = places.fill(trial.config)
        dataset_key = origins.dataset_key(config)
        teacher = None
        if config.teacher.mode != "imagenet":  # that one takes no time: each student sees to it
            teacher = _digest(dataset_key, config, without={"student", "scoring"})
            name = f"{trial.experiment}, teacher, seed {trial.seed}"
            jobs.setdefault(teacher, Job(name, dataset_key, config))
        student = _digest(dataset_key, config, without={"scoring"}, category=trial.category)
        if student not in jobs:
            jobs[student] = Job(str(trial), dataset_key, config, trial.category, needs=teacher)
        job = jobs[student]
        if trial.key not in [other.key for other in job.trials]:
            jobs[student] = replace(
                job, trials=(*job.trials, trial), scorings=(*job.scorings, config)
            )
    return jobs


def run_jobs(jobs: Jobs, processes: int) -> Generator[tuple[Job, list[Outcome]]]:
    """Run the jobs and yield each with its outcomes, one a trial, as it ends.

    A failed job stops none but those that need its teacher. However this generator is left, no
    process stays behind.
    """
    apart.prepare()
    threads = apart.share_of_threads(processes)
    waiting, running = dict(jobs), dict[Future[tuple[Job, list[Outcome]]], str]()
    with ThreadPoolExecutor(processes) as pool:
        try:
            while waiting or running:
                busy = waiting.keys() | set(running.values())
                ready = [key for key, job in waiting.items() if job.needs not in busy]
                for key in ready[: processes - len(running)]:
                    running[pool.submit(_run, waiting.pop(key), threads)] = key
                for ended in wait(running, return_when=FIRST_COMPLETED).done:
                    key, job, outcomes = running.pop(ended), *ended.result()
                    yield job, outcomes
                    if outcomes[0].failure is not None:
                        for other in [name for name, job in waiting.items() if job.needs == key]:
                            job = waiting.pop(other)
                            yield job, _failed(job, f"its teacher failed: {outcomes[0].failure}")
        except BaseException:
            apart.stop()  # else the pool waits for them
            raise


def _run(job: Job, threads: int) -> tuple[Job, list[Outcome]]:
    """In a thread that waits for the job's process."""
    try:
        return job, apart.Apart(_work, job, threads=threads).result()
    except apart.DiedError as error:
        return job, _failed(job, f"{error}; try --jobs 1")


def _work(job: Job) -> list[Outcome]:
    try:
        store = Store(job.config.store)
        teacher = stages.teacher(job.config, store, job.dataset_key)
        if not job.trials:
            return [Outcome("")]
        student = stages.student(job.config, store, job.dataset_key, teacher, job.category)
    except Exception as error:
        return _failed(job, _reason(error))
    return [_score(job, store, student, config) for config in job.scorings]


def _score(job: Job, store: Store, student: str, config: Config) -> Outcome:
    try:
        key = stages.scores(config, store, job.dataset_key, student, job.category)
    except Exception as error:
        return Outcome(job.category, failure=_reason(error))
    return Outcome(job.category, scores_key=key)


def _reason(error: Exception) -> str:
    """One line; whatever is not the user's to mend is a bug, and shows where."""
    if isinstance(error, EtstpmError):
        return reason_of(error)
    traceback.print_exc()
    return f"{type(error).__name__}: {reason_of(error)}"


def _failed(job: Job, reason: str) -> list[Outcome]:
    return [Outcome(job.category, failure=reason)] * max(1, len(job.trials))


def _digest(dataset_key: str, config: Config, without: set[str], category: str = "") -> str:
    content: dict[str, Any] = config.model_dump(mode="json", exclude=without)
    return digest_of([dataset_key, category, content])
