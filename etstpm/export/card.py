"""The model card beside an exported file: what it is, made from what, how good, for what use."""

from importlib import resources
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from etstpm import __version__
from etstpm.config import Config
from etstpm.config_files import preset_names
from etstpm.inference.detector import Detector
from etstpm.markdown import escape
from etstpm.networks import FORMULA_SHA256
from etstpm.storage import Card, Store
from etstpm.tables import OFFICIAL, PAPER

SHOWN = (
    (PAPER, "image", "auroc", "image AUROC"),
    (PAPER, "image", "ap", "image AP"),
    (PAPER, "image", "f1_max", "image F1-max"),
    (PAPER, "pixel", "auroc", "pixel AUROC, at 256x256"),
    (OFFICIAL, "pixel", "aupro", "AUPRO to a false positive rate of 0.3, at each image's own size"),
)
"""Protocol, level, metric, and how a person calls it."""

FAMILIES = {
    "forward": "STPM, Wang et al., BMVC 2021",
    "reverse": "reverse distillation, Deng and Li, CVPR 2022",
}
"""Whose idea a student's network is."""

UNKNOWN_LICENCE = (
    "their dataset's card names no licence, so ask whoever took them (MVTec AD is CC BY-NC-SA 4.0, "
    "not for commercial use)"
)


def describe_model(
    store: Store,
    detector: Detector,
    *,
    name: str,
    file: str,
    sha256: str,
    size_in_bytes: int,
    differences: tuple[float, float],
) -> str:
    """The card as Markdown; each number is read from the run's artifacts or was just measured.

    differences: of scores and maps, as `exporting.differences` gives them.
    """
    metrics = detector.scores.card["metrics"]
    student, teacher = (store.get(key).card for key in reversed(detector.keys))
    values: dict[str, Any] = {
        "category": escape(detector.category),
        "family": FAMILIES[detector.config.student.network],
        "version": __version__,
        "file": escape(file),
        "format": name,
        "megabytes": size_in_bytes / 1e6,
        "sha256": sha256,
        "size": detector.size,
        "score_difference": differences[0],
        "map_difference": differences[1],
        "threshold": detector.threshold,
        "false_alarm_rate": detector.config.scoring.false_alarm_rate,
        "held_out": len(detector.held_out_scores),
        "decisions": _decisions(store, detector),
        "precision": _precision(detector),
        "n_good": metrics["n_good"],
        "n_defective": metrics["n_defective"],
        "figures": _figures(metrics),
        "run_id": detector.run_id,
        "dataset": detector.dataset_key,
        "train_images": student["train_images"],
        "student": detector.keys[1],
        "seed": detector.config.seed,
        "teacher": detector.keys[0],
        "teacher_description": escape(f"{teacher['description']}, {teacher['summary']}"),
        "scores": detector.scores.key,
        "preset": _preset(detector.config),
        "licence": licence_of(store, detector.dataset_key),
        "weights": terms_of(teacher),
    }
    use = _template(f"use-{name}").format(**values)
    return _template("model-card").format(**values, use=use.rstrip())


def _template(name: str) -> str:
    return (resources.files("etstpm.export") / f"{name}.md").read_text("utf-8")


def _figures(metrics: dict[str, Any]) -> str:
    lines = []
    for protocol, level, metric, words in SHOWN:
        value = metrics["values"][protocol][level].get(metric)
        ends = (metrics["intervals"].get(protocol, {}).get(level) or {}).get(metric)
        interval = "-" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
        lines.append(f"| {words} | {'n/a' if value is None else f'{value:.3f}'} | {interval} |")
    return "\n".join(lines)


def terms_of(teacher: Card) -> str:
    """Under which terms a teacher's weights come, by its card."""
    if teacher["weights"]["sha256"] == FORMULA_SHA256:
        return "etstpm's own, under Apache-2.0 as the code is"
    return f"{escape(teacher['description'])}, which come under terms of their own"


def _decisions(store: Store, detector: Detector) -> str:
    """What the threshold has done on the test images."""
    with store.open(detector.scores, "image_scores.parquet") as folder:
        table = pq.read_table(
            folder / "image_scores.parquet", columns=["label", "predicted"], partitioning=None
        )
    parts = []
    for label, word in ((0, "good"), (1, "defective")):
        called = table.filter(pc.field("label") == label)["predicted"].to_pylist()
        parts.append(f"{sum(called)} of {len(called)} {word}")
    return f"In the test it called {' and '.join(parts)} images defective."


def _precision(detector: Detector) -> str:
    there = detector.precision_of_threshold
    if there == "float32":
        return ""
    return (
        f" The threshold was set with convolutions in {there}, and this file computes in float32: "
        "scores near it may fall on its other side; a run with `precision=float32` has no such gap."
    )


def _preset(config: Config) -> str:
    """The preset whose student and scoring these are, else their values."""
    for name in preset_names():
        preset = Config.load(name)
        if (preset.student, preset.scoring) == (config.student, config.scoring):
            return f"`{name}`"
    values = f"student `{config.student.model_dump_json()}`"
    return f"none unchanged: {values}, scoring `{config.scoring.model_dump_json()}`"


def licence_of(store: Store, dataset_key: str) -> str:
    """The images' licence and terms, as their dataset's card has them, in Markdown."""
    known = store.get(dataset_key).card.get("dataset") or {}
    if not known.get("licence"):
        return UNKNOWN_LICENCE
    parts = [f"{known.get('title')}: {known['licence']}", known.get("licence_url")]
    return escape(". ".join(part for part in (*parts, known.get("terms")) if part).rstrip("."))
