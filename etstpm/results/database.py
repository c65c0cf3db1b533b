"""A store's published tables as DuckDB relations, read through fsspec and pyarrow.

DuckDB's own `httpfs` is not used: it is an extension that is downloaded at run time, and it does
not know fsspec's addresses and credentials. Row groups are still pruned: pyarrow is handed DuckDB's
filters. The connection itself can open no file and write none: whatever SQL it is given.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import dataset
from pyarrow import fs as arrow_fs

from etstpm.errors import ResultsError, StorageError, reason_of
from etstpm.history import metrics_key, read_history
from etstpm.runs import LATEST, latest_run, read_run, refuse_newer, table_key
from etstpm.storage import Store
from etstpm.tables import IMAGE_SCORES, METRICS, RUNS

VIEWS = (resources.files("etstpm.results") / "views.sql").read_text("utf-8")
SOURCES = (resources.files("etstpm.results") / "sources.sql").read_text("utf-8")

_RUN_ID = pa.schema([pa.field("run_id", pa.string())])
_FORMAT = dataset.ParquetFileFormat(
    default_fragment_scan_options=dataset.ParquetFragmentScanOptions(
        page_checksum_verification=True, pre_buffer=True
    )
)


class Results:
    """The tables of the runs that are published when it is opened.

    Relations: `runs` (with `is_latest`), `metrics`, `image_scores`, and the views of `views.sql`.
    Raises `ResultsError` where there is no run, or one of a newer schema version.
    """

    def __init__(self, store: Store) -> None:
        import duckdb

        self.store = store
        history = read_history(store)
        if not history.runs:
            read_run(store)  # says so
        for row in history.runs:
            refuse_newer(store, row["run_id"], row["schema_version"])
        self.latest = latest_run(store)
        self.runs = pa.Table.from_pylist(history.runs, schema=RUNS).drop_columns("stamp")
        self.runs = self.runs.append_column(
            "is_latest", pa.array([row["run_id"] == self.latest for row in history.runs])
        )
        ids = [row["run_id"] for row in history.runs]
        self._files = {
            "image_scores": _files_of_runs(store, IMAGE_SCORES, ids),
            "metrics": _files_of_runs(store, METRICS, [i for i in ids if i not in history.months]),
            "past_metrics": _files_of_months(store, METRICS, history.months),
        }
        self._connection = duckdb.connect(
            config={"enable_external_access": False, "autoload_known_extensions": False}
        )
        self._connection.execute("set timezone = 'UTC'")
        self._connection.register("runs", self.runs)
        self._connection.register("image_scores", self._files["image_scores"])
        self._connection.register("recent_metrics", self._files["metrics"])
        self._connection.register("past_metrics", self._files["past_metrics"])
        # A month may hold rows of a run that has been published again since.
        self._connection.register("past_runs", pa.table([list(history.months)], _RUN_ID))
        self._connection.execute(
            "create view metrics as select * from recent_metrics "
            "union all select * from past_metrics semi join past_runs using (run_id)"
        )
        self._connection.execute(VIEWS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> pa.Table:
        """Run SQL with `?` for each parameter. Raises `ResultsError`, or `StorageError` for a file.

        A name that is not known is said with those that are near.
        """
        import duckdb

        try:
            relation = self._connection.sql(sql, params=list(parameters))
            return relation.to_arrow_table() if relation is not None else pa.table({})
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            self._blame_a_file()
            raise ResultsError(f"SQL is refused: {' '.join(str(error).split())}") from None

    def run_id(self, run: str) -> str:
        """The id of a run that is given by it or as 'latest'."""
        if run != LATEST and run in self.runs["run_id"].to_pylist():
            return run
        return str(read_run(self.store, run)["run_id"])

    def require_category(self, category: str, run_id: str | None = None) -> None:
        """Raise `ResultsError` if no run, or not this one, has the category."""
        where, values = ("where run_id = ?", [run_id]) if run_id is not None else ("", [])
        found = self.query(f"select distinct category from metrics {where}", values)  # noqa: S608
        names = sorted(found["category"].to_pylist())
        if category not in names:
            raise ResultsError(
                f"store {self.store.uri}: no category {category!r} in "
                f"{f'run {run_id}' if run_id else 'any run'}; there are {', '.join(names)}"
            )

    def _blame_a_file(self) -> None:
        """Raise `StorageError` naming the first file that cannot be read, if there is one."""
        for table in self._files.values():
            for part in table.get_fragments():
                try:
                    with part.open() as file:
                        pq.read_table(file, page_checksum_verification=True)
                except (pa.ArrowException, OSError) as error:
                    key = part.path.removeprefix(self.store.path(""))
                    raise StorageError(
                        f"store {self.store.uri}: {key} is missing or damaged "
                        f"({reason_of(error)}); restore it, or publish its run again"
                    ) from None


def script(store: Store) -> str:
    """SQL that makes the same views in a reader's own DuckDB, from the store's files."""
    places = {
        "latest": "runs/latest.json",
        "runs": "runs/*/run.json",
        "metrics": "tables/metrics/*/metrics.parquet",
        "image_scores": "tables/image_scores/*/image_scores.parquet",
    }
    quoted = {
        name: "'" + store.display(key).replace("'", "''") + "'" for name, key in places.items()
    }
    # A line break in a comment would begin a statement.
    return SOURCES.format(uri=" ".join(store.uri.split()), **quoted) + VIEWS


def _files_of_runs(
    store: Store, schema: pa.Schema, run_ids: Sequence[str]
) -> dataset.FileSystemDataset:
    """A table's files, each known to hold its run alone: a filter by run opens no other."""
    name = schema.metadata[b"etstpm.table"].decode()
    return _open(
        store,
        schema,
        {table_key(name, run_id): dataset.field("run_id") == run_id for run_id in run_ids},
    )


def _files_of_months(
    store: Store, schema: pa.Schema, months: Mapping[str, str]
) -> dataset.FileSystemDataset:
    runs: dict[str, list[str]] = {}
    for run_id, month in months.items():
        runs.setdefault(month, []).append(run_id)
    files = {metrics_key(month): dataset.field("run_id") >= min(ids) for month, ids in runs.items()}
    return _open(store, schema, files)


def _open(
    store: Store, schema: pa.Schema, files: dict[str, dataset.Expression]
) -> dataset.FileSystemDataset:
    system = (
        arrow_fs.LocalFileSystem()
        if store.is_local
        else arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(store.fs))
    )
    plain = [pa.field(f.name, f.type if f.name != "run_id" else pa.string()) for f in schema]
    return dataset.FileSystemDataset.from_paths(
        [store.path(key) for key in files],
        schema=pa.schema(plain),
        format=_FORMAT,
        filesystem=system,
        partitions=list(files.values()),
    )
