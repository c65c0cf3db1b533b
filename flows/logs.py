"""What a record of a log is about: its category, beside the runs that Prefect names."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_category: ContextVar[str | None] = ContextVar("category", default=None)


@contextmanager
def logs_about(category: str) -> Iterator[None]:
    """Records made inside carry `category`; a JSON formatter shows it, a plain one does not."""
    token = _category.set(category)
    try:
        yield
    finally:
        _category.reset(token)


def label_records() -> None:
    """Let every record from now on carry the category that it is about, if any. Once is enough."""
    make = logging.getLogRecordFactory()
    if getattr(make, "is_labelling", False):
        return

    def labelling(*arguments: Any, **values: Any) -> logging.LogRecord:  # the factory's signature
        record = make(*arguments, **values)
        record.category = _category.get()
        return record

    labelling.is_labelling = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(labelling)
