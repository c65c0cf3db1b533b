"""What several outputs say alike."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from etstpm.wording import count_of, how_to_open


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "category", "1 category"),
        (2, "category", "2 categories"),
        (0, "batch", "0 batches"),
        (1, "batch", "1 batch"),
        (0, "finding", "0 findings"),
    ],
)
def test_a_noun_follows_its_number(number: int, noun: str, text: str) -> None:
    assert count_of(number, noun) == text


@pytest.mark.parametrize("name", ["plain", "it's", 'a "b" $HOME `id`', "größe \\ n", "a;b & c"])
def test_a_table_is_opened_by_its_command_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    pd.DataFrame({"category": ["screw"]}).to_parquet(path)

    command = how_to_open(str(path)).replace("python", sys.executable, 1)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)

    assert done.stderr == ""
    assert done.stdout == "  category\n0    screw\n"
