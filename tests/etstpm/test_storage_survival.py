"""What a run survives: kill -9 anywhere, damage, servers that go and come back, other runs."""

import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from etstpm import stages
from etstpm.errors import StorageError
from etstpm.publishing import publish_run
from etstpm.runs import Outcome
from etstpm.settings import settings
from etstpm.storage import Store
from etstpm.storage.verification import verify
from tests.etstpm.stage_runs import (
    CATEGORY,
    RUN,
    STARTED,
    Tables,
    cards_of,
    run_in_child,
    run_stages,
    tables_of,
    tiny_config,
)
from tests.fault_proxy import Fault, FaultProxy, Request, running_proxy
from tests.s3_server import BUCKET, S3, S3Server, running_s3_server, s3_environment

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["torch", "pandas", "s3fs", "tests.etstpm.stage_runs"])
CHILD_SECONDS = 240


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to; to be read, or copied."""

    store: Store
    keys: dict[str, str]
    tables: Tables
    seconds: float


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the children: how a sum is split among threads is seen in its last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    config = tiny_config(drawn, str(folder / "store"))
    environment = {"ETSTPM_CACHE": str(folder / "cache")}
    start(run_in_child, config, environment, str(folder / "warm"), "warm").join(CHILD_SECONDS)
    shutil.rmtree(folder / "store")
    shutil.rmtree(folder / "cache")
    started = time.monotonic()
    child = start(run_in_child, config, environment, str(folder / "log"))
    child.join(CHILD_SECONDS)
    assert child.exitcode == 0
    store = Store(config.store)
    made = (folder / "log").read_text().split()
    keys = {key.split("/")[0].removesuffix("s") + "s" * (key[:6] == "scores"): key for key in made}
    return Undisturbed(store, keys, tables_of(store, folder), time.monotonic() - started)


def start(target: Callable[..., object], *arguments: object) -> multiprocessing.Process:
    child: multiprocessing.Process = FORK.Process(target=target, args=arguments)  # type: ignore[assignment]
    child.start()
    return child


@pytest.fixture
def copied(undisturbed: Undisturbed, tmp_path: Path) -> Store:
    """The undisturbed run's store, to be damaged."""
    shutil.copytree(undisturbed.store.root, tmp_path / "store")
    return Store(str(tmp_path / "store"))


def faults_in(store: Store) -> list[str]:
    return [f"{d.place} {d.fault}" for seen in verify(store) for d in seen.damages]


def assert_equals(store: Store, undisturbed: Undisturbed, folder: Path, run_id: str = RUN) -> None:
    """Published tables equal those of the undisturbed run to the bit, and nothing is damaged."""
    for name, table in tables_of(store, folder, run_id).items():
        expected = undisturbed.tables[name]
        others = [] if run_id == RUN else ["run_id"]
        assert table.drop_columns(others).equals(expected.drop_columns(others)), name
    assert faults_in(store) == []
    assert {key.removesuffix("/card.json") for key in cards_of(store)} == set(
        undisturbed.keys.values()
    )


def killed_and_run_again(
    store_uri: str,
    moment: float,
    undisturbed: Undisturbed,
    drawn: Path,
    folder: Path,
    environment: dict[str, str],
) -> None:
    store, config = Store(store_uri), tiny_config(drawn, store_uri)
    environment = environment | {"ETSTPM_CACHE": str(folder / "cache")}
    folder.mkdir()
    log = folder / "log"
    log.touch()
    victim = start(run_in_child, config, environment, str(log))
    victim.join(moment)
    if victim.is_alive():
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    before, begun = cards_of(store), log.read_text().split()
    assert faults_in(store) == []  # nothing half is to be seen, and no run without its tables
    child = start(run_in_child, config, environment, str(log))
    child.join(CHILD_SECONDS)
    assert child.exitcode == 0
    assert_equals(store, undisturbed, folder / "tables")
    after = cards_of(store)
    assert {key: after[key] for key in before} == before
    made_again = log.read_text().split()[len(begun) :]
    assert len(set(made_again)) == len(made_again)
    assert not {f"{key}/card.json" for key in made_again} & set(before)


DRAW = random.Random(6)  # noqa: S311
MOMENTS = [DRAW.uniform(0.02, 1.0) for _ in range(20)]
"""As shares of an undisturbed run's time."""


@pytest.mark.parametrize("number", range(15))
def test_killed_at_any_moment_a_run_goes_on(
    number: int, undisturbed: Undisturbed, drawn: Path, tmp_path: Path
) -> None:
    moment = MOMENTS[number] * undisturbed.seconds
    killed_and_run_again(str(tmp_path / "store"), moment, undisturbed, drawn, tmp_path / "run", {})
    hidden = [path for path in (tmp_path / "store").rglob(".*") if path.is_file()]
    assert [path for path in hidden if path.suffix == ".parquet"] == []


@pytest.mark.parametrize("number", range(15, 20))
def test_killed_at_any_moment_a_run_goes_on_in_a_bucket(
    number: int, undisturbed: Undisturbed, drawn: Path, s3: S3, tmp_path: Path
) -> None:
    moment = MOMENTS[number] * (undisturbed.seconds + 3)
    killed_and_run_again(s3.uri, moment, undisturbed, drawn, tmp_path / "run", dict(s3.environment))


def test_two_runs_at_once_share_the_work(
    undisturbed: Undisturbed, drawn: Path, tmp_path: Path
) -> None:
    config = tiny_config(drawn, str(tmp_path / "store"))
    children = [
        start(
            run_in_child,
            config,
            {"ETSTPM_CACHE": str(tmp_path / f"cache-{run}")},
            str(tmp_path / f"log-{run}"),
            run,
        )
        for run in ("first", "second")
    ]
    for child in children:
        child.join(CHILD_SECONDS)
        assert child.exitcode == 0
    made = [
        key
        for run in ("first", "second")
        if (tmp_path / f"log-{run}").exists()
        for key in (tmp_path / f"log-{run}").read_text().split()
    ]
    assert sorted(made) == sorted(undisturbed.keys.values())
    for run in ("first", "second"):
        assert_equals(Store(config.store), undisturbed, tmp_path / run, run)


def test_a_night_without_new_data_makes_nothing(
    copied: Store, undisturbed: Undisturbed, drawn: Path, tmp_path: Path
) -> None:
    before = cards_of(copied)
    log = tmp_path / "log"
    log.touch()
    child = start(
        run_in_child,
        tiny_config(drawn, copied.uri),
        {"ETSTPM_CACHE": str(tmp_path / "cache")},
        str(log),
        "next-night",
    )
    child.join(CHILD_SECONDS)
    assert child.exitcode == 0
    assert log.read_text() == ""
    assert cards_of(copied) == before
    assert_equals(copied, undisturbed, tmp_path / "tables", "next-night")
    assert copied.read_json("runs/latest.json")["run_id"] == "next-night"


class Bomb:
    """Would write a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


WEIGHTS = "weights.safetensors"
DAMAGES: dict[str, tuple[str, str, Callable[[bytes, Path], bytes]]] = {
    "teacher, flipped bit": ("teacher", WEIGHTS, lambda c, _: c[:-1] + bytes([c[-1] ^ 1])),
    "student, truncated": ("student", WEIGHTS, lambda c, _: c[:-1000]),
    "student, replaced": ("student", WEIGHTS, lambda _, other: other.read_bytes()),
    "student, a pickle": ("student", WEIGHTS, lambda _, other: pickle.dumps(Bomb(other.parent))),
    "student, no card": ("student", "card.json", lambda *_: b"\x80\x04K\x01."),
    "dataset": ("dataset", "manifest.parquet", lambda c, _: c.replace(b"good", b"goot", 1)),
    "scores": ("scores", "image_scores.parquet", lambda c, _: c[:200] + b"\0" + c[201:]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_refused_made_anew_and_reported(
    name: str,
    copied: Store,
    undisturbed: Undisturbed,
    drawn: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage, file, damage = DAMAGES[name]
    key = undisturbed.keys[stage]
    path = Path(copied.path(f"{key}/{file}"))
    other = Path(copied.path(f"{undisturbed.keys['teacher']}/{WEIGHTS}"))
    content = path.read_bytes()
    path.write_bytes(damage(content, other))
    assert path.read_bytes() != content
    if stage in ("teacher", "student"):  # so that it is loaded
        (Path(copied.path(undisturbed.keys["scores"])) / "card.json").unlink()
    assert run_stages(tiny_config(drawn, copied.uri)) == undisturbed.keys
    assert f"{key}/{file} is " in caplog.text
    assert_equals(copied, undisturbed, tmp_path / "tables")


@pytest.fixture
def own_server(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[S3Server, FaultProxy]]:
    """A server that may be killed, behind a proxy; the environment of this process reaches it."""
    folder = tmp_path_factory.mktemp("own-s3")
    with (
        running_s3_server(folder) as server,
        running_proxy(("127.0.0.1", server.port)) as proxy,
    ):
        for name, value in s3_environment(proxy.endpoint, folder).items():
            monkeypatch.setenv(name, value)
        yield server, proxy


def test_the_server_may_go_and_come_back_in_every_stage(
    own_server: tuple[S3Server, FaultProxy], undisturbed: Undisturbed, drawn: Path, tmp_path: Path
) -> None:
    server, proxy = own_server
    restarts: list[threading.Timer] = []

    def kill_at_the_first_artifact(stage: str) -> None:
        """While the stage puts its artifact's second file, or its card."""
        seen: list[str] = []

        def plan(request: Request) -> Fault | None:
            if request.method == "PUT" and f"/{stage}/" in request.path:
                seen.append(request.path)
                if len(seen) == 2:
                    server.kill()
                    timer = threading.Timer(0.7, server.start)
                    restarts.append(timer)
                    timer.start()
            return None

        proxy.plan = plan

    uri = f"s3://{BUCKET}/restarts"
    config, store = tiny_config(drawn, uri), Store(uri)
    kill_at_the_first_artifact("datasets")
    dataset = stages.validate(config, store)
    kill_at_the_first_artifact("teachers")
    teacher = stages.teacher(config, store, dataset)
    kill_at_the_first_artifact("students")
    student = stages.student(config, store, dataset, teacher, CATEGORY)
    kill_at_the_first_artifact("scores")
    scores = stages.scores(config, store, dataset, student, CATEGORY)
    kill_at_the_first_artifact("tables")
    publish_run(
        store,
        config,
        run_id=RUN,
        started_at=STARTED,
        dataset_key=dataset,
        teacher_key=teacher,
        outcomes=[Outcome(CATEGORY, scores_key=scores)],
    )
    for timer in restarts:
        timer.join()
    assert len(restarts) == 5
    assert_equals(store, undisturbed, tmp_path / "tables")


def test_throttling_faults_and_cut_connections_do_not_matter(
    faulty_s3: S3, s3_proxy: FaultProxy, undisturbed: Undisturbed, drawn: Path, tmp_path: Path
) -> None:
    """One request in twelve meets one of five faults, all through a run."""
    draw = random.Random(8)  # noqa: S311
    faults = [Fault.SLOW_DOWN, Fault.INTERNAL, Fault.CUT, Fault.CUT_ANSWER, Fault.CUT_AFTER]
    s3_proxy.plan = lambda _: draw.choice(faults) if draw.random() < 1 / 12 else None
    run_stages(tiny_config(drawn, faulty_s3.uri))
    assert s3_proxy.broken >= 5
    s3_proxy.heal()
    assert_equals(Store(faulty_s3.uri), undisturbed, tmp_path / "tables")


def test_a_disk_that_is_full_loses_nothing(
    small_disk: "SmallDisk", undisturbed: Undisturbed, drawn: Path, tmp_path: Path
) -> None:
    """It has room for the teacher and for half a student."""
    store = Store(str(small_disk.folder / "store"))
    config = tiny_config(drawn, store.uri)
    dataset = stages.validate(config, store)
    teacher = stages.teacher(config, store, dataset)
    with pytest.raises(StorageError, match=r"No space left on device.*has room") as caught:
        stages.student(config, store, dataset, teacher, CATEGORY)
    assert "\n" not in str(caught.value)
    assert faults_in(store) == []
    files = [path.name for path in Path(store.root).rglob("*") if path.is_file()]
    assert [name for name in files if name.startswith(".")] == []
    assert len(cards_of(store)) == 2
    small_disk.remount("size=64m")
    run_stages(config)
    assert_equals(store, undisturbed, tmp_path / "tables")


def test_a_store_that_turns_read_only_ends_in_one_line_and_can_be_read(
    small_disk: "SmallDisk", undisturbed: Undisturbed, drawn: Path, tmp_path: Path
) -> None:
    small_disk.remount("size=64m")
    store = Store(str(small_disk.folder / "store"))
    shutil.copytree(undisturbed.store.root, store.root)
    (Path(store.root) / undisturbed.keys["scores"] / "card.json").unlink()
    config = tiny_config(drawn, store.uri)
    small_disk.remount("ro")
    with pytest.raises(StorageError, match="Read-only file system"):
        stages.validate(config, store)
    started = time.monotonic()
    with pytest.raises(StorageError, match="Read-only file system"):  # before an hour of work
        stages.scores(
            config, store, undisturbed.keys["dataset"], undisturbed.keys["student"], CATEGORY
        )
    assert time.monotonic() - started < 10
    with store.open(store.get(undisturbed.keys["student"]), WEIGHTS) as folder:
        assert (folder / WEIGHTS).is_file()
    assert pq.read_table(store.path("tables/metrics"), partitioning=None).num_rows
    small_disk.remount("rw")
    run_stages(config)
    assert_equals(store, undisturbed, tmp_path / "tables")


@dataclass(frozen=True)
class SmallDisk:
    """A file system of its own."""

    folder: Path

    def remount(self, options: str) -> None:
        mount("-o", f"remount,{options}", str(self.folder))


def mount(*arguments: str) -> None:
    import subprocess

    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs to mount a tmpfs: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path, undisturbed: Undisturbed) -> Iterator[SmallDisk]:
    """A tmpfs with room for one network and a half."""
    import subprocess

    network = undisturbed.store.get(undisturbed.keys["teacher"]).card["files"][WEIGHTS]["bytes"]
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("needs to mount a tmpfs: there is no mount command")
    mount("-t", "tmpfs", "-o", f"size={network * 3 // 2}", "tmpfs", str(folder))
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_bucket_that_turns_read_only_ends_at_once(
    faulty_s3: S3, s3_proxy: FaultProxy, undisturbed: Undisturbed, drawn: Path
) -> None:
    config, store = tiny_config(drawn, faulty_s3.uri), Store(faulty_s3.uri)
    dataset = stages.validate(config, store)
    s3_proxy.plan = lambda request: Fault.DENIED if request.is_write else None
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"put file failed \(PermissionError: .*credentials"):
        stages.teacher(config, store, dataset)
    assert time.monotonic() - started < settings().store_patience / 4
    assert store.get(dataset).card["categories"] == [CATEGORY]
    assert json.loads(store.read_bytes(f"{dataset}/card.json"))["stage"] == "dataset"
    assert undisturbed.keys["dataset"] == dataset
