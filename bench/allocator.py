"""What it is worth to keep freed memory (`etstpm.compute.keep_freed_memory`), in training steps.

    python bench/allocator.py

The same forward and backward over a resident batch, in two processes a batch size, one that gives
freed blocks back to the kernel as glibc does by itself, and one that keeps them.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from unittest.mock import patch

import torch

import etstpm.compute
from etstpm.compute import choose_compute
from etstpm.config import Config
from etstpm.matching import matching_loss
from etstpm.networks import freeze, normalise_features, random_pyramid

BATCHES = (4, 32)
STEPS = 12


def main() -> None:
    """A line a batch size: milliseconds and page faults a step, without and with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=("given back", "kept"))
    parser.add_argument("--batch-size", type=int, default=BATCHES[0])
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.batch_size, is_kept=arguments.only == "kept")))
        return
    for size in BATCHES:
        results = {}
        for which in ("given back", "kept"):
            command = [sys.executable, __file__, "--only", which, "--batch-size", str(size)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            results[which] = json.loads(output)
        given_back, kept = results["given back"], results["kept"]
        for which, result in results.items():
            print(
                f"batch {size}, memory {which}: {1000 * result['seconds']:.1f} ms and "
                f"{result['faults']:.0f} page faults a step, peak {result['peak_mb']:.0f} MB"
            )
        print(f"batch {size}: {given_back['seconds'] / kept['seconds']:.2f} times as fast")


def measure(batch_size: int, *, is_kept: bool) -> dict[str, float]:
    """Median seconds, page faults of a step and the process's peak."""
    keep = patch.object(etstpm.compute, "keep_freed_memory", lambda: None)
    with nullcontext() if is_kept else keep:
        compute = choose_compute(Config(device="cpu"))
    images = torch.rand(batch_size, 3, 256, 256).to(memory_format=torch.channels_last)
    student = random_pyramid(0).to(memory_format=torch.channels_last).train()
    with torch.no_grad(), compute.autocast():
        target = normalise_features(freeze(random_pyramid(1))(images))
    seconds, faults = [], 0
    for _ in range(STEPS):
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        started = time.perf_counter()
        with compute.autocast():
            output = student(images)
        matching_loss(target, output).backward()  # type: ignore[no-untyped-call]
        student.zero_grad()
        seconds.append(time.perf_counter() - started)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    usage = resource.getrusage(resource.RUSAGE_SELF)
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": statistics.median(seconds[2:]),
        "faults": faults,
        "peak_mb": usage.ru_maxrss * kilobyte / 1e6,
    }


if __name__ == "__main__":
    main()
