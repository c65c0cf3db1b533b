"""The flow `etstpm-score` in a process of its own, on a real server."""

import subprocess
import sys
from pathlib import Path

import pandas as pd

from tests.prefect_server import REPOSITORY, Prefect
from tests.trained import CATEGORY, Published

SECONDS = 300.0


def run(server: Prefect, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Call the flow and print its state's message."""
    code = (
        "import sys; from flows.score import etstpm_score; images, store, to = sys.argv[1:]; "
        f"state = etstpm_score(images, {CATEGORY!r}, store, to=to, return_state=True); "
        "print(state.type.value, state.message)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
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

    done = run(prefect_server, images, str(published.store), str(tmp_path / "out"))

    assert done.stdout.startswith("COMPLETED 5 scored, "), done.stderr
    assert "Traceback" not in done.stderr
    assert len(pd.read_parquet(tmp_path / "out" / "image_scores.parquet")) == 5

    again = run(prefect_server, images, str(published.store), str(tmp_path / "out"))

    assert again.stdout.startswith("FAILED ")
    assert "holds scores already" in again.stdout
    assert "Traceback" not in again.stderr
