"""The stages on real MVTec AD images with real ImageNet weights, small enough for every commit."""

from pathlib import Path

import pandas as pd

from etstpm.config import Config
from etstpm.metric_rows import WHY_UNDEFINED
from etstpm.storage import Store
from etstpm.tables import PAPER
from tests.nights import publish_night


def test_toothbrush_has_pixels_to_score_but_no_good_test_image(
    real_data: Path, tmp_path: Path
) -> None:
    config = Config.load(
        "default",
        ["dataset.categories=toothbrush", "dataset.image_size=128", "student.epochs=4"],
        {
            "dataset.root": str(real_data / "mvtec_ad"),
            "teacher.weights": str(next((real_data / "weights").glob("*.pth"))),
            "store": str(tmp_path / "store"),
        },
    )
    store, night = Store(config.store), publish_night(config, "real", categories=["toothbrush"])
    run = night.run

    assert run.is_complete
    assert "batch normalisation folded" in store.get(night.teacher).card["description"]
    metrics = pd.read_parquet(run.files["metrics"])
    metrics = metrics[(metrics["category"] == "toothbrush") & (metrics["protocol"] == PAPER)]
    assert set(metrics["defect_type"]) == {"all", "defective"}
    metrics = metrics[metrics["defect_type"] == "all"]
    image = metrics[metrics["level"] == "image"]
    assert image["value"].isna().all()
    assert set(image["reason"]) == {WHY_UNDEFINED}
    assert set(image["n_good"]) == {0}
    # 0.973 was seen; a teacher with wrong weights or a wrong normalisation stays far below.
    pixel = metrics[metrics["level"] == "pixel"].set_index("metric")
    auroc = pixel.loc["auroc"]
    assert auroc["value"] > 0.95
    assert auroc["ci_low"] < auroc["value"] < auroc["ci_high"]
    assert len(pd.read_parquet(run.files["image_scores"])) == 30
