"""`etstpm results`: read what runs have published."""

import sys

import typer

app = typer.Typer(help="What runs have published.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """What runs have published."""


@app.command()
def tables() -> None:
    """Print what every table and column means, as Markdown."""
    from etstpm.results.page import describe_tables

    sys.stdout.write(describe_tables())
