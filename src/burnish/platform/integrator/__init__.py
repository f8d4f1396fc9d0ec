"""The integrator: which instances offer which component, whether they live, and calls to a component by its type.

Invariants: an instance gets no call before its ``/describe`` validated; the caller travels as a signed token with the
component's type as audience, for the one instance that it is sent to, never as a header from outside; embedded and remote
instances are called the same way.
"""

from burnish.platform.integrator.client import Integrator

__all__ = ["Integrator"]
