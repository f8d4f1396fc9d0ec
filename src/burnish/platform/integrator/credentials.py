"""Who may register what, and how often."""

import time
from dataclasses import dataclass, field

from burnish.core.errors import Busy, Forbidden
from burnish.platform.identity import Principal

_MOST_CREDENTIALS = 10_000


def check_credential(caller: Principal, component_id: str, component_type: str | None = None) -> None:
    """Check that a caller with ``component:register`` may act for this instance; administrators may for any.

    Raises:
        Forbidden: its credential is another instance's, or no instance's.
    """
    if caller.component is None:
        if "administrator" in caller.roles | caller.everywhere:
            return
        raise Forbidden(
            f"{caller.subject} has no credential of an instance", where="component_id",
            hint="an administrator mints a key for one component_id and type",
        )  # fmt: skip
    own_id, own_type = caller.component
    if component_id != own_id:
        raise Forbidden(
            f"the credential is that of the instance {own_id}, not of {component_id}", where="component_id",
            hint=f"register as {own_id}, or ask an administrator for a key of this id",
        )  # fmt: skip
    if component_type is not None and component_type != own_type:
        raise Forbidden(
            f"the credential of {own_id} is for the type {own_type}, not for {component_type}", where="component_type",
            hint=f"register as a {own_type}, or ask an administrator for a key of this type",
        )  # fmt: skip


@dataclass
class RegistrationRate:
    """How often each credential registers; a minute's worth may come at once."""

    _left: dict[str, tuple[float, float]] = field(default_factory=dict)

    def take(self, caller: Principal, per_minute: int, now: float | None = None) -> None:
        """Count one registration.

        Raises:
            Busy: the credential has registered too often within the last minute.
        """
        now = time.monotonic() if now is None else now
        credential = caller.credential or caller.subject
        left, at = self._left.get(credential, (float(per_minute), now))
        left = min(float(per_minute), left + (now - at) * per_minute / 60)
        if left < 1:
            self._left[credential] = (left, now)
            raise Busy(
                f"{caller.subject} has registered more than {per_minute} times within a minute",
                hint="register once at the start and send heartbeats afterwards",
                retry_after=(1 - left) * 60 / per_minute,
            )  # fmt: skip
        if len(self._left) >= _MOST_CREDENTIALS:
            self._left.clear()
        self._left[credential] = (left - 1, now)
