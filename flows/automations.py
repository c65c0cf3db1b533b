"""Apply a file of automations to a Prefect server, as often as wanted.

    python -m flows.automations deployments/automations.yaml --notify slack-webhook/night

`prefect automation create` makes another one of the same name each time; here a name is known.
"""

import sys
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from pydantic import ValidationError

from etstpm.commands.entry import run_command
from etstpm.errors import ConfigError, reason_of
from flows.embedded import connected

PLACEHOLDER = "NOTIFY"
"""Stands in the file for the id of the notification block."""


def apply(
    file: Annotated[Path, typer.Argument(help="Automations as YAML.")],
    notify: Annotated[
        str | None, typer.Option(help="TYPE/NAME of the notification block that alerts go to.")
    ] = None,
) -> None:
    """Create what is new, update what has changed, leave what is as the file has it."""
    read_automations(file, None)  # a file that is none is refused before any server is asked
    with connected(None), get_client(sync_client=True) as client:
        block = _find_block(client, notify) if notify else None
        for automation in read_automations(file, block):
            sys.stdout.write(f"{automation.name}: {_upsert(client, automation)}\n")
    if block is None:
        sys.stdout.write(
            "alerts go to Prefect's event feed alone; --notify TYPE/NAME (make deploy NOTIFY=...) "
            "names a notification block\n"
        )


def read_automations(file: Path, block: UUID | None) -> list[AutomationCore]:
    """The automations of a file; without a block their notifications are left out.

    Raises `ConfigError` for a file that is none.
    """
    try:
        declared = yaml.safe_load(file.read_text("utf-8"))
        return [AutomationCore.model_validate(_resolved(each, block)) for each in declared]
    except (OSError, TypeError, KeyError, yaml.YAMLError, ValidationError) as error:
        reason = f"{type(error).__name__}: {reason_of(error)}"
        if isinstance(error, ValidationError):
            reason = "; ".join(
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
            )
        raise ConfigError(
            f"automations {file}: {reason}; see deployments/automations.yaml for how they are "
            "written"
        ) from error


def _resolved(declared: dict[str, Any], block: UUID | None) -> dict[str, Any]:
    actions = []
    for action in declared["actions"]:
        if action.get("block_document_id") != PLACEHOLDER:
            actions.append(action)
        elif block is not None:
            actions.append(action | {"block_document_id": str(block)})
    return declared | {"actions": actions or [{"type": "do-nothing"}]}


def _find_block(client: SyncPrefectClient, notify: str) -> UUID:
    kind, _, name = notify.partition("/")
    try:
        return client.read_block_document_by_name(name, kind).id
    except ObjectNotFound as error:
        raise ConfigError(
            f"--notify {notify!r}: this Prefect server has no block of that type and name; make it "
            "in the UI under Blocks, or see 'prefect block ls'"
        ) from error


def _upsert(client: SyncPrefectClient, automation: AutomationCore) -> str:
    existing = client.read_automations_by_name(automation.name)
    if not existing:
        client.create_automation(automation)
        return "created"
    first, *doubles = existing
    for double in doubles:
        client.delete_automation(double.id)
    if first.model_dump(exclude={"id"}) == automation.model_dump() and not doubles:
        return "as it is"
    client.update_automation(first.id, automation)
    return "updated"


def main() -> None:
    """Run the command; a fault that the user can mend is one line and exit code 2."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(apply)
    run_command(app, "python -m flows.automations")


if __name__ == "__main__":
    main()
