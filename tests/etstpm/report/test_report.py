"""A report from a real store: what stands in it, what it needs, and what it refuses."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from etstpm.errors import EtstpmError, StorageError
from etstpm.report import report_key, write_report
from etstpm.report.pictures import gallery
from etstpm.report.reading import read_content
from etstpm.runs import table_key
from etstpm.storage import Store
from tests.etstpm.report.conftest import HOSTILE, SCRIPT, run_id


class Page(HTMLParser):
    """The tags of a page, its text outside of scripts, and what its data scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.data: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        del tag
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.data.append(data)
        elif self._inside != "style":
            self.text.append(data)


@pytest.fixture(scope="module")
def page(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("page") / "index.html"
    write_report(store, run_id(2), file)
    return file.read_text("utf-8")


def test_it_lies_in_the_store_and_needs_the_store_alone(
    store: Store, page: str, tmp_path: Path
) -> None:
    shutil.copytree(store.uri, tmp_path / "moved")
    moved = Store(str(tmp_path / "moved"))
    place = write_report(moved, "latest")
    assert place == f"{moved.uri}/{report_key(run_id(2))}"
    assert Path(place).read_text("utf-8") == page


def test_names_are_text_wherever_they_stand(page: str) -> None:
    parsed = Page(page)
    assert not [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert not [a for _, a in parsed.tags if any(name.startswith("on") for name in a)]
    # Two galleries, and the page's own script; no name has ended one early.
    assert [tag for tag, _ in parsed.tags].count("script") == 3
    assert HOSTILE in "".join(parsed.text)
    items = [item for data in parsed.data[:2] for item in json.loads(data)["items"]]
    assert f"{HOSTILE}/test/</{SCRIPT}" in [item["path"] for item in items]


def test_nothing_is_loaded_and_only_its_own_scripts_may_run(page: str) -> None:
    parsed = Page(page)
    (policy,) = [
        a["content"] or "" for t, a in parsed.tags if "Content-Security-Policy" in a.values()
    ]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    links = [a.get("src") or a.get("href") or "" for _, a in parsed.tags]
    assert {link[:1] for link in links if link} <= {"#", "d"}
    assert not [a for _, a in parsed.tags if "style" in a]


def test_it_says_what_the_tables_say(store: Store, page: str) -> None:
    content = read_content(store, run_id(2))
    assert [category.name for category in content.categories] == [HOSTILE, "biscuit"]
    text = " ".join("".join(Page(page).text).split())
    for category in content.categories:
        card = store.get(category.cards["scores"]["key"]).card["metrics"]
        for protocol, level, metric in [
            ("paper-256", "image", "auroc"),
            ("paper-256", "pixel", "auroc"),
            ("mvtec-official", "pixel", "aupro"),
        ]:
            assert f"{card['values'][protocol][level][metric]:.3f}" in text
        missed, alarms = category.missed, category.false_alarms
        assert f"missed {missed} of 3 false alarms {alarms} of 2" in text
    assert run_id(2) in text
    assert "Since the last good run, of 23 November," in text  # the incomplete one is none


def test_an_incomplete_run_says_which_category_failed_and_why(store: Store, tmp_path: Path) -> None:
    write_report(store, run_id(1), tmp_path / "index.html")
    text = " ".join("".join(Page((tmp_path / "index.html").read_text("utf-8")).text).split())
    assert "1 of 2 categories failed." in text
    assert "the student's loss is <b>nan</b> in epoch 1" in text


def test_a_first_run_has_nothing_to_compare_with(store: Store, tmp_path: Path) -> None:
    write_report(store, run_id(0), tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "There is no earlier run to compare with." in page
    assert "Since last good" not in page
    assert 'id="nights"' not in page


def test_errors_come_first_and_pictures_fit_their_budget(store: Store) -> None:
    for category in read_content(store, run_id(2)).categories:
        items = gallery(category, 10**9)["items"]
        assert len(items) == len(category.images) == 5
        kinds = [item["kind"] == "right" for item in items]
        assert kinds == sorted(kinds)
        whole = sum(
            len(item[k]) for item in items for k in ("image", "heat", "outline") if k in item
        )
        fewer = gallery(category, whole // 2)
        assert fewer["items"] == items[: len(fewer["items"])]
        assert 0 < len(fewer["items"]) < 5
        assert fewer["total"] == 5


@pytest.mark.parametrize("run", ["no-such-run", "../runs"])
def test_an_unknown_run_is_one_line(store: Store, run: str, tmp_path: Path) -> None:
    with pytest.raises(EtstpmError) as fault:
        write_report(store, run, tmp_path / "index.html")
    assert "\n" not in str(fault.value)
    assert not (tmp_path / "index.html").exists()


def test_scores_of_an_older_version_say_what_to_do(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.uri, tmp_path / "store")
    copied = Store(str(tmp_path / "store"))
    record = json.loads((tmp_path / "store" / "runs" / run_id(2) / "run.json").read_text())
    artifact = copied.get(record["outcomes"][0]["scores_key"])
    shutil.copytree(tmp_path / "store" / artifact.key, tmp_path / "old")
    for name in ("curves.parquet", "card.json"):
        (tmp_path / "old" / name).unlink()
    record["outcomes"][0]["scores_key"] = f"scores/old/{'0' * 64}"
    copied.commit(record["outcomes"][0]["scores_key"], tmp_path / "old", artifact.card)
    copied.write_json(f"runs/{run_id(2)}/run.json", record)
    with pytest.raises(
        StorageError, match=r"no curves\.parquet, an older etstpm made it; run again"
    ):
        write_report(copied, run_id(2))
    assert not (tmp_path / "store" / "reports").exists()


def test_a_damaged_artifact_is_named(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.uri, tmp_path / "store")
    copied = Store(str(tmp_path / "store"))
    key = read_content(copied, run_id(2)).categories[0].cards["scores"]["key"]
    (tmp_path / "store" / key / "thumbnails.parquet").write_bytes(b"PAR1")
    with pytest.raises(StorageError, match=r"thumbnails\.parquet is missing or damaged"):
        write_report(copied, run_id(2))


@pytest.mark.parametrize("content", [None, b"x"])
def test_a_metrics_table_that_is_lost_or_damaged_is_named(
    content: bytes | None, store: Store, tmp_path: Path
) -> None:
    copied = Store(shutil.copytree(store.uri, tmp_path / "store").as_posix())
    key = table_key("metrics", run_id(0))
    if content is None:
        copied.remove_file(key)
    else:
        copied.write_bytes(key, content)
    with pytest.raises(StorageError, match=rf"{key} is (not there|damaged)"):
        read_content(copied, run_id(0))


def test_a_file_that_cannot_be_written_is_one_line(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(store, run_id(2), tmp_path / "no" / "index.html")
