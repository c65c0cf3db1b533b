"""`etstpm results`: read what runs have published, from a folder or any fsspec URI."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from etstpm.commands import make_group

if TYPE_CHECKING:
    from etstpm.results.database import Results

app = make_group("What runs have published.")

StoreOption = Annotated[
    str, typer.Option("--store", envvar="ETSTPM_STORE", help="Folder or fsspec URI of the results.")
]
Format = Annotated[
    Literal["table", "csv", "json", "parquet"] | None,
    typer.Option("--format", help="Where left out: by the output's suffix, else a table."),
]
Output = Annotated[Path | None, typer.Option(help="A file instead of the terminal.")]
Columns = Annotated[str, typer.Option(help="Comma-separated; all where left out.")]
Run = Annotated[str, typer.Argument(help="A run's id, or 'latest'.")]
Last = Annotated[int | None, typer.Option(min=1, help="Only that many, the newest.")]
DEFAULT_STORE = "./etstpm-store"
BRIEF_RUNS = [
    *("run_id", "verdict", "is_latest", "image_auroc", "pixel_auroc", "aupro"),
    *("categories", "failed", "reason"),
]


def _open(store: str) -> "Results":
    from etstpm.results.database import Results
    from etstpm.storage import Store

    return Results(Store(store))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@app.command()
def runs(
    last: Last = None,
    store: StoreOption = DEFAULT_STORE,
    style: Format = None,
    output: Output = None,
    columns: Columns = "",
) -> None:
    """Every published run: its verdict, its mean figures, what failed."""
    from etstpm.results.output import write_out
    from etstpm.results.queries import list_runs

    with _open(store) as results:
        table = list_runs(results, last=last)
    write_out(table, style, output, _names(columns), title=f"runs of {store}", brief=BRIEF_RUNS)


@app.command()
def metrics(
    run: Run = "latest",
    category: Annotated[str | None, typer.Option(help="One category, or 'mean'.")] = None,
    protocol: Annotated[str | None, typer.Option(help="paper-256 or mvtec-official.")] = None,
    level: Annotated[str | None, typer.Option(help="image or pixel.")] = None,
    metric: Annotated[str | None, typer.Option(help="auroc, aupro, ap, f1_max, ...")] = None,
    defect_type: Annotated[
        str, typer.Option(help="'all', a folder's name, or '' for each.")
    ] = "all",
    store: StoreOption = DEFAULT_STORE,
    style: Format = None,
    output: Output = None,
    columns: Columns = "",
) -> None:
    """A run's figures with their confidence intervals."""
    from etstpm.results.output import write_out
    from etstpm.results.queries import run_metrics

    with _open(store) as results:
        run_id = results.run_id(run)
        table = run_metrics(
            results,
            run_id,
            category=category,
            protocol=protocol,
            level=level,
            metric=metric,
            defect_type=defect_type or None,
        )
    write_out(table, style, output, _names(columns), title=f"run {run_id}")


@app.command()
def worst(
    run: Run = "latest",
    category: Annotated[str | None, typer.Option(help="One category.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many images.")] = 20,
    store: StoreOption = DEFAULT_STORE,
    style: Format = None,
    output: Output = None,
    columns: Columns = "",
) -> None:
    """The test images that were judged worst: missed defects and false alarms first."""
    from etstpm.results.output import write_out
    from etstpm.results.queries import worst_images

    with _open(store) as results:
        run_id = results.run_id(run)
        table = worst_images(results, run_id, category=category, limit=limit)
    write_out(table, style, output, _names(columns), title=f"worst images of run {run_id}")


@app.command()
def compare(
    run: Run = "latest",
    other: Annotated[
        str | None, typer.Argument(help="The run before; where left out, the one the gate took.")
    ] = None,
    category: Annotated[str | None, typer.Option(help="One category.")] = None,
    store: StoreOption = DEFAULT_STORE,
    style: Format = None,
    output: Output = None,
    columns: Columns = "",
) -> None:
    """By how much each category's AUROC moved between two runs, how sure, what changed."""
    from etstpm.results.output import write_out
    from etstpm.results.queries import changes_table, compare_runs
    from etstpm.storage import Store

    changes = compare_runs(Store(store), run, other, categories=[category] if category else None)
    title = f"run {run} against {other or 'the last good one before it'}"
    write_out(changes_table(changes), style, output, _names(columns), title=title)


@app.command()
def history(
    category: Annotated[str, typer.Argument(help="A category, or 'mean'.")],
    level: Annotated[str, typer.Option(help="image or pixel.")] = "image",
    metric: Annotated[str, typer.Option(help="auroc, aupro, ap, f1_max, ...")] = "auroc",
    protocol: Annotated[str, typer.Option(help="paper-256 or mvtec-official.")] = "paper-256",
    last: Last = None,
    store: StoreOption = DEFAULT_STORE,
    style: Format = None,
    output: Output = None,
    columns: Columns = "",
) -> None:
    """A category's figure, run by run."""
    from etstpm.results.output import write_out
    from etstpm.results.queries import metric_history

    with _open(store) as results:
        table = metric_history(
            results, category, level=level, metric=metric, protocol=protocol, last=last
        )
    title = f"{category}: {level} {metric} ({protocol})"
    write_out(table, style, output, _names(columns), title=title)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="Over runs, metrics, image_scores and views.")] = "",
    store: StoreOption = DEFAULT_STORE,
    style: Format = None,
    output: Output = None,
) -> None:
    """Run SQL (DuckDB) over the tables; without a query, print the views for your own DuckDB."""
    from etstpm.results.database import script
    from etstpm.results.output import write_out
    from etstpm.storage import Store

    if not query.strip():
        sys.stdout.write(script(Store(store)))
        return
    with _open(store) as results:
        table = results.query(query)
    write_out(table, style, output)


@app.command()
def rebuild(store: StoreOption = DEFAULT_STORE) -> None:
    """Make the months' files of past runs anew; they are copies, and reading goes on meanwhile."""
    from rich.console import Console

    from etstpm.history import rebuild_history
    from etstpm.results.output import visible
    from etstpm.runs import newest_runs
    from etstpm.storage import Store

    opened = Store(store)
    newest_runs(opened)  # a mistyped address is no store without months
    months, left_out = rebuild_history(opened)
    console = Console(markup=False, emoji=False)
    console.print(f"wrote {', '.join(months) or 'nothing'}", highlight=False)
    for line in left_out:
        sys.stderr.write(f"note: {visible(line)}\n")


@app.command()
def tables() -> None:
    """Print what every table and column means, as Markdown."""
    from etstpm.results.page import describe_tables

    sys.stdout.write(describe_tables())
