"""Every example of docs/results.md, run against a real store."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from etstpm.results.database import Results
from etstpm.results.queries import metric_history
from etstpm.runs import run_key
from etstpm.storage import Store
from tests.prefect_server import REPOSITORY
from tests.published import add_category, publish
from tests.s3_server import S3

PAGE = (REPOSITORY / "docs" / "results.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"^## (\w+)$.*?^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
FIRST, SECOND, THIRD = (f"2026112{day}T020000Z-0000000{day}" for day in (3, 4, 5))


def fill(store: Store) -> Store:
    """A good night, one that regressed, and one that is not published: it has no run.json."""
    pill, screw = add_category(store, "pill"), add_category(store)
    publish(store, [pill, screw], FIRST)
    publish(store, [pill, add_category(store, separation=0.8)], SECOND)
    publish(store, [pill, screw], THIRD)
    store.remove_file(run_key(THIRD))
    store.write_json("runs/latest.json", {"run_id": FIRST})
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """To be read only."""
    return fill(Store(str(tmp_path_factory.mktemp("docs") / "store")))


def run_example(name: str, store: Store) -> dict[str, Any]:
    """What an example leaves, by its names."""
    names: dict[str, Any] = {"store": store.uri}
    exec(compile(EXAMPLES[name], f"docs/results.md, {name}", "exec"), names)  # noqa: S102
    return names


def expected(store: Store) -> dict[str, float]:
    """The image AUROC of 'screw' in each published run."""
    with Results(store) as results:
        rows = metric_history(results, "screw").to_pylist()
    assert [row["run_id"] for row in rows] == [FIRST, SECOND]
    return {row["run_id"]: row["value"] for row in rows}


def test_there_is_an_example_of_each_tool() -> None:
    assert set(EXAMPLES) == {"pandas", "Polars", "DuckDB", "Spark"}


def test_pandas_on_a_folder(store: Store) -> None:
    nights = run_example("pandas", store)["nights"]
    assert nights["paper-256", "image", "auroc"].to_dict() == expected(store)


def test_pandas_on_s3(s3: S3) -> None:
    store = fill(Store(s3.uri))
    nights = run_example("pandas", store)["nights"]
    assert nights["paper-256", "image", "auroc"].to_dict() == expected(store)


def test_polars(store: Store) -> None:
    metrics = run_example("Polars", store)["metrics"]
    assert metrics["category"].to_list() == ["mean", "pill", "screw"] * 2
    screw = metrics.filter(category="screw")
    assert dict(zip(screw["run_id"], screw["value"], strict=True)) == expected(store)


def test_duckdb(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = sysconfig.get_path("scripts")
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    names = run_example("DuckDB", store)
    rows = names["nights"].select("run_id, value, is_latest, verdict").fetchall()
    values = expected(store)
    assert sorted(rows) == [
        (FIRST, values[FIRST], True, "passed"),
        (SECOND, values[SECOND], False, "regressed"),
    ]
    assert {row[0] for row in names["latest"].select("category").fetchall()} == {
        *("pill", "screw", "mean"),
    }


def test_spark(store: Store, tmp_path: Path) -> None:
    if importlib.util.find_spec("pyspark") is None:
        pytest.skip("needs PySpark: .venv/bin/uv pip install --group spark")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java: apt-get install default-jre-headless")
    program = (
        f"store = {store.uri!r}\n{EXAMPLES['Spark']}\n"
        "chosen = values.where(\"category = 'screw'\").select('run_id', 'value')\n"
        "for row in chosen.collect(): print('ROW', *row)\n"
    )
    (tmp_path / "example.py").write_text(program)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "example.py")],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_DIRS": str(tmp_path)},
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ROW")]
    found = {run_id: float(value) for run_id, value in rows}
    assert found == {FIRST: expected(store)[FIRST]}
