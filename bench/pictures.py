"""The pictures of README and docs: the drawn sample's report, and its hardest images.

    python -m bench.pictures --to docs

Five nights of the sample, on the last two of which somebody has changed how it is scored; the gate
holds them back. Needs Chromium.
"""

import argparse
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from etstpm.config import Config
from etstpm.report import write_report
from etstpm.sample import draw_sample
from etstpm.storage import Store
from tests.chromium import Visit, chromium
from tests.nights import publish_night

FIRST_NIGHT = datetime(2026, 11, 22, 2, tzinfo=UTC)
ALIKE = ("device=cpu", "precision=float32")
CARELESS = ("scoring.calibration=none", "scoring.smoothing_sigma=6", "scoring.map_layers=[3]")
NIGHTS = (ALIKE, ALIKE, ALIKE, ALIKE + CARELESS, ALIKE + CARELESS)
SHOWN, HARDEST = "fabric", "flange"
WIDE, PHONE = (1240, 1000), (390, 780)
GAP = 24


def main() -> None:
    """Make the nights, open the last one's report, and write what is seen."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        folder = Path(name)
        arguments.to.mkdir(parents=True, exist_ok=True)
        report = make_report(folder, arguments.to / f"hardest-{HARDEST}.png")
        wide = Visit(browser, report, WIDE).page
        pieces = [
            shot(wide, None, folder),
            shot(wide, f"section.category:has(h2:text-is('{SHOWN}'))", folder),
        ]
        stack(pieces, is_row=False, gap=0).save(arguments.to / "report.png")
        phone = shot(Visit(browser, report, PHONE).page, None, folder)
        dark = Visit(browser, report, (900, PHONE[1]), "dark").page
        gallery = shot(dark, ".gallery >> nth=-1", folder)
        stack([phone, gallery], is_row=True, gap=GAP).save(arguments.to / "report-phone-dark.png")


def make_report(folder: Path, hardest: Path) -> Path:
    """The last night's report; a picture of the first one's hardest images goes to `hardest`."""
    draw_sample(folder / "sample")
    store = Store(str(folder / "store"))
    given = {"dataset.root": str(folder / "sample"), "store": store.uri}
    for number, settings in enumerate(NIGHTS):
        config = Config.load("sample", settings, given)
        began = FIRST_NIGHT + timedelta(days=number)
        run = f"{began:%Y%m%dT%H%M%SZ}-{number:08x}"
        night = publish_night(config, run, began)
        if number == 0:
            with store.open(store.get(night.scores[HARDEST]), "hardest.png") as files:
                shutil.copy(files / "hardest.png", hardest)
    write_report(store, run, folder / "index.html")
    return folder / "index.html"


def shot(page: Page, place: str | None, folder: Path) -> Image.Image:
    """The window, from a place in the page down."""
    if place is not None:
        page.locator(place).evaluate("element => element.scrollIntoView()")
    page.screenshot(path=folder / "shot.png")
    with Image.open(folder / "shot.png") as image:
        return image.convert("RGB")


def stack(pictures: list[Image.Image], *, is_row: bool, gap: int) -> Image.Image:
    """Pictures beside or below each other, on white."""
    widths, heights = [p.width for p in pictures], [p.height for p in pictures]
    gaps = gap * (len(pictures) - 1)
    size = (sum(widths) + gaps, max(heights)) if is_row else (max(widths), sum(heights) + gaps)
    sheet, place = Image.new("RGB", size, "white"), 0
    for picture in pictures:
        sheet.paste(picture, (place, 0) if is_row else (0, place))
        place += (picture.width if is_row else picture.height) + gap
    return sheet


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--to", type=Path, required=True, help="folder of the pictures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
