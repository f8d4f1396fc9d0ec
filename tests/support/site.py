"""A server with authentication on, as its administrator has it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.oidc import Provider
from tests.support.server import Server


class Site:
    """A server with authentication on, and its administrator."""

    def __init__(self, server: Server) -> None:
        self.url = server.url
        self.server = server
        self.values: dict[str, Any] = {}
        found = re.search(r"bk_\w{12}_[\w-]{43}", server.log.read_text())
        assert found is not None, server.tail()
        self.key = found[0]

    def ask(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx.request(method, self.url + path, json=body, headers=headers, timeout=20, trust_env=False)

    def set(self, **values: Any) -> None:
        """Change configuration keys of ``identity`` (``oidc__issuer``); None unsets one."""
        named = {f"identity.{name.replace('__', '.')}": value for name, value in values.items()}
        given = {key: value for key, value in named.items() if value is not None}
        body = {"set": given, "unset": sorted(named.keys() - given.keys()), "reason": "a test"}
        answer = self.ask("PATCH", "/platform/configuration", body)
        assert answer.status_code == 200, answer.text
        self.values.update(values)

    def register_with(self, provider: Provider) -> None:
        provider.register(f"{self.url}/platform/auth/callback")
        assert self.ask("PUT", "/platform/secrets/oidc", {"value": provider.client_secret}).status_code == 200
        self.set(
            oidc__issuer=provider.url, oidc__client_id=provider.client_id, oidc__client_secret="secret://oidc",
            oidc__roles_claim="groups", oidc__role_bindings={"ml": "default/engineer", "ops": "*/viewer"},
        )  # fmt: skip

    @contextmanager
    def changed(self, **values: Any) -> Iterator[None]:
        """Have other values for a while, and then those of before."""
        before = {name: self.values.get(name) for name in values}
        self.set(**values)
        try:
            yield
        finally:
            self.set(**before)


@contextmanager
def running_site(home: Path) -> Iterator[Site]:
    """Start a server with authentication on; end it."""
    server = Server(home, environment={"BURNISH_AUTH": "on"})
    try:
        yield Site(server.start())
    finally:
        server.end_everything()
