"""New images with a published student: the pipeline's scores to the bit, faults, what is left."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from etstpm.errors import DatasetError, StorageError
from etstpm.images import Pixels
from etstpm.inference.detector import Detector, load_detector
from etstpm.inference.new_images import Heatmaps, NewScores, default_place, score_new
from etstpm.inference.source import ImageSource
from etstpm.scoring import ScoredImages
from etstpm.storage import Store, file_sha256
from etstpm.tables import IMAGE_SCORES
from tests.s3_server import S3
from tests.trained import CATEGORY, Published

FACTS = ("image_sha256", "width", "height", "threshold", "student_digest", "teacher_digest")


@pytest.fixture
def detector(published: Published) -> Detector:
    return load_detector(Store(str(published.store)), "latest", CATEGORY)


def score(
    detector: Detector, images: Path | str, to: Path | str, heatmaps: Heatmaps = "none"
) -> tuple[NewScores, list[dict[str, Any]]]:
    result = score_new(detector, ImageSource(str(images)), str(to), heatmaps=heatmaps)
    assert result.place == str(to)
    rows: list[dict[str, Any]] = pq.read_table(result.table, partitioning=None).to_pylist()
    return result, rows


@pytest.mark.parametrize("run", ["product", "quantile-sum"])
def test_scores_are_the_pipelines_to_the_bit(
    run: str, published: Published, tmp_path: Path
) -> None:
    table = published.store / "tables/image_scores" / f"run_id={run}" / "image_scores.parquet"
    expected = pq.read_table(table, partitioning=None).to_pylist()
    detector = load_detector(Store(str(published.store)), run, CATEGORY)

    result, rows = score(detector, published.root / CATEGORY / "test", tmp_path / "out")

    assert len(rows) == len(expected) == 5
    for row, other in zip(rows, expected, strict=True):
        assert f"{CATEGORY}/test/{row['image_path']}" == other["image_path"]
        assert row["score"] == other["score"]
        assert row["predicted"] == other["predicted"]
        assert [row[name] for name in FACTS] == [other[name] for name in FACTS]
        assert (row["split"], row["label"], row["defect_type"]) == ("new", None, None)
        assert (row["run_id"], row["category"], row["fault"]) == (run, CATEGORY, None)
    assert (result.scored, result.faults) == (5, 0)
    assert result.defective == sum(row["predicted"] for row in rows)
    assert result.highest[0][0] == max(row["score"] for row in rows)
    assert pq.read_schema(result.table).equals(IMAGE_SCORES, check_metadata=True)


def test_a_bad_image_is_a_row_with_its_fault(
    detector: Detector, published: Published, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(published.root / CATEGORY / "test" / "good", images)
    whole = sorted(images.iterdir())[0].read_bytes()
    hostile = "<img src=x onerror=alert(1)>'; drop table.png"
    (images / hostile).write_bytes(whole)
    for number in range(3):
        (images / f"0{number}-cut.png").write_bytes(whole[:100])

    result, rows = score(detector, images, tmp_path / "out", "all")

    assert [row["image_path"] for row in rows] == sorted(p.name for p in images.iterdir())
    bad = [row for row in rows if row["fault"] is not None]
    assert [row["image_path"] for row in bad] == [f"0{number}-cut.png" for number in range(3)]
    for row in bad:
        assert row["fault"].startswith("not a whole image")
        assert {row[name] for name in ("score", "predicted", "width", "image_sha256")} == {None}
    assert (result.scored, result.faults, len(result.first_faults)) == (3, 3, 3)
    assert hostile in {row["image_path"] for row in rows}
    summary = json.loads((tmp_path / "out" / "score.json").read_text())
    assert (summary["scored"], summary["faults"]) == (3, 3)
    assert summary["drift"]["verdict"] == "too few"
    table = tmp_path / "out" / "image_scores.parquet"
    assert summary["files"][table.name]["sha256"] == file_sha256(table)


def test_heatmaps_are_kept_of_those_asked_for_by_the_files_hash(
    detector: Detector, published: Published, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(published.root / CATEGORY / "test", images)
    shutil.copytree(published.root / CATEGORY / "train" / "good", images / "train")
    kept = {}
    choices: tuple[Heatmaps, ...] = ("none", "defective", "all")
    for heatmaps in choices:
        _, rows = score(detector, images, tmp_path / heatmaps, heatmaps)
        kept[heatmaps] = {p.stem for p in (tmp_path / heatmaps / "heatmaps").glob("*.png")}

    assert kept["none"] == set()
    assert kept["defective"] == {row["image_sha256"] for row in rows if row["predicted"]}
    assert kept["all"] == {row["image_sha256"] for row in rows}
    assert kept["defective"] < kept["all"]
    with Image.open(tmp_path / "all" / "heatmaps" / f"{rows[0]['image_sha256']}.png") as picture:
        assert picture.size == (64, 64)


def test_nothing_shows_before_it_is_whole(
    detector: Detector, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "out"
    seen = []

    def watch(self: Detector, pixels: Pixels) -> ScoredImages:
        seen.append(list(to.rglob("*")))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(self, pixels)

    original = Detector.score
    monkeypatch.setattr(Detector, "score", watch)
    with pytest.raises(KeyboardInterrupt):
        score(detector, published.root / CATEGORY / "test", to)

    assert seen == [[], [], []]
    assert not to.exists()


def test_a_bucket_is_scored_and_written_as_a_folder_is(
    detector: Detector, published: Published, s3: S3, tmp_path: Path
) -> None:
    images = published.root / CATEGORY / "test"
    store = Store(f"{s3.uri}/images")
    for path in images.rglob("*.png"):
        store.put_file(path, path.relative_to(images).as_posix())
    _, expected = score(detector, images, tmp_path / "out")

    result = score_new(
        detector, ImageSource(f"{s3.uri}/images"), f"{s3.uri}/scored", heatmaps="all"
    )

    assert result.scored == 5
    target = Store(f"{s3.uri}/scored")
    with target.fs.open(target.path("image_scores.parquet")) as file:
        rows = pq.read_table(file).to_pylist()
    assert [(row["image_path"], row["score"]) for row in rows] == [
        (row["image_path"], row["score"]) for row in expected
    ]
    assert len(target.fs.find(target.path("heatmaps"))) == 5
    with pytest.raises(StorageError, match="holds scores already"):
        score_new(detector, ImageSource(f"{s3.uri}/images"), f"{s3.uri}/scored")


def files_below(folder: Path) -> Iterator[tuple[Path, bytes]]:
    return ((path, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("empty", DatasetError, "no image in it"),
        ("bad", DatasetError, "none of 2 can be scored, the first being 0.png (not a whole image"),
        ("full", StorageError, "holds scores already (image_scores.parquet)"),
        ("inside", StorageError, "lies inside the images"),
        ("file", StorageError, "failed (NotADirectoryError"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_everything_as_it_was(
    name: str,
    error: type[Exception],
    message: str,
    detector: Detector,
    published: Published,
    tmp_path: Path,
) -> None:
    images, to = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for number in range(2):
        (images / f"{number}.png").write_bytes(b"" if name == "empty" else b"no image")
    if name == "empty":
        shutil.rmtree(images)
        (images / "deeper").mkdir(parents=True)
        (images / "deeper" / "notes.txt").write_text("x")
    if name in {"full", "inside"}:
        shutil.copytree(published.root / CATEGORY / "test" / "good", images, dirs_exist_ok=True)
    if name == "full":
        to.mkdir()
        (to / "image_scores.parquet").write_bytes(b"of yesterday")
    if name == "inside":
        to = images / "scores"
    if name == "file":
        to.write_text("x")
        to = to / "deeper"
    before = list(files_below(tmp_path))

    with pytest.raises(error) as raised:
        score_new(detector, ImageSource(str(images)), str(to))

    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(files_below(tmp_path)) == before


def test_the_default_place_is_new_each_time(published: Published) -> None:
    store = Store(str(published.store))
    places = {default_place(store, CATEGORY) for _ in range(3)}
    assert len(places) == 3
    assert all(place.startswith(f"{published.store}/scored/{CATEGORY}/") for place in places)
