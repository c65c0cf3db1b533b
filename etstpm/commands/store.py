"""`etstpm store`: what lies in a store, whether it is sound, and what can go."""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from etstpm.commands import make_group
from etstpm.errors import StorageError
from etstpm.wording import count_of

if TYPE_CHECKING:
    from etstpm.storage import Store

app = make_group("The store: collect what nobody needs, verify the rest.")


def _finite(days: float | None) -> float | None:
    if days is not None and not days <= timedelta.max.days:
        raise typer.BadParameter(f"{days} is no finite number of days")
    return days


Uri = Annotated[str, typer.Argument(help="Folder or fsspec URI, as of make run STORE=.")]


@app.command()
def gc(
    store: Uri = "./etstpm-store",
    keep_runs: Annotated[
        int | None,
        typer.Option(min=1, help="Keep the artifacts of the newest so many runs; else of all."),
    ] = None,
    keep_days: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=_finite,
            help="Keep the artifacts of runs published within so many days.",
        ),
    ] = None,
    min_age_days: Annotated[
        float,
        typer.Option(
            min=0, callback=_finite, help="Keep what was written or used within so many days."
        ),
    ] = 2.0,
    scored_days: Annotated[
        float | None,
        typer.Option(
            min=0, callback=_finite, help="Keep scores of new images of so many days; else all."
        ),
    ] = None,
    scored: Annotated[
        list[str] | None,
        typer.Option(help="Scores of new images to remove: CATEGORY or CATEGORY/BATCH."),
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove it; without this nothing is changed.")
    ] = False,
) -> None:
    """Print what no kept run refers to and how large it is; remove it with --delete.

    Scores of new images are kept unless --scored-days or --scored says otherwise.
    """
    from etstpm.storage import Store
    from etstpm.storage.collection import collect, plan_collection
    from etstpm.storage.keeping import Keeping

    opened = Store(store)
    _require(opened)
    names = tuple(name.strip("/").removeprefix("scored/") for name in scored or ())
    keeping = Keeping(keep_runs, keep_days, timedelta(days=min_age_days), scored_days, names)
    if delete:
        opened.check_writable()
    plan = plan_collection(opened, keeping)
    console = Console(markup=False, emoji=False, highlight=False)  # names of folders are hostile
    size = 0
    items = collect(opened, plan, keeping) if delete else iter(plan.garbage)
    count = 0
    for item in items:
        console.print(f"{item.key}  {_readable(item.size)}  {item.reason}", soft_wrap=True)
        size, count = size + item.size, count + 1
    runs = count_of(len(plan.kept_runs), "run")
    if plan.dropped_runs:
        runs += f" (of {len(plan.dropped_runs)} older ones the tables alone)"
    if plan.kept_batches:
        runs += f", and new images' scores of {count_of(plan.kept_batches, 'batch')}"
    console.print(
        f"{'removed' if delete else 'would remove'} {count_of(count, 'item')}, {_readable(size)}; "
        f"keeps {count_of(plan.kept, 'artifact')}, {_readable(plan.kept_size)}, of {runs}",
        soft_wrap=True,
    )
    if not delete and count:
        console.print("nothing was changed: the same with --delete removes them")


@app.command()
def verify(
    store: Uri = "./etstpm-store",
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Discard damaged artifacts: the next run makes them anew."),
    ] = False,
) -> None:
    """Read every artifact and table again; one line for each damage, and exit code 1."""
    from etstpm.storage import Store
    from etstpm.storage.verification import repair as discard
    from etstpm.storage.verification import verify as look

    opened = Store(store)
    _require(opened)
    console = Console(markup=False, emoji=False, highlight=False)
    count = files = size = damaged = 0
    for seen in look(opened):
        count, files, size = count + 1, files + seen.files, size + seen.size
        for damage in seen.damages:
            damaged += 1
            done = " (discarded)" if repair and discard(opened, damage) else ""
            console.print(f"damaged: {damage.place} {damage.fault}{done}", soft_wrap=True)
    console.print(
        f"{count} artifacts, runs and batches, {files} files, {_readable(size)} read: "
        f"{f'{damaged} damaged' if damaged else 'all as written'}",
        soft_wrap=True,
    )
    if damaged:
        raise typer.Exit(1)


def _require(store: "Store") -> None:
    """Raise `StorageError` for a folder that is not there: a mistyped store is not a sound one."""
    if store.is_local and not store.fs.isdir(store.root):
        raise StorageError(f"store {store.uri}: no such folder; check its address")


def _readable(size: float) -> str:
    """Bytes as a person reads them, decimal as disks are sold."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
