"""A file of automations is read, or said to be none, before any server is asked."""

from pathlib import Path
from uuid import UUID

import pytest

from etstpm.errors import ConfigError
from flows.automations import PLACEHOLDER, read_automations
from tests.prefect_server import REPOSITORY

FILE = REPOSITORY / "deployments" / "automations.yaml"
BLOCK = UUID(int=1)


def test_alerts_go_to_the_block_where_there_is_one() -> None:
    with_block, without = read_automations(FILE, BLOCK), read_automations(FILE, None)

    assert [each.name for each in with_block] == [each.name for each in without]
    notified = [a for each in with_block for a in each.actions if a.type == "send-notification"]
    assert {action.block_document_id for action in notified} == {BLOCK}
    assert PLACEHOLDER in FILE.read_text()
    kinds = {action.type for each in without for action in each.actions}
    assert kinds == {"do-nothing", "change-flow-run-state"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("within: 540", "within: 5", "trigger.*`within`.*10 seconds"),
        ("actions:", "deeds:", "KeyError"),
        ("- name", "name", "ScannerError|ParserError"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "automations.yaml"
    file.write_text(FILE.read_text().replace(old, new))

    with pytest.raises(ConfigError, match=message) as caught:
        read_automations(file, None)

    assert str(caught.value).startswith(f"automations {file}: ")
    assert "\n" not in str(caught.value)
