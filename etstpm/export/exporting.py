"""Export a detector: trace, write, run the file beside the pipeline, and only then publish it."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from etstpm import __version__
from etstpm.errors import EtstpmError, StorageError
from etstpm.export.card import describe_model
from etstpm.export.formats import (
    SUFFIXES,
    Scored,
    check_format,
    open_onnx,
    open_torch_export,
    write_onnx,
    write_torch_export,
)
from etstpm.export.program import trace_detector
from etstpm.images import Pixels
from etstpm.inference.detector import Detector
from etstpm.scoring import ScoredImages
from etstpm.storage import Store, file_sha256

TOLERANCE = 1e-4
"""Largest difference of a score, as a share of the larger of the score and the threshold."""

PROBES = 3
CARD_SUFFIX = ".md"


class ExportError(EtstpmError):
    """An exported file does not compute what the pipeline does."""


@dataclass(frozen=True)
class Exported:
    """A published file and what was found when it was run."""

    file: str
    card: str
    sha256: str
    bytes: int
    score_difference: float
    """Largest, as a share of the larger of score and threshold."""
    map_difference: float
    """Largest, as a share of the map's highest value."""


def export_detector(store: Store, detector: Detector, name: str, to: str) -> Exported:
    """One file of the format `name` at `to`, a path or any fsspec URI; beside it its model card.

    The file is run in ONNX Runtime or torch, as its user will, on seeded images beside the
    pipeline's own scoring in float32. Raises `ExportError` if they differ by more than `TOLERANCE`,
    `ConfigError` for an unknown format or one whose packages are missing, `StorageError` if
    something is there already or the place cannot be written. Then nothing is left.
    """
    check_format(name)
    target, file_name = _split(to, SUFFIXES[name])
    card_name = file_name + CARD_SUFFIX
    target.check_writable()
    for existing in (file_name, card_name):
        if target.exists(existing):
            raise StorageError(
                f"{target.display(existing)} exists already; give another name, or remove it"
            )
    program = trace_detector(detector)
    with tempfile.TemporaryDirectory(prefix="etstpm-") as folder:
        path = Path(folder) / f"model{SUFFIXES[name]}"
        facts = facts_of(detector)
        probes = probe_images(detector.size)
        if name == "onnx":
            write_onnx(program, path, facts)
            found = open_onnx(path)(probes)
        else:
            write_torch_export(program, path, facts)
            found = open_torch_export(path, file_sha256(path))(probes)
        scores, maps = differences(detector.score(probes), found, detector.threshold)
        if max(scores, maps) > TOLERANCE:
            raise ExportError(
                f"{detector.category}: the exported file's scores differ by {scores:.1e} and its "
                f"maps by {maps:.1e} from the pipeline's, at most {TOLERANCE:.0e} expected; "
                f"nothing was written; choose another --format, and report it"
            )
        exported = Exported(
            file=target.display(file_name),
            card=target.display(card_name),
            sha256=file_sha256(path),
            bytes=path.stat().st_size,
            score_difference=scores,
            map_difference=maps,
        )
        card = describe_model(
            store,
            detector,
            name=name,
            file=file_name,
            sha256=exported.sha256,
            size_in_bytes=exported.bytes,
            differences=(scores, maps),
        )
        target.put_file(path, file_name)
        try:
            target.write_bytes(card_name, card.encode())
        except StorageError:
            target.remove_file(file_name)
            raise
    return exported


def facts_of(detector: Detector) -> dict[str, str]:
    """What goes into the file itself: how to use it, and where it comes from."""
    teacher, student = detector.keys
    return {
        "etstpm.version": __version__,
        "etstpm.category": detector.category,
        "etstpm.run_id": detector.run_id,
        "etstpm.image_size": str(detector.size),
        "etstpm.threshold": repr(detector.threshold),
        "etstpm.false_alarm_rate": repr(detector.config.scoring.false_alarm_rate),
        "etstpm.teacher": teacher,
        "etstpm.student": student,
        "etstpm.scores": detector.scores.key,
        "etstpm.dataset": detector.dataset_key,
    }


def probe_images(size: int) -> Pixels:
    """Images (N, size, size, 3) uint8 of seeded noise, coarse to fine: no dataset is needed."""
    rng = np.random.default_rng(0)
    grids = [
        rng.integers(0, 256, (4**level, 4**level, 3), np.uint8) for level in range(1, PROBES + 1)
    ]
    return np.stack(
        [
            np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BILINEAR))
            for grid in grids
        ]
    )


def differences(expected: ScoredImages, found: Scored, threshold: float) -> tuple[float, float]:
    """The largest of the scores, as a share of score or threshold; of the maps, of each highest."""
    maps, scores = found
    scale = np.maximum(np.abs(expected.scores), abs(threshold))
    of_scores = np.abs(scores.astype(np.float64) - expected.scores) / scale
    highest = np.abs(expected.maps).max((1, 2), keepdims=True)
    of_maps = np.abs(maps - expected.maps) / highest
    return float(of_scores.max()), float(of_maps.max())


def _split(to: str, suffix: str) -> tuple[Store, str]:
    """The place and the name of a file's path or URI."""
    folder, slash, name = to.rpartition("/")
    if not name.endswith(suffix) or name == suffix:
        # torch.export.load takes no other.
        raise StorageError(
            f"output {to!r} does not name a file that ends in {suffix}, as this format's do; "
            f"give one, as in --to models/screw{suffix}"
        )
    return Store(folder or slash or "."), name
