"""`etstpm export`: a published student as one file, with its model card."""

from typing import Annotated

import typer
from rich.console import Console


def export(
    category: Annotated[str, typer.Option(help="Which product's student.")],
    to: Annotated[str, typer.Option(help="The file: a path or any fsspec URI.")],
    format_: Annotated[str, typer.Option("--format", help="onnx, or torch-export.")] = "onnx",
    run: Annotated[str, typer.Option(help="Whose student: a run's id, or the newest.")] = "latest",
    store: Annotated[str, typer.Option(help="Folder or URI of the results.")] = "./etstpm-store",
) -> None:
    """Export one file from raw uint8 images to anomaly map and score, and its model card."""
    from etstpm.export.formats import check_format

    check_format(format_)  # before anything is read from the store

    from etstpm.export.exporting import export_detector
    from etstpm.export.program import FLOAT32
    from etstpm.inference.detector import load_detector
    from etstpm.storage import Store

    origin = Store(store)
    detector = load_detector(origin, run, category, FLOAT32)
    exported = export_detector(origin, detector, format_, to)
    console = Console(markup=False, emoji=False)  # names of folders are hostile
    lines = {
        "file": f"{exported.file} ({exported.bytes / 1e6:.1f} MB)",
        "sha256": exported.sha256,
        "card": exported.card,
        "parity": f"scores within {exported.score_difference:.1e}, maps within "
        f"{exported.map_difference:.1e} of the pipeline's in float32 (relative)",
        "threshold": f"{detector.threshold!r} of run {detector.run_id}",
    }
    for name, text in lines.items():
        console.print(f"{name:<10} {text}", highlight=False, soft_wrap=True)
