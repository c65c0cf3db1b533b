"""Categories as tasks of a Ray cluster; needs the extra `ray`."""

from collections.abc import Callable, Iterator, Sequence

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed

from etstpm.config import Config
from etstpm.errors import ConfigError, reason_of
from etstpm.runs import Outcome


def on_ray(
    make: Callable[[Config, str, str, str], Outcome],
    config: Config,
    dataset: str,
    teacher: str,
    categories: Sequence[str],
    *,
    address: str | None,
    gpus: float,
) -> Iterator[Outcome]:
    """What became of each category, as they end. Raises `ConfigError` without the extra `ray`."""
    try:
        from prefect_ray import RayTaskRunner
        from prefect_ray.context import remote_options
    except ImportError as error:
        raise ConfigError(
            "fleet.mode = 'ray' needs Ray; pip install 'etstpm[ray]', here and on the cluster"
        ) from error

    category_task = task(name="category", task_run_name="{category}", cache_policy=NO_CACHE)(make)

    @flow(name="etstpm-categories", task_runner=RayTaskRunner(address=address))
    def spread() -> list[Outcome]:
        with remote_options(num_gpus=gpus):
            futures = {
                category_task.submit(config, dataset, teacher, category): category
                for category in categories
            }
        return [_outcome(futures[future], future) for future in as_completed(list(futures))]

    yield from spread()


def _outcome(category: str, future: "PrefectFuture[Outcome]") -> Outcome:
    future.wait()
    result: Outcome | BaseException = future.result(raise_on_failure=False)
    if isinstance(result, Outcome):
        return result
    return Outcome(category, failure=reason_of(result))
