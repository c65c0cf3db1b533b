import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etstpm.errors import DamagedArtifactError, StorageError
from etstpm.storage import Artifact, Card, Store, file_sha256
from etstpm.storage import artifact as artifact_module
from tests.s3_server import S3

KEY = "students/bottle/0123abcd"
FILES = {"weights.safetensors": b"\x00\x01" * 5000, "maps/000.npy": b"map", "history.parquet": b""}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A local folder with what a stage has made."""
    folder = tmp_path / "made"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store(str(tmp_path / "store"))
    if request.param == "memory":
        return Store(f"memory://etstpm-{uuid.uuid4().hex}/nested")
    place: S3 = request.getfixturevalue("s3")
    return Store(place.uri)


def names(store: Store) -> list[str]:
    """Every file of the store; an attempt's folder is a star."""
    paths = [path[len(store.root) + 1 :] for path in store.fs.find(store.root)]
    return sorted(re.sub(r"/[0-9a-f]{32}/", "/*/", path) for path in paths)


def file_names(store: Store) -> list[str]:
    """Where the files of `KEY` lie once it is committed."""
    folder = KEY if store.is_local else f"{KEY}/*"
    return sorted([*(f"{folder}/{name}" for name in FILES), f"{KEY}/card.json"])


def test_what_is_committed_is_found_got_and_opened(store: Store, made: Path) -> None:
    assert store.find(KEY) is None
    artifact = store.commit(KEY, made, {"stage": "student", "seed": 3})
    assert artifact.digest == "0123abcd"
    assert store.find(KEY) == store.get(KEY) == artifact
    assert artifact.card["seed"] == 3
    assert artifact.card["files"]["maps/000.npy"] == {
        "sha256": file_sha256(made / "maps/000.npy"),
        "bytes": 3,
    }
    assert names(store) == file_names(store)
    with store.open(artifact, *FILES) as folder:
        assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert store.is_local or not folder.exists()


def test_an_artifact_that_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(StorageError) as caught:
        store.get(KEY)
    expected = f"store {store.uri}: no artifact {KEY}; run the stage that makes it"
    assert str(caught.value) == expected


def test_a_killed_commit_leaves_no_artifact(
    store: Store, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, put = shutil.copyfile, Store.put_file
    done: list[object] = []

    def dies_after_two(*arguments: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        (copy if store.is_local else put)(*arguments)
        done.append(arguments)

    with monkeypatch.context() as patch:
        if store.is_local:
            patch.setattr("etstpm.storage.files.shutil.copyfile", dies_after_two)
        else:
            patch.setattr(Store, "put_file", dies_after_two)
        with pytest.raises(KeyboardInterrupt):
            store.commit(KEY, made, {})
    assert len(names(store)) == (0 if store.is_local else 2)
    assert store.find(KEY) is None
    assert store.commit(KEY, made, {}) == store.find(KEY)


def test_the_card_is_written_last(
    store: Store, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if store.is_local:
        pytest.skip("a folder is renamed into place with its card")
    put = Store.put_file
    order: list[str] = []

    def noted(self: Store, local: Path, key: str) -> None:
        put(self, local, key)
        order.append(key)

    monkeypatch.setattr(Store, "put_file", noted)
    store.commit(KEY, made, {})
    assert order[-1] == f"{KEY}/card.json"
    assert len(order) == len(FILES) + 1


def test_who_commits_first_wins(store: Store, made: Path, tmp_path: Path) -> None:
    """Content does not repeat to the byte: tables hold times, a GPU rounds as it likes."""
    first = store.commit(KEY, made, {"by": "first"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "weights.safetensors").write_bytes(b"other")
    assert store.commit(KEY, tmp_path / "other", {"by": "second"}) == first
    with store.open(store.get(KEY), *FILES):
        pass
    assert names(store) == file_names(store)


def test_two_commits_at_once_never_mix(
    store: Store, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins when the first has put its files, and ends before its card is there."""
    other = tmp_path / "other"
    shutil.copytree(made, other)
    (other / "weights.safetensors").write_bytes(b"other")
    seal = artifact_module.seal

    def second_comes_first(card: Card) -> bytes:
        monkeypatch.setattr("etstpm.storage.store.seal", seal)
        store.commit(KEY, other, {"by": "second"})
        return seal(card)

    monkeypatch.setattr("etstpm.storage.store.seal", second_comes_first)
    artifact = store.commit(KEY, made, {"by": "first"})
    assert artifact == store.get(KEY)
    with store.open(artifact, *FILES) as folder:
        expected = b"other" if artifact.card["by"] == "second" else FILES["weights.safetensors"]
        assert (folder / "weights.safetensors").read_bytes() == expected


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_file_is_refused_and_its_artifact_discarded(
    store: Store, made: Path, damage: str
) -> None:
    artifact = store.commit(KEY, made, {})
    path = store.path(f"{artifact.folder}/weights.safetensors")
    if damage == "flipped":
        store.fs.pipe_file(path, b"\x00\x02" + FILES["weights.safetensors"][2:])
    else:
        store.fs.rm_file(path)
    for _ in range(2):  # a second reader may come to it at the same time
        with (
            pytest.raises(StorageError, match=rf"{KEY}/weights.safetensors is missing or damaged"),
            store.open(artifact, "maps/000.npy", "weights.safetensors"),
        ):
            pytest.fail("a damaged file was handed out")
        assert store.find(KEY) is None
    store.commit(KEY, made, {})
    with store.open(store.get(KEY), "weights.safetensors") as folder:
        assert file_sha256(folder / "weights.safetensors") == file_sha256(
            made / "weights.safetensors"
        )


def test_damage_elsewhere_does_not_concern_a_reader(store: Store, made: Path) -> None:
    artifact = store.commit(KEY, made, {})
    store.fs.pipe_file(store.path(f"{artifact.folder}/maps/000.npy"), b"pam")
    with store.open(artifact, "weights.safetensors") as folder:
        assert (folder / "weights.safetensors").is_file()


def card_of(**changes: Any) -> bytes:
    """A card as of etstpm 0.1.0, which had no seal."""
    return json.dumps({"files": {}, "key": KEY} | changes).encode()


@pytest.mark.parametrize(
    ("card", "fault"),
    [
        (b"", "is not JSON"),
        (b'{"files": {', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[]", "is not a card"),
        (b"null", "is not a card"),
        (b"{}", "is not a card"),
        (card_of(files=[]), "is not a card"),
        (card_of(card_sha256="0" * 64), "was changed after it was written: its own hash differs"),
        (card_of(key="students/bottle/other"), "is of another artifact, 'students/bottle/other'"),
        (card_of(attempt="../../elsewhere"), "names a folder '../../elsewhere'"),
        (card_of(files={"../up": {}}), "names a file '../up'"),
        (card_of(files={"/etc/passwd": {}}), "names a file '/etc/passwd'"),
        (card_of(files={"a": "b"}), "names a file 'a'"),
    ],
)
def test_a_damaged_card_is_no_artifact(
    card: bytes, fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(str(tmp_path / "store"))
    store.write_bytes(f"{KEY}/card.json", card)
    assert store.find(KEY) is None
    assert not store.has(KEY)
    assert f"{KEY}/card.json {fault}" in caplog.text
    with pytest.raises(DamagedArtifactError, match="the next run makes it anew"):
        store.get(KEY)


def test_a_card_from_before_it_had_a_hash_is_believed(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.write_bytes(f"{KEY}/card.json", card_of(seed=3))
    assert store.get(KEY).card["seed"] == 3


def test_any_flipped_bit_of_a_card_is_seen(tmp_path: Path, made: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.commit(KEY, made, {"metrics": {"auroc": 0.987}, "config": {"epochs": 30}})
    content = store.read_bytes(f"{KEY}/card.json")
    name = content.index(b"card_sha256")
    for place in range(len(content)):
        # Blanks say nothing; and a hash under another name is a card from before it had one.
        if content[place] in b" \n" or name <= place < name + len("card_sha256"):
            continue
        flipped = bytearray(content)
        flipped[place] ^= 1
        store.write_bytes(f"{KEY}/card.json", bytes(flipped))
        assert not store.has(KEY), bytes(flipped)


def test_a_file_of_the_store_that_is_not_json_is_named(store: Store) -> None:
    store.write_bytes("runs/latest.json", b"{")
    with pytest.raises(StorageError, match=r"read json failed \(JSONDecodeError"):
        store.read_json("runs/latest.json")
    with pytest.raises(StorageError, match=r"read json failed \(FileNotFoundError"):
        store.read_json("runs/none.json")


def test_json_is_written_and_replaced(store: Store) -> None:
    store.write_json("runs/latest.json", {"run_id": "a"})
    store.write_json("runs/latest.json", {"run_id": "b"})
    assert store.read_json("runs/latest.json") == {"run_id": "b"}
    assert names(store) == ["runs/latest.json"]


def test_a_put_that_fails_keeps_the_old_file_and_nothing_else(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "store"))
    store.write_bytes("runs/latest.json", b"old")

    def full(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("etstpm.storage.files.shutil.copyfile", full)
    with pytest.raises(StorageError, match=r"put file failed.*No space left"):
        store.put_file(made / "weights.safetensors", "runs/latest.json")
    assert (tmp_path / "store/runs/latest.json").read_bytes() == b"old"
    assert os.listdir(tmp_path / "store/runs") == ["latest.json"]  # noqa: PTH208 - hidden ones too


@pytest.mark.parametrize("operation", ["check_writable", "commit", "write_json"])
def test_a_store_that_cannot_be_written_is_named(
    operation: str, tmp_path: Path, made: Path
) -> None:
    (tmp_path / "file").touch()
    store = Store(str(tmp_path / "file" / "store"))
    calls: dict[str, Callable[[], object]] = {
        "check_writable": store.check_writable,
        "commit": lambda: store.commit(KEY, made, {}),
        "write_json": lambda: store.write_json("runs/latest.json", {}),
    }
    with pytest.raises(StorageError) as caught:
        calls[operation]()
    assert str(caught.value).startswith(f"store {tmp_path}/file/store: ")
    assert "NotADirectoryError" in str(caught.value)
    assert "check that the place exists, can be written, has room" in str(caught.value)


def test_a_bucket_without_credentials_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore's errors are neither OSError nor of one family."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"store s3://etstpm-none/s: .*NoCredentialsError"):
        Store("s3://etstpm-none/s").check_writable()


@pytest.mark.parametrize("uri", ["nope://bucket", "abc+def://x"])
def test_an_unknown_protocol_is_refused(uri: str) -> None:
    with pytest.raises(
        StorageError, match=r"is not a place that fsspec knows .*s3://bucket/prefix"
    ):
        Store(uri)


def test_a_check_leaves_nothing_behind(store: Store, tmp_path: Path) -> None:
    store.check_writable()
    assert names(store) == []
    if store.is_local:
        nested = Store(str(tmp_path / "a" / "b" / "store"))
        nested.check_writable()
        assert list(tmp_path.iterdir()) == []


def test_a_check_leaves_alone_what_another_run_writes_meanwhile(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, put = Store(str(tmp_path / "store")), Store.put_file

    def other_run_too(self: Store, local: Path, key: str) -> None:
        put(self, local, key)
        put(self, made / "maps/000.npy", "students/of/another/run")

    monkeypatch.setattr(Store, "put_file", other_run_too)
    store.check_writable()
    assert names(store) == ["students/of/another/run"]


def test_a_check_does_not_believe_a_store_that_forgets(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(self: Store, key: str, _: bytes) -> None:
        self.fs.pipe_file(self.path(key), b"")

    monkeypatch.setattr(Store, "write_bytes", forget)
    store.fs.makedirs(store.root, exist_ok=True)
    with pytest.raises(StorageError, match="what was read back is not what was written"):
        store.check_writable()
    assert names(store) == []


def test_a_store_whose_name_looks_like_a_pattern_is_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "line[1]*?"))
    store.write_bytes("a/b", b"x")
    assert store.read_files(["a/b", "a/c"]) == {"a/b": b"x"}


def test_addresses_are_as_a_person_opens_them(tmp_path: Path) -> None:
    assert (
        Store("memory://lake/x/").display("tables/a.parquet") == "memory://lake/x/tables/a.parquet"
    )
    assert Store(f"file://{tmp_path}").is_local
    assert Artifact("teachers/77", {}).digest == "77"


def test_a_card_can_be_read_by_a_person(tmp_path: Path, made: Path) -> None:
    Store(str(tmp_path / "store")).commit(KEY, made, {"seed": 0, "config": {"epochs": 3}})
    text = (tmp_path / "store" / KEY / "card.json").read_text("utf-8")
    assert text.count("\n") > 10
    assert json.loads(text)["config"] == {"epochs": 3}
