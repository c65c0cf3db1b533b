"""`etstpm score`: a published student on images that were in no dataset."""

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from etstpm.wording import how_to_open

if TYPE_CHECKING:
    from etstpm.inference.new_images import NewScores


def score(
    images: Annotated[str, typer.Argument(help="An image, a folder, or any fsspec URI of such.")],
    category: Annotated[str, typer.Option(help="Which product they show.")],
    run: Annotated[str, typer.Option(help="Whose student: a run's id, or the newest.")] = "latest",
    store: Annotated[str, typer.Option(help="Folder or URI of the results.")] = "./etstpm-store",
    to: Annotated[
        str, typer.Option(help="Folder or URI for the scores; empty: a new one in the store.")
    ] = "",
    heatmaps: Annotated[
        Literal["none", "defective", "all"], typer.Option(help="Which images get an overlay.")
    ] = "none",
) -> None:
    """Score new images: one row an image, decisions, and how far they have drifted."""
    from etstpm.inference.detector import load_detector
    from etstpm.inference.new_images import default_place, score_new
    from etstpm.inference.source import ImageSource
    from etstpm.storage import Store

    origin = Store(store)
    source = ImageSource(images)
    detector = load_detector(origin, run, category)
    result = score_new(detector, source, to or default_place(origin, category), heatmaps=heatmaps)
    _show(result)
    raise typer.Exit(1 if result.faults else 0)


def _show(result: "NewScores") -> None:
    table = Table("image", "score / threshold", "decision")
    table.columns[1].justify = "right"
    for value, path in result.highest:
        is_defective = value > result.threshold
        ratio = f"{value / result.threshold:.2f}" if result.threshold else f"{value:.3g}"
        table.add_row(printable(path), ratio, "defective" if is_defective else "good")
    console = Console(markup=False, emoji=False)  # names of files are hostile
    console.print(table)
    rate = f"{result.scored / result.seconds:.0f} images/s"
    lines = {
        "scored": f"{result.scored} images of {printable(result.category)} ({rate}), "
        f"{result.defective} called defective; above are the highest",
        "run": f"{result.run_id}, threshold {result.threshold:.4g}",
        "drift": str(result.drift),
        "table": result.table,
        "open with": how_to_open(result.table),
    }
    for name, text in lines.items():
        console.print(f"{name:<10} {text}", highlight=False, soft_wrap=True)
    if result.remark is not None:
        sys.stderr.write(f"note: {result.remark}\n")
    for path, fault in result.first_faults:
        sys.stderr.write(f"note: {printable(path)}: {printable(fault)}\n")
    if result.faults > len(result.first_faults):
        more = result.faults - len(result.first_faults)
        sys.stderr.write(f"note: and {more} more, each a row with its fault in the table\n")


def printable(text: str) -> str:
    """A hostile name for a terminal: control characters are shown, not obeyed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
