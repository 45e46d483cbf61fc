"""Runtime rules: which files, buffers and signers a host's runtime log may name.

One document serves all hosts of a cluster: it is loaded once, never changed, and looked up by
dictionary. Source: design.md 2 ("policy"); pitfalls.md rules 52, 53, 57.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

FileDigest = tuple[str, bytes]
"""Hash name as the kernel writes it, and the digest."""

STRONG_HASHES = frozenset({"sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512"})
"""File digests that count unless the document names weaker ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """Keys whose signatures over files count, and where."""

    name: str
    keys: Mapping[bytes, PublicKeyTypes]
    """By key id: the last four bytes of the subject key identifier."""
    paths: tuple[str, ...]
    """Patterns of the files that these keys may vouch for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRules:
    """What a runtime log may hold."""

    sha256: str
    """Hex SHA-256 of the document: the name of this version."""
    digests: Mapping[str, frozenset[FileDigest]]
    """Accepted contents by absolute path."""
    anywhere: frozenset[FileDigest] = frozenset()
    """Contents that are accepted under every path."""
    excluded: tuple[str, ...] = ()
    """Patterns of files that are not judged. Each one is a hole that somebody chose."""
    keyrings: tuple[Keyring, ...] = ()
    buffers: Mapping[str, frozenset[FileDigest]] = field(default_factory=dict)
    """Accepted contents of measured buffers (keys, kexec command line) by their name."""
    hashes: frozenset[str] = STRONG_HASHES
    """Hash names that count in an entry."""
    approved: Mapping[bytes, bytes] = field(default_factory=dict)
    """``digests`` once more, as the kernel hashes them: fields ``d-ng`` and ``n-ng`` of what is accepted
    under its path, and their SHA-1. A faster way to the same answer; an entry outside of it is looked up
    by its path."""


def path_matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path is one of the patterns: the path itself, or a beginning that ends with ``*``.

    A path that is not absolute or climbs (``..``) is none of them: nobody walks out of an exclusion.
    """
    if not path.startswith("/") or "/../" in path or path.endswith("/.."):
        return False
    return any(
        path.startswith(pattern[:-1]) if pattern.endswith("*") else path == pattern
        for pattern in patterns
    )
