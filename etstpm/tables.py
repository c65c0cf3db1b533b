"""The Parquet schemas, the analysts' contract: columns are added, never renamed or re-meant."""

import pyarrow as pa

SCHEMA_VERSION = 2
"""Raised when a reader of the one before must change. 2: a metric has a row a defect type too, so
that `defect_type == 'all'` is what a row of version 1 was."""

PAPER, OFFICIAL = "paper-256", "mvtec-official"
"""Protocols: maps and masks at the papers' size; maps resized to each image's own."""

PAPER_SIDE = 256
"""In pixels; a smaller input is judged at its own size."""

ALL = "all"
"""Defect type of the figures over all test images."""

_TEXT = pa.string()
_NAME = pa.dictionary(pa.int32(), pa.string())
_TIME = pa.timestamp("us", tz="UTC")


def _field(name: str, kind: pa.DataType, meaning: str, unit: str = "") -> pa.Field:
    """A column; a number has a unit, '1' where it is a pure number.

    A `_NAME` is a string that Parquet encodes by dictionary. As Arrow's own dictionary type its row
    groups are not pruned by pyarrow, nor so by pandas (measured with pyarrow 26: a filter reads all
    ten groups instead of one).
    """
    metadata = {"meaning": meaning}
    if kind == _NAME:
        kind, metadata["encoding"] = _TEXT, "dictionary"
    elif not unit and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        unit = "1"
    return pa.field(name, kind, metadata=metadata | ({"unit": unit} if unit else {}))


def _schema(name: str, place: str, rows: str, *fields: pa.Field) -> pa.Schema:
    """A table: where its files lie below the store, and what a row is of."""
    metadata = {
        "etstpm.table": name,
        "etstpm.schema_version": str(SCHEMA_VERSION),
        "etstpm.place": place,
        "etstpm.rows": rows,
    }
    return pa.schema(fields, metadata=metadata)


# Arrow's own dictionary, since that is what pyarrow makes of the folder's name run_id=<run>.
_RUN_ID = pa.field("run_id", _NAME, metadata={"meaning": "the run that published the row"})
_CATEGORY = _field("category", _NAME, "product category")
_STUDENT = _field("student_digest", _NAME, "content address of the student")
_TEACHER = _field("teacher_digest", _NAME, "content address of the teacher")

IMAGE_SCORES = _schema(
    "image_scores",
    "tables/image_scores/run_id=<run>/image_scores.parquet",
    "one a test image and run",
    _RUN_ID.with_metadata(
        {"meaning": "the run that published the row, or whose student scored a new image"}
    ),
    _CATEGORY,
    _field("split", _NAME, "'test', or 'new' of images that `etstpm score` was given"),
    _field("defect_type", _NAME, "folder of the image; 'good' is normal; null of a new image"),
    _field(
        "image_path",
        _TEXT,
        "relative to the dataset's root (new images: to the folder scored), '/' between folders",
    ),
    _field("image_sha256", _TEXT, "SHA-256 of the image file"),
    _field("label", pa.int8(), "0 good, 1 defective; null of a new image"),
    _field("score", pa.float64(), "anomaly score, higher is less normal; not a probability"),
    _field("threshold", pa.float64(), "decision threshold from held-out good training images"),
    _field("predicted", pa.int8(), "1 where score > threshold"),
    _field("width", pa.int32(), "width of the image file", "pixel"),
    _field("height", pa.int32(), "height of the image file", "pixel"),
    _STUDENT,
    _TEACHER,
    _field("scored_at", _TIME, "when the image was scored, UTC"),
    _field(
        "fault",
        _TEXT,
        "why a new image has no score: it cannot be read; its hash, score, decision and size are "
        "null then. Null where it has one",
    ),
)

METRICS = _schema(
    "metrics",
    "tables/metrics/run_id=<run>/metrics.parquet",
    "one a run, category, defect type, protocol, level and metric",
    _RUN_ID,
    _field("category", _NAME, "product category, or 'mean' over those where the value is defined"),
    _field(
        "protocol",
        _NAME,
        "'paper-256': maps and masks at 256x256, or at the student's input size where that is "
        "smaller; 'mvtec-official': maps resized to each image's own size",
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
    _field("n_good", pa.int64(), "good test images", "image"),
    _field("n_defective", pa.int64(), "defective test images", "image"),
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
    _field(
        "n_quarantined",
        pa.int64(),
        "the category's images that were left out because of findings in the dataset",
        "image",
    ),
)

RUNS = _schema(
    "runs",
    "history/runs/<month>.parquet",
    "one a published run",
    _field("run_id", _TEXT, "the run"),
    _field("status", _NAME, "'complete', or 'incomplete' where a category has failed"),
    _field(
        "verdict",
        _NAME,
        "the gate's: 'passed', 'regressed', 'incomplete' or 'unjudged'; null of runs older than it",
    ),
    _field("reason", _TEXT, "why the gate did not let it pass, in one line; null where it did"),
    _field("baseline", _TEXT, "the last good run that it was compared with; null of the first"),
    _field("started_at", _TIME, "when the run began, UTC"),
    _field("created_at", _TIME, "when it published, UTC"),
    _field("seed", pa.int64(), "seed of the run"),
    _field("categories", pa.int32(), "categories that were scored", "category"),
    _field("failed", pa.int32(), "categories that failed", "category"),
    _field("dataset_digest", _TEXT, "content address of the validated dataset"),
    _field("teacher_digest", _TEXT, "content address of the teacher"),
    _field("config_digest", _TEXT, "SHA-256 of the run's config, its store left out"),
    _field("etstpm_version", _NAME, "version of etstpm that published it; null of older runs"),
    _field("schema_version", pa.int32(), "of the run's tables"),
    _field("stamp", _TEXT, "state of its run.json when this row was made; for etstpm alone"),
)

REPLICATES = _schema(
    "replicates",
    "scores/<category>/<digest>/replicates.parquet",
    "one a metric and bootstrap replicate",
    _field("protocol", _NAME, "as in metrics"),
    _field("level", _NAME, "as in metrics"),
    _field("metric", _NAME, "as in metrics"),
    _field("replicate", pa.int32(), "from 0; the same one of two students has the same images"),
    _field("value", pa.float64(), "of the images that the replicate has drawn"),
)

CURVES = _schema(
    "curves",
    "scores/<category>/<digest>/curves.parquet",
    "one a corner of a curve over all test images, from the strictest threshold to none",
    _field("protocol", _NAME, "as in metrics"),
    _field("level", _NAME, "as in metrics"),
    _field("curve", _NAME, "'roc', or 'pro' (per-region overlap, after MVTec's definition)"),
    _field("false_positive_rate", pa.float64(), "share of good images or pixels called defective"),
    _field(
        "rate",
        pa.float64(),
        "share of defective images or pixels found; 'pro': of each region, averaged over regions. "
        "Straight lines between rows lie within 0.002 of the exact curve",
    ),
    _field(
        "threshold",
        pa.float64(),
        "scores of at least it are called defective; infinite where none or all are",
    ),
)

THUMBNAILS = _schema(
    "thumbnails",
    "scores/<category>/<digest>/thumbnails.parquet",
    "one a test image, the one that was judged worst first; of 120 images at the most",
    _field("image_path", _TEXT, "as in image_scores"),
    _field("rank", pa.int32(), "from 0, the image that was judged worst"),
    _field("image", pa.binary(), "the image, small, in its own proportions: WebP"),
    _field("heat", pa.binary(), "its anomaly map in colours, clear where cold: WebP"),
    _field("outline", pa.binary(), "the border of its mask, else clear: WebP; null of a good one"),
)

MAPS = _schema(
    "maps",
    "scores/<category>/<digest>/maps.parquet",
    "one a kept anomaly map (`maps.kept` in the config); the image that was judged worst first",
    _field("image_path", _TEXT, "as in image_scores"),
    _field("image_sha256", _TEXT, "as in image_scores"),
    _field("rank", pa.int32(), "from 0, the image that was judged worst"),
    _field("height", pa.int32(), "of the map", "pixel"),
    _field("width", pa.int32(), "of the map", "pixel"),
    _field("scale", pa.float64(), "the map's maximum, that its values were divided by"),
    _field(
        "map",
        pa.list_(pa.float16()),
        "row by row from the top left: times scale, the anomaly map at the student's input size",
    ),
)

MANIFEST = _schema(
    "manifest",
    "datasets/<digest>/manifest.parquet",
    "one an image of the dataset",
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
    _field("mask_above", pa.int16(), "grey values of the mask above this are defective"),
    _field("format", _NAME, "file format by its contents: PNG, JPEG, MPO, BMP or TIFF"),
    _field("mean", pa.float64(), "mean grey value of up to 128 rows and columns, 0 to 255"),
    _field(
        "contrast",
        pa.float64(),
        "their standard deviation; 0 only where all values of the image are one",
    ),
)

FINDINGS = _schema(
    "findings",
    "datasets/<digest>/findings.parquet",
    "one a finding of the validation",
    _field(
        "severity",
        _NAME,
        "'error' stops the run or leaves images out, as dataset.on_finding says; 'warning' neither",
    ),
    _field("code", _NAME, "kind of finding"),
    _field("path", _TEXT, "where, relative to the dataset's root"),
    _field("expected", _TEXT, "what should be there"),
    _field("found", _TEXT, "what is there"),
    _field("remedy", _TEXT, "what to do"),
    _field(
        "quarantined",
        pa.int64(),
        "images left out because of it, those not counted that another finding left out before",
    ),
)

STUDENT_HISTORY = _schema(
    "student_history",
    "students/<category>/<digest>/history.parquet",
    "one an epoch",
    _field("epoch", pa.int32(), "from 1"),
    _field("loss", pa.float64(), "mean matching loss over the training images"),
    _field("validation_map", pa.float64(), "mean anomaly map over the held-out good images"),
    _field("learning_rate", pa.float64(), "at the epoch's first step"),
    _field("seconds", pa.float64(), "of the epoch's training steps, validation apart", "s"),
)

TEACHER_HISTORY = _schema(
    "teacher_history",
    "teachers/<digest>/history.parquet",
    "one an epoch; none of an untuned teacher",
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
