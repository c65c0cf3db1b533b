"""Credentials come from the environment and go nowhere else."""

import json
import logging
import pickle
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from etstpm.cli import main
from etstpm.config import Config
from etstpm.errors import (
    ConfigError,
    EtstpmError,
    StorageError,
    has_credentials,
    reason_of,
    scrub,
)
from etstpm.storage import Store
from tests.etstpm.stage_runs import run_stages, tiny_config
from tests.fault_proxy import Fault, FaultProxy
from tests.s3_server import ACCESS_KEY, S3, SECRET_KEY

SECRET = "wJalr/XUtnFEMI+K7MDENG"  # noqa: S105
CARRYING = {
    f"s3://AKIAEXAMPLE:{SECRET}@bucket/prefix": "s3://***@bucket/prefix",
    f"s3://{SECRET.replace('/', '')}@bucket": "s3://***@bucket",
    f"s3a://k:{SECRET}@bucket": "s3a://***@bucket",
    f"ftp://anna:{SECRET}@host:21/x": "ftp://***@host:21/x",
    f"simplecache::s3://k:{SECRET}@b/x": "simplecache::s3://***@b/x",
    f"https://host/w.pth?X-Amz-Signature={SECRET}&v=1": "https://host/w.pth?X-Amz-Signature=***&v=1",
    f"https://host/w.pth?sv=1&sig={SECRET}": "https://host/w.pth?sv=1&sig=***",
}
INNOCENT = [
    *("s3://bucket/prefix", "s3://bucket/user@host", "s3://bucket/a:b@c", "memory://lake/x"),
    *("/data/a:b@c", "./etstpm-store", "http://127.0.0.1:9000/b/x@y", "sftp://anna@host/x"),
    *("abfs://container@account.dfs.core.windows.net/x", "https://host/w.pth?version=3"),
]


@pytest.mark.parametrize("uri", CARRYING)
def test_a_uri_that_carries_credentials_is_refused_everywhere(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert has_credentials(uri)
    assert scrub(f"store {uri} failed") == f"store {CARRYING[uri]} failed"
    messages = []
    for make in (
        lambda: Store(uri),
        lambda: Config.load(None, [f"store={uri}"]),
        lambda: Config.load(None, (), {"teacher.weights": uri}),
    ):
        with pytest.raises(EtstpmError, match="carries credentials") as caught:
            make()
        messages.append(str(caught.value))
    for section in ({"store": uri}, {"teacher": {"weights": uri}}):
        with pytest.raises(ValidationError, match="carries credentials") as refused:
            Config.model_validate(section)
        messages.append(str(refused.value))
    monkeypatch.setattr("sys.argv", ["etstpm", "store", "gc", uri])
    with pytest.raises(SystemExit, match="2"):
        main()
    captured = capsys.readouterr()
    messages.append(captured.out + captured.err)
    for message in messages:
        assert SECRET not in message
        assert SECRET.replace("/", "") not in message


@pytest.mark.parametrize("uri", CARRYING)
def test_prefects_server_refuses_it_before_it_is_written_down(uri: str) -> None:
    if "?" in uri:
        pytest.skip("a signature is refused by the run itself")
    properties = Config.model_json_schema()["properties"]
    assert not re.search(properties["store"]["pattern"], uri)


@pytest.mark.parametrize("uri", INNOCENT)
def test_other_uris_are_let_through_as_they_are(uri: str) -> None:
    assert not has_credentials(uri)
    assert scrub(f"{uri} and {uri}: no") == f"{uri} and {uri}: no"
    assert Config.model_validate({"store": uri}).store == uri
    assert re.search(Config.model_json_schema()["properties"]["store"]["pattern"], uri)


def test_the_environments_secrets_are_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-a-session")
    assert str(ConfigError(f"tried {SECRET}")) == "tried ***"
    assert reason_of(OSError(f"bad token-of-a-session\nand {SECRET}")) == "bad ***"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "")
    assert str(ConfigError("an empty one is none")) == "an empty one is none"


def test_a_run_into_a_bucket_leaves_no_secret_anywhere(
    faulty_s3: S3,
    s3_proxy: FaultProxy,
    drawn: Path,
    tmp_path: Path,
    cache: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Everything that a run leaves is searched: store, cache, log, output, errors, config."""
    caplog.set_level(logging.DEBUG, logger="etstpm")
    config = tiny_config(drawn, faulty_s3.uri)
    s3_proxy.fail_next(4, Fault.SLOW_DOWN)  # botocore itself swallows two
    run_stages(config)
    store = Store(faulty_s3.uri)
    texts: list[tuple[str, bytes]] = []
    for path in store.fs.find(store.root):
        content: bytes = store.fs.cat_file(path)
        texts.append((path, content))
        if path.endswith(".parquet"):  # compressed: read it
            local = tmp_path / "table.parquet"
            local.write_bytes(content)
            table = pq.read_table(local, partitioning=None)
            texts.append((path, f"{table.to_pylist()}{table.schema}".encode()))
    assert len(texts) > 15
    texts += [(str(path), path.read_bytes()) for path in cache.rglob("*") if path.is_file()]
    monkeypatch.setenv("ETSTPM_STORE_PATIENCE", "0")
    from etstpm.settings import settings

    settings.cache_clear()
    for fault in (Fault.DENIED, Fault.SLOW_DOWN, Fault.CUT):
        s3_proxy.fail_always(fault)
        with pytest.raises(StorageError) as caught:
            store.read_json("runs/latest.json")
        texts.append((fault, str(caught.value).encode()))
    s3_proxy.heal()
    with pytest.raises(StorageError) as caught:
        Store("s3://no-such-bucket/x").check_writable()
    texts.append(("no such bucket", str(caught.value).encode()))
    output = capfd.readouterr()
    texts += [
        ("log", caplog.text.encode()),
        ("output", (output.out + output.err).encode()),
        ("config", config.model_dump_json().encode() + repr(config).encode()),
        ("schema", json.dumps(Config.model_json_schema()).encode()),
        ("store", repr(vars(store)).encode() + pickle.dumps(store.fs.storage_options)),
    ]
    for place, text in texts:
        assert SECRET_KEY.encode() not in text, place
        assert ACCESS_KEY.encode() not in text, place
    assert b"slow down); trying again in" in dict(texts)["log"]
