"""Who calls. Every handler receives a principal, also with authentication off.

Invariants: with authentication off everyone is the local administrator of project ``default``; between processes the
caller travels as a short-lived signed token with an audience, never as a plain header.
"""

from burnish.platform.identity.principal import LOCAL, CallerTokens, Principal, current_principal

__all__ = ["LOCAL", "CallerTokens", "Principal", "current_principal"]
