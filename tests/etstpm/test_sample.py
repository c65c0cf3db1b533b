from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from etstpm import sample
from etstpm.errors import DatasetError
from etstpm.sample import CATEGORIES, Shot, defect_types, draw_sample, draw_shot, render

SMALL = {"image_size": 64, "train": 2, "test_good": 1, "per_defect": 2}
DEFECTIVE = [(category, defect) for category in CATEGORIES for defect in defect_types(category)]


def draw_small(root: Path, seed: int = 0) -> None:
    draw_sample(root, seed=seed, image_size=64, train=2, test_good=1, per_defect=2)


def hashes(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample") / "new" / "drawn"
    draw_small(root)
    return root


def test_layout_is_that_of_mvtec(small: Path) -> None:
    expected = {"readme.txt", "sample.json"}
    for category in CATEGORIES:
        expected |= {f"{category}/train/good/00{index}.png" for index in range(2)}
        expected.add(f"{category}/test/good/000.png")
        for defect in defect_types(category):
            expected |= {f"{category}/test/{defect}/00{index}.png" for index in range(2)}
            masks = f"{category}/ground_truth/{defect}"
            expected |= {f"{masks}/00{index}_mask.png" for index in range(2)}
    assert set(hashes(small)) == expected
    assert "CC0" in (small / "readme.txt").read_text(encoding="utf-8")


def test_three_categories_have_three_defect_types_each() -> None:
    assert len(CATEGORIES) == 3
    assert all(len(set(defect_types(category))) == 3 for category in CATEGORIES)


def test_images_are_rgb_and_masks_grey(small: Path) -> None:
    for path in small.rglob("*.png"):
        with Image.open(path) as image:
            assert image.size == (64, 64)
            is_mask = "ground_truth" in path.parts
            assert image.mode == ("L" if is_mask else "RGB")
            if is_mask:
                assert set(np.unique(np.asarray(image))) == {0, 255}


def test_the_same_seed_gives_the_same_bytes_in_another_process(small: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, etstpm.sample; etstpm.sample.draw_sample("
        "pathlib.Path(sys.argv[1]), image_size=64, train=2, test_good=1, per_defect=2)"
    )
    again = tmp_path / "again"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(again)], check=True, env=environment)
    assert hashes(again) == hashes(small)


def test_another_seed_changes_every_picture(small: Path, tmp_path: Path) -> None:
    draw_small(tmp_path / "other", seed=1)
    ours, theirs = hashes(small), hashes(tmp_path / "other")
    assert all(ours[name] != theirs[name] for name in ours if name != "readme.txt")


def test_a_picture_depends_on_its_name_only(small: Path) -> None:
    category, defect = DEFECTIVE[0]
    shot = Shot(category, "test", defect, 1)
    picture, mask = draw_shot(shot, image_size=64)
    assert np.array_equal(picture, np.asarray(Image.open(small / shot.image_path)))
    assert np.array_equal(mask, np.asarray(Image.open(small / shot.mask_path)))


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_two_good_pictures_are_alike_and_all_are_of_one_kind(category: str) -> None:
    names = [("train", index) for index in range(6)] + [("test", index) for index in range(6)]
    pictures = [
        draw_shot(Shot(category, split, "good", index), image_size=64)[0].astype(float)
        for split, index in names
    ]
    assert all(np.abs(one - other).mean() > 1.0 for one, other in pairwise(pictures))
    means = [picture.mean() for picture in pictures]
    assert abs(np.mean(means[:6]) - np.mean(means[6:])) < 10.0
    assert all((picture == 255).mean() < 0.002 for picture in pictures), "clipped light hides flaws"


@pytest.mark.parametrize(("category", "defect"), DEFECTIVE)
@pytest.mark.parametrize("image_size", [64, 256])
def test_the_mask_is_exactly_what_the_defect_changed(
    category: str, defect: str, image_size: int
) -> None:
    for index in range(2):
        shot = Shot(category, "test", defect, index)
        picture, mask = draw_shot(shot, image_size=image_size)
        twin = render(shot, seed=0, image_size=image_size, defect="good")
        assert np.array_equal(mask == 255, (picture != twin).any(axis=-1))
        assert 0.001 < (mask == 255).mean() < 0.12


@pytest.mark.parametrize(("category", "defect"), DEFECTIVE)
def test_no_defect_is_ever_invisible(category: str, defect: str) -> None:
    """Over many seeds: some 30 pixels change by far more than the camera's grain (2.6 levels)."""
    for seed in range(12):
        shot = Shot(category, "test", defect, seed % 3)
        picture, _ = draw_shot(shot, seed=seed, image_size=128)
        twin = render(shot, seed=seed, image_size=128, defect="good")
        change = np.abs(picture.astype(int) - twin).max(axis=-1)
        assert (change > 25).sum() >= 30


def test_a_good_picture_has_an_empty_mask() -> None:
    _, mask = draw_shot(Shot("flange", "test", "good", 0), image_size=64)
    assert not mask.any()


def test_a_whole_sample_is_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_small(tmp_path / "s")

    def forbidden(*_: object) -> None:
        raise AssertionError("drew again")

    monkeypatch.setattr(sample, "_write_shot", forbidden)
    draw_small(tmp_path / "s")


@pytest.mark.parametrize("change", [{"seed": 3}, {"image_size": 96}, {"per_defect": 1}])
def test_a_sample_of_other_parameters_is_refused(small: Path, change: dict[str, int]) -> None:
    before = hashes(small)
    with pytest.raises(DatasetError, match=r"expected .*; found its sample.json says .*; move"):
        draw_sample(small, **{**SMALL, **change})
    assert hashes(small) == before


def test_a_sample_of_another_version_is_refused(tmp_path: Path) -> None:
    draw_small(tmp_path / "s")
    marker = tmp_path / "s" / "sample.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "version": 0}))
    with pytest.raises(DatasetError, match=re.escape(str(tmp_path / "s"))):
        draw_small(tmp_path / "s")


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    with pytest.raises(DatasetError, match=r"no readable sample.json"):
        draw_small(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="will not draw into"):
        draw_small(tmp_path / "file")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "s", tmp_path / ("x" * 300)):
        with pytest.raises(DatasetError, match=r"^sample: .* cannot be written \(.*choose another"):
            draw_small(place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    draw_small(tmp_path / "empty")
    assert (tmp_path / "empty" / "sample.json").is_file()


def test_what_a_killed_run_left_does_not_block(tmp_path: Path) -> None:
    dead, young = tmp_path / ".s.partial-dead", tmp_path / ".s.partial-young"
    for folder in (dead, young):
        (folder / "flange").mkdir(parents=True)
    long_ago = time.time() - 2 * sample.STALE_SECONDS
    os.utime(dead, (long_ago, long_ago))
    draw_small(tmp_path / "s")
    assert {path.name for path in tmp_path.iterdir()} == {"s", young.name}


def test_a_failing_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample, "_put_in_place", full)
    with pytest.raises(DatasetError, match=r"cannot be written.*No space left"):
        draw_small(tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_two_runs_at_once_end_in_one_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run finishes between our start and our rename; its sample is as good as ours."""
    root, place = tmp_path / "s", sample._put_in_place

    def other_first(unfinished: Path, target: Path, card: dict[str, int]) -> None:
        monkeypatch.setattr(sample, "_put_in_place", place)
        draw_small(root)
        place(unfinished, target, card)

    monkeypatch.setattr(sample, "_put_in_place", other_first)
    draw_small(root)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"image_size": 32}, {"train": 0}])
def test_parameters_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(DatasetError, match="expected seed >= 0"):
        draw_sample(tmp_path / "s", **{**SMALL, **wrong})
    assert not list(tmp_path.iterdir())
