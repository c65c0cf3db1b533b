"""`etstpm runs`: which run is the latest, decided by hand."""

from typing import Annotated, Literal

import typer

from etstpm.commands import make_group
from etstpm.commands.results import DEFAULT_STORE, StoreOption

app = make_group("Which run is the latest, by hand.")

Chosen = Annotated[str, typer.Argument(help="The run's id.", metavar="RUN")]
Why = Annotated[str, typer.Option(help="The reason; it is kept for ever.")]
Who = Annotated[str, typer.Option(help="Who decides; this machine's user where left out.")]


@app.command()
def promote(run: Chosen, why: Why, who: Who = "", store: StoreOption = DEFAULT_STORE) -> None:
    """Make a run the latest although the gate kept it back."""
    _move("promote", run, why, who, store)


@app.command()
def rollback(run: Chosen, why: Why, who: Who = "", store: StoreOption = DEFAULT_STORE) -> None:
    """Make an earlier run the latest again; the next night is judged against it."""
    _move("rollback", run, why, who, store)


@app.command()
def decisions(store: StoreOption = DEFAULT_STORE) -> None:
    """Every promotion and rollback: when, who, why."""
    import dataclasses

    import pyarrow as pa

    from etstpm.results.output import write_out
    from etstpm.runs import Decision, newest_runs
    from etstpm.runs import decisions as read_decisions
    from etstpm.storage import Store

    opened = Store(store)
    newest_runs(opened)  # a mistyped address is no store without decisions
    found = [dataclasses.asdict(decision) for decision in read_decisions(opened)]
    schema = pa.schema([(field.name, pa.string()) for field in dataclasses.fields(Decision)])
    write_out(pa.Table.from_pylist(found, schema=schema), None, None, title=f"decisions in {store}")


def _move(action: Literal["promote", "rollback"], run: str, why: str, who: str, uri: str) -> None:
    from rich.console import Console

    from etstpm.results.output import visible
    from etstpm.runs import move_latest
    from etstpm.storage import Store

    decision = move_latest(Store(uri), action, run, why, who)
    line = f"{decision.run_id} is the latest now, it was {decision.previous}; recorded: {why}"
    Console(markup=False, emoji=False).print(visible(line), highlight=False, soft_wrap=True)
