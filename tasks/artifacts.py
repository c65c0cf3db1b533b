"""What a person sees on a run's page in the Prefect UI."""

import base64
import re

from prefect.artifacts import create_markdown_artifact

from etstpm.inference.new_images import NewScores
from etstpm.markdown import escape
from etstpm.storage import Store
from etstpm.summary import Run


def show_hardest(store: Store, scores_key: str, category: str) -> None:
    """The five test images that were judged worst, with their heatmaps.

    As Markdown, because the UI prints the whole address of an image artifact across the page.
    """
    with store.open(store.get(scores_key), "hardest.png") as folder:
        picture = base64.b64encode((folder / "hardest.png").read_bytes()).decode()
    create_markdown_artifact(
        key=artifact_key("hardest", category),
        markdown=f"The five test images of **{escape(category)}** that were judged worst: ground "
        "truth above, heatmap below (yellow beyond the threshold).\n\n"
        f"![hardest images](data:image/png;base64,{picture})",
        description=f"{category}: hardest images",
    )


def show_summary(run: Run) -> None:
    """The run's table, and where its files are."""
    columns = list(run.summary[0].display())
    rows = [[escape(cell) for cell in row.display().values()] for row in run.summary]
    lines = [columns, ["---", *["--:"] * (len(columns) - 1)], *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    files = "\n".join(f"- {name}: `{address}`" for name, address in run.files.items())
    failures = "\n".join(
        f"- **{escape(row.category)} failed**: {escape(row.failure)}"
        for row in run.summary
        if row.failure is not None
    )
    create_markdown_artifact(
        key="auroc",
        markdown=f"{table}\n\n{failures}\n\n{files}",
        description=f"run {run.run_id}: AUROC by category",
    )


def show_new_scores(result: NewScores) -> None:
    """What came of a batch of new images: the numbers, the highest scores, the faults."""
    lines = [
        f"**{result.scored}** images scored, **{result.defective}** called defective, "
        f"**{result.faults}** unreadable.",
        f"Drift: {escape(str(result.drift))}.",
        *([f"Note: {escape(result.remark)}."] if result.remark else []),
        f"Run `{result.run_id}`, threshold {result.threshold:.4g}; table: `{result.table}`.",
        "| image | score |\n| --- | --: |\n"
        + "\n".join(f"| {escape(path)} | {score:.4g} |" for score, path in result.highest),
        "\n".join(f"- {escape(path)}: {escape(fault)}" for path, fault in result.first_faults),
    ]
    create_markdown_artifact(
        key=artifact_key("new-scores", result.category),
        markdown="\n\n".join(lines),
        description=f"{result.category}: new images",
    )


def artifact_key(*parts: str) -> str:
    """Prefect's keys are lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
