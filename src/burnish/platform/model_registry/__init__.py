"""Models, their immutable versions, the aliases that move between them, and where each version came from.

Invariants: a version never changes and its number is never used again; the same artifacts are the same version; an
alias's moves are kept for ever; what an alias points at, or what another version was made from, cannot be deleted.
"""
