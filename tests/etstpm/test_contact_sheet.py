"""`etstpm data show`: one page or picture of a category, whatever its folder is called."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from etstpm.contact_sheet import draw_category
from etstpm.dataset import scan_dataset
from tests.chromium import DESKTOP, PHONE, Visit, assert_accessible, chromium


def draw(root: Path, cache: Path, category: str, path: Path) -> None:
    dataset = scan_dataset(root, [category], 256, cache, on_finding="warn")
    draw_category(dataset, category, path, images=3)


def test_the_page_has_counts_pictures_outlines_and_findings(dataset: Path, cache: Path) -> None:
    (dataset / "flange/train/good/Thumbs.db").write_bytes(b"x")
    page = dataset.parent / "flange.html"
    draw(dataset, cache, "flange", page)
    text = page.read_text("utf-8")
    assert "<th scope=row>train/good</th><td class=number>4</td><td class=number>64x64" in text
    assert text.count("<figure>") == 3 + 2 + 3  # three of four, both good ones, three defects
    assert "flange/train/good/Thumbs.db" in text
    assert "it is not used; remove it" in text
    assert not re.search(r"(src|href)=['\"]?(?!data:)", text)  # nothing is loaded
    assert "default-src 'none'" in text


def test_a_hostile_name_is_no_html(dataset: Path, cache: Path) -> None:
    name = "<img src=x onerror=alert(1)>&'\""
    (dataset / "flange").rename(dataset / name)
    page = dataset.parent / "page.html"
    draw(dataset, cache, name, page)
    text = page.read_text("utf-8")
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_axe_finds_nothing_and_nothing_is_cut_off(dataset: Path, cache: Path) -> None:
    (dataset / "flange/train/good/Thumbs.db").write_bytes(b"x")
    page = dataset.parent / "flange.html"
    draw(dataset, cache, "flange", page)
    with chromium() as browser:
        for size, scheme in ((DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light")):
            visit = Visit(browser, page, size, scheme)
            assert_accessible(visit.page)
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= size[0]
            visit.close()


def test_the_picture_shows_the_images(dataset: Path, cache: Path) -> None:
    for name in ("test", "ground_truth"):
        shutil.rmtree(dataset / "flange" / name / "chipped")
    path = dataset.parent / "flange.png"
    draw(dataset, cache, "flange", path)
    with Image.open(path) as sheet:
        values = np.asarray(sheet)
    assert sheet.width == 6 * 204 + 12
    assert (values != 255).any(axis=2).mean() > 0.1


@pytest.mark.parametrize("is_gone", [False, True])
def test_an_image_that_cannot_be_read_is_a_finding(
    dataset: Path, cache: Path, is_gone: bool
) -> None:
    image = dataset / "flange/test/good/000.png"
    found = scan_dataset(dataset, ["flange"], 256, cache, on_finding="warn")
    image.unlink() if is_gone else image.write_bytes(b"x")
    if not is_gone:
        found = scan_dataset(dataset, ["flange"], 256, cache, on_finding="warn")
    page = dataset.parent / "page.html"
    draw_category(found, "flange", page)
    text = page.read_text("utf-8")
    assert ("neither PNG, JPEG, BMP nor TIFF" in text) != is_gone
