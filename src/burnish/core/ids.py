"""Prefixed identifiers that sort by the time they were made."""

import secrets
import time
from typing import Literal

Prefix = Literal["wf", "job", "ds", "mdl", "dep", "rev", "rep", "evt", "req", "prj", "inc", "key", "bnd", "ses"]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32: no i, l, o, u


def new_id(prefix: Prefix) -> str:
    """Return ``<prefix>_`` + 10 characters of milliseconds since 1970 + 12 random ones (60 bits)."""
    return f"{prefix}_{_encode(time.time_ns() // 1_000_000, 10)}{_encode(secrets.randbits(60), 12)}"


def _encode(number: int, width: int) -> str:
    characters = []
    for _ in range(width):
        number, digit = divmod(number, 32)
        characters.append(_ALPHABET[digit])
    return "".join(reversed(characters))
