"""The configuration: versioned, of many environments, seen by every process within a second; and secrets.

Invariants: a process sees one version whole, never a part of one; a version is never changed, only followed by the
next; a secret's value is decrypted at its use alone and stands in no row, log, event, error or environment.
"""
