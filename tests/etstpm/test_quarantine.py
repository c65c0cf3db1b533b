"""What a dataset's findings leave out is counted in the run's record and its tables."""

import shutil
from pathlib import Path

import pandas as pd

from etstpm import stages
from etstpm.config import Config
from etstpm.report import write_report
from etstpm.storage import Store
from tests.nights import publish_night

CATEGORY = "biscuit"


def test_images_and_categories_left_out_are_named_and_counted(
    dataset: Path, tmp_path: Path
) -> None:
    """One image is damaged, one mask is gone; one category has no images to train on."""
    (dataset / CATEGORY / "train/good/000.png").write_bytes(b"x")
    next((dataset / CATEGORY / "ground_truth").rglob("*.png")).unlink()
    shutil.rmtree(dataset / "fabric/train/good")
    config = Config.load(
        "sample",
        [
            "dataset.image_size=64",
            "student.epochs=2",
            "student.least_images=0",
            "student.batch_size=1",
            "device=cpu",
        ],
        {
            "dataset.root": str(dataset),
            "dataset.categories": f"{CATEGORY},fabric",
            "dataset.on_finding": "quarantine",
            "teacher.weights": "formula",
            "teacher.mode": "imagenet",
            "store": str(tmp_path / "store"),
        },
    )
    store, night = Store(config.store), publish_night(config, "quarantine")
    assert stages.categories_of(store, night.dataset) == [CATEGORY]
    run = night.run

    assert not run.is_complete
    assert store.read_json("runs/quarantine/run.json")["quarantined"] == {CATEGORY: 2}
    metrics = pd.read_parquet(run.files["metrics"])
    counts = metrics.groupby("category", observed=True)["n_quarantined"].unique()
    assert counts[CATEGORY].tolist() == counts["mean"].tolist() == [2]
    reasons = metrics[metrics["category"] == "fabric"]["reason"]
    assert reasons.str.startswith("left out of the dataset: fabric/train/good: expected at").all()
    assert len(pd.read_parquet(run.files["image_scores"])) == 2 + 3 - 1

    text = Path(write_report(store, "quarantine", tmp_path / "report.html")).read_text("utf-8")
    assert "2 images in quarantine: left out of this run." in text
    assert text.count('<span>in quarantine <b class="bad">2</b></span>') == 1
