"""The table of bad input: what is done to a whole dataset, the code of its finding, its message."""

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from etstpm.dataset import Dataset, scan_dataset
from etstpm.errors import DatasetError
from etstpm.findings import KINDS

SIZE = 32
DEFECT = "chipped"
GOOD = "flange/train/good"
IMAGE = f"flange/test/{DEFECT}/000.png"
MASKS = f"flange/ground_truth/{DEFECT}"
MASK = f"{MASKS}/000_mask.png"

Break = Callable[[Path], object]


def scan(root: Path, cache: Path, on_finding: str = "fail", name: str | None = None) -> Dataset:
    return scan_dataset(root, None, SIZE, cache, name=name, on_finding=on_finding)


def picture(side: int = 64, mode: str = "RGB", seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def save(image: Image.Image, name: str, **options: object) -> Break:
    def do(root: Path) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        image.save(path, **options)  # type: ignore[arg-type]

    return do


def write(name: str, content: bytes) -> Break:
    def do(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    return do


def copy(source: str, target: str) -> Break:
    return lambda root: shutil.copyfile(root / source, root / target)


def remove(*names: str) -> Break:
    def do(root: Path) -> None:
        for name in names:
            shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()

    return do


def rename(name: str, other: str | bytes) -> Break:
    return lambda root: (root / name).rename(root / os.fsdecode(other))


def grey(values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Image.Image:
    return Image.fromarray(values)


def bomb() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def flip(name: str) -> Break:
    def do(root: Path) -> None:
        content = bytearray((root / name).read_bytes())
        content[len(content) // 2] ^= 1
        (root / name).write_bytes(content)

    return do


def not_a_file(root: Path) -> None:
    (root / GOOD / "000.png").unlink()
    os.mkfifo(root / GOOD / "000.png")


def sparse(root: Path) -> None:
    with (root / GOOD / "000.png").open("wb") as file:
        file.truncate(2**30 + 1)


def cut_jpeg(root: Path) -> None:
    picture().save(root / GOOD / "007.jpg")
    os.truncate(root / GOOD / "007.jpg", 1500)


def link_to_nowhere(root: Path) -> None:
    (root / GOOD / "000.png").unlink()
    (root / GOOD / "000.png").symlink_to("nowhere")


def link_in_a_circle(root: Path) -> None:
    (root / GOOD / "000.png").unlink()
    (root / GOOD / "000.png").symlink_to("000.png")


def turned() -> dict[str, object]:
    exif = Image.Exif()
    exif[274] = 6
    return {"exif": exif}


def see_through() -> Image.Image:
    image = picture()
    image.putalpha(grey(np.full((64, 64), 200, np.uint8)))
    return image


two_values = np.zeros((64, 64), np.uint8)
two_values[5:9, 5:9] = 200
defective = np.zeros((64, 64), np.uint8)
defective[5:9, 5:9] = 255

ERROR, WARNING = "error", "warning"

# input, severity, finding code, path, what its message says
TABLE: list[tuple[str, Break, str, str, str]] = [
    # one file
    (
        "empty file",
        write(f"{GOOD}/000.png", b""),
        "empty-file",
        f"{GOOD}/000.png",
        "expected a whole image file, found an empty file; restore the file from its source",
    ),
    (
        "text named .png",
        write(f"{GOOD}/000.png", b"<html>404 Not Found</html>"),
        "unknown-format",
        f"{GOOD}/000.png",
        "found neither PNG, JPEG, BMP nor TIFF",
    ),
    (
        "GIF named .png",
        save(picture(), f"{GOOD}/000.png", format="GIF"),
        "unknown-format",
        f"{GOOD}/000.png",
        "found neither PNG, JPEG, BMP nor TIFF",
    ),
    (
        "PNG cut off",
        lambda root: os.truncate(root / GOOD / "002.png", 900),
        "damaged-image",
        f"{GOOD}/002.png",
        "found a PNG that is cut off",
    ),
    (
        "one bit of a PNG flipped",
        flip(f"{GOOD}/001.png"),
        "damaged-image",
        f"{GOOD}/001.png",
        "found a PNG whose checksum at byte",
    ),
    (
        "JPEG cut off",
        cut_jpeg,
        "damaged-image",
        f"{GOOD}/007.jpg",
        "found image file is truncated",
    ),
    (
        "gigapixels in a kilobyte",
        write(f"{GOOD}/000.png", bomb()),
        "too-many-pixels",
        f"{GOOD}/000.png",
        "3600000000 pixels",
    ),
    ("more than a gibibyte", sparse, "too-large", f"{GOOD}/000.png", "found 1073741825 bytes"),
    (
        "32-bit float TIFF",
        save(
            Image.fromarray(np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)),
            f"{GOOD}/000.tiff",
        ),
        "too-many-bits",
        f"{GOOD}/000.tiff",
        "found 32-bit grey values",
    ),
    (
        "a pipe named .png",
        not_a_file,
        "not-a-file",
        f"{GOOD}/000.png",
        "found something else (folder, pipe or device)",
    ),
    (
        "a folder named .png",
        lambda root: (root / GOOD / "folder.png").mkdir(),
        "not-a-file",
        f"{GOOD}/folder.png",
        "expected an image file, found a folder",
    ),
    (
        "a link to nowhere",
        link_to_nowhere,
        "unreadable-image",
        f"{GOOD}/000.png",
        "found No such file or directory",
    ),
    (
        "a link in a circle",
        link_in_a_circle,
        "unreadable-image",
        f"{GOOD}/000.png",
        "found Too many levels of symbolic links",
    ),
    (
        "a link in a circle beside the categories",
        lambda root: (root / "000.png").symlink_to("000.png"),
        "foreign-file",
        "000.png",
        "expected categories",
    ),
    (
        "a name in Latin-1",
        rename(IMAGE, b"flange/test/good/\xe4.png"),
        "name-not-utf8",
        r"flange/test/good/\udce4.png",
        "expected a name in UTF-8, found other bytes; rename it",
    ),
    (
        "a line break in a name",
        rename(f"{GOOD}/000.png", f"{GOOD}/a\nb.png"),
        "name-control",
        rf"{GOOD}/a\nb.png",
        "expected a name in one line, found control codes; rename it",
    ),
    (
        "a terminal code in a folder's name",
        rename("flange", "fl\x1b[31mange"),
        "name-control",
        r"fl\x1b[31mange",
        "found control codes; rename it",
    ),
    (
        "JPEG named .png",
        save(picture(), f"{GOOD}/007.png", format="JPEG"),
        "format-mismatch",
        f"{GOOD}/007.png",
        "expected the format that .png names, found JPEG; rename the file",
    ),
    (
        "TIFF of two pages",
        save(picture(), f"{GOOD}/007.tiff", save_all=True, append_images=[picture(seed=1)]),
        "several-pictures",
        f"{GOOD}/007.tiff",
        "expected one picture, found several; the first is used",
    ),
    (
        "JPEG turned by EXIF",
        save(picture(), f"{GOOD}/007.jpg", **turned()),
        "turned-by-exif",
        f"{GOOD}/007.jpg",
        "found one that EXIF turns; it is used as stored",
    ),
    (
        "half transparent",
        save(see_through(), f"{GOOD}/007.png"),
        "transparent",
        f"{GOOD}/007.png",
        "expected opaque pixels, found transparent ones",
    ),
    (
        "black",
        save(Image.new("RGB", (64, 64)), f"{GOOD}/007.png"),
        "blank-image",
        f"{GOOD}/007.png",
        "expected a picture, found 0 everywhere; was the lamp off?",
    ),
    (
        "a thumbnail",
        save(picture(16), f"{GOOD}/007.png"),
        "small-image",
        f"{GOOD}/007.png",
        "expected sides of 32, found 16x16",
    ),
    # images beside each other
    (
        "a training image in test/good",
        copy(f"{GOOD}/000.png", "flange/test/good/007.png"),
        "leak",
        "flange/test/good/007.png",
        f"expected an image that training has not seen, found the same bytes as {GOOD}/000.png",
    ),
    (
        "a training image among the defects",
        lambda root: (
            copy(f"{GOOD}/000.png", f"flange/test/{DEFECT}/007.png")(root),
            copy(MASK, f"{MASKS}/007_mask.png")(root),
        ),
        "label-conflict",
        f"flange/test/{DEFECT}/007.png",
        f"expected good or defective, not both, found the same bytes as {GOOD}/000.png",
    ),
    (
        "a training image twice",
        copy(f"{GOOD}/000.png", f"{GOOD}/007.png"),
        "duplicate",
        f"{GOOD}/007.png",
        f"found the same bytes as {GOOD}/000.png; it counts twice; remove one",
    ),
    (
        "an image in two categories",
        copy(f"{GOOD}/000.png", "fabric/train/good/007.png"),
        "in-two-categories",
        f"{GOOD}/000.png",
        "found the same bytes in fabric; remove it from the wrong one",
    ),
    (
        "one grey image among colours",
        save(picture(mode="L"), f"{GOOD}/007.png"),
        "mixed-modes",
        f"{GOOD}/007.png",
        "expected RGB as most of flange, found L (9 of RGB, 1 of L)",
    ),
    (
        "one larger image",
        save(picture(96), f"{GOOD}/007.png"),
        "mixed-sizes",
        f"{GOOD}/007.png",
        "expected 64x64 as most of flange, found 96x96 (9 of 64x64, 1 of 96x96)",
    ),
    (
        "names that differ in case",
        save(picture(), f"{GOOD}/000.PNG"),
        "names-differ-in-case",
        f"{GOOD}/000.png",
        "expected a name of its own, found '000.PNG' beside it; rename one",
    ),
    (
        "a name with an umlaut",
        save(picture(), f"{GOOD}/prüfling.png"),
        "name-not-ascii",
        f"{GOOD}/prüfling.png",
        "expected names in ASCII, found 1 other name",
    ),
    # masks
    (
        "a mask that is gone",
        remove(MASK),
        "image-without-mask",
        IMAGE,
        f"expected a mask at {MASK}, found none; restore the mask, or remove the image",
    ),
    (
        "a mask too many",
        copy(MASK, f"{MASKS}/004_mask.png"),
        "mask-without-image",
        f"{MASKS}/004_mask.png",
        f"expected an image flange/test/{DEFECT}/004.png, found none; restore the image",
    ),
    (
        "two masks of one image",
        save(grey(defective), f"{MASKS}/000.bmp"),
        "two-masks",
        IMAGE,
        "expected one mask, found 000.bmp and 000_mask.png; remove the wrong one",
    ),
    (
        "two images of one mask",
        save(picture(), f"flange/test/{DEFECT}/000.tif"),
        "same-stem",
        f"flange/test/{DEFECT}/000.tif",
        f"expected one image for each mask, found {IMAGE} beside it",
    ),
    (
        "a mask cut off",
        lambda root: os.truncate(root / MASK, 60),
        "unreadable-mask",
        MASK,
        "expected a whole image file, found a PNG that is cut off",
    ),
    ("an empty mask file", write(MASK, b""), "unreadable-mask", MASK, "found an empty file"),
    (
        "a mask of another size",
        save(grey(np.full((64, 32), 255, np.uint8)), MASK),
        "mask-size",
        MASK,
        "expected 64x64 as its image, found 32x64; restore the mask that belongs",
    ),
    (
        "a mask without a defect",
        save(grey(np.ones((64, 64), np.uint8)), MASK),
        "mask-empty",
        MASK,
        "expected a defective pixel, found none; restore the mask, or move the image",
    ),
    (
        "a mask that is all defect",
        save(grey(np.full((64, 64), 255, np.uint8)), MASK),
        "mask-full",
        MASK,
        "expected a good pixel, found none",
    ),
    (
        "a mask with other grey values",
        save(grey(two_values), MASK),
        "mask-not-binary",
        MASK,
        "expected 0 and 255, found other values; above 127 is defective",
    ),
    (
        "masks of good images",
        save(grey(defective), "flange/ground_truth/good/000_mask.png"),
        "mask-of-good",
        "flange/ground_truth/good",
        "expected no masks of good images",
    ),
    (
        "no masks at all",
        lambda root: shutil.rmtree(root / "flange/ground_truth"),
        "no-masks",
        "flange/ground_truth",
        "expected masks of the defective images, found none; pixel metrics will be null",
    ),
    # categories
    (
        "no training images",
        lambda root: shutil.rmtree(root / GOOD),
        "no-train-good",
        GOOD,
        "expected at least 2 good training images, found 0; add them, or leave the category out",
    ),
    (
        "one training image",
        remove(*(f"{GOOD}/00{i}.png" for i in range(3))),
        "no-train-good",
        GOOD,
        "expected at least 2 good training images, found 1",
    ),
    (
        "no test images",
        remove("flange/test", "flange/ground_truth"),
        "no-test",
        "flange/test",
        "expected test images, found none; add them, or leave it out",
    ),
    (
        "a defect named all",
        rename(f"flange/test/{DEFECT}", "flange/test/all"),
        "reserved-name",
        "flange/test/all",
        "expected another name, found 'all'; rename the folder, and that of its masks",
    ),
    (
        "no good test images",
        lambda root: shutil.rmtree(root / "flange/test/good"),
        "one-class",
        "flange/test",
        "expected good test images, found none; AUROC is not defined without them",
    ),
    # the tree
    (
        "Thumbs.db",
        write(f"{GOOD}/Thumbs.db", b"x"),
        "system-file",
        f"{GOOD}/Thumbs.db",
        "expected images only, found a file of the operating system; it is not used; remove it",
    ),
    (
        "desktop.ini",
        write("flange/desktop.ini", b"x"),
        "system-file",
        "flange/desktop.ini",
        "found a file of the operating system",
    ),
    (
        "._000.png",
        write(f"{MASKS}/._000_mask.png", b"x"),
        "system-file",
        f"{MASKS}/._000_mask.png",
        "found a file of the operating system",
    ),
    (
        ".ipynb_checkpoints",
        lambda root: shutil.copytree(root / GOOD, root / GOOD / ".ipynb_checkpoints"),
        "system-file",
        f"{GOOD}/.ipynb_checkpoints",
        "expected images only, found a folder",
    ),
    (
        "a worker's note",
        write("flange/test/notes.txt", b"x"),
        "foreign-file",
        "flange/test/notes.txt",
        "expected folders of images, found another file; it is not used; remove it",
    ),
    (
        "a folder in a folder of images",
        save(picture(), f"{GOOD}/more/000.png"),
        "foreign-file",
        f"{GOOD}/more",
        "expected images only, found a folder",
    ),
    (
        "a validation split",
        save(picture(), "flange/validation/good/000.png"),
        "foreign-file",
        "flange/validation",
        "expected train, test and ground_truth, found another folder",
    ),
    (
        "a folder beside the categories",
        write("scripts/run.py", b"x"),
        "foreign-file",
        "scripts",
        "expected categories, found something else",
    ),
    (
        "an image beside train/good",
        save(picture(), "flange/train/000.png"),
        "misplaced-image",
        "flange/train/000.png",
        "found an image beside them; it is not used; move it into the folder it belongs to",
    ),
    (
        "train/bad",
        save(picture(), "flange/train/bad/000.png"),
        "train-not-good",
        "flange/train/bad",
        "expected train/good alone, found another training folder; it is not used",
    ),
    (
        "a defect type without images",
        lambda root: (root / "flange/test/crack").mkdir(),
        "empty-folder",
        "flange/test/crack",
        "expected images of this defect type, found none",
    ),
    (
        "a damaged marker",
        write(".etstpm-dataset.json", b"{"),
        "marker-damaged",
        ".etstpm-dataset.json",
        "expected what 'etstpm data fetch' has written, found something else",
    ),
]


@pytest.mark.parametrize(
    ("do", "code", "path", "message"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_bad_input(
    dataset: Path, cache: Path, do: Break, code: str, path: str, message: str
) -> None:
    assert scan(dataset, cache).findings.num_rows == 0
    do(dataset)
    found = scan(dataset, cache)
    rows = [row for row in found.findings.to_pylist() if (row["code"], row["path"]) == (code, path)]
    assert len(rows) == 1, found.findings.to_pylist()
    (row,) = rows
    text = "expected {expected}, found {found}; {remedy}".format(**row)
    assert message in text
    assert text.isprintable()
    assert row["severity"] == KINDS[code].severity
    others = {row["severity"] for row in found.findings.to_pylist()}
    if "error" in others:
        with pytest.raises(DatasetError) as caught:
            found.require("fail")
        assert str(caught.value).isprintable()
        assert str(caught.value).startswith(f"{dataset}: ")
    else:
        assert found.require("fail") is found
    # Whatever it is, the others go on.
    assert {"biscuit"} <= set(
        scan(dataset, cache, "quarantine").require("quarantine").manifest["category"].to_pylist()
    )


def test_the_table_is_long_enough() -> None:
    """At least forty kinds of bad input, told apart by what is done, and many codes."""
    assert len({row[0] for row in TABLE}) >= 40
    assert len({row[2] for row in TABLE}) >= 40
