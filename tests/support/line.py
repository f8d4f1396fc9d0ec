"""The way by which everybody reaches one process: it can be cut, and disturbed.

Where namespaces are allowed it leads through a network of its own and back, over a cable that is pulled: the kernel loses
every packet, as when a switch dies. Elsewhere a proxy swallows every byte.
"""

from contextlib import ExitStack

from tests.support import netns
from tests.support.proxy import Proxy


class Line:
    """The way to a port of this machine."""

    def __init__(self, port: int) -> None:
        self._ends = ExitStack()
        self._space = self._ends.enter_context(netns.Namespace()) if netns.missing() is None else None
        if self._space is None:
            self.near = self._ends.enter_context(Proxy(("127.0.0.1", port)))
            self.url = f"http://127.0.0.1:{self.near.port}"
            return
        outside, inside = self._space.outside, self._space.inside
        self.near = self._ends.enter_context(Proxy(("127.0.0.1", port), host=outside))
        far = Proxy((outside, self.near.port), host=inside, within=self._space.command)
        self.url = f"http://{inside}:{self._ends.enter_context(far).port}"

    @property
    def how(self) -> str:
        """What a cut of it is."""
        return "bytes swallowed" if self._space is None else "cable pulled"

    def cut(self) -> None:
        """Nothing comes through from now on, and nobody is told."""
        if self._space is None:
            self.near.set("stall")
        else:
            self._space.cut()

    def disturb(self, mode: str) -> None:
        """Have the proxy at its end do what :mod:`tests.support.proxy` lists."""
        self.near.set(mode)

    def mend(self) -> None:
        """All is well again; connections whose middle is lost are reset."""
        if self._space is not None:
            self._space.mend()
        for mode in ("cut", "pass"):
            self.near.set(mode)

    def close(self) -> None:
        """End it."""
        self._ends.close()
