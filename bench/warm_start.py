"""What a warm start gives and costs: a category with part of its images, then with all of them.

    python -m bench.warm_start --dataset MVTEC_ROOT --weights WEIGHTS.pth --category capsule \
        --share 0.8 --set student.epochs=8 student.warm_epochs=3 --output result.json

The first night trains on the share; the second on everything, once from random weights and once
from the first night's student. Prints each student's epochs, seconds and AUROCs on the test images.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from etstpm.config import Config
from etstpm.metric_rows import value_of
from etstpm.storage import Store
from etstpm.tables import PAPER
from tests.nights import publish_night


def main() -> None:
    """Both nights, the second one twice."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root" / arguments.category
        shutil.copytree(arguments.dataset / arguments.category, root)
        images = sorted((root / "train" / "good").iterdir())
        later = images[round(arguments.share * len(images)) :]
        away = Path(folder) / "later"
        away.mkdir()
        for path in later:
            path.rename(away / path.name)
        given = {
            "dataset.root": str(root.parent),
            "teacher.weights": str(arguments.weights),
            "store": f"{folder}/store",
        }
        config = Config.load("default", arguments.set, given)
        warm = Config.load("default", [*arguments.set, "student.warm_start=latest"], given)
        results = {"first night": night(config, "first", arguments.category)}
        for path in later:
            (away / path.name).rename(path)
        results["second night, warm"] = night(warm, "warm", arguments.category)
        results["second night, cold"] = night(config, "cold", arguments.category)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def night(config: Config, run_id: str, category: str) -> dict[str, Any]:
    """A run over the category, and what its cards say."""
    store, made = Store(config.store), publish_night(config, run_id, categories=[category])
    student, scores = store.get(made.students[category]), store.get(made.scores[category])
    with store.open(scores, "image_scores.parquet") as folder:
        rows = pq.read_table(folder / "image_scores.parquet", partitioning=None).to_pylist()
    alarms = [row["predicted"] for row in rows if row["label"] == 0]
    start = student.card["start"]
    found = {
        "train_images": student.card["train_images"],
        "epochs": start["epochs"] if start else config.student.epochs,
        "seconds": student.card["seconds"],
        "validation_map": student.card["metrics"]["validation_map"],
        "image_auroc": value_of(scores.card["metrics"], PAPER, "image", "auroc"),
        "pixel_auroc": value_of(scores.card["metrics"], PAPER, "pixel", "auroc"),
        "false_alarms": sum(alarms) / max(1, len(alarms)),
    }
    print(
        "{name}: {train_images} images, {epochs} epochs, {seconds:.0f} s, image AUROC "
        "{image_auroc:.4f}, pixel AUROC {pixel_auroc:.4f}, held-out map {validation_map:.3g}, "
        "{false_alarms:.1%} false alarms".format(name=run_id, **found),
        flush=True,
    )
    return found


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", type=Path, required=True, help="MVTec AD root")
    parser.add_argument("--weights", type=Path, required=True, help="ResNet-18 state dict")
    parser.add_argument("--category", default="capsule")
    parser.add_argument("--share", type=float, default=0.8, help="of train/good, the first night")
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
