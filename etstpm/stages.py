"""The stages: each binds one library function to the store.

A stage works out the content address of its output from its inputs, returns that key at once if
the artifact is there, and otherwise makes it. So a crashed run goes on by being run again, and a
changed config, a retry or a second worker do the right thing without special cases.

Bump a stage's version when its code changes what it puts out.
"""

import dataclasses
import platform
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from etstpm import __version__
from etstpm.compute import Compute, choose_compute
from etstpm.config import Config, digest_of
from etstpm.dataset import GOOD, choose_categories, image_files, rows_of, scan_dataset
from etstpm.distillation import distil_student, split_train_validation
from etstpm.errors import WeightsError
from etstpm.finetuning import finetune_teacher
from etstpm.images import Pixels, load_pixels, read_mask, resize_mask
from etstpm.metrics import image_metrics, pixel_metrics
from etstpm.networks import RANDOM_WEIGHTS, FeaturePyramid, TeacherWeights, freeze, load_weights
from etstpm.pictures import draw_hardest
from etstpm.sample import MARKER, SAMPLE_VERSION, draw_sample
from etstpm.scoring import decision_threshold, score_images, upsample_map
from etstpm.settings import settings
from etstpm.storage import Card, Store
from etstpm.tables import (
    FINDINGS,
    IMAGE_SCORES,
    MANIFEST,
    OFFICIAL,
    PAPER,
    STUDENT_HISTORY,
    TEACHER_HISTORY,
    schema_without,
    write_parquet,
)

VERSIONS = {"dataset": 1, "teacher": 1, "student": 1, "scores": 2}

IMAGE_SCORES_OF_ARTIFACT = schema_without(IMAGE_SCORES, "run_id")


@dataclass(frozen=True)
class _Inputs:
    """What a stage reads from the dataset's artifact."""

    root: Path
    manifest: pa.Table

    def rows(self, category: str, split: str) -> list[dict[str, Any]]:
        return rows_of(self.manifest, category, split)

    def pixels(self, category: str, split: str, size: int) -> Pixels:
        files = image_files(self.root, self.manifest, category, split)
        return load_pixels(f"{category}/{split}", files, size, settings().cache)

    def digest(self, category: str, split: str) -> str:
        """Of the contents alone, in order: a renamed root changes nothing."""
        return digest_of(
            [[row["image_sha256"], row["mask_sha256"]] for row in self.rows(category, split)]
        )


def is_sample(config: Config) -> bool:
    """Whether the run's images are drawn by etstpm: here, or earlier into the folder given."""
    return config.dataset.root is None or (dataset_root(config) / MARKER).is_file()


def dataset_root(config: Config) -> Path:
    """The dataset's folder; the sample is drawn into the cache if it is not there."""
    if config.dataset.root is not None:
        return Path(config.dataset.root).expanduser()
    root = settings().cache / f"sample-{SAMPLE_VERSION}"
    draw_sample(root)
    return root


def validate(config: Config, store: Store) -> str:
    """Scan the dataset; key of `manifest.parquet` and `findings.parquet`.

    Whatever else can be wrong with a run's inputs is tried first, so that it fails before anything
    is written: the weights, the device, the store.
    """
    root = dataset_root(config)
    choose_categories(root, config.dataset.categories)
    _weights(config)
    choose_compute(config)
    store.check_writable()
    dataset = scan_dataset(
        root, config.dataset.categories, config.dataset.image_size, settings().cache
    )
    findings = dataset.findings.to_pylist()
    key = f"datasets/{digest_of([VERSIONS['dataset'], dataset.digest, findings])}"
    if store.find(key) is None:
        with tempfile.TemporaryDirectory(prefix="etstpm-") as folder:
            write_parquet(Path(folder) / "manifest.parquet", MANIFEST, [dataset.manifest])
            write_parquet(Path(folder) / "findings.parquet", FINDINGS, [dataset.findings])
            store.commit(
                key,
                Path(folder),
                _card("dataset", config, inputs={"content": dataset.digest})
                | {
                    "categories": dataset.manifest["category"].unique().to_pylist(),
                    "images": dataset.manifest.num_rows,
                    "findings": len(findings),
                },
            )
    return key


def categories_of(store: Store, dataset_key: str) -> list[str]:
    """The categories of a validated dataset, sorted."""
    return sorted(store.get(dataset_key).card["categories"])


def findings_of(store: Store, dataset_key: str) -> list[dict[str, str]]:
    """The findings of a validated dataset, as rows of `tables.FINDINGS`."""
    with store.open(store.get(dataset_key), "findings.parquet") as folder:
        rows: list[dict[str, str]] = pq.read_table(folder / "findings.parquet").to_pylist()
    return rows


def teacher(config: Config, store: Store, dataset_key: str) -> str:
    """Prove the weights, fine-tune them if the config says so; key of the frozen teacher."""
    inputs = _open_inputs(config, store, dataset_key)
    weights = _weights(config)
    identity: dict[str, Any] = {
        "version": VERSIONS["teacher"],
        "weights": weights.sha256 or weights.description,
        "mode": config.teacher.mode,
    }
    if config.teacher.mode != "imagenet":
        categories = categories_of(store, dataset_key)
        identity |= {
            "config": config.teacher.model_dump(exclude={"weights", "weights_sha256"}),
            "images": {name: inputs.digest(name, "train") for name in categories},
            **_numerics(config),
        }
    key = f"teachers/{digest_of(identity)}"
    if store.find(key) is not None:
        return key
    started, compute = time.monotonic(), choose_compute(config)
    if config.teacher.mode == "imagenet":
        pyramid, history, summary = weights.build(), [], "as its weights file has it"
    else:
        pixels = {
            name: inputs.pixels(name, "train", config.dataset.image_size) for name in categories
        }
        tuned = finetune_teacher(weights, pixels, config.teacher, seed=config.seed, compute=compute)
        pyramid, history, summary = tuned.pyramid, tuned.history, tuned.summary
    card = _card("teacher", config, identity, compute, started) | {
        "weights": {"source": weights.source, "sha256": weights.sha256},
        "description": weights.description,
        "summary": summary,
    }
    _commit_network(store, key, pyramid, history=history, schema=TEACHER_HISTORY, card=card)
    return key


def student(config: Config, store: Store, dataset_key: str, teacher_key: str, category: str) -> str:
    """Distil one category's student on the frozen teacher; key of its best weights."""
    inputs = _open_inputs(config, store, dataset_key)
    identity = {
        "version": VERSIONS["student"],
        "teacher": store.get(teacher_key).digest,
        "images": inputs.digest(category, "train"),
        "config": config.student.model_dump(),
        **_numerics(config),
    }
    key = f"students/{category}/{digest_of(identity)}"
    if store.find(key) is not None:
        return key
    started, compute = time.monotonic(), choose_compute(config)
    pixels = inputs.pixels(category, "train", config.dataset.image_size)
    distilled = distil_student(
        _load_network(store, teacher_key),
        pixels,
        config.student,
        seed=config.seed,
        compute=compute,
        name=category,
    )
    best = distilled.history[distilled.best_epoch - 1]
    card = _card("student", config, identity, compute, started) | {
        "category": category,
        "teacher": teacher_key,
        "train_images": len(pixels),
        "metrics": dataclasses.asdict(best),
    }
    _commit_network(
        store,
        key,
        distilled.pyramid,
        history=distilled.history,
        schema=STUDENT_HISTORY,
        card=card,
    )
    return key


def scores(config: Config, store: Store, dataset_key: str, student_key: str, category: str) -> str:
    """Score a category's test images; key of their scores, metrics and pictures."""
    inputs = _open_inputs(config, store, dataset_key)
    student_artifact = store.get(student_key)
    identity = {
        "version": VERSIONS["scores"],
        "student": student_artifact.digest,
        # Its table names each image and its defect type: they are in the path.
        "paths": [row["image_path"] for row in inputs.rows(category, "test")],
        "images": inputs.digest(category, "test"),
        "config": config.scoring.model_dump(),
    }
    key = f"scores/{category}/{digest_of(identity)}"
    if store.find(key) is not None:
        return key
    started, compute = time.monotonic(), choose_compute(config)
    size, rows = config.dataset.image_size, inputs.rows(category, "test")
    teacher_key = student_artifact.card["teacher"]
    networks = _load_network(store, teacher_key), _load_network(store, student_key)

    good = inputs.pixels(category, "train", size)
    _, held_out = split_train_validation(len(good), config.student.validation_fraction, config.seed)
    good_scores = score_images(
        *networks,
        good[held_out],
        config.scoring,
        compute=compute,
        name=f"{category}: held-out",
    ).scores
    threshold = decision_threshold(good_scores, config.scoring.false_alarm_rate)

    pixels = inputs.pixels(category, "test", size)
    scored = score_images(
        *networks, pixels, config.scoring, compute=compute, name=f"{category}: score"
    )
    own_masks = [_mask(inputs.root, row) for row in rows]
    masks = np.stack([resize_mask(mask, size) for mask in own_masks])
    labels = np.array([row["label"] == 1 for row in rows])
    own_maps = (
        upsample_map(scored.maps[index], *mask.shape) for index, mask in enumerate(own_masks)
    )
    metrics = {
        "values": {
            PAPER: {
                "image": image_metrics(labels, scored.scores),
                "pixel": pixel_metrics(masks, scored.maps),
            },
            OFFICIAL: {"pixel": pixel_metrics(own_masks, own_maps)},
        },
        "threshold": threshold,
        "held_out_scores": good_scores.tolist(),
        "n_good": int((~labels).sum()),
        "n_defective": int(labels.sum()),
    }
    scored_at = datetime.now(UTC)
    table = [
        {
            **{name: row[name] for name in IMAGE_SCORES.names if name in row},
            "score": score,
            "threshold": threshold,
            "predicted": int(score > threshold),
            "student_digest": student_artifact.digest,
            "teacher_digest": store.get(teacher_key).digest,
            "scored_at": scored_at,
        }
        for row, score in zip(rows, scored.scores.tolist(), strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="etstpm-") as folder:
        path = Path(folder)
        schema = IMAGE_SCORES_OF_ARTIFACT
        write_parquet(
            path / "image_scores.parquet", schema, [pa.Table.from_pylist(table, schema=schema)]
        )
        names = [row["image_path"].removeprefix(f"{category}/test/") for row in rows]
        draw_hardest(pixels, masks, scored, labels=labels, names=names, threshold=threshold).save(
            path / "hardest.png", optimize=True
        )
        card = _card("scores", config, identity, compute, started) | {
            "category": category,
            "student": student_key,
            "teacher": teacher_key,
            "metrics": metrics,
        }
        store.commit(key, path, card)
    return key


def _open_inputs(config: Config, store: Store, dataset_key: str) -> _Inputs:
    with store.open(store.get(dataset_key), "manifest.parquet") as folder:
        return _Inputs(dataset_root(config), pq.read_table(folder / "manifest.parquet"))


def _weights(config: Config) -> TeacherWeights:
    """The configured weights. Only the drawn sample may do without a file."""
    source = config.teacher.weights
    if source == RANDOM_WEIGHTS and not is_sample(config):
        raise WeightsError(
            "teacher.weights = 'random' is for the drawn sample: a random teacher finds little on "
            "real images; give WEIGHTS=/path/resnet18-f37072fd.pth, an fsspec URI, or leave it "
            "empty to download torchvision's"
        )
    try:
        return load_weights(
            source, config.teacher.weights_sha256, cache=settings().cache, seed=config.seed
        )
    except WeightsError:
        if source is None and is_sample(config):
            return load_weights(RANDOM_WEIGHTS, None, cache=settings().cache, seed=config.seed)
        raise


def _numerics(config: Config) -> dict[str, Any]:
    """What else a training's result depends on."""
    return {
        "seed": config.seed,
        "image_size": config.dataset.image_size,
        "device": config.device,
        "precision": config.precision,
    }


def _card(
    stage: str,
    config: Config,
    inputs: Mapping[str, Any],
    compute: Compute | None = None,
    started: float | None = None,
) -> Card:
    card: Card = {
        "stage": stage,
        "stage_version": VERSIONS[stage],
        "inputs": dict(inputs),
        "config": config.model_dump(mode="json", exclude={"store"}),
        "seed": config.seed,
        "created_at": datetime.now(UTC).isoformat(),
        "versions": {
            "etstpm": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
    }
    if compute is not None:
        card["compute"] = compute.describe()
    if started is not None:
        card["seconds"] = round(time.monotonic() - started, 3)
    return card


def _commit_network(
    store: Store,
    key: str,
    pyramid: FeaturePyramid,
    *,
    history: Iterable[Any],
    schema: pa.Schema,
    card: Card,
) -> None:
    with tempfile.TemporaryDirectory(prefix="etstpm-") as folder:
        tensors = {name: t.cpu().contiguous() for name, t in pyramid.state_dict().items()}
        save_file(tensors, Path(folder) / "weights.safetensors")
        rows = [dataclasses.asdict(record) for record in history]
        table = pa.Table.from_pylist(rows, schema=schema)
        write_parquet(Path(folder) / "history.parquet", schema, [table])
        store.commit(key, Path(folder), card)


def _load_network(store: Store, key: str) -> FeaturePyramid:
    with store.open(store.get(key), "weights.safetensors") as folder:
        pyramid = FeaturePyramid()
        pyramid.load_state_dict(load_file(folder / "weights.safetensors"))
        return freeze(pyramid)


def _mask(root: Path, row: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """An image's mask at the image's own size."""
    if row["defect_type"] == GOOD:
        return np.zeros((row["height"], row["width"]), bool)
    return read_mask(root / row["mask_path"])
