"""The ResNet-18 feature pyramid, and where its weights come from and how they are proven."""

import hashlib
import http.client
import shutil
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import fsspec
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from etstpm.errors import WeightsError
from etstpm.resnet import layer4, stage
from etstpm.storage import file_sha256

LAYERS = ("layer1", "layer2", "layer3")
"""The stages whose outputs are matched: 64, 128 and 256 channels at 1/4, 1/8, 1/16 of the side."""

WEIGHTS_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
WEIGHTS_SHA256 = "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"
DOWNLOAD_TIMEOUT = 10.0
"""Seconds that the server may be silent."""

FORMULA_WEIGHTS = "formula"
"""The `teacher.weights` that lie in the package, pre-trained on drawn pictures alone."""
FORMULA_FILE = Path(__file__).with_name("weights") / "resnet18-formula.safetensors"
FORMULA_SHA256 = "3c426b8fb8b28f45a05aabee4a55d9f28d6c80ef546cd18e5aa5df95a51bbf22"

KNOWN_WEIGHTS = {
    WEIGHTS_SHA256: "torchvision ResNet-18, IMAGENET1K_V1",
    "fb02c92e56d95a3649b73285081ef755b6e1685bd7a320ae09c4fa6d44209e29": (
        "torchvision ResNet-18, IMAGENET1K_V1, layers 1 to 3, batch normalisation folded"
    ),
    FORMULA_SHA256: "ResNet-18 pre-trained on drawn pictures alone (etstpm's own, no ImageNet)",
}
"""SHA-256 of the weights files that need no `teacher.weights_sha256`."""

Network = TypeVar("Network", bound=nn.Module)

Pyramid = tuple[Tensor, Tensor, Tensor]
"""Features after layer1, layer2, layer3: each (N, C, H, W)."""


class FeaturePyramid(nn.Module):
    """ResNet-18 from the first convolution to layer3; layer4 is never computed.

    Takes normalised images (N, 3, H, W), float32, with H and W multiples of 16. Parameter names
    are torchvision's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = stage(64, 64, 1)
        self.layer2 = stage(64, 128, 2)
        self.layer3 = stage(128, 256, 2)

    def forward(self, images: Tensor) -> Pyramid:
        stem = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        layer1 = self.layer1(stem)
        layer2 = self.layer2(layer1)
        return layer1, layer2, self.layer3(layer2)


def normalise_features(features: Pyramid) -> Pyramid:
    """L2-normalise each location over its channels, in float32 (Wang et al. 2021, eq. 1)."""
    layer1, layer2, layer3 = (F.normalize(feature.float(), dim=1) for feature in features)
    return layer1, layer2, layer3


def random_pyramid(seed: int) -> FeaturePyramid:
    """A pyramid with He-initialised convolutions, as torchvision starts its ResNet-18."""
    return randomise(FeaturePyramid(), seed)


def randomise(network: Network, seed: int) -> Network:
    """He-initialise all convolutions by their fan-out, in place.

    Drawn from a generator of its own: the result depends on the seed alone, not on what else the
    process has drawn or runs beside.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(
                module.weight,
                # torch takes a transposed convolution's outputs for its inputs.
                mode="fan_in" if isinstance(module, nn.ConvTranspose2d) else "fan_out",
                nonlinearity="relu",
                generator=generator,
            )
    return network


@dataclass(frozen=True)
class TeacherWeights:
    """Proven weights: tensors by torchvision's names, and where they come from."""

    tensors: dict[str, Tensor]
    source: str
    sha256: str
    description: str
    is_folded: bool
    """Batch normalisation is folded into the convolutions: its statistics are not to be touched."""
    layer4: dict[str, Tensor] | None = None
    """layer4's tensors where the file has them whole: for fine-tuning alone, never in a pyramid."""

    def build(self) -> FeaturePyramid:
        """A frozen pyramid in eval mode."""
        pyramid = FeaturePyramid()
        pyramid.load_state_dict(self.tensors)
        return freeze(pyramid)

    def build_layer4(self) -> nn.Module:
        """layer4, (N, 256, H, W) to (N, 512, H/2, W/2); there must be tensors."""
        network = layer4()
        network.load_state_dict(self.layer4 or {})
        return network.eval()


def freeze(network: Network) -> Network:
    """Eval mode, no gradients, channels last: as a teacher is used."""
    network.eval().requires_grad_(False)
    network.to(memory_format=torch.channels_last)
    return network


def load_weights(source: str | None, expected_sha256: str | None, *, cache: Path) -> TeacherWeights:
    """The teacher's weights: a path, an fsspec URI, torchvision's (`None`) or `formula`.

    Raises `WeightsError` if the file cannot be had, is not the one that was expected, is a pickle
    of anything but tensors, or is not a ResNet-18 from conv1 to layer3.
    """
    if source is None:
        source = str(_download_torchvision(cache))
    elif source == FORMULA_WEIGHTS:
        source, expected_sha256 = str(FORMULA_FILE), expected_sha256 or FORMULA_SHA256
    content = _read(source)
    sha256 = hashlib.sha256(content).hexdigest()
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise WeightsError(
            f"weights {source}: SHA-256 is {sha256}, expected {expected_sha256}; get the file "
            "again, or set teacher.weights_sha256 to the hash of the file that you trust"
        )
    if expected_sha256 is None and sha256 not in KNOWN_WEIGHTS:
        raise WeightsError(
            f"weights {source}: SHA-256 {sha256} is not one that etstpm knows; get the file again, "
            f"or, if you trust it, pass --set teacher.weights_sha256={sha256}"
        )
    state = _read_tensors(content, source)
    tensors = _keep_pyramid(state, source)
    return TeacherWeights(
        tensors=tensors,
        source=Path(source).name,
        sha256=sha256,
        description=KNOWN_WEIGHTS.get(sha256, "ResNet-18 given by its hash"),
        is_folded=_is_folded(tensors),
        layer4=_keep_layer4(state),
    )


def _download_torchvision(cache: Path) -> Path:
    """torchvision's file in the cache, downloaded if it is not there whole."""
    path = cache / "weights" / WEIGHTS_URL.rsplit("/", 1)[-1]
    if not path.is_file() or file_sha256(path) != WEIGHTS_SHA256:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:
                partial = Path(folder) / path.name
                _fetch(WEIGHTS_URL, partial)
                sha256 = file_sha256(partial)
                if sha256 != WEIGHTS_SHA256:
                    raise OSError(f"SHA-256 of what came is {sha256}, expected {WEIGHTS_SHA256}")
                partial.replace(path)
        except (OSError, http.client.HTTPException) as error:
            raise WeightsError(
                f"torchvision's ResNet-18 weights cannot be downloaded from {WEIGHTS_URL} "
                f"({error}); provide weights in one of four ways: a network that reaches that "
                "address, a local file (WEIGHTS=/path/resnet18-f37072fd.pth), any fsspec URI "
                "(WEIGHTS=s3://bucket/resnet18-f37072fd.pth), or, finding less, the ones that come "
                "with etstpm, pre-trained on drawn pictures (WEIGHTS=formula)"
            ) from None
    return path


def _fetch(url: str, path: Path) -> None:
    # torch.hub's download has no timeout: behind a firewall that drops packets it never ends.
    with (
        urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as answer,  # noqa: S310 - a constant
        path.open("wb") as file,
    ):
        shutil.copyfileobj(answer, file)


def _read(source: str) -> bytes:
    try:
        with fsspec.open(source, "rb") as file:
            content: bytes = file.read()
    except Exception as error:  # file systems are plug-ins: botocore's errors have no common base
        raise WeightsError(
            f"weights {source} cannot be read ({error}); give an existing file or fsspec URI in "
            "teacher.weights (make run WEIGHTS=...)"
        ) from None
    return content


def _read_tensors(content: bytes, source: str) -> dict[str, Tensor]:
    if source.endswith(".safetensors"):
        try:
            return load_safetensors(content)
        except SafetensorError as error:
            raise WeightsError(
                f"weights {source} is not a whole safetensors file ({error}); get it again"
            ) from None
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle ends in almost any of Python's exceptions
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise WeightsError(
                f"weights {source} is not a file of tensors alone, and nothing else is unpickled "
                f"({reason}); save a state_dict with torch.save, or safetensors"
            ) from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise WeightsError(
            f"weights {source} holds a {type(state).__name__}, expected a state_dict of tensors; "
            "save network.state_dict()"
        )
    return dict(state)


def _keep_pyramid(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The pyramid's own tensors, float32; layer4 and the classifier are left out."""
    expected = _expected(FeaturePyramid)
    missing = [name for name in expected if name not in state and "num_batches" not in name]
    wrong = [n for n in expected if n in state and state[n].shape != expected[n].shape]
    strange = [n for n in state if n not in expected and not n.startswith(("layer4.", "fc."))]
    if missing or wrong or strange:
        fault = (
            f"{missing[0]} is missing"
            if missing
            else f"{wrong[0]} has shape {tuple(state[wrong[0]].shape)}, expected "
            f"{tuple(expected[wrong[0]].shape)}"
            if wrong
            else f"{strange[0]} is unknown"
        )
        raise WeightsError(
            f"weights {source} is not a ResNet-18 from conv1 to layer3 in torchvision's names: "
            f"{fault} ({len(missing)} missing, {len(wrong)} of another shape, {len(strange)} "
            "unknown); give torchvision's resnet18 state_dict"
        )
    tensors = {}
    for name, tensor in expected.items():
        tensors[name] = state.get(name, tensor).to(tensor.dtype).contiguous()
        if not bool(torch.isfinite(tensors[name]).all()):
            raise WeightsError(
                f"weights {source}: {name} holds NaN or infinity; get the file again"
            )
    return tensors


def _keep_layer4(state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """layer4's tensors, float32; None unless all are there, of their shape and finite."""
    tensors = {}
    for name, tensor in _expected(layer4).items():
        given = state.get(f"layer4.{name}", tensor if "num_batches" in name else None)
        if given is None or given.shape != tensor.shape or not bool(given.isfinite().all()):
            return None
        tensors[name] = given.to(tensor.dtype).contiguous()
    return tensors


def _expected(network: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """A network's tensors: shapes alone, for weights would be drawn at random in vain.

    But the counts of batches, which a file may lack, are there: zero.
    """
    with torch.device("meta"):
        shapes = network().state_dict()
    return {
        name: torch.zeros_like(tensor, device="cpu") if "num_batches" in name else tensor
        for name, tensor in shapes.items()
    }


def _is_folded(tensors: dict[str, Tensor]) -> bool:
    norms = [n.removesuffix(".running_mean") for n in tensors if n.endswith(".running_mean")]
    return all(
        bool(
            (tensors[f"{norm}.running_mean"] == 0).all() and (tensors[f"{norm}.weight"] == 1).all()
        )
        for norm in norms
    )
