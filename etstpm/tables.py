"""The Parquet schemas, the analysts' contract: columns are added, never renamed or re-meant."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION = 2
"""Raised when a reader of the one before must change. 2: a metric has a row a defect type too, so
that `defect_type == 'all'` is what a row of version 1 was."""

PAPER, OFFICIAL = "paper-256", "mvtec-official"
"""Protocols: maps and masks at the student's input size; maps upsampled to each image's own."""

ALL = "all"
"""Defect type of the figures over all test images."""


def _field(name: str, kind: pa.DataType, meaning: str, unit: str = "") -> pa.Field:
    metadata = {"meaning": meaning} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, metadata=metadata)


def _schema(name: str, *fields: pa.Field) -> pa.Schema:
    return pa.schema(
        fields, metadata={"etstpm.table": name, "etstpm.schema_version": str(SCHEMA_VERSION)}
    )


_TEXT = pa.string()
_NAME = pa.dictionary(pa.int32(), pa.string())
_TIME = pa.timestamp("us", tz="UTC")

_RUN_ID = _field("run_id", _NAME, "the run that published the row")
_CATEGORY = _field("category", _NAME, "product category")
_STUDENT = _field("student_digest", _NAME, "content address of the student")
_TEACHER = _field("teacher_digest", _NAME, "content address of the teacher")

IMAGE_SCORES = _schema(
    "image_scores",
    _RUN_ID,
    _CATEGORY,
    _field("split", _NAME, "'test'"),
    _field("defect_type", _NAME, "folder of the image; 'good' is normal"),
    _field("image_path", _TEXT, "relative to the dataset's root, '/' between folders"),
    _field("image_sha256", _TEXT, "SHA-256 of the image file"),
    _field("label", pa.int8(), "0 good, 1 defective"),
    _field("score", pa.float64(), "anomaly score, higher is less normal; not a probability"),
    _field("threshold", pa.float64(), "decision threshold from held-out good training images"),
    _field("predicted", pa.int8(), "1 where score > threshold"),
    _field("width", pa.int32(), "width of the image file", "pixel"),
    _field("height", pa.int32(), "height of the image file", "pixel"),
    _STUDENT,
    _TEACHER,
    _field("scored_at", _TIME, "when the image was scored, UTC"),
)

METRICS = _schema(
    "metrics",
    _RUN_ID,
    _field("category", _NAME, "product category, or 'mean' over those where the value is defined"),
    _field(
        "protocol",
        _NAME,
        "'paper-256': maps and masks at the student's input size (256 unless the config says "
        "otherwise); 'mvtec-official': maps upsampled to each image's own size",
    ),
    _field("level", _NAME, "'image' or 'pixel'"),
    _field(
        "metric",
        _NAME,
        "'auroc', 'ap', 'f1_max', 'f1_max_threshold', 'aupro' (to a false positive rate of 0.3), "
        "'aupro_0.05': a new metric is a new row, never a new column",
    ),
    _field("value", pa.float64(), "null where it is not defined (one class only) or has failed"),
    _field(
        "ci_low",
        pa.float64(),
        "95 % confidence interval over other draws of test images, lower end: percentile "
        "bootstrap, 1000 replicates, images drawn with replacement, good and defective apart; of a "
        "mean: over the same categories. Null where the value is, of 'f1_max_threshold', and where "
        "a class is a single image, so that nothing can be drawn",
    ),
    _field("ci_high", pa.float64(), "95 % confidence interval, upper end"),
    _field("seed", pa.int64(), "seed of the run"),
    _field("n_good", pa.int64(), "good test images"),
    _field("n_defective", pa.int64(), "defective test images"),
    _STUDENT,
    _TEACHER,
    _field("dataset_digest", _NAME, "content address of the validated dataset"),
    _field("created_at", _TIME, "when the run published, UTC"),
    _field("reason", _TEXT, "why the value is null; null where it is not"),
    _field(
        "defect_type",
        _NAME,
        "'all', or a test folder's name: its images among the good ones; at pixel level its "
        "defective pixels among the good pixels of its and of the good images",
    ),
)

REPLICATES = _schema(
    "replicates",
    _field("protocol", _NAME, "as in metrics"),
    _field("level", _NAME, "as in metrics"),
    _field("metric", _NAME, "as in metrics"),
    _field("replicate", pa.int32(), "from 0; the same one of two students has the same images"),
    _field("value", pa.float64(), "of the images that the replicate has drawn"),
)

MANIFEST = _schema(
    "manifest",
    _CATEGORY,
    _field("split", _NAME, "'train' or 'test'"),
    _field("defect_type", _NAME, "folder of the image; 'good' is normal"),
    _field("label", pa.int8(), "0 good, 1 defective"),
    _field("image_path", _TEXT, "relative to the dataset's root, '/' between folders"),
    _field("image_sha256", _TEXT, "SHA-256 of the image file"),
    _field("bytes", pa.int64(), "size of the image file", "byte"),
    _field("width", pa.int32(), "width of the image file", "pixel"),
    _field("height", pa.int32(), "height of the image file", "pixel"),
    _field("mode", _NAME, "Pillow's colour mode of the file"),
    _field("mask_path", _TEXT, "ground-truth mask of a defective image, relative to the root"),
    _field("mask_sha256", _TEXT, "SHA-256 of the mask file"),
)

FINDINGS = _schema(
    "findings",
    _field("severity", _NAME, "'error' stops the run, 'warning' does not"),
    _field("code", _NAME, "kind of finding"),
    _field("path", _TEXT, "where, relative to the dataset's root"),
    _field("expected", _TEXT, "what should be there"),
    _field("found", _TEXT, "what is there"),
    _field("remedy", _TEXT, "what to do"),
)

STUDENT_HISTORY = _schema(
    "student_history",
    _field("epoch", pa.int32(), "from 1"),
    _field("loss", pa.float64(), "mean matching loss over the training images"),
    _field("validation_map", pa.float64(), "mean anomaly map over the held-out good images"),
    _field("learning_rate", pa.float64(), "at the epoch's first step"),
    _field("seconds", pa.float64(), "of the epoch's training steps, validation apart", "s"),
)

TEACHER_HISTORY = _schema(
    "teacher_history",
    _field("epoch", pa.int32(), "from 1"),
    _field(
        "loss",
        pa.float64(),
        "mean cross-entropy over the training images, as the teacher's mode defines it",
        "nat",
    ),
    _field("validation_loss", pa.float64(), "the same over the held-out images", "nat"),
    _field(
        "validation_accuracy",
        pa.float64(),
        "share of held-out images told right, 0 to 1. Mode 'synthetic': of locations, mean of good "
        "and anomalous ones; 'metric': of views that lie nearest to their own category",
    ),
)


def write_parquet(path: Path, schema: pa.Schema, groups: Iterable[pa.Table]) -> int:
    """Write tables of one schema as the row groups of one file; returns the number of rows.

    One group a category: a reader who filters by category reads that group alone, and memory does
    not grow with the number of categories.
    """
    rows = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in groups:
            writer.write_table(group.select(schema.names).cast(schema))
            rows += group.num_rows
    return rows


def schema_without(schema: pa.Schema, *names: str) -> pa.Schema:
    """The schema less these columns: artifacts do not know their runs."""
    return pa.schema([f for f in schema if f.name not in names], metadata=schema.metadata)
