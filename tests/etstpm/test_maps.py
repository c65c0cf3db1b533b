"""Maps that are kept: what is left of their values, how many, and under which names."""

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image

from etstpm.config import MapsConfig
from etstpm.maps import restore_map, save_maps
from etstpm.pictures import HeatScale, colour, hardest, heat
from etstpm.scoring import ScoredImages
from etstpm.tables import MAPS

SCALE = HeatScale(1e-12, 1e-11)

COUNT, SIDE = 12, 32


@pytest.fixture
def scored() -> ScoredImages:
    """Maps as products of three distances are: tiny, over many decades; one is all zero."""
    rng = np.random.default_rng(0)
    maps = (np.exp(rng.normal(size=(COUNT, SIDE, SIDE)) * 4) * 1e-12).astype(np.float32)
    maps[3] = 0
    return ScoredImages(maps=maps, scores=maps.reshape(COUNT, -1).max(1).astype(np.float64))


def manifest() -> list[dict[str, Any]]:
    return [
        {
            "label": number % 2,
            "image_path": f"screw/test/../x/{number}.png",
            "image_sha256": f"{number:064x}",
        }
        for number in range(COUNT)
    ]


def labels() -> npt.NDArray[np.bool_]:
    return np.array([row["label"] == 1 for row in manifest()])


def save(folder: Path, scored: ScoredImages, **options: Any) -> None:
    save_maps(folder, scored, MapsConfig(**options), rows=manifest(), scale=SCALE)


def test_nothing_is_kept_unless_it_is_asked_for(tmp_path: Path, scored: ScoredImages) -> None:
    save(tmp_path, scored)
    assert list(tmp_path.iterdir()) == []


def test_maps_come_back_as_float16_allows(tmp_path: Path, scored: ScoredImages) -> None:
    save(tmp_path, scored, kept="float16")
    table = pq.read_table(tmp_path / "maps.parquet")
    assert (table.schema.names, table.schema.metadata) == (MAPS.names, MAPS.metadata)
    order = hardest(labels(), scored.scores, COUNT)
    assert table["image_sha256"].to_pylist() == [f"{index:064x}" for index in order]
    for row, index in zip(table.to_pylist(), order, strict=True):
        expected = scored.maps[index].astype(np.float64)
        error = np.abs(restore_map(row) - expected)
        is_normal = expected > 6.2e-5 * expected.max()
        assert (error[is_normal] <= expected[is_normal] * 2.0**-11).all()
        assert (error <= np.maximum(expected * 2.0**-11, expected.max() * 3e-8)).all()
        assert restore_map(row).max() == expected.max()


def test_no_more_are_kept_than_the_limit_and_those_judged_worst(
    tmp_path: Path, scored: ScoredImages
) -> None:
    save(tmp_path, scored, kept="float16", limit=4)
    table = pq.read_table(tmp_path / "maps.parquet")
    worst = hardest(labels(), scored.scores, 4)
    assert table["image_path"].to_pylist() == [manifest()[index]["image_path"] for index in worst]
    assert table["rank"].to_pylist() == [0, 1, 2, 3]


def test_heatmaps_are_named_by_hash_and_coloured_as_pictures_are(
    tmp_path: Path, scored: ScoredImages
) -> None:
    save(tmp_path, scored, kept="png", limit=5)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    order = hardest(labels(), scored.scores, 5)
    assert files == [
        f"heatmaps/{rank:05d}-{index:064x}"[:31] + ".png" for rank, index in enumerate(order)
    ]
    with Image.open(tmp_path / files[2]) as image:
        drawn = np.asarray(image)
    expected = colour(heat(scored.maps[order[2]], SCALE)).round().astype(np.uint8)
    assert np.array_equal(drawn, expected)


def test_pandas_polars_and_duckdb_read_them(tmp_path: Path, scored: ScoredImages) -> None:
    save(tmp_path, scored, kept="float16", limit=2)
    path = tmp_path / "maps.parquet"
    row = pq.read_table(path).to_pylist()[1]
    expected = restore_map(row)
    second = {str(name): value for name, value in pd.read_parquet(path).iloc[1].items()}
    assert np.array_equal(restore_map(second), expected)
    assert np.array_equal(restore_map(pl.read_parquet(path).row(1, named=True)), expected)
    with duckdb.connect() as connection:
        found = connection.execute(
            "select map, height, width, scale from read_parquet(?) order by rank", [str(path)]
        ).fetchall()
    names = ("map", "height", "width", "scale")
    assert np.array_equal(restore_map(dict(zip(names, found[1], strict=True))), expected)
