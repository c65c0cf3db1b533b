"""Numbers in sentences."""


def count_of(number: int, noun: str) -> str:
    """A number and its noun, as "1 image", "2 categories", "3 batches"."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{number} {noun[:-1]}ies"
    return f"{number} {noun}es" if noun.endswith("ch") else f"{number} {noun}s"
