"""The hash function of each PCR bank, as this machine's OpenSSL offers them.

Trusts nothing on entry; guarantees that a bank that can't be computed is refused by name and never
replaced by another one (pitfalls 6, 39).
"""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

from trustauthority.errors import AlgorithmUnsupported
from trustauthority.model.digest import HashAlgorithm

_HASH_NAMES = {
    HashAlgorithm.SHA1: "sha1",
    HashAlgorithm.SHA256: "sha256",
    HashAlgorithm.SHA384: "sha384",
    HashAlgorithm.SHA512: "sha512",
    HashAlgorithm.SM3_256: "sm3",
}


def hash_constructor(bank: HashAlgorithm) -> Callable[[bytes], Any]:
    """The hash function of a bank.

    Raises:
        AlgorithmUnsupported: when this build of OpenSSL lacks it (SM3).
    """
    found = _CONSTRUCTORS.get(bank)
    if found is None:
        raise AlgorithmUnsupported(f"{bank} is not in this OpenSSL", algorithm=bank)
    return found


def _constructor(name: str) -> Callable[[bytes], Any] | None:
    direct: Callable[[bytes], Any] | None = getattr(hashlib, name, None)
    if direct is not None:
        return direct
    return partial(hashlib.new, name) if name in hashlib.algorithms_available else None


_CONSTRUCTORS = {bank: _constructor(name) for bank, name in _HASH_NAMES.items()}
