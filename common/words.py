"""Numbers and names in sentences."""


def plural(count: int, noun: str) -> str:
    """Return a number and its noun.

    >>> plural(1, "user"), plural(2000, "user")
    ('1 user', '2,000 users')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def enumeration(names: list[str]) -> str:
    """Return names in a row.

    >>> enumeration(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def capitalised(text: str) -> str:
    """Return the text with its first letter as a capital; `str.capitalize` makes the others small."""
    return text[:1].upper() + text[1:]
