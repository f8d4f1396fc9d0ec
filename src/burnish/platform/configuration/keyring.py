"""Data keys that encrypt secrets, themselves encrypted by a key that is derived from the installation's.

A process that has the installation's key opens the data keys when it needs them and keeps none.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from burnish.core.errors import Unavailable
from burnish.infra.belonging import fingerprint_of
from burnish.platform.identity.digest_key import DigestKey

SHORTEST_KEY = 32
"""Bytes that an installation's key has at least."""


class InstallationKey:
    """The key that wraps data keys. Its fingerprint tells which one it is, and nothing else about it."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < SHORTEST_KEY:
            raise ValueError(f"an installation's key has at least {SHORTEST_KEY} bytes")
        self._fernet = Fernet(base64.urlsafe_b64encode(_derived(secret, b"burnish secrets: wrapping")))
        self.fingerprint = fingerprint_of(secret)
        self.api_keys = DigestKey(secret)
        """Opens the key by which API keys are known."""

    def wrap(self, data_key: bytes) -> str:
        """Return a data key, encrypted."""
        return self._fernet.encrypt(data_key).decode()

    def unwrap(self, wrapped: str) -> bytes:
        """Return a data key.

        Raises:
            InvalidToken: it was wrapped by another key, or was changed.
        """
        return self._fernet.decrypt(wrapped)


@dataclass(frozen=True)
class Wrap:
    """A data key as some installation key encrypted it."""

    number: int
    wrapped_by: str
    wrapped: str


class Keyring:
    """The data keys that an installation key opens; the newest encrypts.

    Raises:
        Unavailable: there are data keys, and this installation key does not open the newest.
    """

    def __init__(self, key: InstallationKey, wraps: Sequence[Wrap]) -> None:
        numbers = {wrap.number for wrap in wraps}
        own = {wrap.number: wrap for wrap in wraps if wrap.wrapped_by == key.fingerprint}
        if not own or max(numbers) not in own:
            raise Unavailable(
                f"the secrets are kept under another installation key than this process has ({key.fingerprint})",
                where="BURNISH_SECRET_KEY_FILE",
                hint=f"give this process the key {', '.join(sorted({w.wrapped_by for w in wraps})) or 'of the others'}, "
                "or `burnish secret rewrap --new-key-file FILE` on a server that has that one",
            )
        self.newest = max(own)
        self.data_keys: dict[int, bytes] = {}
        try:
            for number in sorted(own, reverse=True):
                self.data_keys[number] = key.unwrap(own[number].wrapped)
        except InvalidToken as error:
            raise Unavailable(
                "a data key in the database was changed and cannot be opened", where="secret_keys"
            ) from error
        self._fernet = MultiFernet([Fernet(one) for one in self.data_keys.values()])

    def encrypt(self, name: str, value: str) -> str:
        """Return a secret's value, encrypted together with its name: it opens under no other."""
        return self._fernet.encrypt(_sealed(name, value)).decode()

    def decrypt(self, name: str, ciphertext: str) -> str:
        """Return a secret's value.

        Raises:
            Unavailable: no key opens it, or it was put under another's name.
        """
        try:
            opened = self._fernet.decrypt(ciphertext)
        except InvalidToken as error:
            raise Unavailable(f"secret {name!r} cannot be opened by any data key", where=f"secret://{name}",
                              hint="set it again: `burnish secret set`") from error  # fmt: skip
        prefix = _sealed(name, "")
        if not opened.startswith(prefix):
            raise Unavailable(f"what is stored as secret {name!r} was not stored under that name", where=f"secret://{name}",
                              hint="somebody changed the database; set it again")  # fmt: skip
        return opened.removeprefix(prefix).decode("utf-8", "surrogatepass")


def new_data_key() -> bytes:
    """Return a fresh data key."""
    return Fernet.generate_key()


def _sealed(name: str, value: str) -> bytes:
    return name.encode() + b"\0" + value.encode("utf-8", "surrogatepass")


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret)
