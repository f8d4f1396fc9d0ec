"""Login providers on loopback: the real one of PyPI's oidc-provider-mock in its own process, and one that lies as told."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

from tests.support.scripted_server import Answer, Asked, ScriptedServer, serving
from tests.support.server import wait_for


@dataclass
class Provider:
    """A running oidc-provider-mock, and the client that is registered with it."""

    url: str
    process: "subprocess.Popen[bytes]"
    client_id: str = ""
    client_secret: str = ""

    def register(self, redirect_uri: str) -> None:
        """Register Burnish: from now on only this redirect address and this secret are accepted for it."""
        body = json.dumps({"redirect_uris": [redirect_uri]}).encode()
        request = urllib.request.Request(f"{self.url}/oauth2/clients", data=body, method="POST")
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request, timeout=5) as answer:
            found = json.loads(answer.read())
        self.client_id, self.client_secret = found["client_id"], found["client_secret"]

    def set_user(self, subject: str, **claims: Any) -> None:
        """Make or change a user."""
        request = urllib.request.Request(f"{self.url}/users/{subject}", data=json.dumps(claims).encode(), method="PUT")
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request, timeout=5):
            pass

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(5)


@contextmanager
def real_provider(*, require_registration: bool = True) -> Iterator[Provider]:
    """Run oidc-provider-mock on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "oidc_provider_mock", "--port", str(port), "--require-nonce"]
    command += ["--require-registration"] if require_registration else []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    found = Provider(f"http://127.0.0.1:{port}", process)

    def answers() -> bool:
        assert process.poll() is None, "the provider ended"
        try:
            with urllib.request.urlopen(f"{found.url}/.well-known/openid-configuration", timeout=2):
                return True
        except OSError:
            return False

    try:
        wait_for(answers, 30, "the provider answers")
        yield found
    finally:
        found.stop()


class Browser:
    """A person's browser: cookies, redirects one by one, and the provider's form."""

    def __init__(self) -> None:
        self.http = httpx.Client(trust_env=False, follow_redirects=False, timeout=10)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def to_provider(self, login_url: str) -> str:
        """Open our login address; return the provider's address that it leads to."""
        answer = self.http.get(login_url)
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]

    def consent(self, provider_url: str, subject: str | None) -> str:
        """Log in at the provider as ``subject`` (None: refuse); return the address that it leads back to."""
        form = {"action": "deny"} if subject is None else {"sub": subject}
        answer = self.http.post(provider_url, data=form)
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]

    def log_in(self, login_url: str, subject: str | None) -> httpx.Response:
        """Go all the way; return our answer to what the provider leads back to."""
        return self.http.get(self.consent(self.to_provider(login_url), subject))

    @property
    def csrf(self) -> dict[str, str]:
        return {"X-CSRF-Token": str(self.http.cookies.get("burnish_csrf"))}


@dataclass
class Lies:
    """What the lying provider changes: each is applied to what would be right."""

    claims: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    header: Mapping[str, Any] = field(default_factory=dict)
    token_status: int = 200
    token_error: str = "invalid_grant"
    id_token: Callable[[dict[str, Any]], str] | None = None
    userinfo: Mapping[str, Any] = field(default_factory=dict)
    discovery_status: int = 200


class LyingProvider:
    """Answers as a provider does, but for ``lies``. A code is the nonce that belongs to it."""

    def __init__(self) -> None:
        self.lies = Lies()
        self.key = RSAKey.generate_key(2048, {"kid": "one", "alg": "RS256"})
        self.published = self.key
        self.server: ScriptedServer | None = None
        self.tokens: list[Asked] = []

    @property
    def url(self) -> str:
        assert self.server is not None
        return self.server.url

    def rotate(self) -> None:
        """Sign with a new key from now on, and publish it alone."""
        self.key = self.published = RSAKey.generate_key(2048, {"kid": "two", "alg": "RS256"})

    def sign(self, claims: dict[str, Any]) -> str:
        return jwt.encode({"alg": "RS256", "kid": self.key.kid, **self.lies.header}, claims, self.key)

    def answer(self, asked: Asked) -> Answer:
        path = urlsplit(asked.path).path
        if path == "/.well-known/openid-configuration":
            metadata = {
                "issuer": self.url, "authorization_endpoint": f"{self.url}/authorize", "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/jwks", "userinfo_endpoint": f"{self.url}/userinfo",
                "id_token_signing_alg_values_supported": ["RS256"], **self.lies.metadata,
            }  # fmt: skip
            return Answer(self.lies.discovery_status, metadata)
        if path == "/jwks":
            return Answer(body=KeySet([self.published]).as_dict())
        if path == "/userinfo":
            return Answer(body={"sub": "ada", **self.lies.userinfo})
        if path == "/token":
            return self._token(asked)
        return Answer(404, {})

    def _token(self, asked: Asked) -> Answer:
        self.tokens.append(asked)
        if self.lies.token_status != 200:
            return Answer(self.lies.token_status, {"error": self.lies.token_error})
        form = {name: values[0] for name, values in parse_qs(asked.body.decode()).items()}
        now = int(time.time())
        claims = {
            "iss": self.url, "sub": "ada", "aud": "burnish", "iat": now, "exp": now + 300, "nonce": form["code"],
            "email": "ada@example.org", **self.lies.claims,
        }  # fmt: skip
        claims = {name: value for name, value in claims.items() if name not in self.lies.without}
        token = (self.lies.id_token or self.sign)(claims)
        return Answer(body={"access_token": "at", "token_type": "Bearer", "expires_in": 300, "id_token": token})


@contextmanager
def lying_provider() -> Iterator[LyingProvider]:
    """Run a provider that lies as its ``lies`` say."""
    provider = LyingProvider()
    with serving(provider.answer) as server:
        provider.server = server
        yield provider


def state_of(url: str) -> str:
    """Return the state in an address."""
    found = re.search(r"[?&]state=([^&]+)", url)
    assert found is not None, url
    return found[1]
