"""The exception tree: every fault that a user can cause or mend.

A message is one line and says what, where, expected against found, and the remedy. Whoever runs
a command (`flows.full`, `etstpm`) prints it as it is and exits with `exit_code`; a traceback
means a bug in this project.
"""


class EtstpmError(Exception):
    """Base of all faults with a remedy."""

    exit_code = 2


class ConfigError(EtstpmError):
    """A config file, an override or an environment variable is wrong."""


class DatasetError(EtstpmError):
    """The dataset's tree or one of its files is wrong."""


class WeightsError(EtstpmError):
    """A weights file is missing, not what it should be, or not to be trusted."""


class StorageError(EtstpmError):
    """The store cannot be read or written, or an artifact in it is damaged."""


class TrainingError(EtstpmError):
    """A training diverged or learnt nothing; the category is failed by name, the others go on."""


def reason_of(error: BaseException) -> str:
    """What any exception says, in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)
