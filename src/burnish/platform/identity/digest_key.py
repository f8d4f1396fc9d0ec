"""The key with which API keys are digested. It outlives the installation's secret key: else a new one would end them all."""

import base64

from cryptography.fernet import Fernet, InvalidToken
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import Unavailable
from burnish.infra.belonging import fingerprint_of
from burnish.platform.identity import store
from burnish.platform.identity.keys import derived


class DigestKey:
    """The digest key as one secret key of the installation opens it.

    The first secret key has it derived from itself; it is handed over, encrypted, to each one that follows.
    """

    def __init__(self, secret: bytes) -> None:
        self._first = derived(secret, b"burnish api keys")
        self._fernet = Fernet(base64.urlsafe_b64encode(derived(secret, b"burnish api keys: wrapping")))
        self._fingerprint = fingerprint_of(secret)

    async def load(self, session: AsyncSession) -> bytes:
        """Return the digest key.

        Raises:
            Unavailable: what was handed over to this secret key was changed since.
        """
        kept = await store.digest_key(session, self._fingerprint)
        if kept is None:
            return self._first
        try:
            return self._fernet.decrypt(kept)
        except InvalidToken as error:
            raise Unavailable(
                "the key by which API keys are known was changed in the database", where="api_key_digest_keys",
                hint="restore the table from a backup, or delete the row and mint every key anew",
            ) from error  # fmt: skip

    async def hand_over(self, session: AsyncSession, to: "DigestKey") -> None:
        """Let another secret key open it too: the one that processes start with from now on."""
        wrapped = to._fernet.encrypt(await self.load(session)).decode()
        await store.keep_digest_key(session, to._fingerprint, wrapped)
