"""JSON whose objects have each name once.

RFC 8259 (section 4) leaves open what a repeated name means. Python's parser takes the last value and drops the others.
"""

import json
from typing import Any


class RepeatedNameError(ValueError):
    """An object has a name more than once."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r} is there more than once")


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise RepeatedNameError(repeated)
    return members


_decode = json.JSONDecoder(object_pairs_hook=_members).decode  # json.loads would make a decoder for each text


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        RepeatedNameError: an object in it has a name more than once.
        ValueError: it is not JSON.
        RecursionError: it is nested too deep.
    """
    return _decode(text)
