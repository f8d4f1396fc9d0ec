"""Running the contract suite of the component protocol, and what is told of it."""

import asyncio
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from burnish.client.errors import NotReachable
from burnish.core.errors import Conflict, InvalidRequest
from burnish.testing.component_contract import Finding
from burnish.testing.component_contract import check as run_suite
from burnish.testing.component_probe import Example, Probe, tokens_of

_MARKS = {"pass": "ok  ", "fail": "FAIL", "not applicable": "-   "}


@dataclass(frozen=True)
class Report:
    """What the suite found of a component."""

    url: str
    findings: Sequence[Finding]

    @property
    def kept(self) -> bool:
        """Whether no point failed."""
        return all(one.verdict != "fail" for one in self.findings)

    def counts(self) -> Counter[str]:
        """Return how many points have each verdict."""
        return Counter(one.verdict for one in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {"url": self.url, "kept": self.kept, "counts": dict(self.counts()), "points": [asdict(one) for one in self.findings]}  # fmt: skip

    def lines(self) -> Iterator[str]:
        """Yield it for people."""
        reasons: set[str] = set()
        for one in self.findings:
            yield f"{_MARKS[one.verdict]} {one.point}: {one.says}"
            if one.verdict == "fail":
                yield f"       seen:     {one.seen}"
                yield f"       expected: {one.expected}"
            elif one.verdict == "pass" and one.seen:
                yield f"       seen:     {one.seen}"
            elif one.seen not in reasons:
                reasons.add(one.seen)
                yield f"       not looked at: {one.seen}"
        counts = self.counts()
        open_points = counts["not applicable"]
        beside = f", {open_points} not looked at" if open_points else ""
        verdict = "does not keep the protocol" if not self.kept else "keeps the protocol"
        so_far = ", as far as was looked at" if open_points and self.kept else ""
        yield f"The component {verdict}{so_far}: {counts['pass']} points kept, {counts['fail']} not{beside}."


def run(url: str, key_file: Path | None, jobs: Sequence[str]) -> Report:
    """Run the suite.

    Raises:
        InvalidRequest: the URL, the key or a job cannot be used.
        NotReachable: nobody answers there.
    """
    if not url.startswith(("http://", "https://")):
        raise InvalidRequest(f"{url!r} is no http URL", where="URL", hint="for example http://127.0.0.1:9001")
    tokens = None if key_file is None else tokens_of(key_file.read_bytes())
    probe = Probe(url.rstrip("/"), tokens, [_example(text) for text in jobs])
    return Report(url, asyncio.run(_checked(probe)))


async def _checked(probe: Probe) -> list[Finding]:
    if (why := await probe.unreachable()) is not None:
        await probe.close()
        raise NotReachable(why, where=probe.url, hint="check that the component runs and listens there")
    return await run_suite(probe)


def make_key(path: Path) -> Path:
    """Write a new key, readable by its owner alone, and its public half beside it; return the path of that.

    Raises:
        Conflict: a file is there already.
    """
    key = secrets.token_bytes(32)
    public = path.with_name(f"{path.name}.jwks.json")
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(key)
    except FileExistsError as error:
        raise Conflict(f"{path} is there already", where=str(path), hint="give another name") from error
    public.write_text(json.dumps(tokens_of(key).public_jwks(), indent=2) + "\n", encoding="utf-8")
    return public.absolute()


def _example(text: str) -> Example:
    try:
        given = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        found = json.loads(given)
        return Example(str(found["kind"]), dict(found["spec"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(
            f"{text[:100]!r} is no job: {error}", where="--job", hint='write {"kind": "...", "spec": {...}}'
        ) from error
