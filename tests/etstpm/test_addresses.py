"""Addresses are known before anything is made, and are those that the stages then use."""

from pathlib import Path

import pyarrow.parquet as pq

from etstpm import stages
from etstpm.addresses import Made, find_scores, find_teacher
from etstpm.config import Config
from etstpm.storage import Store


def test_what_is_made_is_found_at_the_address_the_stages_used(drawn: Path, tmp_path: Path) -> None:
    config = Config.load(
        "sample",
        [
            "student.epochs=6",
            "student.least_images=0",
            "student.batch_size=2",
            "dataset.image_size=64",
        ],
        {
            "dataset.root": str(drawn),
            "teacher.weights": "formula",
            "store": str(tmp_path / "store"),
        },
    )
    store = Store(config.store)
    dataset = stages.validate(config, store)
    assert find_teacher(config, store, dataset) is None
    teacher = stages.teacher(config, store, dataset)
    assert find_teacher(config, store, dataset) == teacher

    before = find_scores(config, store, dataset, teacher, ["biscuit", "fabric"])
    student = stages.student(config, store, dataset, teacher, "biscuit")
    half = find_scores(config, store, dataset, teacher, ["biscuit"])
    scores = stages.scores(config, store, dataset, student, "biscuit")
    after = find_scores(config, store, dataset, teacher, ["biscuit", "fabric"])

    assert before["biscuit"].scores_key is half["biscuit"].scores_key is None
    assert before["biscuit"].student_digest == student.rsplit("/", 1)[-1]
    assert after["biscuit"].scores_key == scores
    assert after["fabric"] == before["fabric"]

    # Neither what judges a run nor what it keeps beside the scores makes students or scores anew.
    strict = Config.model_validate(config.model_dump() | {"gate": {"tolerance": 0.5}})
    assert find_scores(strict, store, dataset, teacher, ["biscuit"])["biscuit"] == after["biscuit"]
    kept = Config.model_validate(config.model_dump() | {"maps": {"kept": "float16", "limit": 3}})
    found = find_scores(kept, store, dataset, teacher, ["biscuit"])["biscuit"]
    assert found == Made(after["biscuit"].student_digest, None)
    with_maps = stages.scores(kept, store, dataset, student, "biscuit")
    plain, mapped = store.get(scores), store.get(with_maps)
    assert mapped.card["metrics"] == plain.card["metrics"]
    assert "maps.parquet" not in plain.card["files"]
    with store.open(mapped, "maps.parquet") as folder:
        maps = pq.read_table(folder / "maps.parquet", partitioning=None)
    assert maps["rank"].to_pylist() == [0, 1, 2]
    assert maps["height"].to_pylist() == maps["width"].to_pylist() == [64] * 3
