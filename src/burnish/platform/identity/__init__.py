"""Who calls, and what they may do: projects, subjects, roles, keys, caller tokens, the audit log.

Invariants: every handler receives a principal, also with authentication off (then everyone is the local administrator
of project ``default``); between processes the caller travels as a short-lived signed token with an audience, never as a
plain header; of a key's secret only a keyed digest is kept; the audit log is only ever appended to.
"""

from burnish.platform.identity.principal import (
    ANONYMOUS,
    LOCAL,
    CallerTokens,
    CallerVerifier,
    Principal,
    current_principal,
)

__all__ = ["ANONYMOUS", "LOCAL", "CallerTokens", "CallerVerifier", "Principal", "current_principal"]
