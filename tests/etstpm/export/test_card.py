"""The licence on a model card is that of the images, as the run's dataset was known."""

from pathlib import Path

import pytest

from etstpm import stages
from etstpm.catalog import MARKER
from etstpm.config import Config
from etstpm.export.card import UNKNOWN_LICENCE, licence_of, terms_of
from etstpm.networks import FORMULA_SHA256
from etstpm.storage import Store

MVTEC = (
    "MVTec AD: CC BY-NC-SA 4.0. https://creativecommons.org/licenses/by-nc-sa/4.0/. "
    "Not for commercial use"
)


def licence_below(root: Path, place: Path) -> str:
    given = {"dataset.root": str(root), "store": str(place), "teacher.weights": "formula"}
    config = Config.load("default", ["dataset.image_size=48"], given)
    store = Store(config.store)
    return licence_of(store, stages.validate(config, store))


@pytest.mark.parametrize(
    ("name", "licence"), [("bottle", MVTEC), ("biscuit", UNKNOWN_LICENCE)], ids=["MVTec AD", "own"]
)
def test_the_licence_is_that_of_the_images(
    dataset: Path, tmp_path: Path, name: str, licence: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (dataset / "biscuit").rename(root / name)
    text = licence_below(root, tmp_path / "store")
    assert text.replace("\\", "") == licence


def test_a_licence_of_ones_own_is_no_markup(dataset: Path, tmp_path: Path) -> None:
    (dataset / MARKER).write_text(
        '{"declaration": {"name": "own", "title": "Ours", "licence": "<b>[x](http://y)", '
        '"masks": "optional"}}'
    )
    text = licence_below(dataset, tmp_path / "store")
    assert text.startswith("Ours: ")
    assert "<b>" not in text
    assert "[x](" not in text


@pytest.mark.parametrize(
    ("source", "terms"), [("formula", "own, under Apache-2.0"), ("own", "cnn\\_1, which")]
)
def test_the_weights_terms_are_those_of_the_teacher(source: str, terms: str) -> None:
    sha256 = FORMULA_SHA256 if source == "formula" else "0" * 64
    assert terms in terms_of({"weights": {"sha256": sha256}, "description": "cnn_1"})
