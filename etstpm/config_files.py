"""Configs as people write them: presets, TOML files, `section.key=value`; and their faults."""

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from etstpm.errors import ConfigError


def preset_names() -> list[str]:
    """Names of the presets that come with the package, sorted."""
    folder = resources.files("etstpm") / "presets"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_toml(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if path.suffix != ".toml" and str(source) in preset_names():
        text = (resources.files("etstpm") / "presets" / f"{source}.toml").read_text("utf-8")
    else:
        try:
            text = path.read_text("utf-8-sig")  # Windows' editors write a mark
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise ConfigError(
                f"config {str(source)!r} cannot be read ({reason}); give a TOML file or one of "
                f"the presets {', '.join(preset_names())}"
            ) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config {str(source)!r} is not TOML: {error}; mend that line") from None


def apply_override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise ConfigError(
            f"override {override!r} is not of the form section.key=value, "
            "as in --set student.epochs=30"
        )
    set_value(values, name.strip(), _parse_value(text))


def set_value(values: dict[str, Any], name: str, value: object) -> None:
    *parents, key = name.split(".")
    section: Any = values
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"override {name!r}: {parent!r} is a value, not a section")
    section[key] = value


def _parse_value(text: str) -> Any:
    """A TOML value where the text is one (30, 0.4, true, ["a", "b"]), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text or None


def explain(error: ValidationError, source: str, model: type[BaseModel]) -> str:
    return "; ".join(_explain_fault(fault, source, model) for fault in error.errors())


def _explain_fault(fault: Mapping[str, Any], source: str, model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = ", ".join(_keys_at(model, fault["loc"][:-1]))
        return f"{source}: no such key {key!r}; known there: {known}"
    if not key:  # two sections do not go together: the input is the whole config
        return f"{source}: {fault['ctx']['error']}"
    return f"{source}: {key} = {fault['input']!r} is refused: {fault['msg'].lower()}"


def _keys_at(model: Any, place: Sequence[int | str]) -> list[str]:
    """The keys of the section at a place, looked for through optional ones and tables of them."""
    for part in place:
        known = getattr(model, "model_fields", {})
        found = known[part].annotation if part in known else model
        parts = [found, *get_args(found)]
        model = next((kind for kind in parts if hasattr(kind, "model_fields")), found)
    return list(getattr(model, "model_fields", {}))
