"""Immutable files under a content hash.

Invariants: an artifact's digest is the hash of its manifest (paths, sizes, hashes of its files); an object appears whole,
by one rename, or not at all; the same content is the same object; what is read is what was published; an object is
removed only when nothing refers to it, its grace has passed, and no publish of the same content can be under way.
"""

from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.artifact_store.protocol import ArtifactStore, open_store

__all__ = ["ArtifactStore", "FileArtifactStore", "open_store"]
