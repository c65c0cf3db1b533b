"""Progress bars with rate and time left on a terminal, and silence elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from multiprocessing import parent_process
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

Item = TypeVar("Item")


class RateColumn(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:7.1f}/s" if speed else "", style="progress.data.speed")


class Bar:
    """One line: what is done, how much of it, how fast, how long still, and a few numbers.

    total: None where nobody knows yet. in_bytes: it counts bytes.
    """

    def __init__(self, description: str, total: int | None, *, in_bytes: bool = False) -> None:
        # The bars of two processes would overwrite each other: the first shows what they do.
        is_shown = sys.stderr.isatty() and parent_process() is None
        self._progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=24),
            DownloadColumn() if in_bytes else MofNCompleteColumn(),
            TransferSpeedColumn() if in_bytes else RateColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[numbers]}"),
            console=Console(stderr=True),
            disable=not is_shown,
        )
        self._task = self._progress.add_task(description, total=total, numbers="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""
        self._progress.update(self._task, advance=count)

    def expect(self, total: int) -> None:
        """So many in all, where that was not known before."""
        self._progress.update(self._task, total=total)

    def show(self, **numbers: float) -> None:
        """Numbers at the end of the line, such as an epoch's loss."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self._progress.update(self._task, numbers=text)


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Go through `items` behind a bar."""
    with Bar(description, total) as bar:
        for item in items:
            yield item
            bar.advance()
