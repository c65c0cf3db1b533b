"""Which device and precision a run computes with, and what that costs in exactness."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from etstpm.config import Config
from etstpm.errors import ConfigError

ISA_WITHOUT_BFLOAT16 = {
    "SSE41",
    "AVX",
    "AVX2",
    "AVX2_VNNI",
    "AVX2_VNNI_2",
    "AVX512_CORE",
    "AVX512_CORE_VNNI",
}
"""Values of ONEDNN_MAX_CPU_ISA with which oneDNN emulates bfloat16 whatever the CPU can do."""


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""glibc's malloc.h."""


@dataclass(frozen=True)
class Compute:
    """A device, and the precision of its convolutions."""

    device: torch.device
    precision: torch.dtype

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Convolutions in `precision`; what must be float32 casts explicitly."""
        with torch.autocast(
            self.device.type, self.precision, enabled=self.precision is torch.bfloat16
        ):
            yield

    def describe(self) -> dict[str, str]:
        """For cards: what the numbers were computed on."""
        name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        )
        return {
            "device": str(self.device),
            "device_name": name,
            "precision": str(self.precision).removeprefix("torch."),
        }


def choose_compute(config: Config) -> Compute:
    """The device and precision that the config names, `auto` resolved for this machine."""
    kind = config.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind)
    if device.type == "cpu":
        give_back_freed_memory()  # an earlier stage's
        keep_freed_memory()
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ConfigError(
            f"device {config.device!r}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "use --set device=auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device 'mps' is not available here; use --set device=auto")
    if config.precision == "auto":
        is_native = (device.type == "cuda" and _gpu_multiplies_bfloat16(device)) or (
            device.type == "cpu" and _cpu_multiplies_bfloat16()
        )
        return Compute(device, torch.bfloat16 if is_native else torch.float32)
    return Compute(device, getattr(torch, config.precision))


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next step instead of giving them back to the kernel.

    A step's tensors are as large as the last one's: mapped anew they are page by page faulted in
    and cleared, which takes a quarter of a training step in batches of 32 (bench/allocator.py).
    Where there is no glibc nothing happens. Holds for the whole process.
    """
    if _has_glibc():
        process = ctypes.CDLL(None)
        process.mallopt(M_MMAP_MAX, 0)
        process.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Let the kernel have what is free: what comes next needs less, or blocks of other sizes."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def _gpu_multiplies_bfloat16(device: torch.device) -> bool:
    """Whether it has tensor cores for it: NVIDIA's from Ampere on; AMD's that torch supports do."""
    return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)


def _cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has bfloat16 dot products.

    Where it has not, oneDNN emulates them: 0.6 images/s where float32 trains 8.9 (measured on an
    AVX2 server), so that this decides whether a night ends by morning.
    """
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    has_instruction = {"avx512_bf16", "amx_bf16"} & set(flags.split())
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    return bool(has_instruction) and limit not in ISA_WITHOUT_BFLOAT16
