"""A year of drawn nights in a real store's layout: a slow trend, a regression, a rollback.

    python -m bench.fake_history ./fake-store --nights 365

For tests and benchmarks of what reads results. The figures are drawn from a seed; the files, their
schemas, their hashes and the `run.json`s are those that a run publishes, and no scores or students
lie behind them. What the nights tell: every category gets slowly better; in one night `SICK`'s
students lose `LOSS` of their AUROC and the gate keeps the run back; some nights later a run that
had passed is rolled back by hand.
"""

import argparse
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etstpm.catalog import STPM_PUBLISHED
from etstpm.comparison import Change
from etstpm.config import Config
from etstpm.gate import Finding, Verdict
from etstpm.history import fold_history
from etstpm.metric_rows import MEAN, ROWS, ROWS_OF_TYPE, WITHOUT_MEAN
from etstpm.parquet import write_parquet
from etstpm.publishing import run_record
from etstpm.runs import LATEST_KEY, Outcome, move_latest, table_key
from etstpm.storage import Store, file_sha256
from etstpm.tables import ALL, IMAGE_SCORES, METRICS, PAPER

FIRST_NIGHT = datetime(2025, 11, 1, 2, tzinfo=UTC)
TYPES = "broken", "contamination", "crack", "hole", "scratch"
SICK, LOSS = "screw", 0.12
IMAGE_AUROC = PAPER, "image", "auroc"


class FakeHistory:
    """Draws nights into a store; `sick_night` and `rolled_back_night` count from 0."""

    def __init__(
        self,
        store: Store,
        *,
        nights: int = 365,
        categories: Sequence[str] = tuple(STPM_PUBLISHED),
        seed: int = 0,
    ) -> None:
        self.store, self.nights, self.categories = store, nights, categories
        self.sick_night, self.rolled_back_night = nights * 6 // 10, nights * 8 // 10
        self.run_ids = [self.run_id(night) for night in range(nights)]
        self._rng = np.random.default_rng(seed)
        self._template = _rows_of_a_night(categories)
        count = self._template.num_rows
        self._start = self._rng.uniform(0.85, 0.95, count)
        is_sick = np.array(self._template["category"].to_pylist()) == SICK
        is_auroc = np.array(self._template["metric"].to_pylist()) == "auroc"
        self._loss = LOSS * (is_sick & is_auroc)

    @staticmethod
    def run_id(night: int) -> str:
        """The id of a night's run."""
        return f"{FIRST_NIGHT + timedelta(days=night):%Y%m%dT%H%M%SZ}-{night:08x}"

    def draw(self) -> None:
        """Write every night, then the months' files as publications would have."""
        latest = ""
        for night in range(self.nights):
            if self._draw_night(night, latest):
                latest = self.run_ids[night]
            if night == self.rolled_back_night:
                self.store.write_json(LATEST_KEY, {"run_id": latest})
                latest = self.run_ids[night - 2]
                why = "false alarms on the line since the camera was cleaned"
                move_latest(self.store, "rollback", latest, why, who="owner")
        self.store.write_json(LATEST_KEY, {"run_id": latest})
        fold_history(self.store, before=f"{FIRST_NIGHT + timedelta(days=self.nights - 1):%Y-%m}")

    def values(self, night: int) -> npt.NDArray[np.float64]:
        """The figures of a night: a trend of 0.03 a year, and noise of a thousandth."""
        noise = np.random.default_rng(night).normal(0, 0.001, self._start.size)
        drift = 0.03 * night / 365
        sick = self._loss if night == self.sick_night else 0
        values: npt.NDArray[np.float64] = np.clip(self._start + drift + noise - sick, 0, 1)
        return values

    def _draw_night(self, night: int, latest: str) -> bool:
        run_id, started_at = self.run_ids[night], FIRST_NIGHT + timedelta(days=night)
        created_at = started_at + timedelta(minutes=47)
        values = self.values(night)
        table = self._template
        for name, column in {
            "value": values,
            "ci_low": values - 0.02,
            "ci_high": np.minimum(values + 0.02, 1),
        }.items():
            table = _replace(table, name, pa.array(column))
        for name, value in {"run_id": run_id, "created_at": created_at}.items():
            constant = pa.array([value] * table.num_rows, METRICS.field(name).type)
            table = _replace(table, name, constant)
        verdict = self._judge(night, latest)
        config = Config()
        with tempfile.TemporaryDirectory(prefix="etstpm-") as folder:
            files = {}
            groups = {"metrics": (METRICS, [table]), "image_scores": (IMAGE_SCORES, [])}
            for name, (schema, tables) in groups.items():
                path = Path(folder) / f"{name}.parquet"
                rows = write_parquet(path, schema, tables)
                self.store.put_file(path, table_key(name, run_id))
                files[name] = {
                    "key": table_key(name, run_id),
                    "sha256": file_sha256(path),
                    "rows": rows,
                }
        record = run_record(
            config,
            run_id=run_id,
            started_at=started_at,
            created_at=created_at,
            dataset_key=f"datasets/{'1' * 64}",
            teacher_key=f"teachers/{'2' * 64}",
            outcomes=[Outcome(name, f"scores/{name}/{night:064x}") for name in self.categories],
        ) | {"files": files, "verdict": verdict.to_record()}
        self.store.write_json(f"runs/{run_id}/run.json", record)
        return verdict.has_passed

    def _judge(self, night: int, latest: str) -> Verdict:
        """What the gate says of such a night."""
        if night != self.sick_night:
            return Verdict("passed", latest or None)
        before, after = (float(self.values(n)[self._row()]) for n in (night - 1, night))
        difference = after - before
        ends = difference - 0.03, difference + 0.03
        change = Change(SICK, *IMAGE_AUROC, before, after, difference, *ends)
        finding = Finding("drop", change)
        return Verdict("regressed", latest, (finding,))

    def _row(self) -> int:
        keys = ("category", "protocol", "level", "metric", "defect_type")
        wanted = dict(zip(keys, (SICK, *IMAGE_AUROC, ALL), strict=True))
        rows: list[dict[str, str]] = self._template.select(keys).to_pylist()
        return rows.index(wanted)


def _rows_of_a_night(categories: Sequence[str]) -> pa.Table:
    rows = []
    for category in categories:
        parts = [(ALL, ROWS), *((name, ROWS_OF_TYPE) for name in TYPES)]
        for defect_type, names in parts:
            rows += [
                {
                    **dict(zip(("protocol", "level", "metric"), name, strict=True)),
                    "category": category,
                    "defect_type": defect_type,
                    "n_good": 30,
                    "n_defective": 85,
                    "student_digest": "3" * 64,
                }
                for name in names
            ]
    rows += [
        {
            **dict(zip(("protocol", "level", "metric"), name, strict=True)),
            "category": MEAN,
            "defect_type": ALL,
        }
        for name in ROWS
        if name[-1] != WITHOUT_MEAN
    ]
    common = {"seed": 0, "teacher_digest": "2" * 64, "dataset_digest": "1" * 64}
    return pa.Table.from_pylist([common | row for row in rows], schema=METRICS)


def _replace(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), METRICS.field(name), column)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", help="folder or fsspec URI to draw into")
    parser.add_argument("--nights", type=int, default=365)
    options = parser.parse_args()
    history = FakeHistory(Store(options.store), nights=options.nights)
    history.draw()
    print(f"drew {len(history.run_ids)} nights into {options.store}")


if __name__ == "__main__":
    main()
