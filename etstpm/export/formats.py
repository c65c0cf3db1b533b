"""The files: written, and run as a stranger would run them."""

import hashlib
import importlib.util
import json
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from etstpm.errors import ConfigError, DatasetError, StorageError
from etstpm.images import Pixels

Format = Literal["onnx", "torch-export"]
FORMATS: tuple[str, ...] = get_args(Format)
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}

INPUT, OUTPUTS = "images", ("anomaly_map", "score")
BATCH = "batch"
OPSET = 20
FACTS = "etstpm.json"
"""Extra file of a `.pt2` archive that holds what an ONNX file has as its metadata."""

Scored = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Maps (N, S, S) and scores (N,)."""

NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch-export": ()}


def check_format(name: str) -> None:
    """Raises `ConfigError` for a format that is unknown or whose packages are not installed."""
    if name not in NEEDED:
        raise ConfigError(f"format {name!r} is unknown; choose one of {', '.join(FORMATS)}")
    missing = [package for package in NEEDED[name] if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"format {name!r} needs {', '.join(NEEDED[name])}, and {', '.join(missing)} is not "
            "installed; pip install 'etstpm[export]', or choose --format torch-export"
        )


def write_onnx(program: torch.export.ExportedProgram, path: Path, facts: Mapping[str, str]) -> None:
    """One `.onnx` file, checked, with `facts` as its metadata."""
    import onnx

    translated = torch.onnx.export(
        program,
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    if translated is None:
        raise RuntimeError("torch.onnx.export has returned nothing")
    model = translated.model_proto
    graph = model.graph
    traced = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == traced:
                dimension.dim_param = BATCH
    onnx.helper.set_model_props(model, dict(facts))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def write_torch_export(
    program: torch.export.ExportedProgram, path: Path, facts: Mapping[str, str]
) -> None:
    """One `.pt2` archive of raw tensors and JSON, with `facts` as an extra file."""
    torch.export.save(program, path, extra_files={FACTS: json.dumps(dict(facts), sort_keys=True)})
    strange = pickled_members(path.read_bytes(), path.name)
    if strange:
        raise RuntimeError(f"torch.export.save has pickled {', '.join(strange)}")


def open_onnx(path: Path) -> Callable[[Pixels], Scored]:
    """The file in ONNX Runtime on the CPU: images (N, S, S, 3) uint8 to maps and scores."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[1]

    def run(pixels: Pixels) -> Scored:
        _check_pixels(pixels, size, path)
        maps, scores = session.run(list(OUTPUTS), {INPUT: np.ascontiguousarray(pixels)})
        return maps, scores

    return run


def open_torch_export(path: Path, sha256: str) -> Callable[[Pixels], Scored]:
    """A `.pt2` file whose SHA-256 is the one its model card names, as a function of images.

    `torch.export.load` would unpickle what an archive tells it to: so nothing of the file is
    loaded unless its hash is right and no member is a pickle. Raises `StorageError` otherwise.
    """
    content = path.read_bytes()  # once: what is hashed is what is loaded
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise StorageError(
            f"{path}: SHA-256 is {found}, expected {sha256} as its model card says; get it again"
        )
    pickles = pickled_members(content, str(path))
    if pickles:
        raise StorageError(
            f"{path}: {pickles[0]} is a pickle, which could run code; export it with etstpm"
        )
    facts = {FACTS: ""}
    module = torch.export.load(BytesIO(content), extra_files=facts).module()
    size = int(json.loads(facts[FACTS])["etstpm.image_size"])

    def run(pixels: Pixels) -> Scored:
        _check_pixels(pixels, size, path)
        with torch.inference_mode():
            maps, scores = module(torch.from_numpy(np.require(pixels, requirements=["C", "W"])))
        return maps.numpy(), scores.numpy()

    return run


def _check_pixels(pixels: Pixels, size: int, path: Path) -> None:
    if pixels.shape[1:] != (size, size, 3) or pixels.dtype != np.uint8:
        raise DatasetError(
            f"{path.name} takes images (N, {size}, {size}, 3) uint8, not {pixels.shape} "
            f"{pixels.dtype}; resize them to {size}x{size} as its model card says"
        )


def pickled_members(content: bytes, name: str) -> list[str]:
    """What a `.pt2` archive would have unpickled. Raises `StorageError` if it is no archive."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            return [
                member
                for member in archive.namelist()
                if (member.endswith(".json") and b'"use_pickle": true' in _spaced(archive, member))
                or (member.endswith(".pt") and archive.getinfo(member).file_size > 0)
            ]
    except (ValueError, zipfile.BadZipFile) as error:
        raise StorageError(f"{name} is not a whole .pt2 archive ({error}); get it again") from None


def _spaced(archive: zipfile.ZipFile, member: str) -> bytes:
    """JSON with one blank after each colon, however it was written."""
    return json.dumps(json.loads(archive.read(member))).encode()
