"""The ablation: every experiment of bench/ablation.toml over its categories and seeds.

    python -m bench.ablation run --dataset MVTEC_ROOT --weights WEIGHTS.pth --store STORE
    python -m bench.ablation table --store STORE
    python -m bench.ablation ensemble --store STORE --only default,synthetic ...

`run` makes what the store lacks: cut it at any time and call it again. `table` adds what is
finished to docs/quality.parquet, which needs no store, and writes docs/quality.md of it. A quarter
of every student's epochs, for a first look at many rows: `--epochs-share 0.25` for both. `ensemble`
prints what students of several experiments find together.

Exit codes: 0 done, 1 some trials failed, 2 a fault that you can mend, 130 interrupted.
"""

import signal
import sys
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from etstpm.errors import ConfigError, EtstpmError

if TYPE_CHECKING:  # torch is imported where it is needed: --help answers at once
    from bench.experiments import Trial
    from bench.records import Places
    from etstpm.runs import Outcome
    from etstpm.storage import Store

HERE = Path(__file__).parent
INTERRUPTED = 130

app = typer.Typer(
    help="Which option gave what: experiments over categories and seeds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Experiments = Annotated[Path, typer.Option(help="The table of experiments, TOML.")]
StoreUri = Annotated[str, typer.Option(help="Folder or fsspec URI of all results.")]
Share = Annotated[
    float, typer.Option(min=0.01, max=1.0, help="Of every student's epochs, for a first look.")
]


@app.command()
def run(
    dataset: Annotated[str, typer.Option(help="Folder in MVTec AD layout.")],
    store: StoreUri,
    weights: Annotated[
        str | None, typer.Option(help="ResNet-18 weights; torchvision's if not given.")
    ] = None,
    experiments: Experiments = HERE / "ablation.toml",
    only: Annotated[list[str] | None, typer.Option(help="Experiments; all if not given.")] = None,
    categories: Annotated[list[str] | None, typer.Option(help="Likewise.")] = None,
    seeds: Annotated[list[str] | None, typer.Option(help="Likewise.")] = None,
    epochs_share: Share = 1.0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time.")] = 2,
) -> None:
    """Run the trials that the store lacks; lists are given with commas or option by option."""
    from bench.records import Places

    trials = _trials(experiments, only, categories, seeds, epochs_share)
    # A shell starts its background jobs with SIGINT ignored, and Python would leave it so.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        failed = _run(trials, Places(dataset, weights, store), jobs)
    except KeyboardInterrupt:
        sys.stderr.write("ablation: interrupted; the same command goes on from here\n")
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(1 if failed else 0)


def _run(trials: list["Trial"], places: "Places", processes: int) -> int:
    """Run what is not done and record each outcome; how many trials failed."""
    from bench.jobs import plan_jobs, run_jobs
    from bench.records import Origins, is_done, write_record
    from etstpm.storage import Store

    store, origins = Store(places.store), Origins(places, trials)
    origin = {trial.key: origins.of(places.fill(trial.config)) for trial in trials}
    pending = [trial for trial in trials if not is_done(store, trial, origin[trial.key])]
    jobs = plan_jobs(pending, places, origins)
    _say(f"{len(trials)} trials, {len(pending)} to do in {len(jobs)} jobs, {processes} at a time")
    started, failed = time.monotonic(), 0
    with closing(run_jobs(jobs, processes)) as ended:
        for number, (job, outcomes) in enumerate(ended, 1):
            elapsed = timedelta(seconds=round(time.monotonic() - started))
            progress = f"[{number}/{len(jobs)} {elapsed}]"
            if not job.trials:
                _say(f"{progress} {job.name}: {outcomes[0].failure or 'made'}")
                continue
            for trial, outcome in zip(job.trials, outcomes, strict=True):
                write_record(store, trial, origin[trial.key], outcome)
                failed += outcome.failure is not None
                _say(f"{progress} {trial}: {outcome.failure or _figures(store, outcome)}")
    return failed


@app.command()
def table(
    store: Annotated[
        str | None, typer.Option(help="Where `run` has put its results; without, only the page.")
    ] = None,
    experiments: Experiments = HERE / "ablation.toml",
    epochs_share: Share = 1.0,
    out: Annotated[
        Path | None,
        typer.Option(help="The page, Markdown; its figures beside it, .parquet. [docs/quality.md]"),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for each experiment's hardest images.")
    ] = None,
) -> None:
    """Add what is finished to the long table, write the page, and pictures if asked for.

    MVTec AD's licence keeps pictures of its images out of the repository: write them elsewhere.
    """
    from bench.experiments import load_ablation, trials_of
    from bench.quality import quality_page
    from bench.results import long_table, merged, read_results, read_table, write_pictures
    from etstpm.parquet import write_parquet
    from etstpm.storage import Store

    if pictures is not None and store is None:
        raise ConfigError("--pictures are copied out of a store: give --store")
    is_look = epochs_share < 1
    page = out or HERE.parent / "docs" / (f"quality-{epochs_share}.md" if is_look else "quality.md")
    ablation = load_ablation(experiments)
    trials = trials_of(ablation, epochs_share=epochs_share)
    opened = Store(store) if store else None
    made, failures = read_results(opened, trials) if opened else ([], [])
    results = merged(read_table(page.with_suffix(".parquet"), trials), made, trials)
    rows = long_table(ablation, results, epochs_share)
    if is_look and results:  # which need not be at every row: the page is of those that it was at
        trials = [result.trial for result in results]
        ablation = ablation.narrowed(trials)
    story = page.with_name(f"{page.stem}-story.md")
    words = quality_page(
        ablation,
        trials,
        results,
        failures,
        title=f"A first look: {epochs_share:g} of the epochs" if is_look else "Detection quality",
        story=story.read_text("utf-8") if story.exists() else "",
        command="python -m bench.ablation table"
        + (f" --epochs-share {epochs_share}" if is_look else ""),
    )
    write_parquet(page.with_suffix(".parquet"), rows.schema, [rows])
    page.write_text(words, "utf-8")
    _say(f"{len(results)} of {len(trials)} trials, {len(failures)} failed: {page}")
    if pictures is not None and opened is not None:
        _say(f"{write_pictures(opened, results, pictures)} pictures: {pictures}")


@app.command()
def ensemble(
    dataset: Annotated[str, typer.Option(help="Folder in MVTec AD layout.")],
    store: Annotated[str, typer.Option(help="Where `run` has put its results.")],
    only: Annotated[list[str], typer.Option(help="The experiments whose students are asked.")],
    weights: Annotated[
        str | None, typer.Option(help="ResNet-18 weights; torchvision's if not given.")
    ] = None,
    experiments: Experiments = HERE / "ablation.toml",
    categories: Annotated[list[str] | None, typer.Option(help="All if not given.")] = None,
    seeds: Annotated[list[str] | None, typer.Option(help="Likewise.")] = None,
) -> None:
    """Print what students of several experiments find, each alone and all together."""
    from bench.ensemble import find_together
    from bench.records import Places

    trials = _trials(experiments, only, categories, seeds)
    for line in find_together(trials, Places(dataset, weights, store)):
        _say(line)


def _figures(store: "Store", outcome: "Outcome") -> str:
    from bench.comparison import spell

    return spell(store.get(outcome.scores_key or "").card["metrics"]["values"], digits=3)


def _trials(
    experiments: Path,
    only: list[str] | None,
    categories: list[str] | None,
    seeds: list[str] | None,
    epochs_share: float = 1.0,
) -> list["Trial"]:
    from bench.experiments import load_ablation, trials_of

    return trials_of(
        load_ablation(experiments),
        only=_split(only),
        categories=_split(categories),
        seeds=[_seed(text) for text in _split(seeds)],
        epochs_share=epochs_share,
    )


def _split(given: list[str] | None) -> list[str]:
    return [name.strip() for text in given or () for name in text.split(",") if name.strip()]


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--seeds {text!r} is not a whole number, as in --seeds 0,1") from None


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run the command; a fault that the user can mend is one line and exit code 2."""
    try:
        app()
    except EtstpmError as error:
        sys.stderr.write(f"ablation: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
