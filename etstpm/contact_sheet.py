"""A look at a category: counts, a contact sheet with its masks' outlines, the findings.

As one HTML page that opens from disk and loads nothing, or as one PNG. Every name in it comes from
a stranger's folder.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from etstpm.dataset import Dataset
from etstpm.images import UNREADABLE, read_image, read_mask
from etstpm.layouts.listing import GOOD
from etstpm.paths import written_whole
from etstpm.pictures import outline

SIDE = 192
"""Pixels of a thumbnail, both ways: as the network sees it, squeezed into a square."""
MARGIN, LINE = 12, 18
COLUMNS = 6

STYLE = """
:root {
  color-scheme: light dark; --line: #8884; --quiet: #6b6b6b; --error: #b3261e; --warning: #8a5300
}
@media (prefers-color-scheme: dark) {
  :root { --quiet: #9a9a9a; --error: #ff8a80; --warning: #ffb74d }
}
html { background: Canvas; color: CanvasText }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 78rem; padding: 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
p { margin: .25rem 0 } .quiet { color: var(--quiet); overflow-wrap: anywhere }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid var(--line); padding: .3rem 1.2rem .3rem 0; text-align: left;
  vertical-align: top }
td.number, th.number, th[scope=row] { white-space: nowrap }
td.number, th.number { text-align: right }
.scroll { overflow-x: auto } .findings td { min-width: 7rem; overflow-wrap: anywhere }
.findings td:first-child { min-width: 0; overflow-wrap: normal }
.sheet { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)) }
@media (max-width: 40rem) {
  .sheet { gap: .5rem; grid-template-columns: repeat(3, 1fr) }
  .findings thead { position: absolute; clip-path: inset(50%) }
  .findings tr { border-bottom: 1px solid var(--line); display: block; padding: .4rem 0 }
  .findings td { border: 0; display: block; padding: 0 }
  .findings td[data-name]::before { color: var(--quiet); content: attr(data-name) ": " }
}
figure { margin: 0 } img { border-radius: 4px; display: block; height: auto; width: 100% }
figcaption { color: var(--quiet); font-size: .8rem; overflow-wrap: anywhere }
.error { color: var(--error) } .warning { color: var(--warning) }
"""


@dataclass(frozen=True)
class Group:
    """The images of a split and a defect type, and those of them that are shown."""

    name: str
    rows: list[dict[str, Any]]
    shown: list[dict[str, Any]]
    pictures: list[Image.Image]

    def measures(self) -> list[str]:
        """Number of images, sizes, modes, mean and contrast, as text."""
        sizes = sorted({f"{row['width']}x{row['height']}" for row in self.rows})
        modes = sorted({row["mode"] for row in self.rows})
        means = [row["mean"] for row in self.rows]
        contrasts = [row["contrast"] for row in self.rows]
        return [
            str(len(self.rows)),
            sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes",
            ", ".join(modes),
            f"{min(means):.0f} to {max(means):.0f}",
            f"{min(contrasts):.0f} to {max(contrasts):.0f}",
        ]


MEASURES = ["images", "size", "mode", "mean", "contrast"]


def draw_category(dataset: Dataset, category: str, path: Path, *, images: int = 12) -> None:
    """Write the page (.html) or the picture (.png) of a category; `images` of each defect type."""
    groups = _groups(dataset, category, images)
    findings = [
        row
        for row in dataset.findings.to_pylist()
        if row["path"] == category or row["path"].startswith(f"{category}/")
    ]
    findings.sort(key=lambda row: row["severity"] != "error")
    with written_whole(path) as partial:
        if path.suffix.lower() == ".png":
            sheet = _sheet(dataset, category, groups, findings)
            sheet.save(partial, format="png", optimize=True)
        else:
            partial.write_text(_page(dataset, category, groups, findings), "utf-8")


def _groups(dataset: Dataset, category: str, images: int) -> list[Group]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in dataset.manifest.to_pylist():
        if row["category"] == category:
            found.setdefault(f"{row['split']}/{row['defect_type']}", []).append(row)
    groups = []
    # Good images first, the defect types beside each other.
    for name, rows in sorted(found.items(), key=lambda group: not group[0].endswith(f"/{GOOD}")):
        # Evenly spread: the first ones of a folder are often of one minute on one camera.
        count = min(images, len(rows))
        places = np.linspace(0, len(rows) - 1, count).round().astype(int).tolist()
        shown = [rows[place] for place in places]
        groups.append(Group(name, rows, shown, [_thumbnail(dataset.root, row) for row in shown]))
    return groups


def _thumbnail(root: Path, row: dict[str, Any]) -> Image.Image:
    """An image with the outline of its mask; grey if it has gone since."""
    try:
        _, pixels = read_image(root / row["image_path"], SIDE)
        if row["mask_path"] is not None:
            mask = Image.fromarray(read_mask(root / row["mask_path"], row["mask_above"]))
            # Every defective pixel counts here: a scratch of one pixel must not vanish.
            small = np.asarray(mask.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)) > 0
            pixels = outline(pixels, small)
    except UNREADABLE:
        return Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    return Image.fromarray(pixels)


def _page(
    dataset: Dataset, category: str, groups: Sequence[Group], findings: Sequence[dict[str, Any]]
) -> str:
    declaration = dataset.declaration
    cells = "".join(
        f"<tr><th scope=row>{escape(group.name)}</th>"
        + "".join(f"<td class=number>{escape(cell)}</td>" for cell in group.measures())
        + "</tr>"
        for group in groups
    )
    heads = "".join(f"<th class=number scope=col>{name}</th>" for name in MEASURES)
    counts = (
        f"<table><thead><tr><th scope=col>images of</th>{heads}</tr></thead>"
        f"<tbody>{cells}</tbody></table>"
    )
    terms = "".join(f"<p class=quiet>{escape(line)}</p>" for line in declaration.terms_of_use())
    sheets = "".join(
        f"<h2>{escape(group.name)}</h2><p class=quiet>{len(group.shown)} of {len(group.rows)}"
        f"{', defects outlined' if any(row['mask_path'] for row in group.shown) else ''}</p>"
        f"<div class=sheet>{''.join(map(_figure, group.shown, group.pictures))}</div>"
        for group in groups
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        "<meta http-equiv=Content-Security-Policy "
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(category)}: {escape(declaration.title)}</title><style>{STYLE}</style>"
        f"<main><h1>{escape(category)}</h1><p>{escape(declaration.title)} in "
        f"{escape(str(dataset.root))}</p>{terms}"
        f"<p class=quiet>fingerprint {dataset.digest}</p>"
        f"<h2>Counts</h2>{_scrolled('Counts', counts)}"
        f"<h2>Findings</h2>{_findings(findings)}{sheets}</main></html>\n"
    )


def _findings(findings: Sequence[dict[str, Any]]) -> str:
    if not findings:
        return "<p>None: every image and mask was decoded, and is as it should be.</p>"
    rows = "".join(
        f"<tr><td class={escape(row['severity'])}>{escape(row['severity'])}</td>"
        + "".join(
            f"<td{label}>{escape(row[name])}</td>"
            for name, label in (
                ("path", ""),
                ("expected", " data-name=expected"),
                ("found", " data-name=found"),
                ("remedy", ""),
            )
        )
        + "</tr>"
        for row in findings
    )
    heads = "".join(
        f"<th scope=col>{name}</th>"
        for name in ("kind", "where", "expected", "found", "what to do")
    )
    return _scrolled(
        "Findings",
        f"<table class=findings><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>",
    )


def _scrolled(name: str, table: str) -> str:
    """A table that may be wider than the page: to be scrolled by keyboard too."""
    return f"<div class=scroll tabindex=0 role=region aria-label={name}>{table}</div>"


def _figure(row: dict[str, Any], picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    name = escape(Path(row["image_path"]).name)
    return (
        f"<figure><img src=data:image/webp;base64,{data} alt='{name}' width={SIDE} height={SIDE} "
        f"decoding=async><figcaption>{name}</figcaption></figure>"
    )


def _sheet(
    dataset: Dataset, category: str, groups: Sequence[Group], findings: Sequence[dict[str, Any]]
) -> Image.Image:
    """The same as a picture: black on white, six images a row."""
    lines = [f"{dataset.declaration.title} in {dataset.root}", *dataset.declaration.terms_of_use()]
    lines += [
        f"{row['severity']}: {row['path']}: expected {row['expected']}, found {row['found']}"
        for row in findings[:10]
    ]
    if len(findings) > 10:
        lines.append(f"... and {len(findings) - 10} findings more")
    width = COLUMNS * (SIDE + MARGIN) + MARGIN
    heights = [2 * LINE + -(-len(group.shown) // COLUMNS) * (SIDE + MARGIN) for group in groups]
    height = 3 * MARGIN + 2 * LINE + len(lines) * LINE + sum(heights)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    title, text = ImageFont.load_default(24), ImageFont.load_default(13)
    draw.text((MARGIN, MARGIN), _latin(category), "black", title)
    top = MARGIN + 2 * LINE
    for line in lines:
        draw.text((MARGIN, top), _latin(_cut(line, width - 2 * MARGIN, text)), "#444", text)
        top += LINE
    for group, group_height in zip(groups, heights, strict=True):
        measures = ", ".join(
            f"{name} {value}" for name, value in zip(MEASURES, group.measures(), strict=True)
        )
        draw.text((MARGIN, top + MARGIN), _latin(f"{group.name}: {measures}"), "black", text)
        for place, picture in enumerate(group.pictures):
            row, column = divmod(place, COLUMNS)
            corner = MARGIN + column * (SIDE + MARGIN), top + 2 * LINE + row * (SIDE + MARGIN)
            sheet.paste(picture, corner)
        top += group_height
    return sheet


def _latin(line: str) -> str:
    """What the built-in font has; it draws a box for whatever else."""
    return line.encode("latin-1", "replace").decode("latin-1")


def _cut(line: str, width: int, font: Any) -> str:
    while line and font.getlength(_latin(line)) > width:
        line = line[:-5].rstrip(".") + "..." if len(line) > 8 else ""
    return line
