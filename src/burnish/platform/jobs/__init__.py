"""Jobs: heavy work in host processes, light work in the server, and the protocol that offers both.

Invariants:

- A row's state changes only through ``store.change_state``, which checks the transition and appends the event.
- A host is started for an incarnation that is already committed; a lock on the job's folder lets one host live.
- Each event of a host enters the event log once: its offset moves in the transaction that inserts it.
- Only the reconciler of the host's own node signals it. Cancelling and pausing are rows.
"""
