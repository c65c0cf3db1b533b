"""What all tests share: a drawn dataset, a cache of one's own, and the real data where it lies."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from etstpm.sample import draw_sample
from etstpm.settings import settings

pytest_plugins = ["tests.s3_server", "tests.prefect_server", "tests.trained"]

# CI tells whether a change is right, and the same examples tell it each time; elsewhere each run
# looks at new ones.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

# Workers whose threads wait for each other by spinning are slower than one.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


class Shares(LoadScopeScheduling):  # type: ignore[misc]
    """One worker has all that needs Prefect's server, and starts it once; files stay whole."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "fleet" if path.split("/")[1] in {"deployments", "flows", "tasks"} else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Shares:
    """Who of `-n 2` gets which tests. xdist's own groups are lost with pytest 9.2."""
    return Shares(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: the others fill up beside it, and no worker is left with it alone."""
    items.sort(key=lambda item: item.path.name != "test_storage_survival.py")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that ETSTPM_CACHE names in this test: new and empty, never the user's."""
    folder = tmp_path / "etstpm-cache"
    monkeypatch.setenv("ETSTPM_CACHE", str(folder))
    settings.cache_clear()
    yield folder
    settings.cache_clear()


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn sample, tiny: 3 categories of 4 train, 2 test/good and 3 x 1 defective, 64x64.

    One for all tests, to be read only: a test that breaks something takes `dataset`.
    """
    root = tmp_path_factory.mktemp("drawn") / "sample"
    draw_sample(root, image_size=64, train=4, test_good=2, per_defect=1)
    return root


@pytest.fixture
def dataset(drawn: Path, tmp_path: Path) -> Path:
    """A copy of the drawn sample that the test may change."""
    root = tmp_path / "dataset"
    shutil.copytree(drawn, root)
    return root


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with mvtec_ad/ and weights/ that ETSTPM_REAL_DATA names."""
    name = os.environ.get("ETSTPM_REAL_DATA")
    if not name:
        pytest.skip("needs real images: set ETSTPM_REAL_DATA to a folder with mvtec_ad/, weights/")
    root = Path(name)
    for part in ("mvtec_ad", "weights"):
        if not (root / part).is_dir():
            pytest.fail(f"ETSTPM_REAL_DATA={root}: no folder {part}/ in it")
    return root
