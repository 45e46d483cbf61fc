"""Encrypt to a TPM storage key: key derivation, secret sharing, outer wrapping.

Stage: primitives under ``verification.credential`` and ``keyrelease.wrap``. Trusts the caller that
the public area is the one of the TPM it means (a verified EK, an enrolled storage parent) and that
``entropy`` is fresh and uniform. Guarantees bytes that TPM2_ActivateCredential and TPM2_Import of
that TPM accept, and refuses keys that are not RSA or NIST P storage keys with AES-CFB. Makes no
randomness of its own: the same arguments give the same bytes, which the test vectors rest on.
Source: TCG TPM 2.0 Library part 1, revision 1.59: 11.4.10 (KDFa, KDFe), 22.4 and 23.3 (outer
wrapping), annexes B.10 (RSA OAEP secret sharing) and C.6 (ECDH secret sharing).
"""

import hashlib
import hmac
from dataclasses import dataclass

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from trustauthority.codec.tpm_key import public_key
from trustauthority.codec.tpm_reader import encode_sized
from trustauthority.errors import AlgorithmUnsupported
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import ObjectAttributes, TpmAlgorithm, TpmPublic

SHARING_ENTROPY = 128
"""Bytes of fresh randomness that ``share_secret`` takes, enough for any key it accepts."""

_NAME_ALGORITHMS = frozenset({HashAlgorithm.SHA256, HashAlgorithm.SHA384, HashAlgorithm.SHA512})
_AES_BITS = frozenset({128, 256})
_RSA_BITS = frozenset({2048, 3072, 4096})
_CURVE_ORDERS = {
    "secp256r1": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "secp384r1": int(
        "ffffffffffffffffffffffffffffffffffffffffffffffff"
        "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
        16,
    ),
}
"""Group orders n (SP 800-186, 3.2.1), of the curves we share secrets on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSecret:
    """A seed that only the TPM key's owner can compute from ``encrypted``."""

    seed: bytes
    """Never shown, stored or logged."""
    encrypted: bytes
    """Contents of TPM2B_ENCRYPTED_SECRET."""

    def __repr__(self) -> str:
        return "SharedSecret(…)"


def kdfa(
    algorithm: HashAlgorithm, key: bytes, label: bytes, party_u: bytes, party_v: bytes, bits: int
) -> bytes:
    """KDFa: SP 800-108 in counter mode with HMAC. ``label`` comes without its final NUL."""
    rounds = _rounds(algorithm, bits)
    suffix = label + b"\0" + party_u + party_v + bits.to_bytes(4, "big")
    blocks = (
        hmac.digest(key, counter.to_bytes(4, "big") + suffix, algorithm.value)
        for counter in range(1, rounds + 1)
    )
    return b"".join(blocks)[: bits // 8]


def kdfe(
    algorithm: HashAlgorithm, z: bytes, label: bytes, party_u: bytes, party_v: bytes, bits: int
) -> bytes:
    """KDFe: the concatenation KDF of SP 800-56A over an ECDH result, of which ``z`` is the x."""
    rounds = _rounds(algorithm, bits)
    suffix = z + label + b"\0" + party_u + party_v
    blocks = (
        hashlib.new(algorithm.value, counter.to_bytes(4, "big") + suffix).digest()
        for counter in range(1, rounds + 1)
    )
    return b"".join(blocks)[: bits // 8]


def _rounds(algorithm: HashAlgorithm, bits: int) -> int:
    if bits <= 0 or bits % 8:
        raise ValueError("key derivation gives whole bytes only")
    return -(-bits // (algorithm.size * 8))


def share_secret(public: TpmPublic, label: bytes, entropy: bytes) -> SharedSecret:
    """Choose a seed of nameAlg's size and encrypt it to a storage key.

    Args:
        public: an RSA or ECC storage key (restricted, decrypt).
        label: ``IDENTITY`` or ``DUPLICATE``, without its final NUL.
        entropy: ``SHARING_ENTROPY`` fresh random bytes, used for nothing else.

    Raises:
        AlgorithmUnsupported: the key is not such a key.
    """
    if len(entropy) != SHARING_ENTROPY:
        raise ValueError(f"secret sharing takes {SHARING_ENTROPY} bytes of entropy")
    algorithm = storage_name_algorithm(public)
    key = public_key(public)
    if isinstance(key, rsa.RSAPublicKey):
        return _share_rsa(key, algorithm, label, entropy)
    if key.curve.name not in _CURVE_ORDERS:
        raise AlgorithmUnsupported(
            f"secrets are not shared on curve {key.curve.name}", algorithm=key.curve.name
        )
    return _share_ecc(key, algorithm, label, entropy)


def _share_rsa(
    key: rsa.RSAPublicKey, algorithm: HashAlgorithm, label: bytes, entropy: bytes
) -> SharedSecret:
    if key.key_size not in _RSA_BITS:
        raise AlgorithmUnsupported(
            f"RSA storage keys have 2048, 3072 or 4096 bits, not {key.key_size}",
            algorithm=f"RSA-{key.key_size}",
        )
    seed = entropy[: algorithm.size]
    salt = entropy[64 : 64 + algorithm.size]
    numbers = key.public_numbers()
    size = key.key_size // 8
    padded = _oaep_encode(seed, size, algorithm, label + b"\0", salt)
    encrypted = pow(int.from_bytes(padded, "big"), numbers.e, numbers.n)
    return SharedSecret(seed=seed, encrypted=encrypted.to_bytes(size, "big"))


def _oaep_encode(
    message: bytes, size: int, algorithm: HashAlgorithm, label: bytes, salt: bytes
) -> bytes:
    """EME-OAEP (RFC 8017, 7.1.1) with an explicit seed, called ``salt`` here."""
    block = hashlib.new(algorithm.value, label).digest()
    block = block.ljust(size - len(salt) - 2 - len(message), b"\0") + b"\x01" + message
    masked_block = _xor(block, _mgf1(salt, len(block), algorithm))
    masked_salt = _xor(salt, _mgf1(masked_block, len(salt), algorithm))
    return b"\0" + masked_salt + masked_block


def _mgf1(seed: bytes, size: int, algorithm: HashAlgorithm) -> bytes:
    blocks = (
        hashlib.new(algorithm.value, seed + counter.to_bytes(4, "big")).digest()
        for counter in range(-(-size // algorithm.size))
    )
    return b"".join(blocks)[:size]


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def _share_ecc(
    key: ec.EllipticCurvePublicKey, algorithm: HashAlgorithm, label: bytes, entropy: bytes
) -> SharedSecret:
    size = (key.curve.key_size + 7) // 8
    # 64 bits more than the order, so that the remainder is uniform (FIPS 186-5, A.2.1)
    drawn = int.from_bytes(entropy[: size + 8], "big")
    scalar = drawn % (_CURVE_ORDERS[key.curve.name] - 1) + 1
    ephemeral = ec.derive_private_key(scalar, key.curve)
    point = ephemeral.public_key().public_numbers()
    # coordinates keep their leading zeros, in the point and in the derivation (annex C.8)
    x, y = point.x.to_bytes(size, "big"), point.y.to_bytes(size, "big")
    party_v = key.public_numbers().x.to_bytes(size, "big")
    z = ephemeral.exchange(ec.ECDH(), key)
    seed = kdfe(algorithm, z, label, x, party_v, algorithm.size * 8)
    return SharedSecret(seed=seed, encrypted=encode_sized(x) + encode_sized(y))


def wrap_outer(public: TpmPublic, seed: bytes, name: bytes, content: bytes) -> bytes:
    """Encrypt and authenticate ``content`` for the object ``name`` under a shared seed.

    Returns:
        The HMAC as TPM2B_DIGEST, then the AES-CFB ciphertext (zero IV: the key is used once).
    """
    algorithm = storage_name_algorithm(public)
    symmetric = public.symmetric
    bits = 0 if symmetric is None else symmetric.key_bits
    cipher_key = kdfa(algorithm, seed, b"STORAGE", name, b"", bits)
    encryptor = Cipher(algorithms.AES(cipher_key), CFB(bytes(16))).encryptor()
    encrypted = encryptor.update(content) + encryptor.finalize()
    mac_key = kdfa(algorithm, seed, b"INTEGRITY", b"", b"", algorithm.size * 8)
    return encode_sized(hmac.digest(mac_key, encrypted + name, algorithm.value)) + encrypted


def storage_name_algorithm(public: TpmPublic) -> HashAlgorithm:
    """The nameAlg of a key that can protect children.

    Raises:
        AlgorithmUnsupported: not a restricted decryption key, a nameAlg below SHA-256, a cipher
            other than AES-128-CFB and AES-256-CFB, or a scheme of its own.
    """
    wanted = ObjectAttributes.RESTRICTED | ObjectAttributes.DECRYPT
    if public.attributes & (wanted | ObjectAttributes.SIGN) != wanted or public.scheme is not None:
        raise AlgorithmUnsupported("the key is not a storage key", algorithm=public.type.name)
    symmetric = public.symmetric
    if (
        symmetric is None
        or symmetric.algorithm is not TpmAlgorithm.AES
        or symmetric.mode is not TpmAlgorithm.CFB
        or symmetric.key_bits not in _AES_BITS
    ):
        raise AlgorithmUnsupported("the storage key's cipher is not AES-CFB", algorithm="AES")
    if public.name_alg is None or public.name_alg not in _NAME_ALGORITHMS:
        shown = public.name_alg or "null"
        raise AlgorithmUnsupported(f"nameAlg {shown} is not accepted", algorithm=shown)
    return public.name_alg
