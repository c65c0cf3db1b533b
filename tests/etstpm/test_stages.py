"""The stages on a tiny drawn dataset: the chain, what is reused, what is refused, what is read."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from etstpm import networks, stages
from etstpm.cards import load_student, load_teacher
from etstpm.compute import choose_compute
from etstpm.config import Config, digest_of
from etstpm.dataset import image_files, rows_of
from etstpm.decoded import load_pixels
from etstpm.errors import DatasetError, EtstpmError, StorageError, WeightsError
from etstpm.images import read_mask, resize_mask
from etstpm.inputs import is_sample, own_mask, proven_weights
from etstpm.metrics import image_metrics, pixel_metrics
from etstpm.networks import FORMULA_FILE, FORMULA_SHA256
from etstpm.sample import CATEGORIES, MARKER
from etstpm.scorer import Scorer
from etstpm.scoring import ResizedMaps, resize_map
from etstpm.settings import settings
from etstpm.storage import Store
from tests.etstpm.stage_runs import cards_of

CATEGORY = "biscuit"


@dataclass(frozen=True)
class Keys:
    """What a run of all stages for one category has returned."""

    dataset: str
    teacher: str
    student: str
    scores: str


def make_config(root: Path, store: Path, **changes: Any) -> Config:
    """Small and fast, float32 on the CPU, `section__key=value` on top."""
    values: dict[str, Any] = {
        "dataset": {"root": str(root), "categories": (CATEGORY,), "image_size": 64},
        "teacher": {"weights": "formula"},
        "student": {"epochs": 2, "least_images": 0, "batch_size": 1},
        "store": str(store),
        "device": "cpu",
        "precision": "float32",
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            values.setdefault(section, {})[key] = value
        else:
            values[section] = value
    return Config.model_validate(values)


def run(config: Config, category: str = CATEGORY) -> Keys:
    store = Store(config.store)
    dataset = stages.validate(config, store)
    teacher = stages.teacher(config, store, dataset)
    student = stages.student(config, store, dataset, teacher, category)
    scores = stages.scores(config, store, dataset, student, category)
    return Keys(dataset, teacher, student, scores)


def score_table(config: Config, keys: Keys) -> list[dict[str, Any]]:
    path = Path(config.store) / keys.scores / "image_scores.parquet"
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


@pytest.fixture(scope="module")
def finished(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Keys]:
    """A store in which one category's chain has run; to be read, or copied."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETSTPM_CACHE", str(folder / "cache"))
        settings.cache_clear()
        config = make_config(drawn, folder / "store")
        keys = run(config)
    settings.cache_clear()
    return config, keys


@pytest.fixture
def copied(finished: tuple[Config, Keys], tmp_path: Path) -> tuple[Config, Keys]:
    """The finished store, to be changed."""
    config, keys = finished
    shutil.copytree(config.store, tmp_path / "store")
    return config.model_copy(update={"store": str(tmp_path / "store")}), keys


def test_the_chain_leaves_whole_artifacts(finished: tuple[Config, Keys]) -> None:
    config, keys = finished
    store = Store(config.store)
    assert stages.categories_of(store, keys.dataset) == [CATEGORY]
    assert stages.findings_of(store, keys.dataset) == []
    expected = {
        keys.dataset: {"manifest.parquet", "findings.parquet"},
        keys.teacher: {"weights.safetensors", "history.parquet"},
        keys.student: {"weights.safetensors", "history.parquet"},
        keys.scores: {
            "calibration.safetensors",
            "curves.parquet",
            "hardest.png",
            "image_scores.parquet",
            "replicates.parquet",
            "thumbnails.parquet",
        },
    }
    for key, files in expected.items():
        artifact = store.get(key)
        assert set(artifact.card["files"]) == files
        assert artifact.card["config"]["student"]["epochs"] == 2
        assert "store" not in artifact.card["config"]
        with store.open(artifact, *files):  # proves the hashes
            pass
    card = store.get(keys.scores).card
    assert (card["student"], card["teacher"]) == (keys.student, keys.teacher)
    assert store.get(keys.teacher).card["weights"]["source"] == FORMULA_FILE.name
    history = pq.read_table(Path(config.store) / keys.student / "history.parquet").to_pylist()
    assert [row["epoch"] for row in history] == [1, 2]
    best = min(history, key=lambda row: float(row["validation_map"]))
    assert store.get(keys.student).card["metrics"] == best


def test_the_score_table_agrees_with_the_dataset_and_the_card(
    finished: tuple[Config, Keys], drawn: Path
) -> None:
    config, keys = finished
    rows = score_table(config, keys)
    files = sorted(p.relative_to(drawn).as_posix() for p in drawn.glob(f"{CATEGORY}/test/*/*.png"))
    assert [row["image_path"] for row in rows] == files
    assert len(files) == 5
    metrics = Store(config.store).get(keys.scores).card["metrics"]
    for row in rows:
        assert row["label"] == int("/good/" not in row["image_path"])
        assert row["defect_type"] == row["image_path"].split("/")[2]
        assert row["predicted"] == int(row["score"] > metrics["threshold"])
        assert row["student_digest"] == keys.student.split("/")[-1]
        assert row["teacher_digest"] == keys.teacher.split("/")[-1]
    labels = np.array([row["label"] == 1 for row in rows])
    scores = np.array([row["score"] for row in rows])
    assert metrics["values"]["paper-256"]["image"] == image_metrics(labels, scores)
    assert (metrics["n_good"], metrics["n_defective"]) == (2, 3)
    types = {row["defect_type"] for row in rows} - {"good"}
    assert len(types) == 3
    assert {name: part["n_defective"] for name, part in metrics["defect_types"].items()} == (
        dict.fromkeys(types, 1)
    )
    replicates = pq.read_table(Path(config.store) / keys.scores / "replicates.parquet")
    values = replicates.to_pandas().groupby(["protocol", "level", "metric"], observed=True)["value"]
    for (protocol, level, metric), found in values:
        ends = metrics["intervals"][protocol][level][metric]
        assert ends == np.percentile(found, [2.5, 97.5]).tolist()
    assert values.ngroups == 3 + 5 + 5
    # One image of four is held out, and the threshold is its score.
    assert metrics["held_out_scores"] == [metrics["threshold"]]
    with Image.open(Path(config.store) / keys.scores / "hardest.png") as picture:
        assert picture.width == 5 * (256 + 12) + 12
    folder = Path(config.store) / keys.scores
    shown = pq.read_table(folder / "thumbnails.parquet").to_pylist()
    assert sorted(row["image_path"] for row in shown) == files
    curves = pq.read_table(folder / "curves.parquet").to_pandas()
    assert {tuple(row) for row in curves[["protocol", "level", "curve"]].to_numpy()} == {
        ("paper-256", "image", "roc"),
        *((p, "pixel", c) for p in ("paper-256", "mvtec-official") for c in ("roc", "pro")),
    }


def resize_images(root: Path, *sizes: tuple[int, int]) -> None:
    """Each image of a folder, and its mask, at one of the sizes (width, height) in turn."""
    for folder in (root / CATEGORY).glob("t*/*"):
        for number, path in enumerate(sorted(folder.iterdir())):
            size = sizes[number % len(sizes)]
            mask = root / CATEGORY / "ground_truth" / folder.name / f"{path.stem}_mask.png"
            for file in (path, mask) if mask.exists() else (path,):
                with Image.open(file) as picture:
                    resized = picture.resize(size, Image.Resampling.NEAREST)
                resized.save(file)


def test_pixels_are_judged_at_the_students_size_and_at_each_images_own(
    dataset: Path, tmp_path: Path
) -> None:
    resize_images(dataset, (96, 80), (70, 110))
    config = make_config(dataset, tmp_path / "store", scoring__calibration="none")
    keys = run(config)
    found = Store(config.store).get(keys.scores).card["metrics"]["values"]
    assert {protocol: set(levels) for protocol, levels in found.items()} == {
        "paper-256": {"image", "pixel"},
        "mvtec-official": {"pixel"},
    }

    manifest = pq.read_table(Path(config.store) / keys.dataset / "manifest.parquet")
    rows = rows_of(manifest, CATEGORY, "test")
    assert {(row["width"], row["height"]) for row in rows} == {(96, 80), (70, 110)}
    masks = [
        read_mask(dataset / row["mask_path"])
        if row["label"]
        else np.zeros((row["height"], row["width"]), bool)
        for row in rows
    ]
    pixels = load_pixels(
        "again", image_files(dataset, manifest, CATEGORY, "test"), 64, tmp_path / "other-cache"
    )
    store = Store(config.store)
    networks = load_teacher(store, keys.teacher), load_student(store, keys.student)
    maps = Scorer(*networks, config.scoring, choose_compute(config)).score(pixels).maps
    own_maps = [resize_map(m, *mask.shape) for m, mask in zip(maps, masks, strict=True)]
    assert found["mvtec-official"]["pixel"] == pixel_metrics(masks, own_maps)
    small_masks = [resize_mask(mask, 64) for mask in masks]
    assert found["paper-256"]["pixel"] == pixel_metrics(small_masks, maps)
    assert found["mvtec-official"]["pixel"] != found["paper-256"]["pixel"]


def test_the_papers_protocol_stays_at_256(drawn: Path, tmp_path: Path) -> None:
    config = make_config(
        drawn, tmp_path / "store", dataset__image_size=288, scoring__calibration="none"
    )
    keys = run(config)
    found = Store(config.store).get(keys.scores).card["metrics"]["values"]["paper-256"]["pixel"]
    manifest = pq.read_table(Path(config.store) / keys.dataset / "manifest.parquet")
    files = image_files(drawn, manifest, CATEGORY, "test")
    pixels = load_pixels("t", files, 288, tmp_path / "again")
    store = Store(config.store)
    networks = load_teacher(store, keys.teacher), load_student(store, keys.student)
    maps = Scorer(*networks, config.scoring, choose_compute(config)).score(pixels).maps
    assert maps.shape[1:] == (288, 288)
    masks = [resize_mask(own_mask(drawn, row), 256) for row in rows_of(manifest, CATEGORY, "test")]
    assert found == pixel_metrics(masks, ResizedMaps(maps, [(256, 256)] * len(maps)))


def test_pixel_metrics_see_the_masks(copied: tuple[Config, Keys], dataset: Path) -> None:
    config, keys = copied
    for path in dataset.glob(f"{CATEGORY}/ground_truth/*/*.png"):
        Image.fromarray(~read_mask(path)).convert("L").save(path)
    turned = run(config.model_copy(update={"dataset": make_config(dataset, Path()).dataset}))
    assert turned.student == keys.student
    assert turned.scores != keys.scores
    first, second = (
        Store(config.store).get(key).card["metrics"]["values"]
        for key in (keys.scores, turned.scores)
    )
    assert first["paper-256"]["image"] == second["paper-256"]["image"]
    for protocol in ("paper-256", "mvtec-official"):
        for metric in ("auroc", "ap", "f1_max", "aupro", "aupro_0.05"):
            assert first[protocol]["pixel"][metric] != second[protocol]["pixel"][metric]


def test_a_second_run_makes_nothing_again(
    copied: tuple[Config, Keys],
) -> None:
    config, keys = copied
    before = cards_of(Store(config.store))
    assert len(before) == 4
    assert run(config) == keys
    assert cards_of(Store(config.store)) == before  # created_at included


CHANGES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "epochs": ({"student__epochs": 3}, {"student", "scores"}),
    "seed": ({"seed": 1}, {"student", "scores"}),
    "fusion": ({"scoring__fusion": "product"}, {"scores"}),
    "false_alarm_rate": ({"scoring__false_alarm_rate": 0.3}, {"scores"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_config_makes_again_what_depends_on_it(
    name: str, copied: tuple[Config, Keys], drawn: Path
) -> None:
    config, keys = copied
    changes, expected = CHANGES[name]
    changed = run(make_config(drawn, Path(config.store), **changes))
    differing = {part for part in vars(keys) if getattr(keys, part) != getattr(changed, part)}
    assert differing == expected


def test_fine_tunings_values_move_tuned_teachers_alone(
    copied: tuple[Config, Keys], drawn: Path
) -> None:
    config, keys = copied
    store = Store(config.store)

    def key_of(**changes: Any) -> str:
        changed = make_config(drawn, Path(config.store), **changes)
        return stages.teacher(changed, store, keys.dataset)

    identity = {"version": 1, "weights": FORMULA_SHA256, "mode": "imagenet"}
    assert keys.teacher == f"teachers/{digest_of(identity)}"  # as it has been since 0.1.0
    assert key_of(teacher__patience=1, teacher__temperature=0.2) == keys.teacher
    tuned = {"teacher__mode": "synthetic", "teacher__epochs": 1}
    mixed = {share: key_of(**tuned, teacher__mixture=share) for share in (0.0, 1.0)}
    assert len({keys.teacher, *mixed.values()}) == 3
    histories = [
        pq.read_table(Path(config.store) / key / "history.parquet").to_pylist()
        for key in mixed.values()
    ]
    assert histories[0] == histories[1]
    assert [row["epoch"] for row in histories[0]] == [1]
    weights = [
        load_file(Path(config.store) / key / "weights.safetensors")
        for key in (keys.teacher, mixed[0.0])
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_new_training_image_concerns_its_category_alone(dataset: Path, tmp_path: Path) -> None:
    config = make_config(dataset, tmp_path / "store", dataset__categories=CATEGORIES[:2])
    store, keys = Store(config.store), {}
    for attempt in range(2):
        data = stages.validate(config, store)
        teacher = stages.teacher(config, store, data)
        for category in CATEGORIES[:2]:
            key = stages.student(config, store, data, teacher, category)
            keys[attempt, category] = key
        other = dataset / CATEGORIES[1] / "train" / "good"
        with Image.open(other / "000.png") as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other / "900.png")
    assert keys[0, CATEGORIES[0]] == keys[1, CATEGORIES[0]]
    assert keys[0, CATEGORIES[1]] != keys[1, CATEGORIES[1]]
    assert store.get(keys[1, CATEGORIES[1]]).card["train_images"] == 5


def test_a_renamed_root_changes_nothing_and_a_renamed_defect_the_scores(
    copied: tuple[Config, Keys], dataset: Path
) -> None:
    config, keys = copied
    moved = make_config(dataset, Path(config.store))
    assert run(moved) == keys
    # The order of the images stays, and so do their bytes: but the table names each image.
    defect = sorted(p.name for p in (dataset / CATEGORY / "test").iterdir())[0]
    for folder in ("test", "ground_truth"):
        path = dataset / CATEGORY / folder / defect
        path.rename(path.with_name(f"{defect}-renamed"))
    renamed = run(moved)
    assert renamed.student == keys.student
    assert f"{defect}-renamed" in {row["defect_type"] for row in score_table(moved, renamed)}


@pytest.mark.parametrize("mode", ["classification", "synthetic", "metric"])
def test_training_needs_neither_test_nor_ground_truth(
    mode: str, dataset: Path, cache: Path, tmp_path: Path
) -> None:
    """Proof one: the folders are gone, and so is whatever was decoded from them."""
    config = make_config(
        dataset,
        tmp_path / "store",
        dataset__categories=CATEGORIES[:2],
        teacher__mode=mode,
        teacher__epochs=1,
    )
    store = Store(config.store)
    key = stages.validate(config, store)
    assert list((cache / "decoded").glob("*-test-*"))
    shutil.rmtree(cache)
    for category in CATEGORIES[:2]:
        for folder in ("test", "ground_truth"):
            (dataset / category / folder).rename(tmp_path / f"{category}-{folder}")
    teacher = stages.teacher(config, store, key)
    assert "2 categories" in store.get(teacher).card["summary"]
    student = stages.student(config, store, key, teacher, CATEGORY)
    assert store.get(student).card["train_images"] == 4
    with pytest.raises(DatasetError, match="was a whole image when it was validated"):
        stages.scores(config, store, key, student, CATEGORY)


LISTEN = """
import json, sys
opened, stage = {}, "import"

def listen(event, arguments):
    if event in ("open", "os.listdir", "os.scandir", "os.open"):
        opened.setdefault(stage, set()).add(str(arguments[0]))

sys.addaudithook(listen)
from etstpm import networks, stages
from etstpm.config import Config
from etstpm.storage import Store
config, dataset, category = Config.model_validate_json(sys.argv[1]), sys.argv[2], sys.argv[3]
store, stage = Store(config.store), "teacher"
teacher = stages.teacher(config, store, dataset)
stage = "student"
student = stages.student(config, store, dataset, teacher, category)
stage = "scores"
stages.scores(config, store, dataset, student, category)
print(json.dumps({name: sorted(paths) for name, paths in opened.items()}))
"""


def test_training_opens_nothing_of_the_test_split(
    dataset: Path, cache: Path, tmp_path: Path
) -> None:
    """Proof two: every file that Python opens is written down, in a process of its own.

    The stage that may read the test split follows in the same process and is seen to do so.
    """
    config = make_config(
        dataset,
        tmp_path / "store",
        dataset__categories=CATEGORIES[:2],
        teacher__mode="classification",
        teacher__epochs=1,
    )
    key = stages.validate(config, Store(config.store))
    for path in (cache / "decoded").glob(f"{CATEGORY}-*"):
        path.unlink()  # so that training decodes once more
    result = subprocess.run(
        [sys.executable, "-c", LISTEN, config.model_dump_json(), key, CATEGORY],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    opened: dict[str, list[str]] = json.loads(result.stdout)

    def is_of_test(path: str) -> bool:
        inside = Path(path).relative_to(dataset).parts if path.startswith(str(dataset)) else ()
        return bool({"test", "ground_truth"} & set(inside)) or (
            path.startswith(str(cache)) and "-test-" in path
        )

    training = [*opened["teacher"], *opened["student"]]
    images = {str(path) for path in dataset.glob(f"{CATEGORY}/train/good/*.png")}
    assert len(images) == 4
    assert images <= set(training)
    assert any(f"{CATEGORY}-train-64" in path for path in opened["student"])
    assert [path for path in training if is_of_test(path)] == []
    scored = {path for path in opened["scores"] if is_of_test(path)}
    assert any("/ground_truth/" in path for path in scored)
    assert any("/test/" in path for path in scored)
    assert any("-test-64-" in path for path in scored)


def test_only_the_sample_falls_back_to_the_packages_own_weights(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "WEIGHTS_URL", "http://127.0.0.1:9/resnet18.pth")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    config = make_config(dataset, tmp_path / "store", teacher__weights=None)
    assert is_sample(config)
    assert proven_weights(config).sha256 == FORMULA_SHA256
    named = make_config(dataset, tmp_path / "store", teacher={"weights_sha256": "0" * 64})
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        proven_weights(named)
    (dataset / MARKER).unlink()
    assert not is_sample(config)
    with pytest.raises(WeightsError, match=r"one of four ways: .*\(WEIGHTS=formula\)"):
        stages.validate(config, Store(config.store))
    assert not Path(config.store).exists()
    stages.validate(make_config(dataset, tmp_path / "store"), Store(config.store))  # it was asked


def name_no_category(_: Path) -> dict[str, Any]:
    return {"dataset__categories": ("no-such",)}


def break_image(root: Path) -> dict[str, Any]:
    path = root / CATEGORY / "train" / "good" / "001.png"
    path.write_bytes(path.read_bytes()[:-200])
    return {}


def break_weights(root: Path) -> dict[str, Any]:
    torch.save({"conv1.weight": torch.zeros(1)}, root.parent / "weights.pth")
    return {"teacher__weights": str(root.parent / "weights.pth")}


def lose_weights(root: Path) -> dict[str, Any]:
    return {"teacher__weights": str(root.parent / "missing.pth")}


def ask_for_a_device(_: Path) -> dict[str, Any]:
    return {"device": "cuda:99"}


def begin_from_no_run(_: Path) -> dict[str, Any]:
    return {"student__warm_start": "typo"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (name_no_category, "no category 'no-such'; it holds biscuit, fabric, flange"),
        (break_image, r"biscuit/train/good/001\.png"),
        (break_weights, "SHA-256 .* is not one that etstpm knows"),
        (lose_weights, r"missing\.pth cannot be read"),
        (ask_for_a_device, "device 'cuda:99'"),
        (begin_from_no_run, "store .* holds no published run"),
    ],
)
@pytest.mark.parametrize("is_there", [False, True], ids=["new store", "empty store"])
def test_bad_input_is_named_and_nothing_is_written(
    spoil: Callable[[Path], dict[str, Any]],
    message: str,
    is_there: bool,
    dataset: Path,
    tmp_path: Path,
) -> None:
    config = make_config(dataset, tmp_path / "store", **spoil(dataset))
    if is_there:
        Path(config.store).mkdir()
    with pytest.raises(EtstpmError, match=message) as caught:
        stages.validate(config, Store(config.store))
    assert "\n" not in str(caught.value)
    assert Path(config.store).exists() == is_there
    assert list(Path(config.store).rglob("*")) == []


def test_a_store_that_cannot_be_written_is_refused_first(
    drawn: Path, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    config = make_config(drawn, tmp_path / "file" / "store")
    with pytest.raises(StorageError, match=r"file/store: .*can be written"):
        stages.validate(config, Store(config.store))
    assert (tmp_path / "file").read_text() == "not a folder"
    assert not cache.exists()  # not after an hour of decoding


def test_a_store_inside_the_dataset_is_refused(dataset: Path) -> None:
    (dataset / "link").symlink_to(dataset)
    for store in (dataset, dataset / "results", dataset / "link" / "results"):
        with pytest.raises(StorageError, match=f"store {store} lies in the dataset"):
            stages.validate(make_config(dataset, store), Store(str(store)))
    assert not (dataset / "results").exists()


def test_an_image_that_changed_after_validation_is_refused(
    dataset: Path, cache: Path, tmp_path: Path
) -> None:
    config = make_config(dataset, tmp_path / "store")
    store = Store(config.store)
    key = stages.validate(config, store)
    teacher = stages.teacher(config, store, key)
    shutil.rmtree(cache)
    path = dataset / CATEGORY / "train" / "good" / "001.png"
    shutil.copyfile(path.with_name("000.png"), path)
    with pytest.raises(DatasetError, match=r"001\.png: changed since it was validated"):
        stages.student(config, store, key, teacher, CATEGORY)
    assert not (Path(config.store) / "students").exists()


def test_a_mask_that_changed_after_validation_is_refused(
    copied: tuple[Config, Keys], dataset: Path
) -> None:
    config, keys = copied
    config = config.model_copy(update={"dataset": make_config(dataset, Path()).dataset})
    store = Store(config.store)
    shutil.rmtree(store.path(keys.scores))
    path = sorted(dataset.glob(f"{CATEGORY}/ground_truth/*/*.png"))[0]
    Image.fromarray(~read_mask(path)).convert("L").save(path)
    with pytest.raises(DatasetError, match=rf"{path.name}: changed since it was validated"):
        stages.scores(config, store, keys.dataset, keys.student, CATEGORY)
    path.unlink()
    with pytest.raises(DatasetError, match=rf"{path.name}: was a whole mask when .*; run again"):
        stages.scores(config, store, keys.dataset, keys.student, CATEGORY)
    assert store.find(keys.scores) is None


def test_scores_are_equal_to_the_bit_whatever_else_the_run_holds(
    finished: tuple[Config, Keys], drawn: Path, tmp_path: Path
) -> None:
    config, alone = finished
    both = make_config(drawn, tmp_path / "store", dataset__categories=CATEGORIES[:2])
    store = Store(both.store)
    data = stages.validate(both, store)
    teacher = stages.teacher(both, store, data)
    # The other category first: what it draws must not reach this one.
    torch.manual_seed(99)
    keys = {
        category: stages.student(both, store, data, teacher, category)
        for category in (CATEGORIES[1], CATEGORY)
    }
    scores = stages.scores(both, store, data, keys[CATEGORY], CATEGORY)
    together = Keys(data, teacher, keys[CATEGORY], scores)
    assert alone.dataset != together.dataset
    first, second = score_table(config, alone), score_table(both, together)
    assert [row["score"] for row in first] == [row["score"] for row in second]
    weights = [
        load_file(Path(place) / key / "weights.safetensors")
        for place, key in ((config.store, alone.student), (both.store, together.student))
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
