import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from etstpm import reading
from etstpm.catalog import STPM_PUBLISHED, load_declaration
from etstpm.dataset import Dataset, image_files, scan_dataset
from etstpm.decoded import load_pixels
from etstpm.errors import ConfigError, DatasetError, EtstpmError
from etstpm.images import read_image
from etstpm.layouts.pairing import mask_path_of
from etstpm.masks import read_mask_facts
from etstpm.tables import FINDINGS, MANIFEST

SIZE = 32
DEFECT = "chipped"
IMAGE = f"flange/test/{DEFECT}/000.png"
MASK = f"flange/ground_truth/{DEFECT}/000_mask.png"


def scan(root: Path, cache: Path, *categories: str) -> Dataset:
    return scan_dataset(root, categories or None, SIZE, cache).require("fail")


def refusal(root: Path, cache: Path, *categories: str) -> str:
    with pytest.raises(DatasetError) as caught:
        scan(root, cache, *categories)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def codes(dataset: Dataset) -> list[tuple[str, str]]:
    return [(row["code"], row["path"]) for row in dataset.findings.to_pylist()]


def grey(path: Path, values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


# What is there


def test_a_whole_dataset_has_a_row_an_image_and_no_findings(drawn: Path, cache: Path) -> None:
    found = scan(drawn, cache)
    assert found.findings.num_rows == 0
    assert found.manifest.schema.equals(MANIFEST, check_metadata=True)
    assert found.findings.schema.equals(FINDINGS, check_metadata=True)
    rows = found.manifest.to_pylist()
    on_disk = [p for p in drawn.rglob("*.png") if "ground_truth" not in p.parts]
    assert sorted(row["image_path"] for row in rows) == sorted(
        path.relative_to(drawn).as_posix() for path in on_disk
    )
    for row in rows:
        facts, _ = read_image(drawn / row["image_path"], SIZE)
        assert row["image_sha256"] == facts.sha256
        assert (row["width"], row["height"], row["mode"]) == (64, 64, "RGB")
        assert (row["format"], row["mean"], row["contrast"]) == ("PNG", facts.mean, facts.contrast)
        assert row["mask_above"] == (127 if row["label"] else None)
        assert row["label"] == (row["defect_type"] != "good")
        assert (row["mask_path"] is not None) == (row["mask_sha256"] is not None) == row["label"]


def test_decoded_pixels_are_left_for_the_stages(
    drawn: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = scan(drawn, cache, "flange").manifest
    monkeypatch.setattr("etstpm.decoded.read_image", lambda *_: pytest.fail("decoded again"))
    for split in ("train", "test"):
        files = image_files(drawn, manifest, "flange", split)
        pixels = load_pixels(f"flange/{split}", files, SIZE, cache)
        for file, image in zip(files, pixels, strict=True):
            assert np.array_equal(image, read_image(file.path, SIZE)[1])


def test_training_images_never_lie_under_test(drawn: Path, cache: Path) -> None:
    manifest = scan(drawn, cache).manifest
    for category in ("biscuit", "fabric", "flange"):
        files = image_files(drawn, manifest, category, "train")
        expected = sorted((drawn / category / "train" / "good").iterdir())
        assert [file.path for file in files] == expected


def test_the_digest_is_of_contents_not_of_the_place(
    dataset: Path, drawn: Path, cache: Path
) -> None:
    digest = scan(drawn, cache).digest
    assert scan(dataset, cache).digest == digest
    (dataset / "flange/train/good/001.png").rename(dataset / "flange/train/good/009.png")
    renamed = scan(dataset, cache).digest
    shutil.copyfile(dataset / "flange/test/good/001.png", dataset / "flange/test/good/000.png")
    assert len({digest, renamed, scan(dataset, cache).digest}) == 3
    mask = np.zeros((64, 64), np.uint8)
    mask[3, 3] = 255
    before = scan(dataset, cache).digest
    grey(dataset / MASK, mask)
    assert scan(dataset, cache).digest != before


def test_categories_may_be_chosen(drawn: Path, cache: Path) -> None:
    manifest = scan(drawn, cache, "flange", "biscuit", "flange").manifest
    assert list(dict.fromkeys(manifest["category"].to_pylist())) == ["biscuit", "flange"]
    assert "fabric" in scan(drawn, cache).manifest["category"].to_pylist()


def test_a_mask_belongs_to_its_image_by_path() -> None:
    image = Path("/d/bottle/test/broken_large/003.jpeg")
    assert mask_path_of(image) == Path("/d/bottle/ground_truth/broken_large/003_mask.png")


def test_a_stray_file_shifts_no_mask(dataset: Path, cache: Path) -> None:
    folder = dataset / f"flange/test/{DEFECT}"
    masks = dataset / f"flange/ground_truth/{DEFECT}"
    shutil.copyfile(folder / "000.png", folder / "005.png")
    shutil.copyfile(masks / "000_mask.png", masks / "005_mask.png")
    for path in (masks / "000.txt", masks / "._000_mask.png", folder / ".DS_Store"):
        path.write_bytes(b"stray")
    (dataset / "flange/test/notes.txt").write_text("a worker's note")
    found = scan(dataset, cache, "flange")
    assert {code for code, _ in codes(found)} == {
        "duplicate",
        "foreign-file",
        "system-file",
    }
    assert len(codes(found)) == 5
    pairs = {row["image_path"]: row["mask_path"] for row in found.manifest.to_pylist()}
    assert pairs[IMAGE] == MASK
    assert pairs[f"flange/test/{DEFECT}/005.png"] == f"flange/ground_truth/{DEFECT}/005_mask.png"
    (masks / "004_mask.png").write_bytes((masks / "000_mask.png").read_bytes())
    assert f"{DEFECT}/004_mask.png: expected an image flange/test/{DEFECT}/004.png" in refusal(
        dataset, cache
    )


# What is wrong


def test_no_such_root_and_no_category(tmp_path: Path, drawn: Path, cache: Path) -> None:
    missing = tmp_path / "none"
    assert f"dataset {missing}: no such folder; give a root in MVTec AD layout" in refusal(
        missing, cache
    )
    (tmp_path / "empty" / ".hidden" / "train").mkdir(parents=True)
    message = refusal(tmp_path / "empty", cache)
    assert message.endswith("no category in it, expected CATEGORY/train/good/*.png; check the path")
    assert refusal(drawn / "flange", cache).endswith("give the folder above it")
    assert refusal(drawn / "readme.txt", cache).startswith(f"dataset {drawn}/readme.txt: no such")


def test_an_unknown_category_is_refused_with_those_there(drawn: Path, cache: Path) -> None:
    message = refusal(drawn, cache, "flange", "flnge")
    assert message == f"dataset {drawn}: no category 'flnge'; it holds biscuit, fabric, flange"


def test_a_category_named_as_the_mean_of_all_is_refused(dataset: Path, cache: Path) -> None:
    (dataset / "flange").rename(dataset / "mean")
    for policy in ("fail", "warn"):
        with pytest.raises(DatasetError) as caught:
            scan_dataset(dataset, None, 64, cache, on_finding=policy)
        assert str(caught.value) == (
            f"dataset {dataset}: a category is called 'mean', as the tables call what is averaged "
            "over all; rename its folder, or leave it out with CATEGORIES="
        )
    assert scan_dataset(dataset, ["fabric"], 64, cache).findings.num_rows == 0


def test_the_other_errors_are_counted(dataset: Path, cache: Path) -> None:
    for path in list((dataset / "flange/train/good").iterdir()):
        os.truncate(path, 100)
    (dataset / MASK).unlink()
    message = refusal(dataset, cache)
    assert IMAGE in message
    assert message.endswith("(5 more errors: 'etstpm data validate' lists them)")


def test_an_error_elsewhere_does_not_stop_the_chosen_categories(dataset: Path, cache: Path) -> None:
    (dataset / MASK).unlink()
    assert scan(dataset, cache, "fabric").manifest.num_rows > 0


def test_counts_are_compared_with_the_official_release(dataset: Path, cache: Path) -> None:
    (dataset / "flange").rename(dataset / "bottle")
    assert scan(dataset, cache, "bottle").findings.num_rows == 0  # with others it is one's own
    for name in ("biscuit", "fabric"):
        shutil.rmtree(dataset / name)
    (dataset / "sample.json").unlink()
    rows = scan(dataset, cache, "bottle").findings.to_pylist()
    assert [(row["path"], row["expected"].split()[0], row["found"]) for row in rows] == [
        ("bottle/train/good", "209", "4"),
        ("bottle/test/good", "20", "2"),
        ("bottle/test (defective)", "63", "3"),
    ]
    assert {row["severity"] for row in rows} == {"warning"}


def test_the_catalogue_adds_up_to_the_release() -> None:
    """3,629 train and 1,725 test images: Bergmann et al., CVPR 2019."""
    counts = load_declaration("mvtec_ad").categories.values()
    assert len(counts) == 15
    assert sum(count.train_good for count in counts) == 3629
    assert sum(count.test_good for count in counts) == 467
    assert sum(count.test_defective for count in counts) == 1258
    published = list(STPM_PUBLISHED.values())
    assert set(STPM_PUBLISHED) == set(load_declaration("mvtec_ad").categories)
    assert round(sum(row.image_auroc for row in published) / 15, 3) == 0.955
    assert round(sum(row.pixel_auroc for row in published) / 15, 3) == 0.970


def test_what_may_not_be_read_is_named(dataset: Path, cache: Path) -> None:
    locked = dataset / "flange" / "train" / "good"
    locked.chmod(0)
    dataset.parent.chmod(0o755)
    is_root = os.geteuid() == 0
    opened = [p for p in dataset.parents if p.is_relative_to(tempfile.gettempdir())]
    modes = {path: path.stat().st_mode for path in opened}
    try:
        if is_root:  # may read everything: be nobody for a moment
            for path in opened:
                path.chmod(0o755 if path != Path(tempfile.gettempdir()) else modes[path])
            cache.mkdir(mode=0o777)
            cache.chmod(0o777)
            os.seteuid(65534)
        message = refusal(dataset, cache, "flange")
    finally:
        if is_root:
            os.seteuid(0)
            for path, mode in modes.items():
                path.chmod(mode)
        locked.chmod(0o755)
    assert "flange/train/good: expected a folder that can be read, found Permission" in message


@pytest.mark.parametrize("locked", ["", "flange"])
def test_a_root_or_a_category_that_may_not_be_read_is_named(
    locked: str, dataset: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(dataset / locked)

    def refuse(
        function: Callable[..., Any], is_locked: Callable[[str], bool]
    ) -> Callable[..., Any]:
        def refusing(path: Any, *args: Any, **kwargs: Any) -> Any:
            if is_locked(str(path)):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return function(path, *args, **kwargs)

        return refusing

    # Root may read everything; so the system refuses as it would another user.
    monkeypatch.setattr("os.scandir", refuse(os.scandir, lambda path: path == folder))
    monkeypatch.setattr("os.listdir", refuse(os.listdir, lambda path: path == folder))
    stat = refuse(Path.stat, lambda path: str(Path(path).parent) == folder)
    monkeypatch.setattr(Path, "stat", stat)

    message = refusal(dataset, cache)

    assert message.startswith(f"dataset {dataset}: ")
    assert "cannot be read (Permission denied); check the path, and that this user may" in message


def test_a_cache_that_cannot_be_written_is_named(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written .*set ETSTPM_CACHE"):
        scan(drawn, tmp_path / "file")


# Scanning again


def decoded_files(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The images and masks that are decoded from now on."""
    seen: list[Path] = []

    def image(path: Path, size: int) -> object:
        seen.append(path)
        return read_image(path, size)

    def mask(path: Path, above: int) -> object:
        seen.append(path)
        return read_mask_facts(path, above)

    monkeypatch.setattr(reading, "read_image", image)
    monkeypatch.setattr(reading, "read_mask_facts", mask)
    return seen


def test_an_unchanged_dataset_is_not_decoded_again(
    dataset: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scan(dataset, cache)
    seen = decoded_files(monkeypatch)
    second = scan(dataset, cache)
    assert seen == []
    assert second.manifest.equals(first.manifest)
    assert second.digest == first.digest
    assert scan_dataset(dataset, None, 48, cache).digest == first.digest
    assert seen == []  # another size is decoded when its pixels are asked for


def test_ten_new_images_cost_ten_decodes_and_training_none(
    dataset: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(dataset, cache)
    folder = dataset / "flange/train/good"
    for number in range(10):
        noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"1{number:02}.png")
    seen = decoded_files(monkeypatch)
    manifest = scan(dataset, cache).manifest
    assert sorted(path.name for path in seen) == [f"1{number:02}.png" for number in range(10)]
    monkeypatch.setattr("etstpm.decoded.read_image", lambda *_: pytest.fail("decoded again"))
    files = image_files(dataset, manifest, "flange", "train")
    pixels = load_pixels("flange/train", files, SIZE, cache)
    assert len(pixels) == 14
    assert np.array_equal(pixels[-1], read_image(files[-1].path, SIZE)[1])


@pytest.mark.parametrize("name", ["flange/train/good/000.png", IMAGE, MASK])
def test_a_file_that_changed_is_decoded_again(dataset: Path, cache: Path, name: str) -> None:
    """Even where its size and its time say that it has not."""
    scan(dataset, cache)
    stat = (dataset / name).stat()
    (dataset / name).write_bytes(b"\x00" * stat.st_size)
    os.utime(dataset / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert name in refusal(dataset, cache)


def test_an_evicted_pixel_cache_costs_validation_nothing(
    drawn: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scan(drawn, cache)
    shutil.rmtree(cache / "decoded")
    seen = decoded_files(monkeypatch)
    assert scan(drawn, cache).digest == first.digest
    assert seen == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"version": 1, "files": 3}', b"\xff", b"long"]
)
def test_damaged_memories_are_forgotten(drawn: Path, cache: Path, content: bytes) -> None:
    first = scan(drawn, cache)
    for path in (cache / "facts").glob("*.json"):
        path.write_bytes(content)
    assert scan(drawn, cache).digest == first.digest


def test_a_file_that_vanished_behind_its_name_is_an_error(dataset: Path, cache: Path) -> None:
    scan(dataset, cache)
    path = dataset / "flange/train/good/000.png"
    path.unlink()
    path.symlink_to(dataset / "gone.png")
    assert "flange/train/good/000.png: expected a whole image file" in refusal(dataset, cache)


def test_a_file_that_changes_while_it_is_decoded_is_decoded_again(
    dataset: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = dataset / "flange/train/good/000.png"

    def overtaken(path: Path, size: int) -> object:
        result = read_image(path, size)
        if path == target:
            target.write_bytes((dataset / "flange/train/good/001.png").read_bytes())
        return result

    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_image", overtaken)
        stale = scan(dataset, cache)
    rows = {row["image_path"]: row for row in scan(dataset, cache).manifest.to_pylist()}
    first, second = (rows[f"flange/train/good/00{i}.png"] for i in range(2))
    assert first["image_sha256"] == second["image_sha256"]
    assert stale.digest != scan(dataset, cache).digest


def test_two_scans_at_once_agree(drawn: Path, cache: Path) -> None:
    together = threading.Barrier(2)
    digests: list[str] = []

    def work() -> None:
        together.wait()
        digests.append(scan(drawn, cache).digest)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 2
    assert len(set(digests)) == 1
    assert not [path for path in cache.rglob(".*") if path.is_file()]


# Whatever is there


@given(st.data())
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_tree_ends_in_a_dataset_or_an_error_with_a_remedy(
    drawn: Path, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        shutil.copytree(drawn / "flange", root / "flange")
        shutil.copytree(drawn / "fabric", root / "fabric")
        for _ in range(data.draw(st.integers(1, 4))):
            paths = sorted(root.rglob("*"))
            if paths:
                break_one(data, root, data.draw(st.sampled_from(paths)))
        for _ in range(2):
            try:
                found = scan(root, Path(folder) / "cache")
            except DatasetError as error:
                assert "; " in str(error)  # noqa: PT017 - a dataset is as good an end
                continue
            for row in found.manifest.to_pylist():
                assert (root / row["image_path"]).is_file()
                assert row["mask_path"] is None or (root / row["mask_path"]).is_file()
                assert row["split"] == "test" or "/train/good/" in row["image_path"]


def break_one(data: st.DataObject, root: Path, path: Path) -> None:
    kind = data.draw(
        st.sampled_from(["delete", "truncate", "rename", "foreign", "empty", "link", "flip"])
    )
    name = data.draw(
        st.sampled_from(["000.png", "000_mask.png", "x.JPG", "good", ".x", "ä.png", "test", "a b"])
    )
    target = path.with_name(name)
    is_folder = path.is_dir() and not path.is_symlink()
    # A link that leads nowhere, or to itself, does not exist and yet is in the way.
    is_free = not os.path.lexists(target)
    if kind == "delete":
        shutil.rmtree(path) if is_folder else path.unlink()
    elif kind == "rename" and is_free:
        path.rename(target)
    elif kind == "empty" and is_folder:
        shutil.rmtree(path)
        path.mkdir()
    elif kind == "foreign" and is_folder and not os.path.lexists(path / name):
        (path / name).write_bytes(data.draw(st.binary(max_size=64)))
    elif kind == "link" and is_free:
        target.symlink_to(data.draw(st.sampled_from(["nowhere", ".", "000.png", str(root)])))
    elif kind in {"truncate", "flip"} and path.is_file():
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, max(0, len(content) - 1)))
        if kind == "truncate":
            del content[place:]
        elif content:
            content[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)


# Real images


def test_the_real_root_has_exactly_its_known_gaps(real_data: Path, cache: Path) -> None:
    """All of its images and 321 masks, at a small size."""
    found = scan(real_data / "mvtec_ad", cache)
    assert [(row["severity"], row["path"], row["found"]) for row in found.findings.to_pylist()] == [
        ("warning", "capsule/test/good", "15"),
        ("warning", "toothbrush/test/good", "0"),
    ]
    assert found.findings["expected"].to_pylist() == [
        "23 images as in MVTec AD's release",
        "12 images as in MVTec AD's release",
    ]
    assert sum(path is not None for path in found.manifest["mask_path"].to_pylist()) == 321


def test_every_refusal_is_one_tree() -> None:
    assert issubclass(DatasetError, EtstpmError)
    assert DatasetError.exit_code == 2
