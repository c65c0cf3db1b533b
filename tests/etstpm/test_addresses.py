"""Addresses are known before anything is made, and are those that the stages then use."""

from pathlib import Path

from etstpm import stages
from etstpm.addresses import find_scores, find_teacher
from etstpm.config import Config
from etstpm.storage import Store


def test_what_is_made_is_found_at_the_address_the_stages_used(drawn: Path, tmp_path: Path) -> None:
    config = Config.load(
        "sample",
        ["student.epochs=6", "student.batch_size=2", "dataset.image_size=64"],
        {"dataset.root": str(drawn), "teacher.weights": "random", "store": str(tmp_path / "store")},
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
