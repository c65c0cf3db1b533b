"""`etstpm report`: the page of a run, into the store or a file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def report(
    run: Annotated[str, typer.Argument(help="A run's id, or 'latest'.")] = "latest",
    store: Annotated[
        str, typer.Option(help="Folder or fsspec URI of the results.")
    ] = "./etstpm-store",
    to: Annotated[
        Path | None,
        typer.Option(help="A file to write instead; the store is then only read."),
    ] = None,
) -> None:
    """Write the HTML report of a published run: one page that loads nothing."""
    from etstpm.report import write_report
    from etstpm.storage import Store

    place = write_report(Store(store), run, to)
    Console(markup=False, emoji=False).print(place, highlight=False, soft_wrap=True)
