"""docs/quality.md: every figure in it is computed here, its story is kept in a file beside it."""

import statistics
from collections.abc import Iterable, Iterator, Sequence

from bench.comparison import MEASURES, Comparison
from bench.experiments import Ablation, Check, Experiment, Trial
from bench.results import Failure, Result
from etstpm import __version__
from etstpm.catalog import ET_STPM_MEAN, STPM_PUBLISHED

NONE = "-"
CHECKED = {name: title for name, (title, *_) in MEASURES.items()} | {
    "worst_seed_gap": "worst seed's image AUROC below the mean",
    "cost_ratio": "training cost, of 100 epochs of `stpm`",
}


def quality_page(
    ablation: Ablation,
    trials: Sequence[Trial],
    results: Sequence[Result],
    failures: Sequence[Failure],
    *,
    title: str,
    story: str,
    command: str,
) -> str:
    """The page, Markdown. `story` is taken in as it is; `command` is what made the page."""
    comparison = Comparison(ablation, results)
    parts = [
        "<!-- Made by the command below. Do not edit: words belong into the page's -story.md. -->",
        f"# {title}",
        *([story.strip()] if story.strip() else []),
        _origin(trials, results, failures, command),
        *_checks(comparison),
        *_verdicts(comparison),
        *_groups(comparison),
        *_failures(failures),
        *_runs(ablation, results),
    ]
    return "\n\n".join(parts) + "\n"


def _origin(
    trials: Sequence[Trial], results: Sequence[Result], failures: Sequence[Failure], command: str
) -> str:
    lines = [
        f"{len(results)} of {len(trials)} trials (an experiment on a category with a seed) are "
        f"finished, {len(failures)} have failed. etstpm {__version__}; "
        f"{_named('dataset', (result.dataset for result in results))}, "
        f"{_named('weights', (result.weights for result in results))}.",
        "",
        f"    {command}",
    ]
    return "\n".join(lines)


def _named(kind: str, digests: Iterable[str]) -> str:
    short = sorted({digest[:12] for digest in digests})
    return f"{kind} {', '.join(f'`{digest}`' for digest in short) or NONE}"


def _checks(comparison: Comparison) -> Iterator[str]:
    rows = []
    for check in comparison.ablation.check:
        value, seeds = comparison.checked(check)
        figure, verdict = NONE, f"not measured (needs seeds: {check.least_seeds})"
        if value is not None:
            figure = f"{value:.4f}"
            verdict = "reached" if check.is_reached(value) else "**not reached**"
        where = _mean_over(check, comparison)
        rows.append(
            [check.experiment, check.level, where, check.bound, figure, str(seeds), verdict]
        )
    if rows:
        yield "## What was to be reached"
        yield _table(["experiment", "", "measure", "wanted", "found", "seeds", ""], rows, texts=3)


def _mean_over(check: Check, comparison: Comparison) -> str:
    title = CHECKED[check.measure]
    if check.category is not None:
        return f"{title}, {check.category}"
    if check.measure not in MEASURES:
        return title
    return f"{title}, mean of {', '.join(comparison.categories(check.measure))}"


def _verdicts(comparison: Comparison) -> Iterator[str]:
    """What helped and what did not, by the paired difference of the mean image AUROC."""
    found = []
    for row in comparison.ablation.experiment:
        difference = comparison.difference(row.name, "image_auroc")
        if difference is not None:
            found.append((difference, row))
    if not found:
        return
    found.sort(key=lambda item: item[0].mean, reverse=True)
    yield "## What helped, what did not"
    yield (
        "By the difference of the image AUROC to the experiment compared with, on the same "
        "categories and seeds: *helped* or *hurt* where every seed says so. A single seed says "
        "little."
    )
    yield _table(
        [
            "experiment",
            "against",
            "",
            *(title for title, *_ in MEASURES.values()),
            "seeds",
            "pairs",
        ],
        [
            [
                row.name,
                comparison.ablation.reference_of(row.name) or NONE,
                difference.verdict,
                *(_difference(comparison, row.name, measure) for measure in MEASURES),
                str(len(difference.by_seed)),
                str(difference.pairs),
            ]
            for difference, row in found
        ],
        texts=3,
    )


def _groups(comparison: Comparison) -> Iterator[str]:
    ablation = comparison.ablation
    yield "## Every experiment"
    yield (
        f"Image AUROC by category, and its mean over {', '.join(ablation.image_categories)}. Pixel "
        "AUROC at 256x256 and AUPRO (to a false positive rate of 0.3, MVTec's "
        "definition, each image's own size) are means over "
        f"{', '.join(ablation.categories)}. All are means over the seeds ± their standard "
        "deviation; a mean over categories takes the seeds of which every category is there. The "
        "difference is that of the image AUROC to the experiment compared with. The cost is images "
        "x epochs x passes, as a share of the recipe's 100 epochs, whatever the input's size."
    )
    published = _published_lines(ablation)
    reference = next(row for row in ablation.experiment if row.name == ablation.reference)
    for name in dict.fromkeys(row.group for row in ablation.experiment):
        rows = [row for row in ablation.experiment if row.group == name]
        shown = rows if reference in rows else [reference, *rows]
        yield f"### {name}"
        yield _table(
            [
                "experiment",
                *ablation.image_categories,
                "mean image AUROC",
                "worst seed",
                "pixel AUROC",
                "AUPRO",
                "seeds",
                "difference",
                "cost",
            ],
            [_experiment_line(comparison, row) for row in shown] + published,
        )
        yield "\n".join(_explanation(row) for row in rows)
        published = []  # beside the first group alone


def _experiment_line(comparison: Comparison, row: Experiment) -> list[str]:
    means = comparison.means(row.name, "image_auroc")
    costs = comparison.cost_ratios(row.name)
    return [
        row.name,
        *(
            _mean(comparison.cell(row.name, "image_auroc", category))
            for category in comparison.ablation.image_categories
        ),
        _spread(means),
        f"{min(means.values()):.3f}" if means else NONE,
        _spread(comparison.means(row.name, "pixel_auroc"), len(means)),
        _spread(comparison.means(row.name, "aupro"), len(means)),
        str(len(means)),
        _difference(comparison, row.name, "image_auroc"),
        f"{statistics.mean(costs.values()):.2f}" if costs else NONE,
    ]


def _published_lines(ablation: Ablation) -> list[list[str]]:
    """The papers' rows, where the categories are MVTec AD's."""
    if not set(ablation.categories) <= set(STPM_PUBLISHED) or not ablation.image_categories:
        return []
    image = [STPM_PUBLISHED[name].image_auroc for name in ablation.image_categories]
    pixel = [STPM_PUBLISHED[name].pixel_auroc for name in ablation.categories]
    rest = [NONE] * 4
    return [
        [
            "*STPM, published*",
            *(f"{value:.3f}" for value in image),
            f"{statistics.mean(image):.3f}",
            NONE,
            f"{statistics.mean(pixel):.3f}",
            *rest,
        ],
        [
            "*ET-STPM, published, mean of all 15*",
            *(NONE for _ in image),
            f"{ET_STPM_MEAN.image_auroc:.3f}",
            NONE,
            f"{ET_STPM_MEAN.pixel_auroc:.3f}",
            *rest,
        ],
    ]


def _explanation(row: Experiment) -> str:
    changes = f' SET="{" ".join(row.changes)}"' if row.changes else ""
    command = f"make run CONFIG={row.preset}{changes}"
    return f"- **{row.name}**: {row.hypothesis} ({row.source}). `{command}`"


def _failures(failures: Sequence[Failure]) -> Iterator[str]:
    if failures:
        yield "## Trials that failed"
        yield "\n".join(f"- {failure.trial}: {failure.reason}" for failure in failures)


def _runs(ablation: Ablation, results: Sequence[Result]) -> Iterator[str]:
    """Where each figure comes from: the score artifacts of every experiment."""
    lines = []
    for name in ablation.names():
        own = [result for result in results if result.trial.experiment == name]
        keys = (
            f"{result.trial.category} {result.trial.seed} `{result.scores[:12]}`" for result in own
        )
        if own:
            lines.append(f"- **{name}**: {', '.join(keys)}")
    if lines:
        yield "## Whence the figures"
        yield "Category, seed and the digest of each score artifact, in the store's `scores/`."
        yield "\n".join(lines)


def _difference(comparison: Comparison, experiment: str, measure: str) -> str:
    difference = comparison.difference(experiment, measure)
    if difference is None:
        return NONE
    values = list(difference.by_seed.values())
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{difference.mean:+.3f}{spread}"


def _mean(by_seed: dict[int, float]) -> str:
    return f"{statistics.mean(by_seed.values()):.3f}" if by_seed else NONE


def _spread(by_seed: dict[int, float], seeds: int | None = None) -> str:
    """Mean ± standard deviation; the number of seeds where it is not the one expected."""
    if not by_seed:
        return NONE
    values = list(by_seed.values())
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    note = f" (seeds: {len(values)})" if seeds is not None and seeds != len(values) else ""
    return f"{statistics.mean(values):.3f}{spread}{note}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table; all but the first `texts` columns are aligned to the right."""
    rule = ["---" if column < texts else "--:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])
