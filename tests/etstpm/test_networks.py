import hashlib
import http.server
import io
import pickle
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torchvision.models import ResNet18_Weights, resnet18

from etstpm import networks
from etstpm.errors import WeightsError
from etstpm.networks import (
    FORMULA_FILE,
    LAYERS,
    FeaturePyramid,
    TeacherWeights,
    load_weights,
    normalise_features,
    random_pyramid,
)

REAL_FILE = "weights/resnet18-imagenet-layer1-3-bnfolded.pth"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """A pyramid's state_dict, with running statistics as a trained network has them."""
    tensors = random_pyramid(7).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if name.endswith(("running_mean", "running_var", "bias")):
            tensors[name] = torch.rand(tensor.shape, generator=generator) + 0.5
    return tensors


def torch_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def write(folder: Path, content: bytes, name: str = "weights.pth") -> tuple[str, str]:
    """Path and SHA-256 of a file with this content."""
    path = folder / name
    path.write_bytes(content)
    return str(path), hashlib.sha256(content).hexdigest()


def refusal(source: str | None, sha256: str | None, cache: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_weights(source, sha256, cache=cache)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The pyramid


def test_the_pyramid_has_a_quarter_an_eighth_and_a_sixteenth_of_the_side() -> None:
    images = torch.zeros(2, 3, 64, 96)
    shapes = [tuple(feature.shape) for feature in random_pyramid(0)(images)]
    assert shapes == [(2, 64, 16, 24), (2, 128, 8, 12), (2, 256, 4, 6)]
    assert len(LAYERS) == len(shapes)


def test_the_address_is_torchvisions() -> None:
    assert ResNet18_Weights.IMAGENET1K_V1.url == networks.WEIGHTS_URL


def test_nothing_of_layer4_exists() -> None:
    names = list(FeaturePyramid().state_dict())
    assert {name.split(".")[0] for name in names} == {"conv1", "bn1", *LAYERS}


def test_the_pyramid_is_torchvisions_to_the_bit(state: dict[str, Tensor]) -> None:
    full = resnet18(weights=None)
    assert full.load_state_dict(state, strict=False).unexpected_keys == []
    seen: dict[str, Tensor] = {}
    for name in LAYERS:
        full.get_submodule(name).register_forward_hook(
            lambda _module, _input, output, name=name: seen.update({name: output})
        )
    pyramid = FeaturePyramid()
    pyramid.load_state_dict(state)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        full.eval()(images)
        features = pyramid.eval()(images)
    for name, feature in zip(LAYERS, features, strict=True):
        assert torch.equal(feature, seen[name])
        assert feature.std() > 0


def test_features_are_normalised_over_channels_in_float32() -> None:
    features = tuple(torch.randn(2, channels, 4, 4).bfloat16() * 50 for channels in (64, 128, 256))
    normalised = normalise_features((features[0], features[1], features[2]))
    for feature, unit in zip(features, normalised, strict=True):
        assert unit.dtype is torch.float32
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(2, 4, 4))
        lengths = feature.float().norm(dim=1, keepdim=True)
        torch.testing.assert_close(unit * lengths, feature.float())


def test_a_location_without_features_stays_finite() -> None:
    zero = torch.zeros(1, 4, 2, 2)
    assert all(torch.equal(f, zero) for f in normalise_features((zero, zero, zero)))


def test_a_random_pyramid_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = random_pyramid(5).state_dict()
    torch.manual_seed(2)
    torch.rand(1000)
    second, other = random_pyramid(5).state_dict(), random_pyramid(6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    convolutions = [name for name in first if first[name].ndim == 4]
    assert len(convolutions) == 15
    assert all(not torch.equal(first[name], other[name]) for name in convolutions)


def test_a_random_pyramid_is_he_initialised() -> None:
    weight = random_pyramid(0).get_submodule("layer3.1.conv2").weight
    assert isinstance(weight, Tensor)
    assert abs(float(weight.detach().std()) - (2 / (256 * 9)) ** 0.5) < 1e-3


# Weights files


def same(weights: TeacherWeights, state: dict[str, Tensor]) -> bool:
    return set(weights.tensors) == set(state) and all(
        torch.equal(weights.tensors[name], state[name]) for name in state
    )


def test_a_file_of_the_hash_that_was_given(
    state: dict[str, Tensor], tmp_path: Path, cache: Path
) -> None:
    head = {"layer4.0.conv1.weight": torch.ones(2), "fc.weight": torch.ones(2)}
    source, sha256 = write(tmp_path, torch_bytes(state | head))
    weights = load_weights(source, sha256, cache=cache)
    assert same(weights, state)
    assert (weights.sha256, weights.source) == (sha256, "weights.pth")
    assert not weights.is_folded
    assert weights.layer4 is None  # a part of it is none
    pyramid = weights.build()
    assert not pyramid.training
    assert not any(parameter.requires_grad for parameter in pyramid.parameters())
    assert torch.equal(pyramid.conv1.weight, state["conv1.weight"])


@pytest.fixture(scope="module")
def layer4() -> dict[str, Tensor]:
    """layer4's tensors by the names they have in torchvision's file."""
    tensors = resnet18(weights=None).layer4.state_dict()
    return {f"layer4.{name}": tensor for name, tensor in tensors.items()}


def test_layer4_is_kept_beside_the_pyramid(
    state: dict[str, Tensor], layer4: dict[str, Tensor], tmp_path: Path, cache: Path
) -> None:
    half = {n: t.half() if t.is_floating_point() else t for n, t in layer4.items()}
    source, sha256 = write(tmp_path, torch_bytes(state | half))
    weights = load_weights(source, sha256, cache=cache)
    assert same(weights, state)
    built = weights.build_layer4()
    assert not built.training
    for name, tensor in built.state_dict().items():
        assert torch.equal(tensor, half[f"layer4.{name}"].to(tensor.dtype))
    with torch.no_grad():
        assert built(torch.zeros(1, 256, 4, 4)).shape == (1, 512, 2, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"layer4.1.bn2.running_var": None},
        {"layer4.0.downsample.0.weight": torch.zeros(512, 256)},
        {"layer4.1.bn2.bias": torch.full((512,), float("nan"))},
    ],
)
def test_half_a_layer4_is_none(
    state: dict[str, Tensor],
    layer4: dict[str, Tensor],
    change: dict[str, Tensor | None],
    tmp_path: Path,
    cache: Path,
) -> None:
    changed = {name: tensor for name, tensor in (layer4 | change).items() if tensor is not None}
    source, sha256 = write(tmp_path, torch_bytes(state | changed))
    weights = load_weights(source, sha256, cache=cache)
    assert same(weights, state)
    assert weights.layer4 is None


def test_safetensors_and_half_precision(
    state: dict[str, Tensor], tmp_path: Path, cache: Path
) -> None:
    source, sha256 = write(tmp_path, save_safetensors(state), "w.safetensors")
    assert same(load_weights(source, sha256, cache=cache), state)
    half = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    source, sha256 = write(tmp_path, save_safetensors(half), "half.safetensors")
    tensors = load_weights(source, sha256, cache=cache).tensors
    assert tensors["conv1.weight"].dtype is torch.float32


def test_any_fsspec_uri(state: dict[str, Tensor], cache: Path) -> None:
    content = torch_bytes(state)
    with fsspec.open("memory://models/resnet18.pth", "wb") as file:
        file.write(content)
    sha256 = hashlib.sha256(content).hexdigest()
    weights = load_weights("memory://models/resnet18.pth", sha256, cache=cache)
    assert same(weights, state)
    assert weights.source == "resnet18.pth"


def test_counters_of_batches_may_be_missing(
    state: dict[str, Tensor], tmp_path: Path, cache: Path
) -> None:
    old = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    source, sha256 = write(tmp_path, torch_bytes(old))
    assert same(load_weights(source, sha256, cache=cache), state)


def test_an_unknown_hash_is_refused_with_the_remedy_to_paste(
    state: dict[str, Tensor], tmp_path: Path, cache: Path
) -> None:
    source, sha256 = write(tmp_path, torch_bytes(state))
    message = refusal(source, None, cache)
    assert message.startswith(f"weights {source}: SHA-256 {sha256} is not one that etstpm knows")
    assert message.endswith(f"pass --set teacher.weights_sha256={sha256}")


def test_another_hash_than_expected_is_refused(tmp_path: Path, cache: Path) -> None:
    source, sha256 = write(tmp_path, b"anything")
    message = refusal(source, "0" * 64, cache)
    assert f"{source}: SHA-256 is {sha256}, expected {'0' * 64}; get the file again" in message


@pytest.mark.parametrize("source", ["no/such.pth", "nope://x/y.pth", ".", "memory://gone.pth"])
def test_a_file_that_cannot_be_had_is_refused(source: str, cache: Path) -> None:
    message = refusal(source, None, cache)
    assert message.startswith(f"weights {source} cannot be read (")
    assert "teacher.weights (make run WEIGHTS=...)" in message


def test_a_bucket_without_credentials_is_refused_in_one_line(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore's errors are neither OSError nor of one family."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "Unable to locate credentials" in refusal("s3://etstpm-none/w.pth", None, cache)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"conv1.weight": None}, "conv1.weight is missing (1 missing, 0 of another shape, 0 unk"),
        (
            {"layer2.0.conv1.weight": torch.zeros(1, 64, 3, 3)},
            "layer2.0.conv1.weight has shape (1, 64, 3, 3), expected (128, 64, 3, 3)",
        ),
        ({"module.conv1.weight": torch.zeros(1)}, "module.conv1.weight is unknown"),
    ],
)
def test_another_network_is_refused(
    state: dict[str, Tensor],
    change: dict[str, Tensor | None],
    fault: str,
    tmp_path: Path,
    cache: Path,
) -> None:
    changed = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
    source, sha256 = write(tmp_path, torch_bytes(changed))
    message = refusal(source, sha256, cache)
    assert "is not a ResNet-18 from conv1 to layer3" in message
    assert fault in message
    assert "give torchvision's resnet18 state_dict" in message


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([1, 2], "list"),
        ({"state_dict": {}, "epoch": 3}, "dict"),
        ({1: torch.ones(2)}, "dict"),
        (torch.ones(3), "Tensor"),
    ],
)
def test_a_file_of_something_else_is_refused(
    value: object, kind: str, tmp_path: Path, cache: Path
) -> None:
    source, sha256 = write(tmp_path, torch_bytes(value))
    message = refusal(source, sha256, cache)
    assert f"{source} holds a {kind}, expected a state_dict of tensors" in message
    assert message.endswith("save network.state_dict()")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    state: dict[str, Tensor], value: float, tmp_path: Path, cache: Path
) -> None:
    broken = state["bn1.bias"].clone()
    broken[3] = value
    source, sha256 = write(tmp_path, torch_bytes(state | {"bn1.bias": broken}))
    assert "bn1.bias holds NaN or infinity" in refusal(source, sha256, cache)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_truncated_file_is_refused(
    state: dict[str, Tensor], name: str, share: float, tmp_path: Path, cache: Path
) -> None:
    content = torch_bytes(state) if name.endswith("pth") else save_safetensors(state)
    source, sha256 = write(tmp_path, content[: int(share * len(content))], name)
    assert f"weights {source} is not a" in refusal(source, sha256, cache)


def test_whatever_is_in_a_file_it_ends_in_one_line(tmp_path: Path, cache: Path) -> None:
    """torch.load ends in IndexError, AssertionError, struct.error and more on damaged files."""
    buffer = io.BytesIO()
    tensors = {"a": torch.ones(3), "b": torch.zeros(2, 2)}
    torch.save(tensors, buffer, _use_new_zipfile_serialization=False)
    chance, refused = random.Random(3), 0  # noqa: S311 - not a secret
    for content in (buffer.getvalue(), torch_bytes(tensors), save_safetensors(tensors)):
        for _ in range(40):
            damaged = bytearray(content)
            for _ in range(3):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            name = "w.safetensors" if content == save_safetensors(tensors) else "w.pth"
            source, sha256 = write(tmp_path, bytes(damaged), name)
            refused += bool(refusal(source, sha256, cache))
    assert refused == 120


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_that_wants_to_run_code_is_refused(
    is_zip: bool, state: dict[str, Tensor], tmp_path: Path, cache: Path
) -> None:
    trace = tmp_path / "was-here"
    value = {**state, "conv1.weight": Malicious(trace)}
    content = torch_bytes(value) if is_zip else pickle.dumps(value["conv1.weight"])
    source, sha256 = write(tmp_path, content)
    message = refusal(source, sha256, cache)
    assert "not a file of tensors alone, and nothing else is unpickled" in message
    assert not trace.exists()
    pickle.loads(pickle.dumps(Malicious(trace))).close()  # noqa: S301 - that it would have
    assert trace.exists()


def test_the_packages_own_weights_are_a_trained_pyramid(cache: Path) -> None:
    weights = load_weights("formula", None, cache=cache)
    assert weights.sha256 == hashlib.sha256(FORMULA_FILE.read_bytes()).hexdigest()
    assert "drawn pictures alone" in weights.description
    assert not weights.is_folded
    assert all(tensor.dtype in {torch.float32, torch.int64} for tensor in weights.tensors.values())
    # A network's first weights have statistics of 0 and 1, and every channel alike.
    statistics = [t for name, t in weights.tensors.items() if name.endswith("running_var")]
    assert all(float(variance.std()) > 0.01 * float(variance.mean()) for variance in statistics)
    assert FORMULA_FILE.stat().st_size < 6_000_000
    assert "expected 000" in refusal("formula", "0" * 64, cache)


def test_a_damaged_package_is_noticed(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytearray(FORMULA_FILE.read_bytes())
    content[-1000] ^= 1
    path, _ = write(tmp_path, bytes(content), FORMULA_FILE.name)
    monkeypatch.setattr(networks, "FORMULA_FILE", Path(path))
    assert f"expected {networks.FORMULA_SHA256}; get the file again" in refusal(
        "formula", None, cache
    )


def test_the_real_file_is_known_and_folded(real_data: Path, cache: Path) -> None:
    weights = load_weights(str(real_data / REAL_FILE), None, cache=cache)
    assert weights.is_folded
    assert "batch normalisation folded" in weights.description
    with torch.no_grad():
        features = weights.build()(torch.zeros(1, 3, 64, 64))
    assert all(0.01 < float(feature.std()) < 100 for feature in features)


# The download


@contextmanager
def serving(content: bytes, *, claimed: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """A server on the loopback with one file; its URL and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(claimed or len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/resnet18.pth", asked
        server.shutdown()
        thread.join()


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return monkeypatch


def test_a_download_is_kept_and_proven_again_each_time(
    state: dict[str, Tensor], cache: Path, direct: pytest.MonkeyPatch
) -> None:
    content = torch_bytes(state)
    sha256 = hashlib.sha256(content).hexdigest()
    direct.setattr(networks, "WEIGHTS_SHA256", sha256)
    kept = cache / "weights" / "resnet18.pth"
    with serving(content) as (url, asked):
        direct.setattr(networks, "WEIGHTS_URL", url)
        assert same(load_weights(None, sha256, cache=cache), state)
        assert same(load_weights(None, sha256, cache=cache), state)
        assert len(asked) == 1
        kept.write_bytes(content[:1000])
        assert same(load_weights(None, sha256, cache=cache), state)
        assert len(asked) == 2
    assert list(kept.parent.iterdir()) == [kept]


@pytest.mark.parametrize("claimed", [None, 5000])
def test_a_download_of_something_else_is_refused_and_not_kept(
    cache: Path, direct: pytest.MonkeyPatch, claimed: int | None
) -> None:
    with serving(b"<html>log in to this network</html>", claimed=claimed) as (url, _):
        direct.setattr(networks, "WEIGHTS_URL", url)
        message = refusal(None, None, cache)
    assert f"cannot be downloaded from {url} (" in message
    assert all(
        way in message
        for way in ("a network that", "a local file", "any fsspec URI", "WEIGHTS=formula")
    )
    assert list((cache / "weights").iterdir()) == []


def test_a_dead_server_is_refused(cache: Path, direct: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        direct.setattr(
            networks, "WEIGHTS_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/resnet18.pth"
        )
        assert "Connection refused" in refusal(None, None, cache)


def test_a_silent_server_is_given_up(cache: Path, direct: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        direct.setattr(networks, "WEIGHTS_URL", f"http://127.0.0.1:{port}/resnet18.pth")
        direct.setattr(networks, "DOWNLOAD_TIMEOUT", 0.2)
        assert "timed out" in refusal(None, None, cache)
    assert socket.getdefaulttimeout() is None


def test_a_cache_that_cannot_be_written_is_refused(
    tmp_path: Path, direct: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    direct.setattr(networks, "WEIGHTS_URL", "http://127.0.0.1:9/resnet18.pth")
    assert "Not a directory" in refusal(None, None, tmp_path / "file")
