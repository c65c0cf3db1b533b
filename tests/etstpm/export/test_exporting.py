"""Exported files: the pipeline's numbers in ONNX Runtime and torch.export, nothing half-written."""

import dataclasses
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from etstpm.errors import ConfigError, DatasetError, EtstpmError, StorageError
from etstpm.export.exporting import Exported, ExportError, export_detector
from etstpm.export.formats import FACTS, SUFFIXES, Scored, open_onnx, open_torch_export
from etstpm.export.program import FLOAT32, trace_detector
from etstpm.images import Pixels, read_image
from etstpm.inference.detector import Detector, load_detector
from etstpm.networks import freeze
from etstpm.storage import Store, file_sha256
from etstpm.students import random_student
from tests.trained import CATEGORY, Published

RUNS = {"onnx": "product", "torch-export": "quantile-sum"}


@dataclass(frozen=True)
class Case:
    """A format's export of a detector, and the file as its user opens it."""

    name: str
    detector: Detector
    exported: Exported
    run: Callable[[Pixels], Scored]

    @property
    def path(self) -> Path:
        return Path(self.exported.file)


def make_case(name: str, published: Published, folder: Path) -> Case:
    store = Store(str(published.store))
    detector = load_detector(store, RUNS[name], CATEGORY, FLOAT32)
    exported = export_detector(store, detector, name, str(folder / f"model{SUFFIXES[name]}"))
    path = Path(exported.file)
    run = open_onnx(path) if name == "onnx" else open_torch_export(path, exported.sha256)
    return Case(name, detector, exported, run)


@pytest.fixture(scope="module")
def onnx_case(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case("onnx", published, tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def pt2_case(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case("torch-export", published, tmp_path_factory.mktemp("pt2"))


@pytest.fixture(scope="module", params=["onnx_case", "pt2_case"])
def case(request: pytest.FixtureRequest) -> Case:
    """Each format in turn."""
    found: Case = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def pixels(published: Published) -> Pixels:
    paths = sorted((published.root / CATEGORY / "test").rglob("*.png"))
    return np.stack([read_image(path, 64)[1] for path in paths])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_scores_and_maps_are_the_pipelines(case: Case, pixels: Pixels, count: int) -> None:
    expected = case.detector.score(pixels[:count])

    maps, scores = case.run(pixels[:count])

    assert maps.shape == (count, 64, 64)
    assert scores.shape == (count,)
    assert maps.dtype == scores.dtype == np.float32
    assert np.abs(scores / expected.scores - 1).max() < 1e-4
    highest = expected.maps.max((1, 2), keepdims=True)
    assert (np.abs(maps - expected.maps) / highest).max() < 1e-4
    if count > 1:
        assert expected.scores.std() > 1e-3 * expected.scores.mean(), "images differ"


@pytest.mark.parametrize("network", ["forward", "reverse"])
def test_either_kind_of_student_is_traced_to_what_it_computes(
    published: Published, pixels: Pixels, network: str
) -> None:
    loaded = load_detector(Store(str(published.store)), "product", CATEGORY, FLOAT32)
    detector = dataclasses.replace(loaded, student=freeze(random_student(network, 4)))
    expected = detector.score(pixels[:2])

    with torch.no_grad():
        maps, scores = trace_detector(detector).module()(torch.from_numpy(pixels[:2]))

    assert np.allclose(scores.numpy(), expected.scores, rtol=1e-4)
    assert np.allclose(maps.numpy(), expected.maps, rtol=1e-3, atol=1e-4 * expected.maps.max())


def test_there_is_one_file_and_its_card(case: Case) -> None:
    name = f"model{SUFFIXES[case.name]}"
    assert {path.name for path in case.path.parent.iterdir()} == {name, f"{name}.md"}
    assert (
        "(reverse distillation, Deng and Li, CVPR 2022; made"
        in Path(case.exported.card).read_text()
    )
    assert case.exported.sha256 == file_sha256(case.path)
    assert case.exported.bytes == case.path.stat().st_size
    assert 0 <= case.exported.score_difference < 1e-5


def test_the_file_says_what_it_is(case: Case) -> None:
    if case.name == "onnx":
        session = onnxruntime.InferenceSession(case.path, providers=["CPUExecutionProvider"])
        facts = session.get_modelmeta().custom_metadata_map
        shapes = [value.shape for value in (*session.get_inputs(), *session.get_outputs())]
        assert shapes == [["batch", 64, 64, 3], ["batch", 64, 64], ["batch"]]
        onnx.checker.check_model(str(case.path), full_check=True)
    else:
        extra = {FACTS: ""}
        torch.export.load(case.path, extra_files=extra)
        facts = json.loads(extra[FACTS])
    assert facts["etstpm.category"] == CATEGORY
    assert float(facts["etstpm.threshold"]) == case.detector.threshold
    assert facts["etstpm.image_size"] == "64"
    assert facts["etstpm.student"] == case.detector.keys[1]


def test_the_card_has_the_runs_numbers(case: Case, published: Published) -> None:
    card = Path(case.exported.card).read_text()
    metrics = case.detector.scores.card["metrics"]

    assert "{" not in card.replace("`", "").split("## Made from")[0].split("## Decision")[1]
    assert f"| SHA-256 | `{case.exported.sha256}` |" in card
    assert f"score > {case.detector.threshold!r}" in card
    assert f"image AUROC | {metrics['values']['paper-256']['image']['auroc']:.3f} |" in card
    assert "On 2 good and 3 defective test images" in card
    assert "At most 5% of 2 good images" in card
    assert f"`{case.detector.dataset_key}`" in card
    assert "CC BY-NC-SA 4.0" in card
    rows = Store(str(published.store)).get(published.scores)
    assert rows.card["category"] in card


def test_images_of_another_size_are_refused_in_one_line(case: Case, pixels: Pixels) -> None:
    for wrong in (pixels[:, :32], pixels[..., :1], pixels.view(np.int8)):
        with pytest.raises(DatasetError, match=r"takes images \(N, 64, 64, 3\) uint8, not"):
            case.run(wrong)  # type: ignore[arg-type]


def test_onnx_runtime_itself_names_the_size(onnx_case: Case) -> None:
    session = onnxruntime.InferenceSession(onnx_case.path, providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="Got: 32 Expected: 64"):
        session.run(None, {"images": np.zeros((1, 32, 64, 3), np.uint8)})


def test_a_pt2_holds_no_pickle_and_loads_without_one(
    pt2_case: Case, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr("torch.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    maps, _ = open_torch_export(pt2_case.path, pt2_case.exported.sha256)(pixels)
    assert np.array_equal(maps, pt2_case.run(pixels)[0])


def test_a_pt2_of_another_hash_or_with_a_pickle_is_not_opened(
    pt2_case: Case, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match=r"SHA-256 is .* expected 0000"):
        open_torch_export(pt2_case.path, "0" * 64)

    changed = tmp_path / "changed.pt2"
    with zipfile.ZipFile(pt2_case.path) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("model_weights_config.json"):
                content = content.replace(b'"use_pickle":false', b'"use_pickle":true', 1).replace(
                    b'"use_pickle": false', b'"use_pickle": true', 1
                )
            target.writestr(name, content)
    with pytest.raises(StorageError, match="is a pickle, which could run code"):
        open_torch_export(changed, file_sha256(changed))

    changed.write_bytes(b"nonsense")
    with pytest.raises(StorageError, match=r"not a whole \.pt2 archive"):
        open_torch_export(changed, file_sha256(changed))


@pytest.fixture
def detector(published: Published) -> Detector:
    return load_detector(Store(str(published.store)), "latest", CATEGORY, FLOAT32)


def test_a_file_that_computes_something_else_is_not_published(
    detector: Detector, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_and_disturb(path: Path, sha256: str) -> Callable[[Pixels], Scored]:
        run = open_torch_export(path, sha256)
        return lambda pixels: (run(pixels)[0], run(pixels)[1] * np.float32(1.001))

    monkeypatch.setattr("etstpm.export.exporting.open_torch_export", open_and_disturb)
    with pytest.raises(ExportError, match=r"differ by 1\.0e-03"):
        export_detector(
            Store(str(published.store)), detector, "torch-export", str(tmp_path / "out" / "x.pt2")
        )

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "to", "error", "message"),
    [
        ("tflite", "x", ConfigError, "format 'tflite' is unknown; choose one of onnx, torch-exp"),
        ("onnx", "there.onnx", StorageError, "there.onnx exists already"),
        ("onnx", "half.onnx", StorageError, "half.onnx.md exists already"),
        ("onnx", "", StorageError, "does not name a file that ends in .onnx"),
        ("onnx", "folder/.onnx", StorageError, "does not name a file that ends in .onnx"),
        ("torch-export", "x.onnx", StorageError, "does not name a file that ends in .pt2"),
        ("onnx", "there.onnx/x.onnx", StorageError, "put file failed ("),
        ("onnx", "nosuch://place/x.onnx", StorageError, "not a place that fsspec knows"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_writes_nothing(
    name: str,
    to: str,
    error: type[EtstpmError],
    message: str,
    detector: Detector,
    published: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for existing in ("there.onnx", "half.onnx.md"):
        Path(existing).write_text("of yesterday")

    with pytest.raises(error) as raised:
        export_detector(Store(str(published.store)), detector, name, to)

    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["half.onnx.md", "there.onnx"]
    assert Path("there.onnx").read_text() == "of yesterday"


def test_a_file_that_cannot_be_put_leaves_no_card(
    detector: Detector, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_file = Store.put_file

    def full(self: Store, local: Path, key: str) -> None:
        if key.endswith(".onnx"):
            raise StorageError("full")
        put_file(self, local, key)

    monkeypatch.setattr(Store, "put_file", full)
    with pytest.raises(StorageError, match="full"):
        export_detector(
            Store(str(published.store)), detector, "onnx", str(tmp_path / "to" / "x.onnx")
        )
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_detector_of_another_precision_is_not_traced(published: Published) -> None:
    store = Store(str(published.store))
    other = load_detector(
        store, "latest", CATEGORY, type(FLOAT32)(torch.device("cpu"), torch.bfloat16)
    )
    with pytest.raises(ValueError, match="traced in"):
        trace_detector(other)
