"""Score new images: one row an image as they come, the table visible when it is whole."""

import array
import heapq
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from etstpm.errors import DatasetError, StorageError
from etstpm.images import ImageFacts, Pixels
from etstpm.inference.detector import Detector
from etstpm.inference.drift import Drift, measure_drift
from etstpm.inference.source import ImageSource, NewImage
from etstpm.parquet import write_parquet
from etstpm.pictures import heat, overlay
from etstpm.progress import Bar
from etstpm.scoring import ScoredImages
from etstpm.settings import settings
from etstpm.storage import Store, file_sha256
from etstpm.storage.batches import SCORED, SUMMARY
from etstpm.tables import IMAGE_SCORES, SCHEMA_VERSION

NEW = "new"
"""The split of images that were in no run's dataset."""

TABLE = "image_scores.parquet"

Heatmaps = Literal["none", "defective", "all"]
"""Of which images an overlay is kept."""

BATCHES_AHEAD = 4
FAULTS_KEPT = 10
HIGHEST_KEPT = 10
ROWS_HELD = 4096
"""Rows that wait to be written, or, where faults come, for their batch to fill."""


@dataclass
class Tally:
    """What has been scored so far, in memory that does not grow but for 8 bytes an image."""

    scores: "array.array[float]" = field(default_factory=lambda: array.array("d"))
    defective: int = 0
    faults: int = 0
    first_faults: list[tuple[str, str]] = field(default_factory=list)
    """Path and fault of the first few."""
    highest: list[tuple[float, str]] = field(default_factory=list)
    """A heap of the highest scores and their paths."""

    @property
    def images(self) -> int:
        """All that were found."""
        return len(self.scores) + self.faults


@dataclass(frozen=True)
class NewScores:
    """What a person is told of a batch of new images."""

    category: str
    run_id: str
    place: str
    """Where table and summary lie."""
    table: str
    threshold: float
    scored: int
    defective: int
    faults: int
    first_faults: list[tuple[str, str]]
    highest: list[tuple[float, str]]
    """Score and path, the highest first."""
    drift: Drift
    seconds: float
    remark: str | None
    """What makes the threshold less than exact here; None where nothing does."""


def score_new(
    detector: Detector, source: ImageSource, to: str, *, heatmaps: Heatmaps = "none"
) -> NewScores:
    """Score every image of `source`; `image_scores.parquet` and `score.json` in the folder `to`.

    Images are decoded by all cores ahead of the network, and rows are written as they come, to a
    file that is put in place when it is whole; `score.json` is written last. An image that cannot
    be read is a row with its fault. The order, and so the batches, are those of the pipeline for
    images that lie in folders as its test split does: then its scores come out, to the bit.

    Raises `DatasetError` if no image is found or none can be read, and `StorageError` if the place
    holds scores already or cannot be written; nothing is left there then but heatmaps.
    """
    started = time.monotonic()
    target = Store(to)
    _check_place(target, source)
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="etstpm-") as folder:
        path = Path(folder) / TABLE
        groups = _score_groups(detector, source, target, tally, heatmaps)
        rows = write_parquet(path, IMAGE_SCORES, groups)
        if not tally.scores:
            raise DatasetError(_why_nothing(source, tally))
        drift = measure_drift(detector.held_out_scores, np.array(tally.scores))
        target.put_file(path, TABLE)
        files = {TABLE: {"sha256": file_sha256(path), "bytes": path.stat().st_size, "rows": rows}}
    result = NewScores(
        category=detector.category,
        run_id=detector.run_id,
        place=target.uri,
        table=target.display(TABLE),
        threshold=detector.threshold,
        scored=len(tally.scores),
        defective=tally.defective,
        faults=tally.faults,
        first_faults=tally.first_faults,
        highest=sorted(tally.highest, reverse=True),
        drift=drift,
        seconds=round(time.monotonic() - started, 3),
        remark=remark_on_precision(detector),
    )
    target.write_json(SUMMARY, _record(detector, source, result, files))
    return result


def default_place(store: Store, category: str) -> str:
    """Where scores of new images go if nobody says: a new folder below the store."""
    moment = datetime.now(UTC)
    return store.display(f"{SCORED}/{category}/{moment:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}")


def remark_on_precision(detector: Detector) -> str | None:
    """Whether this machine computes in another precision than the threshold was set with."""
    here, there = detector.compute.describe()["precision"], detector.precision_of_threshold
    if here == there:
        return None
    return (
        f"the threshold was set with convolutions in {there}, and this machine computes them in "
        f"{here}: scores near it may fall on its other side"
    )


def _check_place(target: Store, source: ImageSource) -> None:
    target.check_writable()
    for name in (TABLE, SUMMARY):
        if target.exists(name):
            raise StorageError(
                f"output {target.uri} holds scores already ({name}); give another place, or remove "
                "them"
            )
    root = source.local_root
    if root is not None and target.is_local and source.kind == "directory":
        place = Path(target.root).resolve()
        if place.is_relative_to(root.resolve()):
            raise StorageError(
                f"output {target.uri} lies inside the images {source.uri}: its heatmaps would be "
                "scored next time; give a place outside"
            )


def _score_groups(
    detector: Detector, source: ImageSource, target: Store, tally: Tally, heatmaps: Heatmaps
) -> Iterator[pa.Table]:
    """The table's rows as they come."""
    size = detector.config.scoring.batch_size
    threads = settings().threads
    images = source.decoded(detector.size, threads=threads, ahead=BATCHES_AHEAD * size)
    waiting: list[dict[str, Any]] = []
    with Bar(f"{detector.category}: score", None) as bar:
        for batch in _in_batches(images, size):
            pixels = [image.pixels for image in batch if image.pixels is not None]
            scored = detector.score(np.stack(pixels)) if pixels else None
            rows = list(_rows(detector, batch, scored, tally))
            if scored is not None and heatmaps != "none":
                _put_heatmaps(detector, target, rows, np.stack(pixels), scored, heatmaps)
            waiting += rows
            if len(waiting) >= ROWS_HELD:
                yield pa.Table.from_pylist(waiting, schema=IMAGE_SCORES)
                waiting = []
            bar.advance(len(batch))
            bar.show(defective=tally.defective, unreadable=tally.faults)
    yield pa.Table.from_pylist(waiting, schema=IMAGE_SCORES)


def _in_batches(images: Iterator[NewImage], size: int) -> Iterator[list[NewImage]]:
    """`size` decoded images at a time, and the faulty ones between them."""
    waiting: list[NewImage] = []
    whole = 0
    for image in images:
        waiting.append(image)
        whole += image.pixels is not None
        if whole == size or len(waiting) == ROWS_HELD:
            yield waiting
            waiting, whole = [], 0
    if waiting:
        yield waiting


def _rows(
    detector: Detector, batch: list[NewImage], scored: ScoredImages | None, tally: Tally
) -> Iterator[dict[str, Any]]:
    scores = iter([] if scored is None else scored.scores.tolist())
    teacher, student = (key.rsplit("/", 1)[-1] for key in detector.keys)
    common = {
        "run_id": detector.run_id,
        "category": detector.category,
        "split": NEW,
        "threshold": detector.threshold,
        "student_digest": student,
        "teacher_digest": teacher,
        "scored_at": datetime.now(UTC),
    }
    for image in batch:
        row = common | {"image_path": image.path, "fault": image.fault}
        if isinstance(image.facts, ImageFacts):
            score = next(scores)
            is_defective = score > detector.threshold
            tally.scores.append(score)
            tally.defective += is_defective
            _keep_highest(tally, score, image.path)
            row |= {
                "image_sha256": image.facts.sha256,
                "score": score,
                "predicted": int(is_defective),
                "width": image.facts.width,
                "height": image.facts.height,
            }
        else:
            tally.faults += 1
            if len(tally.first_faults) < FAULTS_KEPT:
                tally.first_faults.append((image.path, str(image.fault)))
        yield row


def _keep_highest(tally: Tally, score: float, path: str) -> None:
    heapq.heappush(tally.highest, (score, path))
    if len(tally.highest) > HIGHEST_KEPT:
        heapq.heappop(tally.highest)


def _put_heatmaps(
    detector: Detector,
    target: Store,
    rows: list[dict[str, Any]],
    pixels: Pixels,
    scored: ScoredImages,
    heatmaps: Heatmaps,
) -> None:
    """`heatmaps/<SHA-256 of the image file>.png`: the table has it, and no name can be hostile."""
    whole = [row for row in rows if row["fault"] is None]
    heats = heat(scored.maps, detector.heat_scale)
    for row, image, hot in zip(whole, pixels, heats, strict=True):
        if heatmaps == "all" or row["predicted"]:
            content = BytesIO()
            Image.fromarray(overlay(image, hot)).save(content, "PNG")
            target.write_bytes(f"heatmaps/{row['image_sha256']}.png", content.getvalue())


def _why_nothing(source: ImageSource, tally: Tally) -> str:
    if not tally.faults:
        return (
            f"images {source.uri}: no image in it (.png, .jpg, .jpeg, .bmp, .tif, .tiff); "
            "check the path"
        )
    path, fault = tally.first_faults[0]
    return (
        f"images {source.uri}: none of {tally.faults} can be scored, the first being {path} "
        f"({fault}); restore the files, or check the path"
    )


def _record(
    detector: Detector, source: ImageSource, result: NewScores, files: dict[str, Any]
) -> dict[str, Any]:
    """What `score.json` says: all of a batch but its rows."""
    return {
        "schema_version": SCHEMA_VERSION,
        "created_at": datetime.now(UTC).isoformat(),
        "images": source.uri,
        "category": result.category,
        "run_id": result.run_id,
        "teacher": detector.keys[0],
        "student": detector.keys[1],
        "scores": detector.scores.key,
        "threshold": result.threshold,
        "false_alarm_rate": detector.config.scoring.false_alarm_rate,
        "scored": result.scored,
        "defective": result.defective,
        "faults": result.faults,
        "drift": asdict(result.drift)
        | {"verdict": result.drift.verdict, "in_words": str(result.drift)},
        "compute": detector.compute.describe(),
        "remark": result.remark,
        "seconds": result.seconds,
        "files": files,
    }
