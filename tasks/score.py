"""The task that scores new images."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from etstpm.inference.detector import load_detector
from etstpm.inference.new_images import Heatmaps, NewScores, default_place, score_new
from etstpm.inference.source import ImageSource
from etstpm.storage import Store
from tasks.artifacts import show_new_scores


@task(name="score", task_run_name="score {category}", cache_policy=NO_CACHE)
def score_images(
    images: str, category: str, store: str, run: str, to: str | None, heatmaps: Heatmaps
) -> NewScores:
    """Score new images with a published student; what came of it."""
    origin = Store(store)
    source = ImageSource(images)
    place = to or default_place(origin, category)
    result = score_new(load_detector(origin, run, category), source, place, heatmaps=heatmaps)
    show_new_scores(result)
    return result
