"""The gate: tonight's run against the last good one. `runs/latest.json` moves for what passes.

A category regressed at a level where its AUROC fell by more than the tolerance and the 95 %
bootstrap interval of the difference lies below zero. Both are asked: with few test images a single
one moves AUROC by more than any tolerance, and with many a drop of no consequence is sure.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from etstpm.comparison import Change, ScoresOfRun, changed_config, compare_category
from etstpm.config import GateConfig
from etstpm.errors import EtstpmError
from etstpm.runs import Record
from etstpm.storage import Store

Status = Literal["passed", "regressed", "incomplete", "unjudged"]

SPELT_OUT = 4
"""Findings that a verdict's reason names; `run.json` has all."""


@dataclass(frozen=True)
class Finding:
    """Why a run did not pass, one category at one level."""

    kind: Literal["drop", "undefined", "missing", "failed"]
    change: Change
    message: str | None = None
    """Of a category that failed."""

    def describe(self) -> str:
        """In one line: which category, how much, how sure."""
        change = self.change
        if self.kind == "failed":
            return f"{change.category} failed: {self.message}"
        if self.kind == "missing":
            return f"{change.category} is missing, the last good run has it"
        name = f"{change.category}: {change.level} {change.metric.upper()}"
        if self.kind == "undefined" or change.difference is None:
            return f"{name} is not defined any more (was {change.before})"
        pairing = "" if change.is_paired else ", other test images"
        return (
            f"{name} fell by {-change.difference:.3f} from {change.before:.3f} to "
            f"{change.after:.3f} (95 % interval of the difference {change.low:+.3f} to "
            f"{change.high:+.3f}{pairing})"
        )


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a run."""

    status: Status
    baseline: str | None
    """The last good run, that it was compared with; None of the first."""
    findings: tuple[Finding, ...] = ()
    changed: tuple[str, ...] = ()
    """What of the run is not as in the last good one: data, config, code, seed."""
    trouble: str | None = None
    """Why nothing could be compared."""

    @property
    def has_passed(self) -> bool:
        """Whether the run becomes the latest."""
        return self.status == "passed"

    @property
    def reason(self) -> str | None:
        """Why it did not pass, in one line: the worst categories first, what changed once."""
        worst: dict[str, float] = {}
        for change in (finding.change for finding in self.findings):
            difference = -1.0 if change.difference is None else change.difference
            worst[change.category] = min(difference, worst.get(change.category, 0.0))
        ordered = sorted(self.findings, key=lambda finding: worst[finding.change.category])
        said = [self.trouble] if self.trouble else []
        said += [finding.describe() for finding in ordered[:SPELT_OUT]]
        if len(ordered) > SPELT_OUT:
            said.append(f"{len(ordered) - SPELT_OUT} more")
        changed = dict.fromkeys(what for finding in ordered for what in finding.change.what)
        if changed:
            said.append(f"changed: {', '.join(changed)}")
        return "; ".join(said) or None

    def to_record(self) -> dict[str, Any]:
        """As `run.json` holds it."""
        return {
            "status": self.status,
            "baseline": self.baseline,
            "reason": self.reason,
            "findings": [asdict(finding) for finding in self.findings],
            "changed": list(self.changed),
            "trouble": self.trouble,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Verdict":
        """Back from `run.json`."""
        return cls(
            record["status"],
            record["baseline"],
            tuple(
                Finding(
                    found["kind"],
                    Change(**{**found["change"], "what": tuple(found["change"]["what"])}),
                    found["message"],
                )
                for found in record["findings"]
            ),
            tuple(record["changed"]),
            record["trouble"],
        )


def judge(store: Store, gate: GateConfig, record: Record, baseline: Record | None) -> Verdict:
    """Compare a run that is about to be published with the last good one, None if there is none.

    A category whose scores are the same artifact is not read. What cannot be read leaves the run
    unjudged: it is published all the same, and a person can promote it.
    """
    baseline_id = baseline["run_id"] if baseline else None
    changed = tuple(_changed(baseline, record)) if baseline else ()
    failures = tuple(
        Finding("failed", _nothing(outcome["category"]), outcome["failure"])
        for outcome in record["outcomes"]
        if outcome["failure"] is not None
    )
    if baseline is None:
        return Verdict("incomplete" if failures else "passed", None, failures)
    try:
        findings = failures + tuple(_compare(store, gate, baseline, record))
    except EtstpmError as error:
        trouble = f"the last good run {baseline_id} cannot be compared with: {error}"
        return Verdict("unjudged", baseline_id, failures, changed, trouble)
    kinds = {finding.kind for finding in findings}
    status: Status = "passed"
    if kinds:
        status = "regressed" if "drop" in kinds else "incomplete"
    return Verdict(status, baseline_id, findings, changed)


def _compare(store: Store, gate: GateConfig, baseline: Record, record: Record) -> list[Finding]:
    before, after = ScoresOfRun(store, baseline), ScoresOfRun(store, record)
    known = {outcome["category"] for outcome in record["outcomes"]}
    findings = [
        Finding("missing", _nothing(category)) for category in before.keys if category not in known
    ]
    for category, key in after.keys.items():
        if category not in before.keys or before.keys[category] == key:
            continue
        old, new = before.artifact(category), after.artifact(category)
        for change in compare_category(
            store, old, new, category, levels=gate.levels, sure_below=-gate.tolerance
        ):
            if change.before is not None and change.after is None:
                findings.append(Finding("undefined", change))
            elif (change.difference or 0.0) < -gate.tolerance and change.is_sure:
                findings.append(Finding("drop", change))
    return findings


def _changed(baseline: Record, record: Record) -> list[str]:
    said = [] if baseline["dataset"] == record["dataset"] else ["data"]
    said += changed_config(baseline["config"], record["config"])
    old, new = (part.get("versions", {}).get("etstpm") for part in (baseline, record))
    said += [f"code: etstpm {old} -> {new}"] if old != new else []
    seeds = [part["config"]["seed"] for part in (baseline, record)]
    said += [f"seed: {seeds[0]} -> {seeds[1]}"] if seeds[0] != seeds[1] else []
    return said


def _nothing(category: str) -> Change:
    return Change(category, "", "", "", None, None)
