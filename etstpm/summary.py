"""A published run as a person sees it: one line a category, and the mean."""

from dataclasses import dataclass
from datetime import datetime

from etstpm.catalog import ET_STPM_MEAN, STPM_PUBLISHED, Published
from etstpm.gate import Verdict
from etstpm.metric_rows import MEAN, mean_of, value_of
from etstpm.runs import Outcome, read_run, scores_of
from etstpm.storage import Store
from etstpm.tables import OFFICIAL, PAPER


@dataclass(frozen=True)
class SummaryRow:
    """One line of the table that a person sees."""

    category: str
    image_auroc: float | None
    pixel_auroc: float | None
    aupro: float | None
    published: Published | None
    seconds: float | None
    """Time that training and scoring took, in this run or in the one that is reused."""
    is_reused: bool = False
    failure: str | None = None
    retried: str | None = None
    """Why its student's first training was thrown away, if one was."""

    def display(self) -> dict[str, str]:
        """The row's cells as text, by column."""
        published = self.published
        return {
            "category": self.category,
            "image AUROC": _number(self.image_auroc, self.failure),
            "pixel AUROC": _number(self.pixel_auroc, self.failure),
            "AUPRO": _number(self.aupro, self.failure),
            "published image": _number(published.image_auroc) if published else "-",
            "published pixel": _number(published.pixel_auroc) if published else "-",
            "seconds": self._seconds(),
        }

    def _seconds(self) -> str:
        if self.seconds is None:
            return "-"
        return f"{self.seconds:.0f}{' reused' if self.is_reused else ''}"


@dataclass(frozen=True)
class Run:
    """A published run."""

    run_id: str
    is_complete: bool
    dataset_key: str
    teacher_key: str
    summary: list[SummaryRow]
    files: dict[str, str]
    """Name of each table to its address."""
    verdict: Verdict | None
    """The gate's; None of runs that are older than the gate."""


def load_run(store: Store, run_id: str) -> Run:
    """A published run, from its `run.json`. Raises `ResultsError` if there is none."""
    record = read_run(store, run_id)
    outcomes = [Outcome(**outcome) for outcome in record["outcomes"]]
    started_at = datetime.fromisoformat(record["started_at"])
    return Run(
        run_id,
        record["status"] == "complete",
        record["dataset"],
        record["teacher"],
        _summarise(store, outcomes, started_at),
        {name: store.display(file["key"]) for name, file in record["files"].items()},
        Verdict.from_record(record["verdict"]) if "verdict" in record else None,
    )


def _number(value: float | None, failure: str | None = None) -> str:
    return "failed" if failure else "n/a" if value is None else f"{value:.3f}"


def _summarise(
    store: Store,
    outcomes: list[Outcome],
    started_at: datetime,
) -> list[SummaryRow]:
    artifacts = scores_of(store, outcomes)
    rows = []
    for outcome in outcomes:
        artifact = artifacts.get(outcome.category)
        metrics = artifact.card["metrics"] if artifact else {}
        cards = [artifact.card, store.get(artifact.card["student"]).card] if artifact else []
        made_at = [datetime.fromisoformat(card["created_at"]) for card in cards]
        rows.append(
            SummaryRow(
                outcome.category,
                value_of(metrics, PAPER, "image", "auroc"),
                value_of(metrics, PAPER, "pixel", "auroc"),
                value_of(metrics, OFFICIAL, "pixel", "aupro"),
                STPM_PUBLISHED.get(outcome.category),
                seconds=sum(card["seconds"] for card in cards) if cards else None,
                is_reused=bool(cards) and max(made_at) < started_at,
                failure=outcome.failure,
                retried=cards[1].get("retried") if cards else None,
            )
        )
    if len(rows) > 1:
        spent = [row.seconds for row in rows if row.seconds is not None]
        rows.append(
            SummaryRow(
                MEAN,
                mean_of([row.image_auroc for row in rows]),
                mean_of([row.pixel_auroc for row in rows]),
                mean_of([row.aupro for row in rows]),
                _published_mean(rows),
                seconds=sum(spent) / len(spent) if spent else None,
            )
        )
    return rows


def _published_mean(rows: list[SummaryRow]) -> Published | None:
    """ET-STPM's means where all fifteen categories are there: it published no others."""
    return ET_STPM_MEAN if {row.category for row in rows} == set(STPM_PUBLISHED) else None
