"""How every command ends: a fault that the user can mend is one line and exit code 2."""

import io
import sys
from typing import Any, NoReturn

import typer

from etstpm.errors import EtstpmError, reason_of

UsageError: Any = typer.BadParameter.__mro__[1]
"""click's, which newer versions of typer carry within and older ones import."""


def run_command(app: typer.Typer, name: str) -> NoReturn:
    """Run an application by the arguments of this process, and end the process.

    A misspelt option or a value that is none of its choices is said as any other fault, and not in
    typer's box of five lines.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack a category's letters
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(typer.main.get_command(app).main(prog_name=name, standalone_mode=False))
    except UsageError as error:
        message = " ".join(error.format_message().split()).rstrip(".")
        message = message.replace("Value error, ", "")
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help; or it is printed
            sys.stderr.write(error.format_message().rstrip() + "\n" if message else "")
        elif message:
            where = error.ctx.command_path if error.ctx is not None else name
            message = message[0].lower() + message[1:]
            sys.stderr.write(f"{where}: {message}; see '{where} --help'\n")
        sys.exit(2)
    except EtstpmError as error:
        sys.stderr.write(f"etstpm: {error}\n")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        raise
    except OSError as error:  # of a place that no command has thought of
        where = f"{error.filename}: " if error.filename is not None else ""
        sys.stderr.write(
            f"etstpm: {where}{error.strerror or reason_of(error)}; check the path, its "
            "permissions and the room on its disk\n"
        )
        sys.exit(2)
