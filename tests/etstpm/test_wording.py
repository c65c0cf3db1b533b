"""Numbers in sentences."""

import pytest

from etstpm.wording import count_of


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "category", "1 category"),
        (2, "category", "2 categories"),
        (0, "batch", "0 batches"),
        (1, "batch", "1 batch"),
        (0, "finding", "0 findings"),
    ],
)
def test_a_noun_follows_its_number(number: int, noun: str, text: str) -> None:
    assert count_of(number, noun) == text
