"""The groups of the `etstpm` command, a module each.

What is slow to import is imported where it is used.
"""

import typer


def make_group(about: str) -> typer.Typer:
    """A command that has commands. Its help is plain text: boxes around it take twice the time."""
    return typer.Typer(
        help=about,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"max_content_width": 110},
    )
