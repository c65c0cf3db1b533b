"""What several outputs say alike."""

import json
import shlex


def count_of(number: int, noun: str) -> str:
    """A number and its noun, as "1 image", "2 categories", "3 batches"."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{number} {noun[:-1]}ies"
    return f"{number} {noun}es" if noun.endswith("ch") else f"{number} {noun}s"


def how_to_open(parquet: str) -> str:
    """A shell's command that prints a Parquet file, whatever characters its path has."""
    path = json.dumps(parquet, ensure_ascii=False)  # Python reads it too
    return f"python -c {shlex.quote(f'import pandas; print(pandas.read_parquet({path}))')}"
