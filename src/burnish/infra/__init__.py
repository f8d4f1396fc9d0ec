"""Deep modules that know nothing of models or workflows: database, reconcile, artifacts, events, HTTP, processes.

Invariants: a unit of work is opened by the caller and commits as it is left; nothing here talks to the network,
a process or a file inside a database session.
"""
