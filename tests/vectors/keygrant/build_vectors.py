"""Rebuild vectors.json: KeyGrants with all inputs, and grants that must be refused with the reason.

Run from the project root: PYTHONPATH=tests python tests/vectors/keygrant/build_vectors.py. A test checks that it
gives the file that is checked in. The keys in it open nothing but these vectors.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from support.storage_key import storage_public

from trustauthority.codec.tpm_public import encode_public, object_name
from trustauthority.keyrelease.wrap import GRANT_ENTROPY, build_key_grant, policy_digest
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.grant import GrantBinding
from trustauthority.model.placement import Purpose

HERE = Path(__file__).parent
VECTORS = HERE / "vectors.json"
RELEASE_SCALAR = int.from_bytes(hashlib.sha256(b"release key of the test vectors").digest(), "big")
OTHER_SCALAR = int.from_bytes(hashlib.sha256(b"another release key").digest(), "big")
STORAGE_SCALAR = int.from_bytes(hashlib.sha256(b"storage key of the test vectors").digest(), "big")
COUNTERS = bytes.fromhex("0000002a00000003")
VM_KEY = b"correct horse battery staple"


def stream(label: str, size: int) -> bytes:
    """Bytes that are the same in each run; SHAKE-256 over the label."""
    return hashlib.shake_256(label.encode()).digest(size)


def release_key(scalar: int = RELEASE_SCALAR) -> ec.EllipticCurvePrivateKey:
    """The release key of all vectors."""
    return ec.derive_private_key(scalar, ec.SECP256R1())


def storage_keys() -> dict[str, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]:
    """One storage parent per algorithm; the RSA primes are in primes.json."""
    primes = json.loads((HERE / "primes.json").read_text())
    return {
        "p256": ec.derive_private_key(STORAGE_SCALAR, ec.SECP256R1()),
        "p384": ec.derive_private_key(STORAGE_SCALAR, ec.SECP384R1()),
        "rsa2048": _rsa_key(primes["p"], primes["q"]),
        "rsa3072": _rsa_key(primes["p3072"], primes["q3072"]),
    }


STRONG = {"name_alg": HashAlgorithm.SHA384, "aes_bits": 256}
SHAPES: dict[str, dict[str, Any]] = {"p256": {}, "p384": STRONG, "rsa2048": {}, "rsa3072": STRONG}
"""nameAlg and AES bits of each parent, as the agent's templates have them."""


def _rsa_key(p_hex: str, q_hex: str) -> rsa.RSAPrivateKey:
    p, q = int(p_hex, 16), int(q_hex, 16)
    d = pow(65537, -1, (p - 1) * (q - 1))
    numbers = rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=d,
        dmp1=d % (p - 1),
        dmq1=d % (q - 1),
        iqmp=pow(q, -1, p),
        public_numbers=rsa.RSAPublicNumbers(65537, p * q),
    )
    return numbers.private_key()


def sign(body: bytes, scalar: int = RELEASE_SCALAR) -> bytes:
    """A body as it travels, signed by a key of our choice."""
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    r, s = decode_dss_signature(release_key(scalar).sign(body, algorithm))
    return len(body).to_bytes(4, "big") + body + r.to_bytes(32, "big") + s.to_bytes(32, "big")


def positive(kind: str) -> dict[str, Any]:
    """One grant with everything that went into it."""
    public = storage_public(storage_keys()[kind], **SHAPES[kind])
    entropy = stream(f"entropy {kind}", GRANT_ENTROPY)
    pcrs = {
        HashAlgorithm.SHA256: {index: stream(f"pcr {index}", 32) for index in (0, 2, 4, 7, 14)},
    }
    binding = GrantBinding(
        vm_id="web-1",
        host_id="h-00112233445566778899aabbccddeeff",
        storage_name=object_name(public),
        grant_epoch=7,
        key_epoch=2,
        request_id="a1b2c3d4e5f60718",
        purpose=Purpose.RUN,
        clock_bound=987654321,
    )
    grant = build_key_grant(
        binding=binding,
        vm_key=VM_KEY,
        storage=public,
        pcrs=pcrs,
        counters=COUNTERS,
        entropy=entropy,
        release_key=release_key(),
    )
    return {
        "storage": kind,
        "storage_public": encode_public(public).hex(),
        "storage_name": binding.storage_name.hex(),
        "vm_id": binding.vm_id,
        "host_id": binding.host_id,
        "grant_epoch": binding.grant_epoch,
        "key_epoch": binding.key_epoch,
        "request_id": binding.request_id,
        "purpose": binding.purpose,
        "clock_bound": binding.clock_bound,
        "counters": COUNTERS.hex(),
        "pcrs": {
            bank: {str(index): value.hex() for index, value in values.items()}
            for bank, values in pcrs.items()
        },
        "entropy": entropy.hex(),
        "vm_key": VM_KEY.hex(),
        "policy_digest": policy_digest(pcrs, COUNTERS, binding.clock_bound).hex(),
        "wire": grant.wire.hex(),
    }


def negatives() -> Iterator[dict[str, str]]:
    """Grants to the p256 parent that an agent must refuse, named after their defect."""
    good = bytes.fromhex(positive("p256")["wire"])
    body = good[4:-64]
    vm = body.index(b"\x00\x05web-1")
    tail = body.index(COUNTERS)  # first byte behind the binding
    bound = tail - 8

    def changed(at: int, new: bytes) -> bytes:
        return body[:at] + new + body[at + len(new) :]

    yield {"defect": "empty", "reason": "malformed", "wire": ""}
    yield {"defect": "last-byte-missing", "reason": "malformed", "wire": good[:-1].hex()}
    yield {"defect": "byte-added", "reason": "malformed", "wire": (good + b"\0").hex()}
    yield {
        "defect": "length-too-long",
        "reason": "malformed",
        "wire": ("ffffffff" + good[4:].hex()),
    }
    last = good[:-1] + bytes([good[-1] ^ 1])
    yield {"defect": "signature-changed", "reason": "signature", "wire": last.hex()}
    unsigned = good[: 4 + vm + 6] + b"2" + good[4 + vm + 7 :]
    yield {"defect": "vm-changed-not-signed", "reason": "signature", "wire": unsigned.hex()}
    zero = good[:-64] + bytes(64)
    yield {"defect": "signature-zero", "reason": "signature", "wire": zero.hex()}
    foreign = sign(
        body[:12] + key_id(release_key(OTHER_SCALAR).public_key()) + body[44:], OTHER_SCALAR
    )
    yield {"defect": "signed-by-another-key", "reason": "signer-unknown", "wire": foreign.hex()}
    claimed = sign(body, OTHER_SCALAR)
    yield {
        "defect": "signed-by-another-key-under-our-id",
        "reason": "signature",
        "wire": claimed.hex(),
    }
    # from here on the release key itself signed what is wrong
    cases = {
        "version-2": ("malformed", changed(4, b"\x00\x02")),
        "sealing-hash-sha1": ("malformed", changed(6, b"\x00\x04")),
        "cipher-unknown": ("malformed", changed(8, b"\x00\x02")),
        "signature-algorithm-unknown": ("malformed", changed(10, b"\x00\x00")),
        "other-vm": ("other-vm", changed(vm + 6, b"2")),
        "other-host": ("other-host", changed(body.index(b"h-0011") + 2, b"f")),
        "other-storage": (
            "other-storage",
            changed(body.index(b"\x00\x22\x00\x0b") + 5, b"\xff\xff"),
        ),
        "other-request": ("other-request", changed(body.index(b"a1b2c3d4"), b"b")),
        "purpose-prepare": ("other-purpose", changed(bound - 1, b"\x02")),
        "purpose-share": ("other-purpose", changed(bound - 1, b"\x03")),
        "purpose-unknown": ("malformed", changed(bound - 1, b"\x04")),
        "grant-epoch-lower": ("old-grant-epoch", changed(bound - 35, (6).to_bytes(8, "big"))),
        "grant-epoch-higher": ("changed", changed(bound - 35, (8).to_bytes(8, "big"))),
        "key-epoch-lower": ("old-key-epoch", changed(bound - 27, (1).to_bytes(8, "big"))),
        "key-epoch-higher": ("changed", changed(bound - 27, (3).to_bytes(8, "big"))),
        "clock-bound-later": ("changed", changed(bound, b"\x7f")),
        "ciphertext-changed": ("changed", changed(len(body) - 1, bytes([body[-1] ^ 1]))),
        "vm-id-not-ascii": ("malformed", changed(vm + 6, b"\xe9")),
        "vm-key-empty": ("malformed", body[: -len(VM_KEY) - 18] + b"\x00\x10" + bytes(16)),
        "vm-key-too-long": ("malformed", body[: -len(VM_KEY) - 18] + b"\x10\x11" + bytes(4113)),
        "bytes-left-over": ("malformed", body + b"\0"),
        "ends-within-a-field": ("malformed", body[:-1]),
    }
    for defect, (reason, wrong) in cases.items():
        yield {"defect": defect, "reason": reason, "wire": sign(wrong).hex()}


def key_id(key: ec.EllipticCurvePublicKey) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo, as in the head."""
    spki = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(spki).digest()


def build() -> dict[str, Any]:
    """The contents of vectors.json."""
    return {
        "about": "KeyGrant v1, docs/reference/keygrant.md. Keys in here open these vectors only.",
        "release_private_scalar": f"{RELEASE_SCALAR:064x}",
        "storage_private_scalar": f"{STORAGE_SCALAR:064x}",
        "grants": [positive(kind) for kind in storage_keys()],
        "refused": list(negatives()),
    }


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(build(), indent=1) + "\n")
