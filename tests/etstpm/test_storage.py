import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from etstpm.errors import StorageError
from etstpm.storage import Artifact, Store, file_sha256

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


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store(str(tmp_path / "store"))
    return Store(f"memory://etstpm-{uuid.uuid4().hex}/nested")


def names(store: Store) -> list[str]:
    return sorted(path[len(store.root) + 1 :] for path in store.fs.find(store.root))


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
    assert names(store) == sorted([f"{KEY}/{name}" for name in (*FILES, "card.json")])
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
    put = Store.put_file
    done: list[str] = []

    def dies_after_two(self: Store, local: Path, key: str) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        put(self, local, key)
        done.append(key)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_file", dies_after_two)
        with pytest.raises(KeyboardInterrupt):
            store.commit(KEY, made, {})
    assert len(names(store)) == 2
    assert store.find(KEY) is None
    assert store.commit(KEY, made, {}) == store.find(KEY)


def test_the_card_is_written_last(
    store: Store, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store.put_file
    order: list[str] = []

    def noted(self: Store, local: Path, key: str) -> None:
        put(self, local, key)
        order.append(key)

    monkeypatch.setattr(Store, "put_file", noted)
    store.commit(KEY, made, {})
    assert order[-1] == f"{KEY}/card.json"
    assert len(order) == len(FILES) + 1


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_file_is_refused_and_its_artifact_discarded(
    store: Store, made: Path, damage: str
) -> None:
    artifact = store.commit(KEY, made, {})
    path = store.path(f"{KEY}/weights.safetensors")
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
    store.fs.pipe_file(store.path(f"{KEY}/maps/000.npy"), b"pam")
    with store.open(artifact, "weights.safetensors") as folder:
        assert (folder / "weights.safetensors").is_file()


@pytest.mark.parametrize("card", [b"", b'{"files": {', b"\xff\xfe\x00", b"[]", b"null", b"{}"])
def test_a_damaged_card_is_no_artifact(store: Store, card: bytes) -> None:
    store.write_bytes(f"{KEY}/card.json", card)
    assert store.find(KEY) is None


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

    monkeypatch.setattr("etstpm.storage.shutil.copyfile", full)
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
