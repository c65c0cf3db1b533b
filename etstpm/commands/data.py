"""`etstpm data`: look at a dataset before it is run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="Datasets in MVTec AD layout.", no_args_is_help=True)


@app.command()
def sample(
    root: Annotated[Path, typer.Argument(help="Folder to draw into; must not exist.")],
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other images.")] = 0,
) -> None:
    """Draw the small sample dataset: three products, three defect types each."""
    from etstpm.sample import CATEGORIES, draw_sample

    draw_sample(root, seed=seed)
    Console(markup=False, emoji=False).print(
        f"drew {', '.join(CATEGORIES)} into {root}", highlight=False
    )


@app.command()
def validate(
    root: Annotated[Path, typer.Argument(help="Folder in MVTec AD layout.")],
    categories: Annotated[
        str, typer.Option(help="Comma-separated; all that the root holds if empty.")
    ] = "",
) -> None:
    """Decode every image and mask, count them, and print what is not as it should be."""
    from etstpm.config import DatasetConfig
    from etstpm.dataset import scan_dataset
    from etstpm.settings import settings

    chosen = DatasetConfig(root=str(root), categories=categories or None)
    dataset = scan_dataset(root, chosen.categories, chosen.image_size, settings().cache)
    counts = dataset.manifest.group_by(["category", "split", "label"]).aggregate(
        [([], "count_all")]
    )
    numbers = {
        (row["category"], row["split"], row["label"]): row["count_all"]
        for row in counts.to_pylist()
    }
    table = Table("category", "train good", "test good", "test defective")
    for category in sorted({name for name, _, _ in numbers}):
        cells = [("train", 0), ("test", 0), ("test", 1)]
        table.add_row(category, *(str(numbers.get((category, *cell), 0)) for cell in cells))
    console = Console(markup=False, emoji=False)  # names of folders are hostile
    console.print(table)
    for row in dataset.findings.to_pylist():
        console.print(
            f"{row['severity']}: {row['path']}: expected {row['expected']}, found {row['found']}; "
            f"{row['remedy']}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"dataset digest {dataset.digest}", highlight=False)
