"""Seconds of training until a student is as good as the peer's after 100 epochs.

    python -m bench.time_to_quality --dataset MVTEC_ROOT --weights WEIGHTS.pth --output result.json

The peer's AUROCs stand in bench/peer_curves/, recorded by `bench/peer_anomalib.py curve` (its
docstring has the command) or published: each file says which. Ours is trained from nothing with
ever more epochs, each time a whole one-cycle schedule, until image and pixel AUROC both reach the
peer's; the seconds are those of that last training, the teacher's pass included. Its scoring is not
timed, nor is the peer's.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.own import seconds_of
from etstpm.compute import choose_compute
from etstpm.config import Config, StudentConfig
from etstpm.dataset import image_files, rows_of, scan_dataset
from etstpm.decoded import load_pixels
from etstpm.distillation import DistilledStudent, distil_student
from etstpm.images import resize_mask
from etstpm.inputs import own_mask
from etstpm.metrics import auroc
from etstpm.networks import load_weights
from etstpm.scorer import Scorer
from etstpm.splits import split_train_validation
from etstpm.tables import PAPER_SIDE

CURVES = Path(__file__).parent / "peer_curves"
EPOCHS = 1, 2, 3, 4, 6, 8, 12, 16


def main() -> None:
    """Train until the peer's last point is reached."""
    arguments = parse_arguments()
    target = json.loads((CURVES / f"{arguments.category}.json").read_text())["curve"][-1]
    result = reach(
        *(arguments.category, target, arguments.epochs),
        root=arguments.dataset,
        weights=arguments.weights,
    )
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def reach(
    category: str, target: dict[str, float], tried: Sequence[int], *, root: Path, weights: Path
) -> dict[str, Any]:
    """What was tried, and the first that reaches the target; without `seconds` if none does."""
    config = Config()
    compute = choose_compute(config)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        manifest = scan_dataset(root, [category], PAPER_SIDE, cache).manifest
        teacher = load_weights(str(weights), None, cache=cache).build()
        files = {split: image_files(root, manifest, category, split) for split in ("train", "test")}
        pixels = {split: load_pixels(split, files[split], PAPER_SIDE, cache) for split in files}
        rows = rows_of(manifest, category, "test")
        masks = np.stack([resize_mask(own_mask(root, row), PAPER_SIDE) for row in rows])
    labels = np.array([row["label"] == 1 for row in rows])
    training, held_out = split_train_validation(
        len(pixels["train"]), config.student.validation_fraction, config.seed
    )
    found: dict[str, Any] = {"target": target, "train_images": len(pixels["train"]), "tried": []}
    for epochs in tried:
        student_config = config.student.model_copy(update={"epochs": epochs})
        students: list[DistilledStudent] = []

        def train(
            config: StudentConfig = student_config, into: list[DistilledStudent] = students
        ) -> None:
            into.append(
                distil_student(
                    teacher, pixels["train"], config, seed=0, compute=compute, name=category
                )
            )

        seconds = seconds_of(train)
        scorer = Scorer(teacher, students[0].student, config.scoring, compute, category)
        calibration = scorer.calibrate(pixels["train"][held_out])
        scored = scorer.score(pixels["test"], calibration)
        reached = {
            "image_auroc": auroc(labels, scored.scores),
            "pixel_auroc": auroc(masks, scored.maps),
        }
        found["tried"].append({"epochs": epochs, "seconds": seconds} | reached)
        print(found["tried"][-1], flush=True)
        if all(value is not None and value >= target[name] for name, value in reached.items()):
            found |= {
                "seconds": seconds,
                "epochs": epochs,
                "images_seen": epochs * config.student.shown(len(training)),
            }
            break
    return found


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", type=Path, required=True, help="MVTec AD root")
    parser.add_argument("--weights", type=Path, required=True, help="ResNet-18 state dict")
    parser.add_argument("--category", default="bottle")
    parser.add_argument("--epochs", type=int, nargs="+", default=EPOCHS, help="to try, in order")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
