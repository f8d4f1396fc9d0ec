"""The outermost ASGI app: names, authenticates, limits, admits, routes, streams and counts every request.

Invariants: a request is answered or its connection broken, never forgotten; a body passes through as a stream, within
its limit, both ways; a client that hangs up cancels what it asked for; no request waits for a dead Redis; what a client
claims about itself (callers, deadlines, addresses) never passes; every error explains itself.
"""

from burnish.platform.gateway.app import Gateway
from burnish.platform.gateway.sharing import Buckets
from burnish.platform.gateway.wire import HttpProtocol

__all__ = ["Buckets", "Gateway", "HttpProtocol"]
