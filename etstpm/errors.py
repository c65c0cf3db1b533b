"""The exception tree: every fault that a user can cause or mend.

A message is one line and says what, where, expected against found, and the remedy. Whoever runs
a command (`flows.full`, `etstpm`) prints it as it is and exits with `exit_code`; a traceback
means a bug in this project.
"""

import os
import re
import shutil

SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
"""Environment variables whose values no message holds."""

# `user:password@` before the host. A port is no password: digits up to a slash or the end.
_PASSWORD = re.compile(r"(?<=://)[^/:@\s]*:(?!\d+(?:/|$))[^@\s]*(?=@)")
_KEY_OF_BUCKET = re.compile(r"(?<=s3://)[^/@\s]+(?=@)|(?<=s3a://)[^/@\s]+(?=@)")
_SIGNATURE = re.compile(
    r"(?<=[?&])((?:x-amz-[a-z-]+|awsaccesskeyid|signature|sig|token|password|secret|api_?key)=)[^&\s'\"]+",
    re.IGNORECASE,
)


class EtstpmError(Exception):
    """Base of all faults with a remedy. Its message holds no secret: `scrub` has seen it."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(scrub(message))


class ConfigError(EtstpmError):
    """A config file, an override or an environment variable is wrong."""


class DatasetError(EtstpmError):
    """The dataset's tree or one of its files is wrong."""


class WeightsError(EtstpmError):
    """A weights file is missing, not what it should be, or not to be trusted."""


class StorageError(EtstpmError):
    """The store cannot be read or written, or an artifact in it is damaged."""


class DamagedArtifactError(StorageError):
    """An artifact is gone, or a file of it is not what was written: it is to be made anew."""


class TrainingError(EtstpmError):
    """A training diverged or learnt nothing; the category is failed by name, the others go on."""


class ResultsError(EtstpmError):
    """What is asked of the results is not there: a run, a category, a column; or cannot be read."""


def reason_of(error: BaseException) -> str:
    """What any exception says, in one line and without secrets."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        return scrub(error.args[0][0][2])  # of a folder's files the first that was not copied
    return scrub(next(iter(str(error).splitlines()), type(error).__name__))


def has_credentials(uri: str) -> bool:
    """Whether a URI carries a password, a bucket's key or a signature."""
    return any(pattern.search(uri) for pattern in (_PASSWORD, _KEY_OF_BUCKET, _SIGNATURE))


def scrub(text: str) -> str:
    """The text with `***` for a URI's credentials and for the environment's secrets."""
    text = _SIGNATURE.sub(r"\1***", _KEY_OF_BUCKET.sub("***", _PASSWORD.sub("***", text)))
    for name in SECRETS:
        secret = os.environ.get(name)
        if secret and len(secret) > 3:
            text = text.replace(secret, "***")
    return text
