"""The flow `etstpm-score`: new images, scored by a student that a run has published."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from etstpm.inference.new_images import Heatmaps
from flows.faults import log_faults_in_one_line
from tasks.score import score_images

log_faults_in_one_line()


@flow(name="etstpm-score", flow_run_name="score {category}")
def etstpm_score(
    images: str,
    category: str,
    store: str = "./etstpm-store",
    run: str = "latest",
    to: str | None = None,
    heatmaps: Heatmaps = "none",
) -> State:
    """Score new images: one row an image, decisions, and how far they have drifted.

    Args:
        images: An image, a folder, or any fsspec URI of such.
        category: Which product they show.
        store: Folder or fsspec URI of the results.
        run: Whose student: a run's id, or `latest`.
        to: Folder or fsspec URI for the scores; empty: a new one in the store.
        heatmaps: Of which images an overlay is kept.
    """
    result = score_images(images, category, store, run, to, heatmaps)
    return Completed(
        message=f"{result.scored} scored, {result.defective} called defective, {result.faults} "
        f"unreadable; drift: {result.drift.verdict}; {result.table}",
        data=result.place,
    )
