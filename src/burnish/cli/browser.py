"""A login in the browser: the command line listens on a port of this machine, and the server sends a code there."""

import base64
import hashlib
import hmac
import html
import secrets
import threading
import time
import webbrowser
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

from burnish.core.errors import BurnishError, DeadlineExceeded, Unauthenticated, error_class

WAIT_SECONDS = 300.0
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Burnish</title>
<body style="font:16px system-ui;margin:15vh auto;max-width:34em"><h1>{title}</h1><p>{text}</p></body></html>"""


@dataclass
class Listener:
    """Waits on 127.0.0.1 for the one code that belongs to this login."""

    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48), repr=False)
    state: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    code: str | None = field(default=None, repr=False)
    error: BurnishError | None = None

    def __enter__(self) -> "Listener":
        self._path = f"/{secrets.token_urlsafe(12)}"
        self._answered = threading.Event()
        self._server = HTTPServer(("127.0.0.1", 0), _request_class(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return self._server.server_port

    def login_url(self, server: str) -> str:
        """Return what the browser opens."""
        challenge = base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).decode().rstrip("=")
        query = {
            "cli": f"http://127.0.0.1:{self.port}{self._path}", "challenge": challenge, "state": self.state,
        }  # fmt: skip
        return f"{server}/platform/auth/login?{urlencode(query)}"

    def open(self, url: str) -> bool:
        """Open the browser; tell whether there is one."""
        try:
            return webbrowser.open(url)
        except webbrowser.Error:
            return False

    def wait(self, seconds: float = WAIT_SECONDS) -> str:
        """Return the code.

        Raises:
            Unauthenticated: nobody was logged in.
            DeadlineExceeded: nothing came.
        """
        deadline = time.monotonic() + seconds
        while not self._answered.wait(0.2):  # short, so that Ctrl-C is heard
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"nobody logged in within {seconds:g} s", where="browser",
                    hint="run `burnish login` again; where no browser can reach this machine, use a key: `burnish login --key -`",
                )  # fmt: skip
        if self.error is not None:
            raise self.error
        assert self.code is not None
        return self.code

    def take(self, target: str) -> tuple[int, str, str]:
        """Take what a browser brings; return the status, title and text of its page."""
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path != self._path:
            return 404, "Not found", "There is nothing here."
        if not hmac.compare_digest(query.get("state", "").encode(), self.state.encode()) or self._answered.is_set():
            return 400, "Not this login", "Run burnish login again."
        if code := query.get("code"):
            self.code = code
            self._answered.set()
            return 200, "Logged in", "You can close this window and go back to the terminal."
        kind = error_class(query.get("error", "")) or Unauthenticated
        self.error = kind(query.get("error_description", "nobody was logged in")[:500], where="browser")
        self._answered.set()
        return 403, "Not logged in", self.error.message


def _request_class(listener: Listener) -> type[BaseHTTPRequestHandler]:
    class Request(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            status, title, text = listener.take(self.path)
            page = _PAGE.format(title=html.escape(title), text=html.escape(text)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Referrer-Policy", "no-referrer")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Say nothing: the code stands in the line."""

    return Request
