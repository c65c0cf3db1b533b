"""Anomaly maps of test images, kept on request (`[maps]` in the config), beside their scores.

A map spans decades, and its values are tiny: as float16 they would be zero. Each is divided by its
own maximum first, which its row keeps: what is left of a value is right to a part in 2,000 down to
6e-5 of the maximum, and to 3e-8 of it below.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from etstpm.config import MapsConfig
from etstpm.parquet import write_parquet
from etstpm.pictures import HeatScale, colour, hardest, heat
from etstpm.scoring import ScoredImages
from etstpm.tables import MAPS


def save_maps(
    folder: Path,
    scored: ScoredImages,
    config: MapsConfig,
    *,
    rows: Sequence[Mapping[str, Any]],
    scale: HeatScale,
) -> None:
    """Write `maps.parquet` (`tables.MAPS`) or `heatmaps/*.png`, as the config says; or nothing.

    Of N scored images (rows: the manifest's) those `config.limit` that were judged worst. A PNG is
    named by its rank and its image's SHA-256, since names of folders are hostile.
    """
    if config.kept == "none":
        return
    labels = np.array([row["label"] == 1 for row in rows])
    order = hardest(labels, scored.scores, config.limit)
    if config.kept == "float16":
        write_parquet(folder / "maps.parquet", MAPS, _tables(scored, rows, order))
        return
    (folder / "heatmaps").mkdir()
    for rank, index in enumerate(order):
        pixels = colour(heat(scored.maps[index], scale)).round().astype(np.uint8)
        name = f"{rank:05d}-{rows[index]['image_sha256'][:16]}.png"
        Image.fromarray(pixels).save(folder / "heatmaps" / name, optimize=True)


def restore_map(row: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """The anomaly map (height, width) of a row of `tables.MAPS`."""
    values = np.asarray(row["map"], np.float64).reshape(row["height"], row["width"])
    restored: npt.NDArray[np.float64] = values * row["scale"]
    return restored


def _tables(
    scored: ScoredImages, rows: Sequence[Mapping[str, Any]], order: Sequence[int]
) -> Iterator[pa.Table]:
    """A table an image: no more of them are in memory twice than a row group holds."""
    for rank, index in enumerate(order):
        values = np.asarray(scored.maps[index], np.float64)
        scale = float(values.max()) or 1.0
        flat = pa.array((values / scale).astype(np.float16).ravel())
        yield pa.table(
            {
                "image_path": [rows[index]["image_path"]],
                "image_sha256": [rows[index]["image_sha256"]],
                "rank": [rank],
                "height": [values.shape[0]],
                "width": [values.shape[1]],
                "scale": [scale],
                "map": pa.ListArray.from_arrays(pa.array([0, values.size], pa.int32()), flat),
            }
        )
