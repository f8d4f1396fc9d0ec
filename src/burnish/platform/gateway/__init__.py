"""The outermost ASGI app: names, checks, routes, measures and streams every request.

Invariants: a request is answered or its connection broken, never forgotten; a body passes through as a stream, within
its limit, both ways; a client that hangs up cancels what it asked for; every error explains itself.
"""

from burnish.platform.gateway.app import Gateway

__all__ = ["Gateway"]
