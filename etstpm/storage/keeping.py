"""What `etstpm store gc` is told to keep, and what it finds to remove."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from etstpm.storage.inventory import Entry

UNFINISHED = "never finished, or discarded"


@dataclass(frozen=True)
class Keeping:
    """Which runs' artifacts and which scores of new images stay; what is too young to be judged."""

    runs: int | None = None
    """The newest so many; all if neither this nor `days` is given."""
    days: float | None = None
    """Those published within so many days."""
    min_age: timedelta = timedelta(days=2)
    scored_days: float | None = None
    """Batches of new images that were scored within so many days; without it all."""
    dropped_batches: tuple[str, ...] = ()
    """`CATEGORY` or `CATEGORY/BATCH`: not kept, whatever their age."""

    def choose(self, published: dict[str, datetime], now: datetime) -> set[str]:
        """The runs that are kept, of run ids and when they were published."""
        if self.runs is None and self.days is None:
            return set(published)
        newest = sorted(published, key=lambda run: (published[run], run), reverse=True)
        kept = set(newest[: self.runs or 0])
        if self.days is not None:
            kept |= {run for run in published if now - published[run] <= timedelta(days=self.days)}
        return kept

    def is_old(self, modified: datetime, now: datetime) -> bool:
        """Whether what was last written or used then may be judged."""
        return now - modified > self.min_age


@dataclass(frozen=True)
class Garbage:
    """Something to be removed."""

    key: str
    reason: str
    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(entry.size for entry in self.entries)
