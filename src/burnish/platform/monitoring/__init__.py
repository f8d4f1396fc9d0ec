"""What the platform says of its own state: health, readiness, metrics.

Invariants: ``/platform/health`` needs nothing but a living event loop; ``/platform/ready`` names each thing that is
not ready; a metric exists only if the catalogue in ``infra.signals`` declares it.
"""
