"""Files of the tables: row groups that a reader can skip, names by dictionary, checksums."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_ROWS = 16_384
"""A group a category was tried: with 2,000 categories of 115 images the file was 1.8 times larger,
its footer 4 MB, and one category took 20 times longer to read."""
ROW_GROUP_BYTES = 64 * 2**20
"""Decoded; what rows of anomaly maps reach first."""


def write_parquet(path: Path, schema: pa.Schema, groups: Iterable[pa.Table]) -> int:
    """Write tables of one schema, a category each, to one file; returns the number of rows.

    Tables are gathered to row groups of `ROW_GROUP_ROWS` or more, none cut: a reader who filters
    by category skips the groups whose statistics lack it, and memory does not grow with the number
    of categories. Every page has a checksum (`pyarrow`: `page_checksum_verification=True`).
    """
    rows = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=[field.name for field in schema if is_encoded_by_dictionary(field)],
        write_page_index=True,
        write_page_checksum=True,
    ) as writer:
        for group in _gather(groups, schema):
            writer.write_table(group)
            rows += group.num_rows
    return rows


def is_encoded_by_dictionary(field: pa.Field) -> bool:
    """Whether a column has few distinct values."""
    return pa.types.is_dictionary(field.type) or b"encoding" in (field.metadata or {})


def _gather(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table.select(schema.names).cast(schema))
        rows, size = (sum(getattr(t, part) for t in waiting) for part in ("num_rows", "nbytes"))
        if rows >= ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting).unify_dictionaries()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).unify_dictionaries()


def schema_without(schema: pa.Schema, *names: str) -> pa.Schema:
    """The schema less these columns: artifacts do not know their runs."""
    return pa.schema([f for f in schema if f.name not in names], metadata=schema.metadata)
