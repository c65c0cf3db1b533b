"""What goes onto a run's page is text, whatever a folder is called."""

import string

import pytest
from prefect.client.schemas.actions import ArtifactCreate

from etstpm.markdown import escape
from tasks.artifacts import artifact_key


@pytest.mark.parametrize("name", ["screw", "Metal_Nut", "größe 3", "<b>x</b>", "a--b"])
def test_key_is_one_that_prefect_takes(name: str) -> None:
    key = artifact_key("hardest", name)

    assert ArtifactCreate(key=key).key == key
    assert set(key) <= set(string.ascii_lowercase + string.digits + "-")


def test_names_become_neither_html_nor_markdown() -> None:
    escaped = escape("<img src=x onerror=alert(1)>|**bold**\n[link](http://x)")

    assert "\n" not in escaped
    for character in "<>|*[]()":
        assert escaped.count(character) == escaped.count(f"\\{character}")
