"""The live documentation: the built pages at ``/docs``, the API reference at ``/api``.

Invariants: everything is served from this package, nothing is loaded from elsewhere; the reference is drawn from the
server's own ``/openapi.json``, so it cannot be out of date.
"""
