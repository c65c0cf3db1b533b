"""The report in a real Chromium: sorted, filtered, its gallery clicked, read by axe."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from etstpm.report import write_report
from etstpm.storage import Store
from tests.chromium import DESKTOP, PHONE, Visit, assert_accessible, chromium
from tests.etstpm.report.conftest import HOSTILE, SCRIPT, run_id

ROC = re.compile("^ROC")
ROWS = "#table tbody tr:visible th"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def file(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written report."""
    path = tmp_path_factory.mktemp("browser") / "index.html"
    write_report(store, run_id(2), path)
    return path


@pytest.fixture
def visit(browser: Browser, file: Path) -> Iterator[Visit]:
    visit = Visit(browser, file)
    yield visit
    visit.close()


def test_a_click_sorts_and_another_turns_it_round(visit: Visit) -> None:
    page, rows = visit.page, visit.page.locator(ROWS)
    header = page.locator("#table th", has_text="Category").first
    for order in ("ascending", "descending"):
        header.get_by_role("button").click()
        expect(header).to_have_attribute("aria-sort", order)
        expected = [HOSTILE, "biscuit"]
        assert rows.all_inner_texts() == (expected if order == "ascending" else expected[::-1])
    page.get_by_role("button", name="Pixel AUROC").click()
    expect(header).to_have_attribute("aria-sort", "none")
    values = page.locator("#table tbody tr").evaluate_all(
        "rows => rows.map(row => Number(row.cells[5].dataset.v))"
    )
    assert values == sorted(values)


def test_the_table_filters_by_name_and_by_state(visit: Visit) -> None:
    page, rows = visit.page, visit.page.locator(ROWS)
    page.get_by_role("searchbox").fill("ONERROR=")
    assert rows.all_inner_texts() == [HOSTILE]
    expect(page.locator("#shown")).to_have_text("1 of 2")
    page.get_by_role("searchbox").fill("")
    page.locator("#show").select_option("failed")
    assert rows.count() == 0
    page.locator("#show").select_option("")
    assert rows.count() == 2


def test_a_gallery_fills_when_it_is_near_and_shows_what_is_asked(visit: Visit) -> None:
    page = visit.page
    gallery = page.locator(".gallery").first
    gallery.scroll_into_view_if_needed()
    cards = gallery.locator(".card")
    expect(cards).to_have_count(5)
    widths = gallery.locator("img.image").evaluate_all(
        "images => Promise.all(images.map(i => i.decode().then(() => i.naturalWidth)))"
    )
    assert min(widths) > 50
    gallery.locator(".by-type").select_option("<")
    expect(cards).to_have_count(1)
    assert SCRIPT in (cards.first.get_attribute("aria-label") or "")
    heat = gallery.locator("img.heat")
    expect(heat).to_be_visible()
    gallery.get_by_label("heat").uncheck()
    expect(heat).to_be_hidden()
    gallery.locator(".by-type").select_option("")
    gallery.locator(".by-error").select_option("right")
    right = cards.count()
    gallery.locator(".by-error").select_option("missed")
    missed = cards.count()
    gallery.locator(".by-error").select_option("alarm")
    assert right + missed + cards.count() == 5


def test_a_picture_opens_large_and_the_keyboard_turns_pages(visit: Visit) -> None:
    page = visit.page
    gallery = page.locator(".gallery").first
    gallery.scroll_into_view_if_needed()
    gallery.locator(".card").first.press("Enter")
    viewer, title = page.locator("#viewer"), page.locator("#viewer-title")
    expect(viewer).to_be_visible()
    expect(page.locator("#previous")).to_be_disabled()
    first = title.inner_text()
    page.keyboard.press("ArrowRight")
    expect(title).not_to_have_text(first)
    assert HOSTILE in title.inner_text()
    expect(page.locator(".viewer-note")).to_contain_text("2 of 5")
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()


def test_charts_answer_pointer_and_keyboard(visit: Visit) -> None:
    page = visit.page
    chart = page.get_by_role("img", name=ROC).first
    chart.scroll_into_view_if_needed()
    chart.hover()
    tip = page.locator("#tip")
    expect(tip).to_contain_text(":")
    page.mouse.move(0, 0)
    expect(tip).to_be_hidden()
    chart.focus()
    page.keyboard.press("ArrowRight")
    before = tip.inner_text()
    page.keyboard.press("ArrowRight")
    expect(tip).not_to_have_text(before)
    page.get_by_text("As a table: ROC").first.click()
    expect(page.get_by_role("region", name="ROC, as a table").first).to_be_visible()


@pytest.mark.parametrize(
    ("size", "scheme"), [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light")], ids=str
)
def test_axe_finds_nothing_and_nothing_is_cut_off(
    browser: Browser, file: Path, size: tuple[int, int], scheme: str
) -> None:
    visit = Visit(browser, file, size, scheme)
    for gallery in visit.page.locator(".gallery").all():
        gallery.scroll_into_view_if_needed()
        expect(gallery.locator(".card").first).to_be_visible()
    assert_accessible(visit.page)
    visit.page.locator(".card").first.click()
    assert_accessible(visit.page, "#viewer")
    width = visit.page.evaluate("document.documentElement.scrollWidth")
    assert width <= size[0]
    visit.close()


def test_it_is_readable_without_scripts(browser: Browser, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator(ROWS).all_inner_texts() == [HOSTILE, "biscuit"]
    expect(page.get_by_role("img", name=ROC).first).to_be_visible()
    context.close()


def test_a_script_that_is_not_its_own_does_not_run(
    browser: Browser, file: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "index.html"
    page = file.read_text("utf-8")
    changed.write_text(page.replace("</main>", "<script>alert(1)</script></main>"), "utf-8")
    visit = Visit(browser, changed)
    visit.page.wait_for_timeout(200)
    assert any("Content Security Policy" in fault for fault in visit.faults)
    assert "dialog" not in visit.faults
    visit.context.close()
