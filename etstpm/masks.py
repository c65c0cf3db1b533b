"""Ground-truth masks: what decoding one shows, and what is wrong with it beside its image."""

import hashlib
from pathlib import Path

from etstpm.facts import MaskFacts
from etstpm.findings import Entry, Scan
from etstpm.images import ImageFacts, decode_grey, read_file


def read_mask_facts(path: Path, above: int) -> MaskFacts:
    """Decode a mask fully. Raises one of `images.UNREADABLE`."""
    content = read_file(path)
    grey = decode_grey(content)
    pixels_of = grey.histogram()  # by grey value
    return MaskFacts(
        hashlib.sha256(content).hexdigest(),
        grey.width,
        grey.height,
        above,
        is_empty=not any(pixels_of[above + 1 :]),
        is_full=not any(pixels_of[: above + 1]),
        # A release may number the kinds of defect; then every value above the cut counts.
        is_binary=above == 0 or not any(pixels_of[1:255]),
    )


def judge_mask(scan: Scan, entry: Entry, image: ImageFacts, mask: MaskFacts) -> bool:
    """Whether the mask can be used; what is wrong with it is a finding."""
    path = entry.mask
    if path is None:
        return False
    if (mask.width, mask.height) != (image.width, image.height):
        scan.report(
            "mask-size",
            path,
            f"{image.width}x{image.height} as its image",
            f"{mask.width}x{mask.height}",
            "restore the mask that belongs to this image",
            images=[entry.image],
        )
        return False
    if mask.is_empty:
        scan.report(
            "mask-empty",
            path,
            "a defective pixel",
            "none",
            "restore the mask, or move the image to test/good",
            images=[entry.image],
        )
        return False
    if mask.is_full:
        found, remedy = "none", "is all of it defective? Mend the mask if not"
        scan.report("mask-full", path, "a good pixel", found, remedy)
    if not mask.is_binary:
        found, remedy = "other values", f"above {mask.above} is defective; save it as PNG"
        scan.report("mask-not-binary", path, "0 and 255", found, remedy)
    return True
