"""The stages: each binds one library function to the store.

A stage works out the content address of its output from its inputs, returns that key at once if
the artifact is there, and otherwise makes it. So a crashed run goes on by being run again, and a
changed config, a retry or a second worker do the right thing without special cases.

Raise a stage's version (`etstpm/cards.py`) when its code changes what it puts out.
"""

import dataclasses
import logging
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from etstpm.addresses import (
    PUBLISHED_SCORES,
    Address,
    address_scores,
    address_student,
    address_teacher,
    digest_in,
)
from etstpm.cards import VERSIONS, commit_network, load_student, load_teacher, make_card
from etstpm.category_scores import write_scores
from etstpm.compute import choose_compute
from etstpm.config import Config, digest_of
from etstpm.dataset import scan_dataset
from etstpm.distillation import WarmStart, distil_student
from etstpm.errors import DamagedArtifactError, StorageError
from etstpm.finetuning import finetune_teacher
from etstpm.finetuning.processes import finetune_on
from etstpm.inputs import dataset_root, open_inputs, proven_weights
from etstpm.networks import FeaturePyramid, Network, TeacherWeights
from etstpm.parquet import write_parquet
from etstpm.roots import choose_categories
from etstpm.runs import read_run
from etstpm.settings import settings
from etstpm.storage import Store, make_once
from etstpm.students import Student
from etstpm.tables import FINDINGS, STUDENT_HISTORY, TEACHER_HISTORY
from etstpm.warm_start import Start, pin_run, split_of

_log = logging.getLogger("etstpm.stages")


def validate(config: Config, store: Store) -> str:
    """Scan the dataset; key of `manifest.parquet` and `findings.parquet`.

    Whatever else can be wrong with a run's inputs is tried first, so that it fails before anything
    is written: the weights, the device, the run to begin from, the store.
    """
    root = dataset_root(config)
    choose_categories(root, config.dataset.categories, config.dataset.name)
    if store.is_local and Path(store.root).resolve().is_relative_to(root.resolve()):
        raise StorageError(
            f"store {store.uri} lies in the dataset {root}, whose folders are categories; give one "
            "outside"
        )
    proven_weights(config)
    choose_compute(config)
    if (earlier := pin_run(config, store).student.warm_start) is not None:
        read_run(store, earlier)
    store.check_writable()
    dataset = scan_dataset(
        root,
        config.dataset.categories,
        config.dataset.image_size,
        settings().cache,
        name=config.dataset.name,
        on_finding=config.dataset.on_finding,
    ).require(config.dataset.on_finding)
    findings = dataset.findings.to_pylist()
    key = f"datasets/{digest_of([VERSIONS['dataset'], dataset.digest, findings])}"

    def make() -> None:
        with tempfile.TemporaryDirectory(prefix="etstpm-") as folder:
            write_parquet(Path(folder) / "manifest.parquet", dataset.schema, [dataset.manifest])
            write_parquet(Path(folder) / "findings.parquet", FINDINGS, [dataset.findings])
            store.commit(
                key,
                Path(folder),
                make_card("dataset", config, inputs={"content": dataset.digest})
                | dataset.describe(),
            )

    return make_once(store, key, make, verified=("manifest.parquet", "findings.parquet"))


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
    inputs = open_inputs(config, store, dataset_key)
    weights = proven_weights(config)
    categories = categories_of(store, dataset_key)
    address = address_teacher(config, inputs, weights, categories)
    make = partial(_make_teacher, config, store, address, dataset_key, weights, categories)
    return make_once(store, address.key, make, verified=("weights.safetensors",))


def _make_teacher(
    config: Config,
    store: Store,
    address: Address,
    dataset_key: str,
    weights: TeacherWeights,
    categories: list[str],
) -> None:
    key, identity = address.key, address.identity
    started, compute = time.monotonic(), choose_compute(config)
    if config.teacher.mode == "imagenet":
        pyramid, history, summary = weights.build(), [], "as its weights file has it"
    else:
        processes = settings().teacher_processes
        if processes > 1:
            tuned = finetune_on(processes, config, dataset_key)
        else:
            inputs, size = open_inputs(config, store, dataset_key), config.dataset.image_size
            pixels = {name: inputs.pixels(name, "train", size) for name in categories}
            tuned = finetune_teacher(
                weights, pixels, config.teacher, seed=config.seed, compute=compute
            )
        pyramid, history, summary = tuned.pyramid, tuned.history, tuned.summary
    card = make_card("teacher", config, identity, compute, started) | {
        "weights": {"source": weights.source, "sha256": weights.sha256},
        "description": weights.description,
        "summary": summary,
    }
    commit_network(store, key, pyramid, history=history, schema=TEACHER_HISTORY, card=card)


def student(config: Config, store: Store, dataset_key: str, teacher_key: str, category: str) -> str:
    """Distil one category's student on the frozen teacher; key of its best weights."""
    inputs = open_inputs(config, store, dataset_key)
    address, start = address_student(config, store, inputs, teacher_key, category)
    make = partial(_make_student, config, store, address, start, dataset_key, teacher_key, category)
    return make_once(store, address.key, make)


def _make_student(
    config: Config,
    store: Store,
    address: Address,
    start: Start | None,
    dataset_key: str,
    teacher_key: str,
    category: str,
) -> None:
    key, identity = address.key, address.identity
    inputs = open_inputs(config, store, dataset_key)
    started, compute = time.monotonic(), choose_compute(config)
    pixels = inputs.pixels(category, "train", config.dataset.image_size)
    distilled = distil_student(
        _load_teacher(config, store, dataset_key, teacher_key),
        pixels,
        config.student,
        seed=config.seed,
        compute=compute,
        name=category,
        start=None
        if start is None
        else WarmStart(load_student(store, start.key), start.epochs, start.split(len(pixels))),
    )
    best = distilled.history[distilled.best_epoch - 1]
    card = make_card("student", config, identity, compute, started) | {
        "category": category,
        "teacher": teacher_key,
        "train_images": len(pixels),
        "metrics": dataclasses.asdict(best),
        "retried": distilled.retried,
        "start": None if start is None else dataclasses.asdict(start),
    }
    commit_network(
        store,
        key,
        distilled.student,
        history=distilled.history,
        schema=STUDENT_HISTORY,
        card=card,
    )


def scores(config: Config, store: Store, dataset_key: str, student_key: str, category: str) -> str:
    """Score a category's test images; key of their scores, metrics and pictures."""
    inputs = open_inputs(config, store, dataset_key)
    address = address_scores(config, inputs, student_key, category)
    make = partial(_make_scores, config, store, address, dataset_key, student_key, category)
    return make_once(store, address.key, make, verified=PUBLISHED_SCORES)


def _make_scores(
    config: Config,
    store: Store,
    address: Address,
    dataset_key: str,
    student_key: str,
    category: str,
) -> None:
    student_artifact = store.get(student_key)
    teacher_key = student_artifact.card["teacher"]
    inputs = open_inputs(config, store, dataset_key)
    started, compute = time.monotonic(), choose_compute(config)
    networks = (
        _load_teacher(config, store, dataset_key, teacher_key),
        _load_student(config, store, dataset_key, student_key, category),
    )
    train_images = len(inputs.rows(category, "train"))
    _, held_out = split_of(student_artifact.card, train_images, config)
    digests = {"student_digest": digest_in(student_key), "teacher_digest": digest_in(teacher_key)}
    with tempfile.TemporaryDirectory(prefix="etstpm-") as name:
        folder = Path(name)
        metrics = write_scores(
            *(folder, config, inputs, category, networks, held_out),
            compute=compute,
            digests=digests,
        )
        card = make_card("scores", config, address.identity, compute, started) | {
            "category": category,
            "student": student_key,
            "teacher": teacher_key,
            "metrics": metrics,
        }
        store.commit(address.key, folder, card)


def _load_teacher(config: Config, store: Store, dataset_key: str, key: str) -> FeaturePyramid:
    return _load_or_remake(load_teacher, store, key, lambda: teacher(config, store, dataset_key))


def _load_student(
    config: Config, store: Store, dataset_key: str, key: str, category: str
) -> Student:
    teacher_key = store.get(key).card["teacher"]
    return _load_or_remake(
        load_student,
        *(store, key, lambda: student(config, store, dataset_key, teacher_key, category)),
    )


def _load_or_remake(
    load: Callable[[Store, str], Network], store: Store, key: str, remake: Callable[[], str]
) -> Network:
    """A network of the store. One that is damaged is discarded, and made anew by its stage."""
    try:
        return load(store, key)
    except DamagedArtifactError as error:
        _log.warning("%s; this is the next run", error)
        if remake() != key:  # the config given is not the one that it was made with
            raise
    return load(store, key)
