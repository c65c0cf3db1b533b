"""VisA's layout: a generated tree, and all that can be wrong with its table."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from etstpm.addresses import address_scores
from etstpm.config import Config
from etstpm.dataset import Dataset, scan_dataset
from etstpm.errors import DatasetError
from etstpm.findings import KINDS
from etstpm.inputs import Inputs

SPLIT = "split_csv/1cls.csv"
COLUMNS = ["object", "split", "label", "image", "mask"]
NORMAL, ANOMALY = "candle/Data/Images/Normal", "candle/Data/Images/Anomaly"
MASKS = "candle/Data/Masks/Anomaly"

Rows = list[list[str]]
Break = Callable[[Path], object]


def draw(path: Path, seed: int, *, is_mask: bool = False) -> None:
    """A picture of 48x32; a mask numbers its kinds of defect, and so is black to the eye."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_mask:
        values = np.zeros((32, 48), np.uint8)
        values[4:12, 6:20], values[20:28, 30:40] = 1, 2
    else:
        values = np.random.default_rng(seed).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(values).save(path)


@pytest.fixture
def visa(tmp_path: Path) -> Path:
    """A root of one category: 4 normal images to train, 2 and 3 anomalies to test."""
    root = tmp_path / "visa"
    rows = []
    for number in range(6):
        image = f"{NORMAL}/{number:04}.JPG"
        draw(root / image, number)
        rows.append(["candle", "train" if number < 4 else "test", "normal", image, ""])
    for number in range(3):
        image, mask = f"{ANOMALY}/{number:03}.JPG", f"{MASKS}/{number:03}.png"
        draw(root / image, 100 + number)
        draw(root / mask, 0, is_mask=True)
        rows.append(["candle", "test", "anomaly", image, mask])
    write(root, rows)
    return root


def write(root: Path, rows: Rows, columns: list[str] = COLUMNS) -> None:
    path = root / SPLIT
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def edit(row: int, column: str, value: str) -> Break:
    """Another value in a row of the table (0: the first below the names)."""

    def do(root: Path) -> None:
        names, *rows = csv.reader((root / SPLIT).read_text().splitlines())
        rows[row][names.index(column)] = value
        write(root, rows)

    return do


def scan(root: Path, cache: Path, on_finding: str = "fail") -> Dataset:
    return scan_dataset(root, None, 32, cache, on_finding=on_finding)


def codes(found: Dataset) -> list[str]:
    """Without what every tree of nine images has: not the official counts."""
    return [code for code in found.findings["code"].to_pylist() if code != "count"]


def test_a_tree_becomes_a_manifest(visa: Path, cache: Path) -> None:
    found = scan(visa, cache).require("fail")
    assert found.declaration.name == "visa"
    assert codes(found) == []
    rows = found.manifest.to_pylist()
    kinds = [(row["split"], row["defect_type"], row["label"]) for row in rows]
    assert kinds == (
        [("train", "good", 0)] * 4 + [("test", "anomaly", 1)] * 3 + [("test", "good", 0)] * 2
    )
    assert {row["mask_path"] for row in rows if row["label"]} == {
        f"{MASKS}/{number:03}.png" for number in range(3)
    }
    assert {row["mask_above"] for row in rows if row["label"]} == {0}  # black masks are whole ones


TABLE: list[tuple[str, Break, str, str, str]] = [
    # what is done, how, code, path, message
    (
        "an image of the table is gone",
        lambda root: (root / f"{NORMAL}/0001.JPG").unlink(),
        "listed-but-missing",
        f"{NORMAL}/0001.JPG",
        f"expected every file that {SPLIT} names, found 1 not there, this the first; restore",
    ),
    (
        "a mask of the table is gone",
        lambda root: (root / f"{MASKS}/002.png").unlink(),
        "listed-but-missing",
        f"{MASKS}/002.png",
        "found 1 not there, this the first",
    ),
    (
        "an image that no row has",
        lambda root: draw(root / f"{NORMAL}/0099.JPG", 99),
        "not-listed",
        f"{NORMAL}/0099.JPG",
        f"expected a row of each image in {SPLIT}, found 1 without one, this the first; they are",
    ),
    (
        "an image in two rows",
        edit(1, "image", f"{NORMAL}/0000.JPG"),
        "listed-twice",
        f"{NORMAL}/0000.JPG",
        "expected one row, found a second in line 3; remove one of them",
    ),
    (
        "a mask of a good image",
        edit(4, "mask", f"{MASKS}/000.png"),
        "mask-of-good",
        f"{NORMAL}/0004.JPG",
        "expected no mask of a good image, found one in line 6; it is not used; remove it",
    ),
    (
        "an unknown split",
        edit(0, "split", "validation"),
        "split-row",
        SPLIT,
        "found split 'validation' in line 2; correct the row",
    ),
    (
        "an empty label",
        edit(6, "label", ""),
        "split-row",
        SPLIT,
        "expected object, train or test, normal or a defect, image, mask, found label '' in line 8",
    ),
    (
        "a label that is no folder's name",
        edit(6, "label", "../x"),
        "split-row",
        SPLIT,
        "found label '../x' in line 8",
    ),
    (
        "an anomaly to train on",
        edit(6, "split", "train"),
        "split-row",
        SPLIT,
        "found a training image that is not normal in line 8",
    ),
    (
        "an anomaly without a mask",
        edit(7, "mask", ""),
        "split-row",
        SPLIT,
        "found an anomaly without a mask in line 9",
    ),
    (
        "a row without an image",
        edit(2, "image", ""),
        "split-row",
        SPLIT,
        "found no image in line 4",
    ),
    (
        "a path out of the root",
        edit(0, "image", "../../secret.png"),
        "path-outside",
        SPLIT,
        "expected paths below the root, found '../../secret.png' in line 2; correct the row",
    ),
    (
        "an absolute mask",
        edit(6, "mask", "/etc/hostname"),
        "path-outside",
        SPLIT,
        "found '/etc/hostname' in line 8",
    ),
    (
        "a mask of no defect",
        lambda root: Image.new("L", (48, 32)).save(root / f"{MASKS}/000.png"),
        "mask-empty",
        f"{MASKS}/000.png",
        "expected a defective pixel, found none",
    ),
    (
        "a mask of another size",
        lambda root: Image.new("L", (32, 48), 1).save(root / f"{MASKS}/000.png"),
        "mask-size",
        f"{MASKS}/000.png",
        "expected 48x32 as its image, found 32x48",
    ),
]


@pytest.mark.parametrize(
    ("do", "code", "path", "message"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_bad_input(visa: Path, cache: Path, do: Break, code: str, path: str, message: str) -> None:
    do(visa)
    found = scan(visa, cache)
    rows = [row for row in found.findings.to_pylist() if row["code"] == code]
    assert [row["path"] for row in rows] == [path], found.findings.to_pylist()
    text = "expected {expected}, found {found}; {remedy}".format(**rows[0])
    assert message in text
    assert text.isprintable()
    if KINDS[code].severity == "error":
        with pytest.raises(DatasetError):
            found.require("fail")
    assert scan(visa, cache, "quarantine").require("quarantine").manifest.num_rows >= 5


def test_another_defect_is_a_defect_type(visa: Path, cache: Path) -> None:
    """A label that is not known is somebody's own kind of defect, as a folder's name would be."""
    edit(6, "label", "burnt wick")(visa)
    found = scan(visa, cache).require("fail")
    assert set(found.manifest["defect_type"].to_pylist()) == {"good", "anomaly", "burnt wick"}


def test_a_mask_of_a_good_image_marks_nothing(visa: Path, cache: Path) -> None:
    edit(4, "mask", f"{MASKS}/000.png")(visa)
    rows = scan(visa, cache).manifest.to_pylist()
    assert [row["mask_path"] for row in rows if row["label"] == 0] == [None] * 6


@pytest.mark.parametrize(
    "correct",
    [edit(6, "label", "burnt wick"), edit(3, "split", "test"), edit(4, "label", "anomaly")],
    ids=["defect type", "split", "label"],
)
def test_a_corrected_row_makes_another_dataset(visa: Path, cache: Path, correct: Break) -> None:
    """Its images are the same: the table alone says what they are."""
    edit(8, "mask", "")(visa)  # nor does a mask
    before, again = scan(visa, cache), scan(visa, cache)
    correct(visa)
    after = scan(visa, cache)
    assert before.digest == again.digest != after.digest
    config = Config()
    addresses = [
        address_scores(config, Inputs(visa, found.manifest), "students/candle/0", "candle").key
        for found in (before, again, after)
    ]
    assert addresses[0] == addresses[1] != addresses[2]


def test_a_table_beside_the_categories_is_not_foreign(visa: Path, cache: Path) -> None:
    """Wherever the declaration says that it lies."""
    (visa / SPLIT).rename(visa / "split.csv")
    (visa / SPLIT).parent.rmdir()
    declaration = visa.parent / "own.toml"
    declaration.write_text(
        'title = "own"\nlayout = "split-file"\nsplit_file = "split.csv"\nmask_above = 0\n'
    )
    found = scan_dataset(visa, None, 32, cache, name=str(declaration))
    assert codes(found) == []


def test_a_category_that_lies_there_and_is_in_no_row(visa: Path, cache: Path) -> None:
    draw(visa / "cashew/Data/Images/Normal/000.JPG", 7)
    found = scan(visa, cache)
    assert codes(found) == ["foreign-file"]
    assert found.manifest["category"].unique().to_pylist() == ["candle"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"object,split,image\n",
            "expected the columns object,split,label,image,mask, found object",
        ),
        (b"", "expected the columns object,split,label,image,mask, found ; restore it from"),
        (b"\xff\xfe\x00", "cannot be read (not a CSV in UTF-8); restore it from the dataset's"),
        (b'object,split,label,image,mask\n"candle', "cannot be read (not a CSV in UTF-8)"),
    ],
)
def test_a_table_that_is_none(visa: Path, cache: Path, content: bytes, message: str) -> None:
    (visa / SPLIT).write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        scan(visa, cache)
    assert str(caught.value).startswith(f"split file {visa / SPLIT}")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
