"""Deployments, their immutable revisions, and the replica processes that serve them.

Invariants:
- A deployment row says what is wanted (``wanted``: a revision number) and what is so (``serving``); a reconciler closes the gap.
- A replica is a row before it is a process. The process holds a lock file for as long as it lives, so that one replica is
  never started twice, and can be found again by whoever comes after a crash.
- A model is loaded only after its artifact's digest was checked, and gets traffic only after a generation of its own.
- A switch is one transaction; the old replicas end only when nothing that they serve is in flight.
"""
