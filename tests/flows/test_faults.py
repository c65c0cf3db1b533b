"""What of Prefect's log reaches the terminal; the records are made here, so no run is needed."""

import io
import logging

import pytest

from etstpm.errors import EtstpmError
from flows.faults import keep_faults_off_the_console, log_faults_in_one_line

FAULT = "dataset /no/such/root: no such folder"


@pytest.mark.parametrize("name", ["prefect.task_runs", "prefect.flow_runs"])
def test_fault_is_one_line_for_the_server_and_none_on_the_console(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As prefect/logging/logging.yml has it: runs to the server, the root to the console."""
    server, console = (logging.StreamHandler(io.StringIO()) for _ in range(2))
    logger = logging.getLogger(name)
    monkeypatch.setattr(logger, "handlers", [server])
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(logging.getLogger(), "handlers", [console])
    log_faults_in_one_line()
    keep_faults_off_the_console()

    for error in (EtstpmError(FAULT), ZeroDivisionError("a bug")):
        try:
            raise error
        except Exception:
            logger.exception("Task run failed with exception: %r", error)
    logger.error("Finished in state Failed()")

    reported, printed = server.stream.getvalue(), console.stream.getvalue()
    assert reported.startswith(f"{FAULT}\nTask run failed with exception: ZeroDivisionError")
    assert reported.endswith("a bug\nFinished in state Failed()\n")
    assert printed.startswith("Task run failed with exception: ZeroDivisionError")
    assert printed.endswith("ZeroDivisionError: a bug\n")
    assert printed.count("Traceback") == reported.count("Traceback") == 1
