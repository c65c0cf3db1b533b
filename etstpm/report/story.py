"""What a run amounts to, in sentences and three figures, before any table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from etstpm.catalog import ET_STPM_MEAN, STPM_PUBLISHED
from etstpm.metric_rows import MEAN, mean_of
from etstpm.report.content import CategoryContent, RunContent, Value
from etstpm.tables import OFFICIAL, PAPER
from etstpm.wording import count_of

NOTABLE = 0.0005
"""A difference that three decimals would not show is none."""


@dataclass(frozen=True)
class Against:
    """How far a figure lies from another one."""

    difference: float
    text: str


@dataclass(frozen=True)
class Stat:
    """A figure of the summary, and what it is held against."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    against: Sequence[Against]


@dataclass(frozen=True)
class Story:
    """The summary."""

    state: str
    """'passed', 'bad' or 'plain': a class for its colour."""
    badge: str
    headline: str
    warnings: Sequence[str]
    stats: Sequence[Stat]
    reference: str
    """What 'published' means here."""


def tell(run: RunContent) -> Story:
    """The summary of a run."""
    scored = [category for category in run.categories if category.failure is None]
    failed = [category for category in run.categories if category.failure is not None]
    is_whole = {category.name for category in scored} == set(STPM_PUBLISHED)
    state, badge = _badge(run)
    return Story(
        state,
        badge,
        " ".join(_headline(run, scored, failed)),
        list(_warnings(run, failed)),
        [
            _stat(run, scored, "image", is_whole=is_whole),
            _stat(run, scored, "pixel", is_whole=is_whole),
            Stat("Mean AUPRO, to FPR 0.3", *_ends(run.means.get((OFFICIAL, "pixel", "aupro"))), ()),
        ],
        _reference(scored, is_whole=is_whole),
    )


def _badge(run: RunContent) -> tuple[str, str]:
    status = (run.verdict or {}).get("status")
    if not run.is_complete:
        return "bad", "incomplete"
    if status is None:
        return "plain", "complete"
    if status == "passed":
        return "passed", "complete, passed the gate"
    return "bad", f"held back by the gate: {status}"


def _headline(
    run: RunContent, scored: Sequence[CategoryContent], failed: Sequence[CategoryContent]
) -> Iterator[str]:
    total = len(run.categories)
    if failed:
        yield f"{len(failed)} of {count_of(total, 'category')} failed."
    if not scored:
        return
    missed, defective = (
        sum(getattr(c, name) for c in scored) for name in ("missed", "n_defective")
    )
    alarms, good = (sum(getattr(c, name) for c in scored) for name in ("false_alarms", "n_good"))
    yield (
        f"In {count_of(len(scored), 'category')}, {missed} of {defective} defective "
        f"images were missed and {alarms} of {good} good ones raised a false alarm."
    )
    if run.baseline is None:
        yield "There is no earlier run to compare with."
        return
    moved = [
        (difference.value, category.name)
        for category in scored
        if (difference := category.differences.get("image")) is not None
    ]
    fell = sorted(pair for pair in moved if pair[0] < -NOTABLE)
    rose = [pair for pair in moved if pair[0] > NOTABLE]
    since = f"Since the last good run, of {run.baseline.started_at:%d %B},"
    if not fell and not rose:
        yield f"{since} no image AUROC has moved."
    elif not fell:
        yield f"{since} image AUROC rose in {len(rose)} and fell in none."
    else:
        yield (
            f"{since} image AUROC fell in {count_of(len(fell), 'category')} (most in "
            f"{fell[0][1]}, by {-fell[0][0]:.3f}) and rose in {len(rose)}."
        )


def _warnings(run: RunContent, failed: Sequence[CategoryContent]) -> Iterator[str]:
    verdict = run.verdict or {}
    if verdict.get("status") not in (None, "passed") and verdict.get("reason"):
        yield f"The gate held this run back: {verdict['reason']}."
    else:
        for category in failed:
            yield f"{category.name} failed: {category.failure}"
    quarantined = sum((run.dataset.get("quarantined") or {}).values())
    if quarantined:
        yield f"{count_of(quarantined, 'image')} in quarantine: left out of this run."


def _stat(
    run: RunContent, scored: Sequence[CategoryContent], level: str, *, is_whole: bool
) -> Stat:
    value, low, high = _ends(run.means.get((PAPER, level, "auroc")))
    against = []
    if value is not None:
        published = _published_mean(scored, level, is_whole=is_whole)
        if published is not None:
            against.append(Against(value - published, f"against {published:.3f} published"))
        before = run.baseline.figures.get((MEAN, level)) if run.baseline else None
        if before is not None and before.value is not None:
            text = f"against {before.value:.3f} in the last good run"
            against.append(Against(value - before.value, text))
    return Stat(f"Mean {level} AUROC", value, low, high, against)


def _published_mean(
    scored: Sequence[CategoryContent], level: str, *, is_whole: bool
) -> float | None:
    """Of ET-STPM over all fifteen, else of STPM over the same categories; None if one has none."""
    if is_whole:
        return getattr(ET_STPM_MEAN, f"{level}_auroc", None)
    chosen = [c for c in scored if c.value(PAPER, level, "auroc") is not None]
    if not chosen or any(category.published is None for category in chosen):
        return None
    return mean_of([getattr(c.published, f"{level}_auroc") for c in chosen])


def _reference(scored: Sequence[CategoryContent], *, is_whole: bool) -> str:
    if is_whole:
        return (
            "Published means are ET-STPM's (Zolfaghari and Sajedi 2022), which has no figures by "
            "category; those in the table are of STPM's official code (Wang et al. 2021)."
        )
    if any(category.published is not None for category in scored):
        return (
            "Published figures are of STPM's official code (Wang et al. 2021) and its mean over "
            "the same categories; ET-STPM's mean is of all fifteen."
        )
    return "Nothing is published on these categories."


def _ends(figure: Value | None) -> tuple[float | None, float | None, float | None]:
    return (figure.value, figure.low, figure.high) if figure else (None, None, None)
