"""`python -m flows.full`: options to config, the flow against a Prefect server, the table.

Exit codes: 0 all categories published, 1 some failed, 2 a fault that the user can mend.
"""

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from etstpm.commands.entry import run_command
from etstpm.config import Config
from etstpm.errors import EtstpmError
from etstpm.roots import choose_categories
from etstpm.wording import how_to_open
from flows.embedded import begin, connected

SAMPLE_NOTICE = """\
No dataset was given: running on the drawn sample (three products that do not exist).
For real images: make run DATASET=/data/mvtec_ad WEIGHTS=/data/resnet18-f37072fd.pth"""

Text = Annotated[str | None, typer.Option()]


def run(
    source: Annotated[
        str | None, typer.Option("--config", help="A preset's name or a TOML file.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Folder in MVTec AD layout.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="ResNet-18 weights: a path or fsspec URI.")
    ] = None,
    categories: Annotated[str | None, typer.Option(help="Comma-separated names.")] = None,
    store: Annotated[str | None, typer.Option(help="Folder or fsspec URI of the results.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, as student.epochs=30")
    ] = None,
) -> None:
    """Train, score and publish: one command from a folder of images to Parquet tables."""
    options = {
        "dataset.root": dataset,
        "dataset.categories": categories,
        "teacher.weights": weights,
        "store": store,
    }
    given = {key: value for key, value in options.items() if value is not None}
    overrides = set_ or []
    is_sample = dataset is None and source is None and not _sets(overrides, "dataset.root")
    config = Config.load(source or ("sample" if is_sample else "default"), overrides, given)
    if is_sample:
        sys.stderr.write(SAMPLE_NOTICE + "\n")
    raise typer.Exit(_execute(config))


def _sets(overrides: list[str], key: str) -> bool:
    return any(override.partition("=")[0].strip() == key for override in overrides)


def _execute(config: Config) -> int:
    dataset = config.dataset
    if dataset.folder is not None:  # the commonest fault, said before anything is started
        choose_categories(dataset.folder, dataset.categories, dataset.name)
    server = begin()  # boots while torch is imported and the images are decoded
    from etstpm import stages
    from etstpm.storage import Store
    from flows.faults import keep_faults_off_the_console
    from flows.full import etstpm

    keep_faults_off_the_console()
    if server is not None:
        stages.validate(config, Store(config.store))  # the flow's own finds it done
    with connected(server):
        state = etstpm(config, return_state=True)
    result: Any = state.result(raise_on_failure=False)
    if isinstance(result, EtstpmError):
        raise result
    if not isinstance(result, str):
        sys.stderr.write(f"etstpm: the flow ended {state.name}: {state.message}\n")
        return 1
    return _show(config, result)


def _show(config: Config, run_id: str) -> int:
    """Print the run's table, its files and what was found in the data; the exit code."""
    from etstpm.report import report_key
    from etstpm.stages import findings_of
    from etstpm.storage import Store
    from etstpm.summary import load_run

    store = Store(config.store)
    run = load_run(store, run_id)
    has_report = store.fs.exists(store.path(report_key(run_id)))
    console = Console(markup=False, emoji=False)  # names of folders are hostile
    table = Table(title=f"run {run.run_id}")
    for number, column in enumerate(run.summary[0].display()):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    for row in run.summary:
        table.add_row(*row.display().values())
    console.print(table)
    teacher = "{description}, {summary}".format(**store.get(run.teacher_key).card)
    for name, text in {
        "teacher": teacher,
        **run.files,
        "open with": how_to_open(run.files["metrics"]),
        **({"report": store.display(report_key(run_id))} if has_report else {}),
    }.items():
        console.print(f"{name:<13} {text}", highlight=False, soft_wrap=True)
    for finding in findings_of(store, run.dataset_key):
        sys.stderr.write(
            "note: {path}: expected {expected}, found {found}; {remedy}\n".format(**finding)
        )
    for row in run.summary:
        if row.retried is not None:
            sys.stderr.write(f"note: {row.retried}; it was begun again and ended well\n")
        if row.failure is not None:
            sys.stderr.write(f"etstpm: {row.category} failed: {row.failure}\n")
    if not has_report:
        sys.stderr.write(
            f"note: the report could not be written; 'etstpm report {run_id} --store {store.uri}' "
            "says why, and writes it when that is mended\n"
        )
    if run.is_complete and run.verdict is not None and not run.verdict.has_passed:
        sys.stderr.write(f"note: not the latest run: {run.verdict.reason}\n")
    return 0 if run.is_complete else 1


def main() -> None:
    """Run the command; a fault that the user can mend is one line and exit code 2."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(run)
    run_command(app, "python -m flows.full")
