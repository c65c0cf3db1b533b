"""The split's properties."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from etstpm.splits import split_train_validation


@given(st.integers(2, 500), st.floats(0.001, 0.999), st.integers(0, 2**31 - 1))
def test_split_is_disjoint_complete_and_never_empty(count: int, share: float, seed: int) -> None:
    training, held_out = split_train_validation(count, share, seed)
    assert sorted([*training, *held_out]) == list(range(count))
    assert len(training) >= 1
    assert len(held_out) >= (2 if count >= 8 else 1)
    assert len(held_out) <= 2 or abs(len(held_out) - share * count) <= 1


def test_split_depends_on_its_arguments_alone() -> None:
    np.random.seed(1)
    torch.manual_seed(1)
    first = split_train_validation(40, 0.25, 7)
    np.random.seed(2)
    torch.manual_seed(2)
    again, other = split_train_validation(40, 0.25, 7), split_train_validation(40, 0.25, 8)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])
    assert len(first[1]) == 10
