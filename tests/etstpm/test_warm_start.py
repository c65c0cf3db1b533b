"""A student begins from an earlier night's where its images have grown; its address says so."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etstpm import stages
from etstpm.addresses import find_scores
from etstpm.config import Config
from etstpm.errors import ConfigError, ResultsError
from etstpm.sample import MARKER, draw_sample
from etstpm.storage import Store
from etstpm.tables import SCHEMA_VERSION
from etstpm.warm_start import extend_held_out, pin_run

CATEGORY = "biscuit"
FIRST, SECOND, THIRD = "20260101T020000Z-a", "20260102T020000Z-b", "20260103T020000Z-c"


class Nights:
    """A store, a dataset that grows between the nights, and the config of each night."""

    def __init__(self, folder: Path) -> None:
        self.all = folder / "all"
        draw_sample(self.all, image_size=64, train=12, test_good=2, per_defect=1)
        self.root = folder / "root"
        shutil.copytree(self.all / CATEGORY, self.root / CATEGORY)
        shutil.copy(self.all / MARKER, self.root)
        self.images = sorted((self.root / CATEGORY / "train" / "good").iterdir())
        self.store = Store(str(folder / "store"))
        self.show(8)

    def show(self, count: int) -> None:
        """Leave so many training images in the dataset."""
        for number, path in enumerate(self.images):
            source = self.all / path.relative_to(self.root)
            if number < count:
                shutil.copy(source, path)
            else:
                path.unlink(missing_ok=True)

    def config(self, **student: Any) -> Config:
        values = {
            "epochs": 3,
            "least_images": 0,
            "batch_size": 2,
            "warm_epochs": 2,
            "validation_fraction": 0.25,
        }
        return Config.model_validate(
            {
                "dataset": {
                    "root": str(self.root),
                    "categories": (CATEGORY,),
                    "image_size": 64,
                },
                "teacher": {"weights": "formula"},
                "student": values | student,
                "store": self.store.uri,
                "device": "cpu",
                "precision": "float32",
            }
        )

    def run(self, run_id: str, **student: Any) -> dict[str, Any]:
        """All stages as a run does them; the card of its student."""
        config = pin_run(self.config(**student), self.store)
        dataset = stages.validate(config, self.store)
        teacher = stages.teacher(config, self.store, dataset)
        key = stages.student(config, self.store, dataset, teacher, CATEGORY)
        scores = stages.scores(config, self.store, dataset, key, CATEGORY)
        made = find_scores(config, self.store, dataset, teacher, [CATEGORY])[CATEGORY]
        assert (made.student_digest, made.scores_key) == (key.rsplit("/", 1)[-1], scores)
        outcome = {"category": CATEGORY, "scores_key": scores, "failure": None}
        self.store.write_json(
            f"runs/{run_id}/run.json",
            {
                "run_id": run_id,
                "schema_version": SCHEMA_VERSION,
                "dataset": dataset,
                "outcomes": [outcome],
            },
        )
        self.store.write_json("runs/latest.json", {"run_id": run_id})
        return self.store.get(key).card


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path)


def test_a_grown_category_begins_from_the_night_before(nights: Nights) -> None:
    first = nights.run(FIRST, warm_start="latest")
    assert first["start"] is None, "there was no night before"
    nights.show(12)
    second = nights.run(SECOND, warm_start="latest")
    assert second["start"]["key"] == first["key"]
    assert second["metrics"]["epoch"] <= 2, "as many epochs as warm_epochs"
    assert second["inputs"]["start"] == {"student": first["key"].rsplit("/", 1)[-1], "epochs": 2}
    # The night after, with nothing new, nothing is made: the start is that of the night before.
    assert nights.run(THIRD, warm_start="latest") == second
    # Nor by the same night run again from the run that it began from.
    assert nights.run(SECOND, warm_start=FIRST) == second


def test_what_a_student_began_from_may_be_collected(nights: Nights) -> None:
    first = nights.run(FIRST)
    nights.show(10)
    second = nights.run(SECOND, warm_start="latest")
    nights.store.remove_file(f"{first['key']}/card.json")
    assert nights.store.find(first["key"]) is None
    # With nothing new nothing is made, and tonight's student begins from the last one.
    assert nights.run(THIRD, warm_start="latest") == second
    nights.show(12)
    assert nights.run(THIRD, warm_start="latest")["start"]["key"] == second["key"]


def test_a_warm_students_address_is_not_a_cold_ones(nights: Nights) -> None:
    first = nights.run(FIRST)
    assert nights.run(FIRST, warm_start="latest") == first, "nothing to begin from, nothing new"
    nights.show(12)
    warm, cold = nights.run(SECOND, warm_start=FIRST), nights.run(THIRD)
    assert warm["key"] != cold["key"]
    assert warm["files"] != cold["files"]
    other = nights.run(THIRD, warm_start=FIRST, warm_epochs=1)
    assert len({warm["key"], cold["key"], other["key"]}) == 3


@pytest.mark.parametrize("changes", [{"epochs": 4}, {"batch_size": 3}], ids=str)
def test_another_recipe_begins_anew(nights: Nights, changes: dict[str, Any]) -> None:
    nights.run(FIRST)
    nights.show(12)
    assert nights.run(SECOND, warm_start=FIRST, **changes)["start"] is None


def test_images_that_are_gone_begin_anew(nights: Nights) -> None:
    nights.show(12)
    nights.run(FIRST)
    nights.show(8)
    assert nights.run(SECOND, warm_start=FIRST)["start"] is None


def test_what_the_earlier_student_has_seen_is_never_held_out(nights: Nights) -> None:
    first = nights.run(FIRST)
    nights.show(12)
    second = nights.run(SECOND, warm_start=FIRST)
    held_out = second["start"]["held_out"]
    assert len(held_out) == 3
    trained = {0, 1, 2, 3, 4, 5, 6, 7} - set(held_out)
    assert len(trained) == 6, "the two that were held out of eight are held out again"
    card = json.loads(
        next((Path(nights.store.uri) / "scores" / CATEGORY).rglob("card.json")).read_text()
    )
    assert len(card["metrics"]["held_out_scores"]) in {2, 3}
    assert first["train_images"] == 8


def test_an_unknown_run_is_one_clear_line(nights: Nights) -> None:
    nights.store.write_json(f"runs/{FIRST}/run.json", {"run_id": FIRST})
    with pytest.raises(ResultsError, match=r"store .*: no run 'no-such'"):
        nights.run(FIRST, warm_start="no-such")
    with pytest.raises(ConfigError, match="warm_start"):
        Config.load("default", ["student.warm_start=../../etc"])


def test_latest_is_asked_for_once(nights: Nights) -> None:
    config = nights.config(warm_start="latest")
    assert pin_run(config, nights.store).student.warm_start is None
    nights.store.write_json("runs/latest.json", {"run_id": FIRST})
    pinned = pin_run(config, nights.store)
    nights.store.write_json("runs/latest.json", {"run_id": SECOND})
    assert pin_run(pinned, nights.store).student.warm_start == FIRST


@given(st.integers(2, 60), st.integers(0, 60), st.integers(0, 2**31), st.floats(0.05, 0.9))
def test_held_out_grows_by_new_images_alone(
    earlier: int, new: int, seed: int, fraction: float
) -> None:
    before = [f"old-{n}" for n in range(earlier)]
    held = before[: max(1, round(earlier * fraction))]
    images = sorted([*before, *(f"new-{n}" for n in range(new))], key=lambda name: name[::-1])
    count = max(1, round(len(images) * fraction))
    rows = extend_held_out(images, held, set(before), count=count, seed=seed)
    chosen = {images[row] for row in rows}
    assert rows == sorted(set(rows))
    assert set(held) <= chosen
    assert not chosen & (set(before) - set(held))
    assert len(chosen) == max(len(held), min(count, len(held) + new))
    assert rows == extend_held_out(images, held, set(before), count=count, seed=seed)
