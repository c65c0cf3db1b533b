"""Tables to people and programs: on the terminal, as CSV, JSON or Parquet."""

import json
import math
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from etstpm.errors import ResultsError, reason_of
from etstpm.paths import written_whole

Format = Literal["table", "csv", "json", "parquet"]
WIDEST = 240
"""Characters; what is longer is folded within its column."""
DIGITS = 12
"""Of a SHA-256 on the terminal; files and JSON have all 64."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SUFFIXES: dict[str, Format] = {".csv": "csv", ".json": "json", ".parquet": "parquet"}


def write_out(
    table: pa.Table,
    style: Format | None,
    output: Path | None,
    columns: Sequence[str] = (),
    *,
    title: str = "",
    brief: Sequence[str] = (),
) -> None:
    """Print a table, or write it to a file that appears whole or not at all.

    brief: the columns that a terminal shows where none are chosen.
    style: where it is left out, what the file's suffix says, else a table. Raises `ResultsError`
    for an unknown column, Parquet without a file, a file that cannot be written.
    """
    unknown = [name for name in columns if name not in table.schema.names]
    if unknown:
        raise ResultsError(
            f"no column {', '.join(map(repr, unknown))}; there are {', '.join(table.schema.names)}"
        )
    table = table.select(list(columns)) if columns else table
    chosen = style or (_SUFFIXES.get(output.suffix, "table") if output else "table")
    if output is not None:
        _write_file(table, chosen, output)
    elif chosen == "parquet":
        raise ResultsError("Parquet is not for the terminal; give --output FILE")
    elif chosen == "table":
        _print(table.select(list(brief)) if brief and not columns else table, title)
    else:
        sys.stdout.write(_encode(table, chosen).decode())


def _write_file(table: pa.Table, style: Format, output: Path) -> None:
    try:
        with written_whole(output) as partial:
            if style == "parquet":
                pq.write_table(table, partial, compression="zstd")
            else:
                partial.write_bytes(_encode(table, "csv" if style == "table" else style))
    except OSError as error:
        raise ResultsError(
            f"{output} cannot be written ({error.strerror or reason_of(error)}); choose another "
            "--output"
        ) from None


def _encode(table: pa.Table, style: Format) -> bytes:
    if style == "csv":
        sink = pa.BufferOutputStream()
        pyarrow.csv.write_csv(table, sink)
        return bytes(sink.getvalue())
    rows = [{key: _plain(value) for key, value in row.items()} for row in table.to_pylist()]
    return (json.dumps(rows, indent=1, ensure_ascii=False, default=str) + "\n").encode()


def _plain(value: Any) -> Any:
    """JSON knows neither times nor infinity."""
    if isinstance(value, datetime):
        return value.isoformat()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(table: pa.Table, title: str) -> None:
    """A table on the terminal: as wide as it needs, columns without any value left out."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=visible(title) or None, box=box.SIMPLE_HEAD, title_justify="left")
    rows = table.to_pylist()
    fields = [f for f in table.schema if not rows or any(row[f.name] for row in rows)]
    for field in fields:
        is_number = pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
        justify: Literal["left", "right"] = "right" if is_number else "left"
        shown.add_column(Text(visible(field.name)), justify=justify, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(_cell(row[field.name])) for field in fields))
    console = Console(markup=False, emoji=False)
    # Narrower than its content a table of numbers cannot be read: rather let the terminal wrap.
    options = console.options.update(width=WIDEST)
    console.width = max(console.width, Measurement.get(console, options, shown).maximum)
    console.print(shown)
    if not rows:
        console.print("no rows")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.3f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    text = str(value)
    return text[:DIGITS] if _SHA256.fullmatch(text) else visible(text)


def visible(text: str) -> str:
    """Names are hostile: what would move the cursor or change colours is shown as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
