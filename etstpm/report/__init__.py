"""The report of a run: one HTML page, made from the store alone."""

from pathlib import Path

from etstpm.errors import StorageError, reason_of
from etstpm.paths import written_whole
from etstpm.report.page import render
from etstpm.report.reading import read_content
from etstpm.storage import Store


def report_key(run_id: str) -> str:
    """Where a run's report lies in the store."""
    return f"reports/{run_id}/index.html"


def write_report(store: Store, run: str, to: Path | None = None) -> str:
    """Write the report of a published run, given by its id or as 'latest'; where it lies.

    It goes into the store, or into a file `to`: then the store is only read.
    """
    content = read_content(store, run)
    page = render(content)
    if to is None:
        store.write_bytes(report_key(content.run_id), page.encode())
        return store.display(report_key(content.run_id))
    try:
        with written_whole(to) as partial:
            partial.write_text(page, "utf-8")
    except OSError as error:
        raise StorageError(
            f"report {to}: cannot be written ({error.strerror or reason_of(error)}); give a file "
            "in a folder that exists and can be written"
        ) from None
    return str(to)
