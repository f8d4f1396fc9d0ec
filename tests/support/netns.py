"""A network of its own for a process, whose cable can be pulled: packets are lost, and nobody is told.

Needs root and ``ip``; without them :func:`missing` says so, and a test uses the proxy alone.
"""

import itertools
import os
import shutil
import subprocess
from types import TracebackType

_numbers = itertools.count(os.getpid() % 200)


def missing() -> str | None:
    """Return why there can be no namespaces here, None if there can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and ip (apt-get install -y iproute2)"
    made = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
    return None if made.returncode == 0 else "network namespaces are not allowed here"


class Namespace:
    """A network namespace, joined to this machine's by one cable."""

    def __init__(self) -> None:
        number = next(_numbers) % 250
        self.name = f"burnish-{os.getpid()}-{number}"
        self._outer, self._inner = f"bn{os.getpid() % 100000}o{number}", f"bn{os.getpid() % 100000}i{number}"
        self.outside, self.inside = f"10.213.{number}.1", f"10.213.{number}.2"
        """Addresses of this machine and of what runs in the namespace, on the cable."""

    @property
    def command(self) -> tuple[str, ...]:
        """What a command line begins with to run inside."""
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Pull the cable on the inner side: whatever is sent is lost."""
        _ip("-n", self.name, "link", "set", self._inner, "down")

    def mend(self) -> None:
        """Put it in again."""
        _ip("-n", self.name, "link", "set", self._inner, "up")

    def __enter__(self) -> "Namespace":
        _ip("netns", "add", self.name)
        try:
            _ip("link", "add", self._outer, "type", "veth", "peer", "name", self._inner, "netns", self.name)
            _ip("addr", "add", f"{self.outside}/24", "dev", self._outer)
            _ip("link", "set", self._outer, "up")
            _ip("-n", self.name, "addr", "add", f"{self.inside}/24", "dev", self._inner)
            _ip("-n", self.name, "link", "set", self._inner, "up")
            _ip("-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._outer], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
