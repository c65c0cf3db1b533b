"""The page docs/tables.md, made from the schemas: `etstpm results tables` prints it."""

import pyarrow as pa

from etstpm import parquet, tables

HEAD = f"""\
# The tables

Made by `etstpm results tables` from `etstpm/tables.py`, schema version {tables.SCHEMA_VERSION}.
Columns are added at the end, never renamed, moved or re-meant; a new metric is a new row. The same
words and units stand in each file's own field metadata (`pyarrow.parquet.read_schema(file)`).

Files are Parquet, zstd, names and digests encoded by dictionary. Row groups have at least
{parquet.ROW_GROUP_ROWS} rows (fewer where a file has no more) and hold whole categories in
ascending order: a filter on `category` skips the others by their statistics. Every page has a
checksum. The unit '1' is of a pure number. What a reader may rely on, and examples:
[results.md](results.md).
"""


def describe_tables() -> str:
    """All tables as one Markdown page: first those that analysts read."""
    schemas = {
        schema.metadata[b"etstpm.table"].decode(): schema
        for schema in vars(tables).values()
        if isinstance(schema, pa.Schema)
    }
    return "\n".join([HEAD, *(_describe(name, schema) for name, schema in schemas.items())])


def _describe(name: str, schema: pa.Schema) -> str:
    place, rows = (
        schema.metadata[f"etstpm.{part}".encode()].decode() for part in ("place", "rows")
    )
    lines = [
        f"## {name}",
        "",
        f"`{place}`; rows: {rows}.",
        "",
        "| column | type | unit | meaning |",
        "|---|---|---|---|",
    ]
    for field in schema:
        unit = field.metadata.get(b"unit", b"").decode()
        meaning = field.metadata[b"meaning"].decode().replace("|", "\\|")
        lines.append(f"| {field.name} | {_type(field)} | {unit} | {meaning} |")
    return "\n".join(lines) + "\n"


def _type(field: pa.Field) -> str:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return f"{kind}{', by dictionary' if parquet.is_encoded_by_dictionary(field) else ''}"
