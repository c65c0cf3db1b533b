"""Scores to publish without a training: drawn images' scores, judged by the real evaluation."""

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from etstpm.config import Config, digest_of
from etstpm.evaluation import evaluate
from etstpm.parquet import schema_without, write_parquet
from etstpm.publishing import publish_run
from etstpm.runs import Outcome
from etstpm.storage import Store
from etstpm.summary import Run
from etstpm.tables import IMAGE_SCORES, OFFICIAL, PAPER, REPLICATES

STARTED = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)
DATASET, TEACHER = "datasets/" + "1" * 64, "teachers/" + "2" * 64


def add_category(
    store: Store,
    category: str = "screw",
    *,
    separation: float = 2.0,
    count: int = 40,
    images: str = "a",
    defect_type: str = "scratch",
    config: Config | None = None,
    torch: str = "2.11.0",
) -> Outcome:
    """A category's student and scores, `count` good and as many defective images of 16x16.

    separation: of the two classes' logarithmic scores, in their standard deviations. images: which
    test images; the same have the same difficulty whatever the student.
    """
    used = config or Config()
    rng = np.random.default_rng(list(f"{category}/{images}/{count}".encode()))
    labels = np.arange(2 * count) >= count
    logs = rng.normal(size=2 * count) + separation * labels
    masks = np.zeros((2 * count, 16, 16), bool)
    masks[labels, 4:8, 4:8] = True
    maps = np.exp(rng.normal(size=masks.shape) + separation * masks) * 1e-9
    scores = np.exp(logs) * 1e-9
    pixels = (masks, maps)
    groups = [defect_type if label else None for label in labels]
    evaluation = evaluate(category, groups, {PAPER: scores}, {PAPER: pixels, OFFICIAL: pixels})
    versions = {"etstpm": "0.1.0", "torch": torch}
    common: dict[str, Any] = {
        "config": used.model_dump(mode="json", exclude={"store"}),
        "seed": used.seed,
        "versions": versions,
        "created_at": STARTED.isoformat(),
        "seconds": 2.0,
    }
    identity = [category, separation, count, images, used.digest(), torch]
    student = f"students/{category}/{digest_of(identity)}"
    key = f"scores/{category}/{digest_of([identity, defect_type])}"
    threshold = float(np.quantile(scores[~labels], 0.95))
    rows = [
        {
            "category": category,
            "split": "test",
            "defect_type": group or "good",
            "image_path": f"{category}/test/{group or 'good'}/{number:03d}.png",
            "image_sha256": digest_of([images, number]),
            "label": int(label),
            "score": score,
            "threshold": threshold,
            "predicted": int(score > threshold),
            "width": 16,
            "height": 16,
            "student_digest": student.rsplit("/", 1)[-1],
            "teacher_digest": TEACHER.rsplit("/", 1)[-1],
            "scored_at": STARTED,
        }
        for number, (group, label, score) in enumerate(
            zip(groups, labels.tolist(), scores.tolist(), strict=True)
        )
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store.commit(student, folder, common | {"stage": "student", "inputs": {"images": "train"}})
        # As the stage leaves it: artifacts do not know their runs. (Not from etstpm.stages, so that
        # these tests need no torch.)
        schema = schema_without(IMAGE_SCORES, "run_id")
        table = pa.Table.from_pylist(rows, schema=schema)
        write_parquet(folder / "image_scores.parquet", schema, [table])
        write_parquet(folder / "replicates.parquet", REPLICATES, [evaluation.replicate_table()])
        card = common | {
            "stage": "scores",
            "inputs": {"images": images, "paths": [row["image_path"] for row in rows]},
            "student": student,
            "teacher": TEACHER,
            "metrics": evaluation.figures,
        }
        store.commit(key, folder, card)
    return Outcome(category, scores_key=key)


def publish(
    store: Store, outcomes: list[Outcome], run_id: str, config: Config | None = None
) -> Run:
    """Publish a run; one that is named as runs are has the start that its name says."""
    try:
        started_at = datetime.strptime(run_id[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        started_at = STARTED
    return publish_run(
        store,
        config or Config(),
        run_id=run_id,
        started_at=started_at,
        dataset_key=DATASET,
        teacher_key=TEACHER,
        outcomes=outcomes,
    )
