"""What readers ask: runs, a run's metrics, its worst images, a category's history, a comparison.

Each answers with a table of named columns, oldest or worst first, and names what it does not know.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from etstpm.errors import ResultsError
from etstpm.results.database import Results
from etstpm.runs import LATEST, latest_run, read_run
from etstpm.storage import Store
from etstpm.tables import ALL, PAPER

if TYPE_CHECKING:
    from etstpm.comparison import Change

READERS = 16
"""Requests side by side, of a comparison of many categories on an object store."""


def list_runs(results: Results, *, last: int | None = None) -> pa.Table:
    """Every published run, oldest first, or the `last` ones: verdict, mean figures, what failed.

    Columns: run_id, status, verdict, is_latest, image_auroc, pixel_auroc, aupro (means over the
    categories; None where not defined), categories, failed, started_at, created_at, baseline,
    reason.
    """
    table = results.query(
        """
        with means as (
            select run_id,
                any_value(value) filter (level = 'image' and metric = 'auroc') as image_auroc,
                any_value(value) filter (
                    level = 'pixel' and metric = 'auroc' and protocol = 'paper-256'
                ) as pixel_auroc,
                any_value(value) filter (
                    metric = 'aupro' and protocol = 'mvtec-official'
                ) as aupro
            from metrics where category = 'mean' group by run_id
        )
        select r.run_id, r.status, r.verdict, r.is_latest, m.image_auroc, m.pixel_auroc, m.aupro,
            r.categories, r.failed, r.started_at, r.created_at, r.baseline, r.reason
        from runs r left join means m using (run_id) order by r.started_at, r.run_id
        """
    )
    return _last(table, last)


def run_metrics(
    results: Results,
    run: str = LATEST,
    *,
    category: str | None = None,
    protocol: str | None = None,
    level: str | None = None,
    metric: str | None = None,
    defect_type: str | None = ALL,
) -> pa.Table:
    """A run's rows of `metrics`, in the order of its table; None of a filter takes all.

    Raises `ResultsError` for a run, a category or another name that is not there.
    """
    run_id = results.run_id(run)
    table = results.query(
        "select category, defect_type, protocol, level, metric, value, ci_low, ci_high, n_good, "
        "n_defective, reason from metrics where run_id = ?",
        [run_id],
    )
    wanted = {
        "category": category,
        "protocol": protocol,
        "level": level,
        "metric": metric,
        "defect_type": defect_type,
    }
    for column, value in wanted.items():
        if value is not None:
            table = _only(table, column, value, f"run {run_id}")
    return table


def worst_images(
    results: Results, run: str = LATEST, *, category: str | None = None, limit: int = 20
) -> pa.Table:
    """The test images of a run that were judged worst: wrong decisions first, the grossest first.

    Columns: category, defect_type, image_path, error ('missed defect', 'false alarm', or None where
    the decision is right but near the threshold), score, threshold, factor (score over threshold).
    """
    run_id = results.run_id(run)
    if category is not None:
        results.require_category(category, run_id)
    return results.query(
        """
        with judged as (
            select *, label = predicted as is_right, score / threshold as factor,
                abs(ln(greatest(score, 1e-300) / greatest(threshold, 1e-300))) as distance
            from image_scores where run_id = ? and category = coalesce(?, category)
        )
        select category, defect_type, image_path,
            case when is_right then null
                 when label = 1 then 'missed defect' else 'false alarm' end as error,
            score, threshold, factor
        from judged where is_right is not null
        order by is_right, case when is_right then distance else -distance end,
            category, image_path
        limit ?
        """,
        [run_id, category, limit],
    )


def metric_history(
    results: Results,
    category: str,
    *,
    level: str = "image",
    metric: str = "auroc",
    protocol: str = PAPER,
    last: int | None = None,
) -> pa.Table:
    """A figure of a category (or of 'mean') over all published runs, oldest first.

    Columns: started_at, run_id, value (None where it failed or is not defined), ci_low, ci_high,
    change (since the run before), verdict (of its run), is_latest, reason.
    """
    table = results.query(
        "select protocol, level, metric, started_at, run_id, value, ci_low, ci_high, change, "
        "verdict, is_latest, reason from nights where category = ? order by started_at, run_id",
        [category],
    )
    if not table.num_rows:
        results.require_category(category)
    for column, wanted in (("level", level), ("metric", metric), ("protocol", protocol)):
        table = _only(table, column, wanted, f"category {category}")
    return _last(table.drop_columns(["protocol", "level", "metric"]), last)


def compare_runs(
    store: Store,
    run: str = LATEST,
    other: str | None = None,
    *,
    categories: Sequence[str] | None = None,
    levels: Sequence[str] = ("image", "pixel"),
) -> list["Change"]:
    """By how much each category's AUROC moved from `other` to `run`, with 95 % intervals.

    other: the run that the gate compared with, where it is left out; of one that the gate did not
    judge, the latest. Needs the scores of both runs in the store. Raises `ResultsError` for a run
    or category that is not there.
    """
    from etstpm.comparison import (
        ScoresOfRun,
        compare_category,
    )  # SciPy: 0.3 s no other question needs

    record = read_run(store, run)
    baseline = read_run(store, other or _baseline(store, record))
    before, after = ScoresOfRun(store, baseline), ScoresOfRun(store, record)
    known = list(dict.fromkeys([*after.keys, *before.keys]))
    for category in categories or ():
        if category not in known:
            raise ResultsError(
                f"store {store.uri}: no scores of category {category!r} in run {record['run_id']} "
                f"or {baseline['run_id']}; there are {', '.join(sorted(known))}"
            )

    def compare(category: str) -> list["Change"]:
        old, new = before.artifact(category), after.artifact(category)
        return list(compare_category(store, old, new, category, levels=levels))

    with ThreadPoolExecutor(READERS) as pool:
        parts = pool.map(compare, categories or known)
        return [change for part in parts for change in part]


def changes_table(changes: Sequence["Change"]) -> pa.Table:
    """Changes as a table, a row each."""
    rows = [asdict(change) | {"what": "; ".join(change.what)} for change in changes]
    columns: dict[str, pa.DataType] = {
        "category": pa.string(),
        "level": pa.string(),
        "metric": pa.string(),
        "before": pa.float64(),
        "after": pa.float64(),
        "difference": pa.float64(),
        "low": pa.float64(),
        "high": pa.float64(),
        "is_paired": pa.bool_(),
        "what": pa.string(),
    }
    return pa.Table.from_pylist(rows, schema=pa.schema(list(columns.items())))


def _baseline(store: Store, record: dict[str, Any]) -> str:
    baseline = (record.get("verdict") or {}).get("baseline")
    if baseline is None:
        latest = latest_run(store)
        baseline = latest if latest != record["run_id"] else None
    if baseline is None:
        raise ResultsError(
            f"store {store.uri}: run {record['run_id']} is the first good one; name the run to "
            "compare it with"
        )
    return str(baseline)


def _only(table: pa.Table, column: str, value: str, where: str) -> pa.Table:
    names = table[column].unique().to_pylist()
    if value not in names:
        raise ResultsError(
            f"no {column.replace('_', ' ')} {value!r} in {where}; there are "
            f"{', '.join(sorted(name for name in names if name is not None))}"
        )
    return table.filter(pc.equal(table[column], value))


def _last(table: pa.Table, count: int | None) -> pa.Table:
    return table if count is None else table.slice(max(0, table.num_rows - count))
