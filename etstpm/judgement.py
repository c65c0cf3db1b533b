"""What is wrong with images beside each other: leaks, duplicates, odd ones out, counts."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from etstpm.findings import Entry, Scan
from etstpm.images import ImageFacts
from etstpm.layouts.listing import GOOD

FORMAT_OF_SUFFIX = {
    ".png": {"PNG"},
    ".jpg": {"JPEG", "MPO"},
    ".jpeg": {"JPEG", "MPO"},
    ".bmp": {"BMP"},
    ".tif": {"TIFF"},
    ".tiff": {"TIFF"},
}
SMALL_SIDE = 32
NOTES = {
    "several-pictures": ("one picture", "several", "the first is used; save it alone"),
    "turned-by-exif": (
        "an upright picture",
        "one that EXIF turns",
        "it is used as stored; turn it, and its mask, for good",
    ),
    "transparent": ("opaque pixels", "transparent ones", "the colours below them are used"),
}
Facts = Mapping[Path, ImageFacts]


class Comparison:
    """Looks at category after category, and remembers which images the earlier ones had."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        self.seen: dict[bytes, str] = {}
        """First eight bytes of an image's SHA-256, to its category: as small as can be."""

    def judge(self, category: str, entries: Sequence[Entry], facts: Facts) -> None:
        """Report what is wrong with a category's images, each alone and all together."""
        readable = [entry for entry in entries if entry.image in facts]
        for entry in readable:
            self._judge_image(entry.image, facts[entry.image])
        self._judge_equal(category, readable, facts)
        self._judge_modes(category, readable, facts)
        if self.scan.declaration.sizes == "equal":
            self._judge_alike(
                category, "mixed-sizes", readable, lambda p: f"{facts[p].width}x{facts[p].height}"
            )

    def _judge_image(self, path: Path, fact: ImageFacts) -> None:
        report = self.scan.report
        if fact.format not in FORMAT_OF_SUFFIX[path.suffix.lower()]:
            expected = f"the format that {path.suffix} names"
            report("format-mismatch", path, expected, fact.format, "rename the file")
        for note in fact.notes:
            report(note, path, *NOTES[note])
        if fact.contrast == 0:
            found = f"{fact.mean:.0f} everywhere"
            report("blank-image", path, "a picture", found, "was the lamp off? Remove it if so")
        if min(fact.width, fact.height) < SMALL_SIDE:
            found = f"{fact.width}x{fact.height}"
            report("small-image", path, f"sides of {SMALL_SIDE}", found, "is this a thumbnail?")

    def _judge_equal(self, category: str, entries: Sequence[Entry], facts: Facts) -> None:
        groups: dict[str, list[Entry]] = {}
        for entry in entries:
            groups.setdefault(facts[entry.image].sha256, []).append(entry)
        for sha256, equal in groups.items():
            if len(equal) > 1:
                self._judge_group(equal)
            first = self.seen.setdefault(bytes.fromhex(sha256[:16]), category)
            if first != category:
                self.scan.report(
                    "in-two-categories",
                    equal[0].image,
                    "an image of this category alone",
                    f"the same bytes in {first}",
                    "remove it from the wrong one",
                )

    def _judge_group(self, equal: Sequence[Entry]) -> None:
        """Entries of the same bytes."""
        first, *others = equal  # training images come first
        found = f"the same bytes as {self.scan.relative(first.image)}"
        images = [entry.image for entry in equal]
        if len({entry.defect_type == GOOD for entry in equal}) > 1:
            self.scan.report(
                "label-conflict",
                next(entry.image for entry in equal if entry.defect_type != GOOD),
                "good or defective, not both",
                found,
                "remove the wrong one",
                images=images,
            )
            return
        training = [entry.image for entry in equal if entry.split == "train"]
        for entry in others:
            if entry.split == "test" and training:
                self.scan.report(
                    "leak",
                    entry.image,
                    "an image that training has not seen",
                    found,
                    "remove it from train or from test",
                    images=training,  # the test set stays as it was published
                )
            else:
                remedy = "it counts twice; remove one"
                self.scan.report("duplicate", entry.image, "an image of its own", found, remedy)

    def _judge_modes(self, category: str, entries: Sequence[Entry], facts: Facts) -> None:
        official = self.scan.declaration.categories.get(category)
        if official is None or official.mode is None:
            self._judge_alike(category, "mixed-modes", entries, lambda path: facts[path].mode)
            return
        odd = [entry.image for entry in entries if facts[entry.image].mode != official.mode]
        if odd:
            self.scan.report(
                "mode",
                odd[0],
                f"{official.mode} as in {self.scan.declaration.title}'s release",
                f"{facts[odd[0]].mode}, and {len(odd)} such in all",
                "were they converted? Restore them",
            )

    def _judge_alike(
        self,
        category: str,
        code: str,
        entries: Sequence[Entry],
        trait: Callable[[Path], str],
    ) -> None:
        counts = Counter(trait(entry.image) for entry in entries)
        if len(counts) < 2:
            return
        (common, _), *_ = counts.most_common(1)
        odd = next(entry.image for entry in entries if trait(entry.image) != common)
        shown = ", ".join(f"{number} of {name}" for name, number in counts.most_common(4))
        self.scan.report(
            code,
            odd,
            f"{common} as most of {category}",
            f"{trait(odd)} ({shown})",
            "they are used; are they from another camera?",
        )


def judge_counts(scan: Scan, category: str, entries: Sequence[Entry]) -> None:
    """Compare what is there with the official release; without one, with what AUROC needs."""
    folder = scan.root / category
    test = [entry for entry in entries if entry.split == "test"]
    good = sum(entry.defect_type == GOOD for entry in test)
    declared = scan.declaration.categories
    official = declared.get(category)
    if official is not None:
        counts = {
            "train/good": (len(entries) - len(test), official.train_good),
            "test/good": (good, official.test_good),
            "test (defective)": (len(test) - good, official.test_defective),
        }
        for name, (there, number) in counts.items():
            if there != number:
                scan.report(
                    "count",
                    folder / name,
                    f"{number} images as in {scan.declaration.title}'s release",
                    str(there),
                    "results are not comparable with published ones until it is complete",
                )
        return
    if declared:
        remedy = "it is used, without official counts; is this the right folder?"
        expected = f"a category of {scan.declaration.title}"
        scan.report("unknown-category", folder, expected, "another", remedy)
    if test and good in {0, len(test)}:
        scan.report(
            "one-class",
            folder / "test",
            f"{'good' if good == 0 else 'defective'} test images",
            "none",
            "AUROC is not defined without them and will be null",
        )
