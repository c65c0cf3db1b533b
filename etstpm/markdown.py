"""Hostile names in Markdown."""

import re


def escape(text: str) -> str:
    """Names of folders are hostile: they do not become Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!&])", r"\\\1", text).replace("\n", " ")
