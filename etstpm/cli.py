"""The `etstpm` command: what needs no orchestration. The pipeline itself is `flows/full.py`."""

from typing import Annotated

import typer
from rich.console import Console

from etstpm import __version__
from etstpm.commands import data, make_group, results, runs, store
from etstpm.commands.entry import run_command
from etstpm.commands.export import export
from etstpm.commands.report import report
from etstpm.commands.score import score

app = make_group("Visual anomaly detection by student-teacher feature pyramid matching.")
app.add_typer(data.app, name="data")
app.add_typer(results.app, name="results")
app.add_typer(runs.app, name="runs")
app.add_typer(store.app, name="store")
app.command()(report)
app.command()(score)
app.command()(export)


@app.command()
def version() -> None:
    """Print the version."""
    Console().print(__version__)


@app.command()
def config(
    source: Annotated[str, typer.Argument(help="A preset's name or a TOML file.")] = "default",
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value")] = None,
) -> None:
    """Print a config with every value filled in, as JSON, and its digest."""
    from etstpm.config import Config

    loaded = Config.load(source, set_ or ())
    console = Console()
    console.print_json(loaded.model_dump_json())
    console.print(f"digest {loaded.digest()}", highlight=False)


def main() -> None:
    """Run the command; a fault that the user can mend is one line and exit code 2."""
    run_command(app, "etstpm")
