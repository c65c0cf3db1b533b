"""`etstpm data`: look at a dataset before it is run."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from etstpm.commands import make_group
from etstpm.errors import ConfigError
from etstpm.paths import written_whole
from etstpm.wording import count_of

if TYPE_CHECKING:
    from etstpm.dataset import Dataset

SHOWN = 20
"""Findings of a kind that are printed; a table has them all."""

app = make_group("Datasets: fetch, prove and look at them.")


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


Root = Annotated[Path, typer.Argument(help="Folder of the images.")]
Categories = Annotated[str, typer.Option(help="Comma-separated; all that the root holds if empty.")]
Name = Annotated[
    str | None,
    typer.Option(
        "--dataset", help="Name in the catalogue or a .toml file; recognised if not given."
    ),
]


@app.command()
def validate(
    root: Root,
    categories: Categories = "",
    dataset: Name = None,
    on_finding: Annotated[
        Literal["fail", "quarantine", "warn"],
        typer.Option(help="Errors: stop, or leave their images out, or use what one can."),
    ] = "fail",
    output: Annotated[
        Path | None, typer.Option(help="Folder for manifest.parquet and findings.parquet.")
    ] = None,
) -> None:
    """Decode every image and mask, count them, and print what is not as it should be."""
    from etstpm.config import Config
    from etstpm.dataset import scan_dataset
    from etstpm.parquet import write_parquet
    from etstpm.settings import settings
    from etstpm.tables import FINDINGS

    given = {
        "dataset.root": str(root),
        "dataset.categories": categories,
        "dataset.on_finding": on_finding,
    }
    chosen = Config.load(given=given).dataset
    found = scan_dataset(
        root,
        chosen.categories,
        chosen.image_size,
        settings().cache,
        name=dataset,
        on_finding=chosen.on_finding,
    )
    console = Console(markup=False, emoji=False)  # names of folders are hostile
    print_dataset(console, found)
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
            for title, schema, rows in (
                ("manifest", found.schema, found.manifest),
                ("findings", FINDINGS, found.findings),
            ):
                with written_whole(output / f"{title}.parquet") as partial:
                    write_parquet(partial, schema, [rows])
        except OSError as error:
            raise ConfigError(
                f"output {output} cannot be written ({error.strerror}); give another folder"
            ) from None
        print_line(console, f"wrote {output}/manifest.parquet and {output}/findings.parquet")
    found.require(chosen.on_finding)


def print_dataset(console: Console, found: Dataset) -> None:
    """Its terms, a row a category, its findings and its fingerprint."""
    from etstpm.findings import printable

    print_line(console, f"{found.declaration.title} in {printable(str(found.root))}")
    for line in found.declaration.terms_of_use():
        print_line(console, line)
    numbers = Counter(
        zip(
            *(found.manifest[name].to_pylist() for name in ("category", "split", "label")),
            strict=True,
        )
    )
    is_short = bool(found.quarantined)
    table = Table("category")
    for name in ("train good", "test good", "test defective"):
        table.add_column(name, justify="right")
    if is_short:
        table.add_column("quarantined", justify="right")
    for category in sorted({name for name, _, _ in numbers} | set(found.quarantined)):
        cells = [numbers[category, *cell] for cell in (("train", 0), ("test", 0), ("test", 1))]
        cells += [found.quarantined.get(category, 0)] if is_short else []
        table.add_row(printable(category), *map(str, cells))
    console.print(table)
    shown = Counter[str]()
    findings = found.findings.to_pylist()
    for row in findings:
        shown[row["code"]] += 1
        if shown[row["code"]] <= SHOWN:
            print_line(
                console,
                "{severity}: {path}: expected {expected}, found {found}; {remedy}".format(**row),
            )
    for code, number in shown.items():
        if number > SHOWN:
            print_line(console, f"... and {number - SHOWN} more of {code}: see --output")
    for category, reason in found.left_out.items():
        print_line(console, f"left out: {category}: {reason}")
    print_line(console, f"{count_of(len(findings), 'finding')}, fingerprint {found.digest}")


def print_line(console: Console, text: str) -> None:
    """One line, however long, and nothing in it is markup."""
    console.print(text, highlight=False, soft_wrap=True)


@app.command()
def fetch(
    dataset: Annotated[
        str, typer.Argument(help="mvtec_ad, visa, folder, or a declaration of your own (.toml).")
    ],
    to: Annotated[str, typer.Option(help="Folder to make; must not hold anything else.")],
    source: Annotated[
        str | None,
        typer.Option("--from", help="An archive that you have: a file, or any fsspec URI."),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="What an archive must have that the catalogue has not.")
    ] = None,
) -> None:
    """Download a dataset, or take its archive from a file; prove it and unpack it safely."""
    from etstpm.catalog import load_declaration
    from etstpm.fetching import fetch as fetch_dataset
    from etstpm.fetching import local_folder

    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ConfigError(f"--sha256 {sha256!r} is not 64 hexadecimal digits; see sha256sum")
    declaration = load_declaration(dataset)
    target = local_folder(to)
    console = Console(markup=False, emoji=False)
    print_line(console, declaration.title)
    for line in declaration.terms_of_use():
        print_line(console, line)
    found = fetch_dataset(declaration, target, source=source, sha256=sha256)
    proof = (
        "archive verified"
        if found.is_proven
        else "its archive taken as it is: no --sha256 to hold it against"
    )
    what = "was there already" if found.was_there else f"{found.files} files, {proof}"
    print_line(console, f"{found.root}: {what}")
    print_line(console, f"next: etstpm data validate {found.root}")


@app.command()
def show(
    root: Root,
    category: Annotated[str, typer.Option(help="Whose images to show.")],
    output: Annotated[
        Path | None, typer.Option(help="A .html page or a .png; CATEGORY.html here if not given.")
    ] = None,
    dataset: Name = None,
    images: Annotated[int, typer.Option(min=1, help="Images of each defect type.")] = 12,
) -> None:
    """Write one page of a category: counts, a contact sheet with its masks' outlines, findings."""
    from etstpm.config import DatasetConfig
    from etstpm.contact_sheet import draw_category
    from etstpm.dataset import scan_dataset
    from etstpm.findings import printable
    from etstpm.settings import settings

    path = output or Path(f"{category.replace('/', '-')}.html")
    if path.suffix.lower() not in {".html", ".htm", ".png"}:
        raise ConfigError(f"output {path}: give a name that ends in .html or .png")
    size = DatasetConfig().image_size
    # Whatever is wrong is what one wants to see: nothing stops here, and what can be shown is.
    found = scan_dataset(root, [category], size, settings().cache, name=dataset, on_finding="warn")
    try:
        draw_category(found, category, path, images=images)
    except OSError as error:
        raise ConfigError(
            f"output {path} cannot be written ({error.strerror}); give another with --output"
        ) from None
    console = Console(markup=False, emoji=False)
    print_line(
        console,
        f"wrote {printable(str(path))}: {found.manifest.num_rows} images, "
        f"{found.findings.num_rows} findings",
    )
