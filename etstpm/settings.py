"""What belongs to the machine and enters no artifact's address: read from ETSTPM_* variables."""

import os
from functools import cache
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from etstpm.errors import ConfigError
from etstpm.paths import local_path


def _default_cache() -> Path:
    base = local_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if base.parts[:1] == ("~",):  # a container's user without an entry in /etc/passwd
        raise ConfigError(
            "this user has no home folder for the cache; set ETSTPM_CACHE to a folder"
        )
    return base / "etstpm"


class Settings(BaseSettings):
    """Set by the environment: ETSTPM_CACHE=/fast/disk, ETSTPM_THREADS=8, ..."""

    model_config = SettingsConfigDict(env_prefix="ETSTPM_", env_ignore_empty=True, frozen=True)

    cache: Path = Field(default_factory=_default_cache, description="Decoded images, weights.")
    threads: int = Field(
        default_factory=lambda: (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        ),
        ge=1,
        description="Threads that decode images.",
    )
    store_patience: float = Field(
        120.0, ge=0.0, description="Seconds for which a remote store that fails is tried again."
    )
    store_timeout: float = Field(
        30.0, gt=0.0, description="Seconds of silence after which a store's answer is given up."
    )
    cache_gib: float = Field(
        64.0,
        ge=0.0,
        description="Decoded images are kept on disk up to this size (GiB); what was used least "
        "recently goes first.",
    )
    attempts: int = Field(
        8, ge=1, description="Passes over a download's addresses in which nothing arrives."
    )
    stall_seconds: float = Field(
        30.0, gt=0.0, description="A connection that is silent for so long counts as broken (s)."
    )
    feature_cache_gib: float = Field(
        8.0,
        ge=0.0,
        description="The teacher's features of a category are kept while its student trains, on "
        "disk or in a GPU's memory, up to this size (GiB).",
    )

    teacher_processes: int = Field(
        1, ge=1, description="Processes that fine-tune the teacher together, a GPU each."
    )
    category_processes: int = Field(
        1,
        ge=1,
        description="Categories that a run makes at a time, a process each with its share of the "
        "threads. Last bits differ, as with another number of threads.",
    )


@cache
def settings() -> Settings:
    """The settings of this process. Raises `ConfigError` for a variable that is refused."""
    try:
        return Settings()
    except ValidationError as error:
        faults = "; ".join(
            f"ETSTPM_{str(fault['loc'][0]).upper()} = {fault['input']!r}: {fault['msg']}"
            for fault in error.errors()
        )
        raise ConfigError(f"{faults}; correct or unset the variable") from None
