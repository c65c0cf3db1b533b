"""A category's scores: thresholds from held-out good images, test images judged, all in files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etstpm.calibration import Calibration
from etstpm.compute import Compute, give_back_freed_memory
from etstpm.config import Config
from etstpm.evaluation import Evaluation, evaluate
from etstpm.gallery import thumbnail_table
from etstpm.images import Pixels, resize_mask
from etstpm.inputs import Inputs, has_mask, own_mask
from etstpm.layouts.listing import GOOD
from etstpm.maps import save_maps
from etstpm.networks import FeaturePyramid
from etstpm.parquet import schema_without, write_parquet
from etstpm.pictures import HeatScale, draw_hardest
from etstpm.ranking import Images
from etstpm.scorer import Scorer
from etstpm.scoring import ResizedMaps, ScoredImages, decision_threshold
from etstpm.splits import Indices
from etstpm.students import Student
from etstpm.tables import CURVES, IMAGE_SCORES, OFFICIAL, PAPER, PAPER_SIDE, REPLICATES, THUMBNAILS

IMAGE_SCORES_OF_ARTIFACT = schema_without(IMAGE_SCORES, "run_id")
"""Artifacts do not know in which runs they are."""

Networks = tuple[FeaturePyramid, Student]
"""Teacher and student."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Thresholds:
    """What held-out good images say is normal."""

    calibration: Calibration
    held_out_scores: list[float]
    image: float
    heat: HeatScale


def write_scores(
    folder: Path,
    config: Config,
    inputs: Inputs,
    category: str,
    networks: Networks,
    held_out: Indices,
    *,
    compute: Compute,
    digests: Mapping[str, str],
) -> dict[str, Any]:
    """Score a category's test images; all files of the artifact to `folder`, its card's `metrics`.

    held_out: indices of the good images that the student was not trained on.
    digests: `student_digest` and `teacher_digest`, as the table names them.
    """
    size = config.dataset.image_size
    good = inputs.pixels(category, "train", size)
    scorer = Scorer(*networks, config.scoring, compute, category)
    thresholds = set_thresholds(scorer, good[held_out])
    rows, pixels = inputs.rows(category, "test"), inputs.pixels(category, "test", size)
    scored = scorer.score(pixels, thresholds.calibration)
    give_back_freed_memory()
    own_masks = [own_mask(inputs.root, row) for row in rows]
    masks = np.stack([resize_mask(mask, size) for mask in own_masks])
    evaluation = evaluate_scored(category, rows, scored, own_masks, masks)

    schema = IMAGE_SCORES_OF_ARTIFACT
    scores = pa.Table.from_pylist(_score_rows(rows, scored, thresholds, digests), schema=schema)
    write_parquet(folder / "image_scores.parquet", schema, [scores])
    write_parquet(folder / "replicates.parquet", REPLICATES, [evaluation.replicate_table()])
    thresholds.calibration.save(folder / "calibration.safetensors")
    write_parquet(folder / "curves.parquet", CURVES, [evaluation.curve_table()])
    save_maps(folder, scored, config.maps, rows=rows, scale=thresholds.heat)
    thumbnails = thumbnail_table(pixels, masks, scored, rows=rows, scale=thresholds.heat)
    write_parquet(folder / "thumbnails.parquet", THUMBNAILS, [thumbnails])
    draw_hardest(
        pixels,
        masks,
        scored,
        labels=np.array([row["label"] == 1 for row in rows]),
        names=[row["image_path"].removeprefix(f"{category}/test/") for row in rows],
        threshold=thresholds.image,
        scale=thresholds.heat,
    ).save(folder / "hardest.png", optimize=True)
    return evaluation.figures | {
        "threshold": thresholds.image,
        "map_threshold": thresholds.heat.threshold,
        "map_cold": thresholds.heat.cold,
        "held_out_scores": thresholds.held_out_scores,
    }


def set_thresholds(scorer: Scorer, good: Pixels) -> Thresholds:
    """Calibration and thresholds from good images (N, H, W, 3) that the student has not seen."""
    calibration, held = scorer.cross_fit(good)
    return Thresholds(
        calibration,
        held.scores.tolist(),
        decision_threshold(held.scores, scorer.config.false_alarm_rate),
        HeatScale.of(held.maps, scorer.config),
    )


def evaluate_scored(
    category: str,
    rows: Sequence[Row],
    scored: ScoredImages,
    own_masks: Sequence[npt.NDArray[np.bool_]],
    masks: npt.NDArray[np.bool_],
) -> Evaluation:
    """Judge the test images of these manifest rows by both protocols.

    own_masks: at each image's own size; masks: (N, H, W), at the maps' size.
    """
    own = own_masks, ResizedMaps(scored.maps, [(row["height"], row["width"]) for row in rows])
    paper: tuple[Images, Images] = masks, scored.maps
    if masks.shape[1] > PAPER_SIDE:
        paper = (
            [resize_mask(mask, PAPER_SIDE) for mask in own_masks],
            ResizedMaps(scored.maps, [(PAPER_SIDE, PAPER_SIDE)] * len(rows)),
        )
    return evaluate(
        category,
        [None if row["defect_type"] == GOOD else row["defect_type"] for row in rows],
        {PAPER: scored.scores},
        {PAPER: paper, OFFICIAL: own},
        [has_mask(row) for row in rows],
    )


def _score_rows(
    rows: Sequence[Row],
    scored: ScoredImages,
    thresholds: Thresholds,
    digests: Mapping[str, str],
) -> list[Row]:
    scored_at = datetime.now(UTC)
    return [
        {
            **{name: row[name] for name in IMAGE_SCORES.names if name in row},
            **digests,
            "score": score,
            "threshold": thresholds.image,
            "predicted": int(score > thresholds.image),
            "scored_at": scored_at,
        }
        for row, score in zip(rows, scored.scores.tolist(), strict=True)
    ]
