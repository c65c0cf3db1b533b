"""Whether everything in a store is as it was written (`etstpm store verify`).

Every byte is read again: each artifact's files against its card, each run's tables against its
`run.json`, each kept run's artifacts for being there, new images' scores against their record.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from etstpm.errors import DamagedArtifactError
from etstpm.storage.artifact import Artifact
from etstpm.storage.batches import SUMMARY, Batch, batches_of
from etstpm.storage.collection import COLLECTED, keys_in
from etstpm.storage.files import on_the_store
from etstpm.storage.inventory import artifact_folders, in_parallel, run_ids
from etstpm.storage.store import Store

BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Damage:
    """A file, an artifact or a run that is not what it should be."""

    place: str
    fault: str
    artifact: str | None = None
    """The key of the artifact that it belongs to: discarded, it is made anew by the next run."""


@dataclass(frozen=True)
class Verified:
    """An artifact, a run or a batch of new images' scores that was looked at."""

    place: str
    files: int
    size: int
    """Bytes read."""
    damages: tuple[Damage, ...]


def verify(store: Store) -> Iterator[Verified]:
    """Look at every artifact, run and finished batch of new images' scores, several at a time."""
    whole = (folder.key for folder in artifact_folders(store) if folder.has_card)
    yield from in_parallel(lambda key: _verify_artifact(store, key), whole)
    yield from in_parallel(lambda run: _verify_run(store, run), run_ids(store))
    finished = (batch for batch in batches_of(store) if batch.content is not None)
    yield from in_parallel(lambda batch: _verify_batch(store, batch), finished)


def repair(store: Store, damage: Damage) -> bool:
    """Discard a damaged artifact, so that the next run makes it anew. False: nothing to discard."""
    if damage.artifact is None:
        return False
    store.discard(Artifact(damage.artifact, {}))
    return True


def _verify_artifact(store: Store, key: str) -> Verified:
    try:
        artifact = store.get(key)
    except DamagedArtifactError as error:
        return Verified(key, 1, 0, (Damage(f"{key}/card.json", _fault_of(error), key),))
    damages, size = list[Damage](), 0
    for name, expected in artifact.card["files"].items():
        fault, read = _verify_file(store, f"{artifact.folder}/{name}", expected)
        size += read
        if fault is not None:
            damages.append(Damage(f"{artifact.folder}/{name}", fault, key))
    return Verified(key, len(artifact.card["files"]) + 1, size, tuple(damages))


def _verify_run(store: Store, run: str) -> Verified:
    place = f"runs/{run}/run.json"
    try:
        record = store.read_json(place)
        files = {file["key"]: file for file in record["files"].values()}
    except Exception as error:
        if isinstance(error, (TypeError, KeyError, AttributeError)) or "JSONDecode" in str(error):
            return Verified(place, 1, 0, (Damage(place, "is not a run's record"),))
        raise
    damages, size = list[Damage](), 0
    for key, expected in files.items():
        fault, read = _verify_file(store, key, expected)
        size += read
        if fault is not None:
            damages.append(Damage(key, fault))
    if store.read_if_there(f"runs/{run}/{COLLECTED}") is None:
        damages += [
            Damage(key, f"is not there, and run {run} refers to it")
            for key in sorted(set(keys_in(record)))
            if store.read_if_there(f"{key}/card.json") is None
        ]
    return Verified(place, len(files) + 1, size, tuple(damages))


def _verify_batch(store: Store, batch: Batch) -> Verified:
    """Its table. Heatmaps have no hash in the record, whose size does not grow with the images."""
    place, record = f"{batch.key}/{SUMMARY}", batch.record
    if record is None:
        return Verified(place, 1, 0, (Damage(place, "is not a record of scored images"),))
    damages, size = list[Damage](), 0
    for name, expected in record["files"].items():
        fault, read = _verify_file(store, f"{batch.key}/{name}", expected)
        size += read
        if fault is not None:
            damages.append(Damage(f"{batch.key}/{name}", fault))
    return Verified(place, len(record["files"]) + 1, size, tuple(damages))


def _verify_file(store: Store, key: str, expected: dict[str, Any]) -> tuple[str | None, int]:
    """What is wrong with a file, if anything, and how many bytes were read."""
    found = _digest(store, key)
    if found is None:
        return "is missing", 0
    sha256, size = found
    if size != expected.get("bytes", size):
        return f"has {size} bytes, expected {expected['bytes']}", size
    if sha256 != expected.get("sha256"):
        return f"has SHA-256 {sha256[:16]}..., expected {str(expected.get('sha256'))[:16]}...", size
    return None, size


@on_the_store
def _digest(store: Store, key: str) -> tuple[str, int] | None:
    """SHA-256 and size of a file, read block by block; None if it is not there."""
    digest, size = hashlib.sha256(), 0
    try:
        with store.fs.open(store.path(key), "rb", block_size=BLOCK_BYTES) as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                size += len(block)
    except FileNotFoundError:
        return None
    return digest.hexdigest(), size


def _fault_of(error: DamagedArtifactError) -> str:
    """`card.json is not JSON` of the whole line."""
    return str(error).partition("card.json ")[2].partition("; ")[0] or "is gone"
