"""What the documents say is so."""

import re
import tomllib
from pathlib import Path

import pytest

from etstpm.cli import app
from etstpm.config_files import preset_names
from etstpm.results.page import describe_tables
from etstpm.tables import IMAGE_SCORES, METRICS
from tests.prefect_server import REPOSITORY

README = (REPOSITORY / "README.md").read_text("utf-8")
DEPLOYMENTS = ("etstpm/full", "etstpm/smoke", "etstpm-validate/validate")  # no paths
ARCHITECTURE = (REPOSITORY / "ARCHITECTURE.md").read_text("utf-8")


@pytest.mark.parametrize("schema", [IMAGE_SCORES, METRICS])
def test_readme_lists_every_column(schema: object) -> None:
    name = schema.metadata[b"etstpm.table"].decode()  # type: ignore[attr-defined]
    (columns,) = re.findall(rf"^\| `{name}` \| (.*) \|$", README, re.MULTILINE)

    assert columns.split(", ") == schema.names  # type: ignore[attr-defined]


def test_readme_names_every_variable_of_make_run() -> None:
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    variables = set(re.findall(r"^(\w+) \?=", makefile, re.MULTILINE)) - {
        "PYTHON",
        "POOL",
        "NOTIFY",
    }

    assert set(re.findall(r"^\| `([A-Z]+)` \|", README, re.MULTILINE)) == variables


def test_readme_names_every_preset_and_command() -> None:
    commands = [(command, "") for command in app.registered_commands]
    for group in app.registered_groups:
        assert group.typer_instance
        prefix = f"{group.name} "
        commands += [(command, prefix) for command in group.typer_instance.registered_commands]

    for name in preset_names():
        assert f"`{name}`" in README
    for command, prefix in commands:
        assert command.callback
        name = prefix + (command.name or command.callback.__name__)
        assert f"etstpm {name}" in README, name


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"])
def test_named_files_exist(document: str) -> None:
    text = (REPOSITORY / document).read_text("utf-8")
    pattern = r"`((?:etstpm|flows|tasks|deployments|tests|bench|docs)/[\w./-]+)`"
    links = re.findall(r"\]\(((?!http)[^)]+)\)", text)

    named = {name for name in re.findall(pattern, text) if not name.startswith(DEPLOYMENTS)}
    for name in [*named, *links]:
        assert (REPOSITORY / name).exists(), name


def test_code_map_names_every_module() -> None:
    modules = {path.name for path in (REPOSITORY / "etstpm").glob("*.py")} - {"__init__.py"}

    for name in modules:
        assert name in ARCHITECTURE, name
    assert len(ARCHITECTURE.splitlines()) <= 150


def test_the_page_of_the_tables_is_made_from_the_schemas() -> None:
    page = (REPOSITORY / "docs" / "tables.md").read_text("utf-8")

    assert page == describe_tables(), "run: etstpm results tables > docs/tables.md"


def test_version_is_one() -> None:
    from etstpm import __version__

    project = tomllib.loads(Path(REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == __version__
