import ctypes
import os
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from etstpm.compute import Compute, choose_compute, give_back_freed_memory, keep_freed_memory
from etstpm.config import Config
from etstpm.errors import ConfigError

HAS_CUDA = torch.cuda.is_available()


def choose(*overrides: str) -> Compute:
    return choose_compute(Config.load(None, overrides))


def test_auto_takes_cuda_where_there_is_one() -> None:
    assert choose().device == torch.device("cuda" if HAS_CUDA else "cpu")
    assert choose("device=cpu").device == torch.device("cpu")


def test_a_cuda_device_that_is_not_there_is_refused() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(ConfigError, match=rf"device 'cuda:{count}': .* has {count} CUDA devices"):
        choose(f"device=cuda:{count}")


@pytest.mark.skipif(HAS_CUDA, reason="has CUDA")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match="0 CUDA devices; use --set device=auto"):
        choose("device=cuda")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="has Apple's GPU")
def test_mps_is_refused_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match="'mps' is not available here; use --set device=auto"):
        choose("device=mps")


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_convolutions_have_the_precision_asked_for(name: str) -> None:
    compute = choose("device=cpu", f"precision={name}")
    images, kernel = torch.rand(1, 3, 8, 8), torch.rand(4, 3, 3, 3)
    with compute.autocast():
        result = F.conv2d(images, kernel)
    assert result.dtype is getattr(torch, name)
    assert F.conv2d(images, kernel).dtype is torch.float32
    assert compute.describe()["precision"] == name
    assert compute.describe()["device"] == "cpu"
    assert compute.describe()["device_name"].strip()


def test_auto_precision_is_bfloat16_only_where_the_cpu_has_it() -> None:
    """torch reads CPUID where this project reads /proc/cpuinfo."""
    supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if "ONEDNN_MAX_CPU_ISA" in os.environ or not sys.platform.startswith("linux"):
        pytest.skip("the CPU is not used as it is")
    expected = torch.bfloat16 if supported else torch.float32
    assert choose("device=cpu").precision is expected


@pytest.mark.parametrize("limit", ["AVX2", "AVX2_VNNI", "AVX512_CORE", "avx512_core_vnni"])
def test_auto_precision_is_float32_where_onednn_may_not_use_it(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert choose("device=cpu").precision is torch.float32


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")]
)
def test_auto_precision_on_a_gpu_is_bfloat16_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    """A T4 (7.5) emulates it. Only what torch is asked about the GPU is put in its place here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose("device=cuda:0").precision is getattr(torch, expected)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone is tuned")
def test_freed_memory_is_kept_by_the_process() -> None:
    """In processes of their own: the allocator's settings hold for a whole process.

    A block of 64 MB a step: smaller ones glibc keeps by itself, where they end its heap.
    Without huge pages, of which a kernel that has some left maps one in place of 512.
    """
    code = """if True:
        import ctypes, resource, sys, torch
        PR_SET_THP_DISABLE = 41
        ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
        from etstpm.compute import keep_freed_memory
        if sys.argv[1] == "kept":
            keep_freed_memory()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(48):  # steps, each of which needs 64 MB
            tensor = torch.ones(1 << 24)
            del tensor
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    faults = {
        which: int(subprocess.check_output([sys.executable, "-c", code, which]))
        for which in ("given back", "kept")
    }
    assert faults["kept"] < faults["given back"] / 2, faults


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone is tuned")
def test_kept_memory_goes_back_between_stages() -> None:
    """A hundred blocks of 1 MB, each second of which is still in use: the heap has no free end."""
    code = """if True:
        import torch
        from etstpm.compute import give_back_freed_memory, keep_freed_memory
        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096 / 2**20
        keep_freed_memory()
        before = resident()
        blocks = [torch.ones(1 << 18) for _ in range(100)]
        blocks = blocks[::2]
        kept = resident() - before
        give_back_freed_memory()
        print(kept, resident() - before, sum(block.sum().item() for block in blocks))
    """
    found = subprocess.check_output([sys.executable, "-c", code]).split()
    kept, left, total = (float(number) for number in found)
    assert kept > 95
    assert 45 < left < 60
    assert total == 50 * 2**18, "what is in use stays"


def test_without_glibc_nothing_is_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("there is no mallopt to call"))
    keep_freed_memory()
    give_back_freed_memory()
