"""What the stages read: the validated dataset, its images and masks, the teacher's weights."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from etstpm.config import Config, digest_of
from etstpm.dataset import image_files, rows_of, unusual_cut
from etstpm.decoded import load_pixels
from etstpm.errors import DatasetError, WeightsError, reason_of
from etstpm.images import UNREADABLE, Pixels, decode_grey, read_file
from etstpm.networks import FORMULA_WEIGHTS, TeacherWeights, load_weights
from etstpm.sample import MARKER, SAMPLE_VERSION, draw_sample
from etstpm.settings import settings
from etstpm.storage import Store


@dataclass(frozen=True)
class Inputs:
    """What a stage reads from the dataset's artifact."""

    root: Path
    manifest: pa.Table

    def rows(self, category: str, split: str) -> list[dict[str, Any]]:
        """The manifest's rows of one split of a category."""
        return rows_of(self.manifest, category, split)

    def pixels(self, category: str, split: str, size: int) -> Pixels:
        """Its decoded images, from the cache where they are there."""
        files = image_files(self.root, self.manifest, category, split)
        return load_pixels(f"{category}/{split}", files, size, settings().cache)

    def digest(self, category: str, split: str) -> str:
        """Of the contents alone, in order: a renamed root changes nothing."""
        return digest_of([_contents(row) for row in self.rows(category, split)])


def is_sample(config: Config) -> bool:
    """Whether the run's images are drawn by etstpm: here, or earlier into the folder given."""
    return config.dataset.root is None or (dataset_root(config) / MARKER).is_file()


def dataset_root(config: Config) -> Path:
    """The dataset's folder; the sample is drawn into the cache if it is not there."""
    if config.dataset.folder is not None:
        return config.dataset.folder
    root = settings().cache / f"sample-{SAMPLE_VERSION}"
    draw_sample(root)
    return root


def open_inputs(config: Config, store: Store, dataset_key: str) -> Inputs:
    """The dataset's artifact, its manifest's hash verified."""
    with store.open(store.get(dataset_key), "manifest.parquet") as folder:
        return Inputs(dataset_root(config), pq.read_table(folder / "manifest.parquet"))


def proven_weights(config: Config) -> TeacherWeights:
    """The configured weights. Only the drawn sample falls back to the package's own."""
    source, sha256, cache = config.teacher.weights, config.teacher.weights_sha256, settings().cache
    try:
        return load_weights(source, sha256, cache=cache)
    except WeightsError:
        if source is None and sha256 is None and is_sample(config):
            return load_weights(FORMULA_WEIGHTS, None, cache=cache)
        raise


def own_mask(root: Path, row: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """An image's mask at the image's own size; without one nothing is marked.

    Raises `DatasetError` if its file is no longer the one that was validated.
    """
    if row["mask_path"] is None:
        return np.zeros((row["height"], row["width"]), bool)
    path, expected = root / row["mask_path"], row["mask_sha256"]
    try:
        content = read_file(path)
        found = hashlib.sha256(content).hexdigest()
        if expected is not None and found != expected:
            raise DatasetError(
                f"{path}: changed since it was validated (SHA-256 {expected[:12]} expected, "
                f"{found[:12]} found); run again"
            )
        grey = np.asarray(decode_grey(content))
    except UNREADABLE as error:
        raise DatasetError(
            f"{path}: was a whole mask when it was validated, found {reason_of(error)}; run again"
        ) from None
    mask: npt.NDArray[np.bool_] = grey > row["mask_above"]
    return mask


def has_mask(row: Mapping[str, Any]) -> bool:
    """Whether it is known where an image is defective: nowhere, or where its mask says."""
    return row["label"] == 0 or row["mask_path"] is not None


def _contents(row: Mapping[str, Any]) -> list[object]:
    """What a row's image and mask are."""
    return [row["image_sha256"], row["mask_sha256"], *unusual_cut(row)]
