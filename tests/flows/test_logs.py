"""Logs that a machine reads say which category a record is about."""

import io
import json
import logging

import pytest
from prefect.logging.formatters import JsonFormatter

from flows.logs import label_records, logs_about


def test_record_carries_its_category(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = logging.getLogRecordFactory()
    stream = logging.StreamHandler(io.StringIO())
    stream.setFormatter(JsonFormatter("default", "", "%"))
    logger = logging.getLogger("etstpm.test_logs")
    monkeypatch.setattr(logger, "handlers", [stream])
    monkeypatch.setattr(logger, "propagate", False)
    try:
        label_records()
        label_records()
        logger.warning("before")
        with logs_about("screw <b>"):
            logger.warning("inside")
        logger.warning("after")
    finally:
        logging.setLogRecordFactory(factory)

    records = [json.loads(line) for line in stream.stream.getvalue().splitlines()]
    assert [record["category"] for record in records] == [None, "screw <b>", None]
