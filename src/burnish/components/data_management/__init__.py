"""Data management: uploads become immutable dataset versions; splits are deterministic and looked through for leaks.

Invariants: what was uploaded is read as a stream, under limits, and never by its own name; a version holds canonical
rows only (``burnish.core.specs.data``); every row that is left out is counted; equal rows are the same version.
Torch-free. Everything slow runs in a process of its own: an upload's reading here (``ingest``), a split in a host.
"""
