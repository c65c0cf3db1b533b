"""Decode what is not known yet of a category's files, once, by all cores."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from etstpm.decoded import cache_faults, in_threads, new_decoded_file
from etstpm.errors import reason_of
from etstpm.facts import Facts, MaskFacts, stamp_of
from etstpm.findings import Entry, Scan
from etstpm.images import UNREADABLE, ImageError, ImageFacts, read_image
from etstpm.locks import locked
from etstpm.masks import read_mask_facts

RESTORE = "restore the file from its source, or remove it"


def read_files(
    scan: Scan, category: str, entries: Sequence[Entry], size: int, cache: Path
) -> tuple[dict[Path, ImageFacts], dict[Path, MaskFacts]]:
    """The facts of a category's images and masks: remembered, or decoded now by all cores.

    What cannot be decoded is a finding and has none.
    """
    above = scan.declaration.mask_above
    facts = Facts(cache, scan.root, category)
    if _unknown(facts, entries, above):
        lock = facts.path.with_suffix(".lock")
        with cache_faults(cache), locked(lock, f"validating {category}"):
            facts = Facts(cache, scan.root, category)  # another process may have read them
            _decode(scan, facts, category, entries, size, cache)
            facts.save()
    else:
        facts.save()
    images = {e.image: facts.found(e.image, ImageFacts) for e in entries}
    masks = {e.mask: facts.found(e.mask, MaskFacts) for e in entries if e.mask is not None}
    return (
        {path: fact for path, fact in images.items() if fact is not None},
        {path: mask for path, mask in masks.items() if mask is not None},
    )


def _unknown(facts: Facts, entries: Sequence[Entry], above: int) -> list[tuple[str, Path]]:
    """What must be decoded: 'train', 'test' or 'mask', and the file."""
    images = [(e.split, e.image) for e in entries if facts.image(e.image) is None]
    masks = [("mask", e.mask) for e in entries if e.mask and facts.mask(e.mask, above) is None]
    return images + masks


def _decode(
    scan: Scan, facts: Facts, category: str, entries: Sequence[Entry], size: int, cache: Path
) -> None:
    jobs = _unknown(facts, entries, scan.declaration.mask_above)
    stamps = [stamp_of(path) for _, path in jobs]  # a file that changes meanwhile is read again
    rows, counts = [], Counter[str]()
    for kind, _ in jobs:
        rows.append(counts[kind])
        counts[kind] += 1
    with ExitStack() as stack:
        drafts = {
            split: stack.enter_context(
                new_decoded_file(f"{category}/{split}", counts[split], size, cache)
            )
            for split in ("train", "test")
            if counts[split]
        }

        def read(index: int) -> ImageFacts | MaskFacts | Exception:
            kind, path = jobs[index]
            try:
                if kind == "mask":
                    return read_mask_facts(path, scan.declaration.mask_above)
                fact, pixels = read_image(path, size)
            except UNREADABLE as error:
                return error
            drafts[kind].write(rows[index], pixels)
            drafts[kind].sha256s[rows[index]] = fact.sha256
            return fact

        results = in_threads(read, range(len(jobs)), f"{category}: validate")
        for (kind, path), stamp, result in zip(jobs, stamps, results, strict=True):
            if isinstance(result, ImageFacts | MaskFacts):
                facts.remember(path, stamp, result)
            else:
                _report_unreadable(scan, kind, path, result, entries)


def _report_unreadable(
    scan: Scan, kind: str, path: Path, fault: Exception, entries: Sequence[Entry]
) -> None:
    code = fault.code if isinstance(fault, ImageError) else "unreadable-image"
    scan.report(
        "unreadable-mask" if kind == "mask" else code,
        path,
        "a whole image file",
        (isinstance(fault, OSError) and fault.strerror) or reason_of(fault),
        RESTORE,
        images=[entry.image for entry in entries if path in {entry.image, entry.mask}],
    )
