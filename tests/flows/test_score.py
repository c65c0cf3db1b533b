"""The flow `etstpm-score` in a process of its own, on a real server."""

import subprocess
import sys
from pathlib import Path

import pandas as pd

from tests.prefect_server import REPOSITORY, Prefect
from tests.trained import CATEGORY, Published

SECONDS = 300.0


TWICE = """
import sys
from flows.score import etstpm_score
images, category, store, to = sys.argv[1:]
for _ in range(2):
    state = etstpm_score(images, category, store, to=to, return_state=True)
    print(state.type.value, state.message)
"""


def run(server: Prefect, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Call the flow twice and print its states' messages."""
    return subprocess.run(
        [sys.executable, "-c", TWICE, *arguments],
        cwd=REPOSITORY,
        env=dict(server.environment),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_it_scores_and_a_fault_is_one_line(
    prefect_server: Prefect, published: Published, tmp_path: Path
) -> None:
    images = str(published.root / CATEGORY / "test")

    done = run(prefect_server, images, CATEGORY, str(published.store), str(tmp_path / "out"))

    first, second = done.stdout.splitlines()
    assert first.startswith("COMPLETED 5 scored, "), done.stderr
    assert len(pd.read_parquet(tmp_path / "out" / "image_scores.parquet")) == 5
    assert second.startswith("FAILED ")
    assert "holds scores already" in second
    assert "Traceback" not in done.stderr
