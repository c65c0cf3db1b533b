"""Categories side by side on this machine: a thread each, whose stages are processes."""

from collections.abc import Callable, Iterator, Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from etstpm import apart
from etstpm.config import Config
from etstpm.progress import track
from etstpm.runs import Outcome
from tasks.stage import at_once


def side_by_side(
    make: Callable[[Config, str, str, str], Outcome],
    config: Config,
    dataset: str,
    teacher: str,
    categories: Sequence[str],
    *,
    processes: int,
) -> Iterator[Outcome]:
    """What became of each category, as they end; so many at a time.

    Prefect's own runner of processes was tried: each imports Prefect and torch, the death of one
    fails all, and Ctrl-C leaves them at work.
    """
    apart.prepare()
    category_task = task(name="category", task_run_name="{category}", cache_policy=NO_CACHE)(make)
    parameters = {"config": config, "dataset": dataset, "teacher": teacher}
    runner: ThreadPoolTaskRunner[Outcome] = ThreadPoolTaskRunner(max_workers=processes)
    with runner:
        try:
            token = at_once.set(processes)  # for the threads, whose context is a copy
            futures: list[PrefectFuture[Outcome]] = [
                runner.submit(category_task, parameters | {"category": category})
                for category in categories
            ]
            at_once.reset(token)
            for future in track(as_completed(futures), "categories", len(futures)):
                yield future.result()
        except BaseException:
            apart.stop()  # else the runner waits for them
            raise
