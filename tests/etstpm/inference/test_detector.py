"""A detector from a published run, and the runs and categories that are refused."""

import json
import shutil
from pathlib import Path

import pytest

from etstpm.compute import choose_compute
from etstpm.config import Config
from etstpm.errors import EtstpmError, ResultsError, StorageError
from etstpm.inference.detector import load_detector
from etstpm.pictures import HeatScale
from etstpm.storage import Store
from etstpm.storage.artifact import seal
from tests.trained import CATEGORY, FAILED, Published


@pytest.fixture
def copied(published: Published, tmp_path: Path) -> Store:
    """The published store, to be changed."""
    shutil.copytree(published.store, tmp_path / "store")
    return Store(str(tmp_path / "store"))


def test_a_detector_is_what_its_run_has_published(published: Published) -> None:
    store = Store(str(published.store))
    detector = load_detector(store, "latest", CATEGORY)

    assert detector.run_id == "product"
    assert detector.scores.key == published.scores
    card = store.get(published.scores).card
    assert detector.keys == (card["teacher"], card["student"])
    assert detector.threshold == card["metrics"]["threshold"]
    scale = HeatScale(card["metrics"]["map_cold"], card["metrics"]["map_threshold"])
    assert detector.heat_scale == scale
    assert detector.held_out_scores.tolist() == card["metrics"]["held_out_scores"]
    assert detector.size == 64
    assert not any(p.requires_grad for p in detector.student.parameters())
    assert not detector.student.training
    assert detector.calibration.whitening is not None
    assert load_detector(store, "quantile-sum", CATEGORY).calibration.quantiles is not None


@pytest.mark.parametrize(
    ("run", "category", "message"),
    [
        ("no-such-run", CATEGORY, "no run 'no-such-run'"),
        ("../runs/product", CATEGORY, "'../runs/product' cannot be a run's id"),
        ("", CATEGORY, "'' cannot be a run's id"),
        ("product", "screw", f"run product has no category 'screw'; it has {CATEGORY}"),
        ("product", "../x", "has no category '../x'"),
        ("product-incomplete", FAILED, "fabric failed in run product-incomplete (it <b>burst</b>)"),
    ],
)
def test_an_unknown_run_or_category_is_one_line(
    run: str, category: str, message: str, published: Published
) -> None:
    with pytest.raises(EtstpmError) as raised:
        load_detector(Store(str(published.store)), run, category)

    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_store_without_runs_says_so(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="holds no published run"):
        load_detector(Store(str(tmp_path)), "latest", CATEGORY)


def test_scores_from_before_the_calibration_was_kept_are_refused(
    copied: Store, published: Published
) -> None:
    path = Path(copied.path(f"{published.scores}/card.json"))
    card = json.loads(path.read_text())
    del card["files"]["calibration.safetensors"]
    path.write_bytes(seal(card))

    with pytest.raises(StorageError, match="run the pipeline once more"):
        load_detector(copied, "product", CATEGORY)


def test_a_device_that_is_not_here_is_replaced(copied: Store, published: Published) -> None:
    """What a GPU has trained scores new images anywhere."""
    path = Path(copied.path(f"{published.scores}/card.json"))
    card = json.loads(path.read_text())
    card["config"]["device"] = "cuda:63"
    path.write_bytes(seal(card))

    detector = load_detector(copied, "product", CATEGORY)

    assert detector.compute.device == choose_compute(Config()).device
    assert detector.config.device == "cuda:63"


def test_a_config_of_another_version_is_refused(copied: Store, published: Published) -> None:
    path = Path(copied.path(f"{published.scores}/card.json"))
    card = json.loads(path.read_text())
    card["config"]["scoring"]["fusion"] = "of the future"
    path.write_bytes(seal(card))

    with pytest.raises(StorageError, match=r"another version of etstpm .*scoring\.fusion"):
        load_detector(copied, "product", CATEGORY)


@pytest.mark.parametrize("part", ["calibration.safetensors", "weights.safetensors"])
def test_a_damaged_part_is_refused_by_its_hash(
    part: str, copied: Store, published: Published
) -> None:
    card = copied.get(published.scores).card
    key = published.scores if part.startswith("calibration") else card["student"]
    path = Path(copied.path(f"{key}/{part}"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(StorageError, match="missing or damaged"):
        load_detector(copied, "product", CATEGORY)
