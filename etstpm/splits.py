"""Which images train and which are held out, and in what portions they are looked at."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

PAIR = 8
"""Of so many good images two are held out at least: each is then calibrated by the other, where one
by itself looks more normal than any new image, and so sets too low a threshold."""


def split_train_validation(count: int, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Which of `count` good images train the student and which are held out (`count_held_out`).

    Depends on its arguments alone, so that scoring finds the held-out images again.
    """
    order = np.random.default_rng(seed).permutation(count)
    held_out = count_held_out(count, fraction)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def count_held_out(count: int, fraction: float) -> int:
    """How many of `count` good images are held out: one at least, of `PAIR` two, and not all."""
    return min(max(2 if count >= PAIR else 1, round(count * fraction)), count - 1)


def batches(indices: Indices, size: int) -> Iterator[Indices]:
    """The indices, `size` at a time."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
