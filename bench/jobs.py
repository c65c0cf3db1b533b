"""Trials as jobs: one process each, several at a time, and no student trained twice.

Trials that differ in their scoring alone are one job, which trains their student once. A teacher's
fine-tuning is a job of its own; the students that need it wait for it.
"""

import os
import signal
import sys
import traceback
from collections.abc import Generator, Iterable
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

import torch

from bench.experiments import Trial
from bench.records import Origins, Places
from etstpm import stages
from etstpm.config import Config, digest_of
from etstpm.errors import EtstpmError, reason_of
from etstpm.publishing import Outcome
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


@dataclass(frozen=True)
class Running:
    """A job's process, and where its outcomes come from."""

    key: str
    job: Job
    process: ForkServerProcess
    results: Connection


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
    waiting, running = dict(jobs), list[Running]()
    try:
        while waiting or running:
            busy = waiting.keys() | {one.key for one in running}
            ready = [key for key, job in waiting.items() if job.needs not in busy]
            for key in ready[: processes - len(running)]:
                # PyTorch's own number is OMP_NUM_THREADS, or the cores. Two processes of a thread
                # each train a fifth more images/s than one of two (two AVX2 cores: 10.8, 9.0).
                threads = max(1, torch.get_num_threads() // processes)
                running.append(_start(key, waiting.pop(key), threads))
            connection.wait([one.process.sentinel for one in running])
            for one in [one for one in running if not one.process.is_alive()]:
                running.remove(one)
                outcomes = _outcomes(one)
                yield one.job, outcomes
                if outcomes[0].failure is not None:
                    for key in [key for key, job in waiting.items() if job.needs == one.key]:
                        job = waiting.pop(key)
                        yield job, _failed(job, f"its teacher failed: {outcomes[0].failure}")
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.join()


def _start(key: str, job: Job, threads: int) -> Running:
    # One process imports torch and forks each job; its own environment is that of the first one.
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    results, sender = context.Pipe(duplex=False)
    arguments = job, threads, dict(os.environ), sender
    process = context.Process(target=_run, args=arguments, daemon=True)
    # Ctrl-C reaches every process of a terminal. A job inherits from its first instruction on that
    # it is ignored; this process ends it.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)
    sender.close()
    return Running(key, job, process, results)


def _run(job: Job, threads: int, environment: dict[str, str], sender: Connection) -> None:
    """In the job's process."""
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    # The bars of two processes would overwrite each other.
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):  # noqa: PTH123
        sender.send(_work(job))


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
    traceback.print_exc(file=sys.__stderr__)
    return f"{type(error).__name__}: {reason_of(error)}"


def _outcomes(ended: Running) -> list[Outcome]:
    """What an ended process has sent; if it died before, that is its failure."""
    ended.process.join()
    try:
        outcomes: list[Outcome] = ended.results.recv()
    except EOFError:
        return _failed(
            ended.job,
            f"its process ended with exit code {ended.process.exitcode} (-9: killed, perhaps for "
            "want of memory: try --jobs 1)",
        )
    finally:
        ended.results.close()
    return outcomes


def _failed(job: Job, reason: str) -> list[Outcome]:
    return [Outcome(job.category, failure=reason)] * max(1, len(job.trials))


def _digest(dataset_key: str, config: Config, without: set[str], category: str = "") -> str:
    content: dict[str, Any] = config.model_dump(mode="json", exclude=without)
    return digest_of([dataset_key, category, content])
