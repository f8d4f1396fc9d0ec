"""A model hub of one repository on 127.0.0.1, as far as `huggingface_hub` needs one to download from."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@contextmanager
def serving(repository: str, folder: Path, commit: str, licence: str) -> Iterator[tuple[str, list[str]]]:
    """Serve ``folder`` as ``repository``; yield the hub's URL and the paths of files asked for with GET."""
    fetched: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            if path.startswith(f"/api/models/{repository}/tree/"):
                files = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in _files(folder)
                ]
                self._send(200, json.dumps(files).encode(), {"Content-Type": "application/json"}, body)
            elif path.startswith(f"/api/models/{repository}"):
                info = {
                    "id": repository, "sha": commit, "cardData": {"license": licence}, "tags": [], "private": False,
                    "siblings": [{"rfilename": f.name} for f in _files(folder)],
                }  # fmt: skip
                self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
            elif path.startswith(f"/{repository}/resolve/{commit}/") and (folder / path.rpartition("/")[2]).is_file():
                name = path.rpartition("/")[2]
                content = (folder / name).read_bytes()
                fetched.extend([name] if body else [])
                etag = hashlib.sha256(content).hexdigest()
                self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, body)
            else:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound", "Content-Type": "application/json"}, body)

        def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", fetched
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())
