"""Which pages of other sites may ask: the origins of ``gateway.cors_origins``, and no others.

A page that is not listed is not refused by the server but by its browser, which finds no permission in the answer:
what a page of another site could do without reading answers is guarded by credentials and CSRF tokens.
"""

from collections.abc import Collection, Mapping

from burnish.core.errors import Forbidden

Headers = list[tuple[bytes, bytes]]

_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
_EXPOSED = (
    b"x-request-id, retry-after, x-ratelimit-limit, x-ratelimit-remaining, x-ratelimit-reset, "
    b"x-burnish-revision, x-burnish-model-version"
)
_SECONDS = b"600"


def is_preflight(method: str, headers: Mapping[str, str]) -> bool:
    """Tell whether a browser asks what it may ask."""
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def preflight(headers: Mapping[str, str], origins: Collection[str]) -> Headers:
    """Return the headers that answer a preflight.

    Raises:
        Forbidden: pages of that origin may not ask.
    """
    allowed = allowance(headers, origins)
    if not any(name == b"access-control-allow-origin" for name, _ in allowed):
        raise Forbidden(
            f"pages of {headers['origin'][:200]!r} may not ask here", where="Origin",
            hint="an administrator can list the origin in gateway.cors_origins",
        )  # fmt: skip
    asked = headers.get("access-control-request-headers", "")
    names = ", ".join(name.strip() for name in asked.split(",") if name.strip())
    allowed += [
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-max-age", _SECONDS),
    ]
    if names:
        allowed.append((b"access-control-allow-headers", names.encode("latin-1")))
    return allowed


def allowance(headers: Mapping[str, str], origins: Collection[str]) -> Headers:
    """Return what an answer says about its readers. ``*`` lists every origin, but never gives it credentials."""
    if not origins:
        return []
    found: Headers = [(b"vary", b"origin")]
    origin = headers.get("origin")
    if origin is None:
        return found
    if origin in origins:
        found += [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-credentials", b"true"),
        ]
    elif "*" in origins:
        found.append((b"access-control-allow-origin", b"*"))
    else:
        return found
    found.append((b"access-control-expose-headers", _EXPOSED))
    return found
