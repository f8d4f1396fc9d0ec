"""API keys as text: ``bk_<prefix>_<secret>``. Pure."""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_FORM = re.compile(r"bk_([0-9a-z]{12})_([A-Za-z0-9_-]{43})")
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
NO_PREFIX = "0" * 13
"""Looked up for a text that is no key: none has it."""


@dataclass(frozen=True)
class NewKey:
    """A key that was just made; ``text`` is shown once and kept nowhere."""

    text: str
    prefix: str
    digest: str


class KeyDigests:
    """Makes and digests keys with a key of this installation: who can write the table alone can make none that works."""

    def __init__(self, digest_key: bytes) -> None:
        self._key = digest_key
        self.computed = 0
        """How many digests were computed (tests compare the work for good and bad keys)."""

    def new(self) -> NewKey:
        """Make a key with 256 random bits."""
        prefix = "".join(secrets.choice(_ALPHABET) for _ in range(12))
        text = f"bk_{prefix}_{secrets.token_urlsafe(32)}"
        return NewKey(text, prefix, self.of(text))

    def of(self, text: str) -> str:
        """Return the digest of a key (or of anything that claims to be one)."""
        self.computed += 1
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=self._key, digest_size=32).hexdigest()


def prefix_of(text: str) -> str:
    """Return the prefix to look up; :data:`NO_PREFIX` when the text is no key."""
    found = _FORM.fullmatch(text)
    return NO_PREFIX if found is None else found[1]


def same(digest: str, other: str) -> bool:
    """Compare two digests in a time that does not tell where they differ."""
    return hmac.compare_digest(digest, other)


def derived(installation_key: bytes, purpose: bytes) -> bytes:
    """Return 32 bytes for one purpose, from the installation's secret key."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(installation_key)
