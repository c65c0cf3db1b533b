"""Faults that the user can mend are one line in every log, in the UI as on the terminal."""

import logging

import httpx
from prefect.exceptions import FailedRun, PrefectHTTPStatusError

from etstpm.errors import EtstpmError

SERVER_FAULTS = PrefectHTTPStatusError, httpx.TransportError
"""Prefect's server fails, as with a full disk, or is away."""
FAULTS = EtstpmError, FailedRun, *SERVER_FAULTS


def log_faults_in_one_line() -> None:
    """Drop the traceback from Prefect's records of `FAULTS`; a bug's traceback stays."""
    for name in ("prefect.task_runs", "prefect.flow_runs", "prefect.engine"):
        logging.getLogger(name).addFilter(_without_traceback)


def keep_faults_off_the_console() -> None:
    """Leave them to the command, which prints each once; a bug's traceback still appears."""
    for handler in logging.getLogger().handlers:  # Prefect's own is the root logger's
        handler.addFilter(_is_news)


def _without_traceback(record: logging.LogRecord) -> bool:
    fault = record.exc_info[1] if record.exc_info else None
    if isinstance(fault, FAULTS):
        record.exc_info = record.exc_text = None
        record.msg, record.args = str(fault), ()
        record.is_fault = True
    return True


def _is_news(record: logging.LogRecord) -> bool:
    is_end = str(record.msg).startswith("Finished in state")
    return not is_end and not getattr(record, "is_fault", False)
