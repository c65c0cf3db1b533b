"""The analysts' contract, frozen; and that what is written reads back everywhere."""

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import dataset

from etstpm import tables
from etstpm.metric_rows import ROWS
from etstpm.parquet import is_encoded_by_dictionary, schema_without, write_parquet
from etstpm.tables import IMAGE_SCORES, METRICS, OFFICIAL, PAPER

# DESIGN.md, "The tables": columns are added at the end, never renamed, moved or dropped.
IMAGE_SCORES_CONTRACT = {
    "run_id": "string",
    "category": "string",
    "split": "string",
    "defect_type": "string",
    "image_path": "string",
    "image_sha256": "string",
    "label": "int8",
    "score": "double",
    "threshold": "double",
    "predicted": "int8",
    "width": "int32",
    "height": "int32",
    "student_digest": "string",
    "teacher_digest": "string",
    "scored_at": "timestamp[us, tz=UTC]",
    "fault": "string",
}
METRICS_CONTRACT = {
    "run_id": "string",
    "category": "string",
    "protocol": "string",
    "level": "string",
    "metric": "string",
    "value": "double",
    "ci_low": "double",
    "ci_high": "double",
    "seed": "int64",
    "n_good": "int64",
    "n_defective": "int64",
    "student_digest": "string",
    "teacher_digest": "string",
    "dataset_digest": "string",
    "created_at": "timestamp[us, tz=UTC]",
    "reason": "string",
    "defect_type": "string",
    "n_quarantined": "int64",
}
SCHEMAS = {name: value for name, value in vars(tables).items() if isinstance(value, pa.Schema)}


@pytest.mark.parametrize(
    ("schema", "contract"),
    [(IMAGE_SCORES, IMAGE_SCORES_CONTRACT), (METRICS, METRICS_CONTRACT)],
    ids=["image_scores", "metrics"],
)
def test_columns_are_those_that_analysts_were_promised(
    schema: pa.Schema, contract: dict[str, str]
) -> None:
    types = [f.type.value_type if pa.types.is_dictionary(f.type) else f.type for f in schema]
    assert list(zip(schema.names, map(str, types), strict=True)) == list(contract.items())


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_table_and_column_says_what_it_means(name: str) -> None:
    schema = SCHEMAS[name]
    assert schema.metadata[b"etstpm.table"] == name.lower().encode()
    assert schema.metadata[b"etstpm.schema_version"] == b"2"
    assert schema.metadata[b"etstpm.place"].endswith(b".parquet")
    assert schema.metadata[b"etstpm.rows"].startswith(b"one ")
    for field in schema:
        meaning = (field.metadata or {}).get(b"meaning", b"").decode()
        assert len(meaning) >= 5, field.name
        is_number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        assert (b"unit" in field.metadata) == is_number, field.name
    sizes = {"width": b"pixel", "height": b"pixel", "bytes": b"byte"}
    for column, unit in sizes.items():
        if column in schema.names:
            assert schema.field(column).metadata[b"unit"] == unit


def test_every_name_among_the_metrics_is_explained() -> None:
    assert (PAPER, OFFICIAL) == ("paper-256", "mvtec-official")
    for position, column in enumerate(("protocol", "level", "metric")):
        meaning = METRICS.field(column).metadata[b"meaning"].decode()
        for name in {row[position] for row in ROWS}:
            assert f"'{name}'" in meaning


def row_of(category: str, score: float, **others: object) -> dict[str, object]:
    row: dict[str, object] = {
        "run_id": "20261123T220000Z-0a1b2c3d",
        "category": category,
        "split": "test",
        "defect_type": "good",
        "image_path": f"{category}/test/good/000.png",
        "image_sha256": "ab" * 32,
        "label": 0,
        "score": score,
        "threshold": 2e-12,
        "predicted": 1,
        "width": 900,
        "height": 700,
        "student_digest": "cd" * 32,
        "teacher_digest": "ef" * 32,
        "scored_at": datetime(2026, 11, 23, 22, 1, 2, 345678, tzinfo=UTC),
        "fault": None,
    }
    return row | others


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, list[dict[str, object]]]:
    """Two categories in plain types, in columns of another order: written with the schema."""
    rows = [
        row_of("bottle", 1.2345678901234567e-12),
        row_of("bottle", 3e-12, label=1, defect_type="broken_large"),
        row_of("screw", 5e-324, threshold=None),
    ]
    path = tmp_path / "new" / "image_scores.parquet"
    groups = [
        pa.Table.from_pylist([dict(reversed(row.items())) for row in rows if row["category"] == c])
        for c in ("bottle", "screw")
    ]
    groups[1] = groups[1].set_column(
        groups[1].schema.get_field_index("threshold"), "threshold", pa.array([None], pa.float64())
    )
    assert write_parquet(path, IMAGE_SCORES, iter(groups)) == 3
    return path, rows


def test_a_file_has_the_schemas_types(written: tuple[Path, list[dict[str, object]]]) -> None:
    path, rows = written
    file = pq.ParquetFile(path)
    assert file.schema_arrow.equals(IMAGE_SCORES, check_metadata=True)
    assert file.num_row_groups == 1
    columns = [file.metadata.row_group(0).column(j) for j in range(len(IMAGE_SCORES))]
    assert {column.compression for column in columns} == {"ZSTD"}
    for field, column in zip(IMAGE_SCORES, columns, strict=True):
        is_by_dictionary = is_encoded_by_dictionary(field)
        assert ("RLE_DICTIONARY" in column.encodings) == is_by_dictionary, field.name
        assert column.has_column_index, field.name
    assert file.read().to_pylist() == rows
    assert (columns[1].statistics.min, columns[1].statistics.max) == ("bottle", "screw")


def test_row_groups_hold_whole_categories_and_their_statistics_prune(tmp_path: Path) -> None:
    groups = [pa.Table.from_pylist([row_of(f"c{n:02d}", 1.0)] * 3000) for n in range(15)]
    path = tmp_path / "image_scores.parquet"
    assert write_parquet(path, IMAGE_SCORES, groups) == 45000
    metadata = pq.read_metadata(path)
    found = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    ends = [(group.column(1).statistics.min, group.column(1).statistics.max) for group in found]
    assert ends == [("c00", "c05"), ("c06", "c11"), ("c12", "c14")]
    assert [group.num_rows for group in found] == [18000, 18000, 9000]
    (fragment,) = dataset.dataset(path, partitioning=None).get_fragments()
    kept = fragment.split_by_row_group(dataset.field("category") == "c07")
    assert [part.row_groups[0].id for part in kept] == [1]


def test_large_rows_make_small_row_groups(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("map", pa.binary())])
    row = pa.table({"map": [bytes(8 * 2**20)]})
    assert write_parquet(tmp_path / "maps.parquet", schema, [row] * 20) == 20
    metadata = pq.read_metadata(tmp_path / "maps.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [8, 8, 4]


def test_a_flipped_bit_is_told_by_the_pages_checksum(
    written: tuple[Path, list[dict[str, object]]],
) -> None:
    path, _ = written
    column = pq.read_metadata(path).row_group(0).column(IMAGE_SCORES.names.index("score"))
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.read_table(path, partitioning=None, page_checksum_verification=True)


def test_pandas_and_duckdb_read_back_what_was_written(
    written: tuple[Path, list[dict[str, object]]],
) -> None:
    path, rows = written
    frame = pd.read_parquet(path)
    assert frame.columns.tolist() == list(IMAGE_SCORES_CONTRACT)
    assert frame["score"].tolist() == [row["score"] for row in rows]
    assert frame["threshold"].isna().tolist() == [False, False, True]
    assert frame["scored_at"][0] == rows[0]["scored_at"]
    with duckdb.connect() as connection:
        found = connection.execute(
            "select category, score, label, threshold, image_path, epoch_us(scored_at) "
            "from read_parquet(?) order by score desc",
            [str(path)],
        ).fetchall()
    # 2026-11-23 22:01:02.345678 UTC in microseconds since 1970.
    expected = [
        (r["category"], r["score"], r["label"], r["threshold"], r["image_path"], 1795471262345678)
        for r in sorted(rows, key=lambda r: float(str(r["score"])), reverse=True)
    ]
    assert found == expected


def test_no_groups_make_a_whole_empty_file(tmp_path: Path) -> None:
    assert write_parquet(tmp_path / "empty.parquet", METRICS, []) == 0
    assert pq.read_schema(tmp_path / "empty.parquet").equals(METRICS, check_metadata=True)


def test_a_table_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    lacking = pa.Table.from_pylist([row_of("bottle", 1.0)]).drop_columns("score")
    with pytest.raises(KeyError, match="score"):
        write_parquet(tmp_path / "a.parquet", IMAGE_SCORES, [lacking])
    too_large = pa.Table.from_pylist([row_of("bottle", 1.0, label=300)])
    with pytest.raises(pa.ArrowInvalid, match="300"):
        write_parquet(tmp_path / "b.parquet", IMAGE_SCORES, [too_large])


def test_a_schema_without_a_column_keeps_the_rest() -> None:
    less = schema_without(IMAGE_SCORES, "run_id", "label")
    assert less.names == [n for n in IMAGE_SCORES_CONTRACT if n not in {"run_id", "label"}]
    assert less.metadata == IMAGE_SCORES.metadata
    assert less.field("width").metadata == IMAGE_SCORES.field("width").metadata
