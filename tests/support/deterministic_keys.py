"""RSA keys and signatures that come out the same on every run, so that vectors can be rebuilt.

The keys are public knowledge by construction: they come from a seed in the source. Never use them.
"""

import hashlib
from collections.abc import Iterator
from functools import cache
from math import gcd, lcm

from cryptography.hazmat.primitives.asymmetric import rsa

_SMALL_PRIMES = [n for n in range(3, 2000) if all(n % d for d in range(2, int(n**0.5) + 1))]


def _stream(seed: str, size: int) -> Iterator[int]:
    """Endless pseudo-random integers of ``size`` bytes."""
    counter = 0
    while True:
        yield int.from_bytes(hashlib.shake_256(f"{seed}/{counter}".encode()).digest(size), "big")
        counter += 1


def _is_prime(number: int) -> bool:
    """Miller-Rabin with fixed bases, behind trial division."""
    if any(number % prime == 0 for prime in _SMALL_PRIMES):
        return False
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19):
        power = pow(base, odd, number)
        if power in {1, number - 1}:
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def _prime(seed: str, bits: int, exponent: int) -> int:
    top = 3 << (bits - 2)
    for number in _stream(seed, bits // 8 + 1):
        candidate = number % (1 << bits) | top | 1
        if gcd(candidate - 1, exponent) == 1 and _is_prime(candidate):
            return candidate
    raise AssertionError


def _roca_prime(seed: str, bits: int) -> int:
    """A prime of the shape k·M + (65537^a mod M), as the flawed Infineon library made them."""
    product = 2
    for prime in _SMALL_PRIMES[:70]:
        product *= prime
    first, span = (3 << (bits - 2)) // product + 1, (1 << (bits - 2)) // product - 2
    for number in _stream(seed, 128):
        candidate = (first + number % span) * product + pow(65537, number % 10_007, product)
        if _is_prime(candidate):
            return candidate
    raise AssertionError


def _private(p: int, q: int, exponent: int) -> rsa.RSAPrivateKey:
    d = pow(exponent, -1, lcm(p - 1, q - 1))
    return rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=d,
        dmp1=d % (p - 1),
        dmq1=d % (q - 1),
        iqmp=pow(q, -1, p),
        public_numbers=rsa.RSAPublicNumbers(e=exponent, n=p * q),
    ).private_key(unsafe_skip_rsa_key_validation=True)


@cache
def rsa_private_key(seed: str, bits: int = 2048, exponent: int = 65537) -> rsa.RSAPrivateKey:
    """The RSA key of a seed; ``bits`` may be odd, for keys that must be refused."""
    half = bits // 2
    return _private(
        _prime(f"{seed}/p", bits - half, exponent), _prime(f"{seed}/q", half, exponent), exponent
    )


@cache
def roca_private_key(seed: str) -> rsa.RSAPrivateKey:
    """An RSA-2048 key with the ROCA fingerprint."""
    return _private(_roca_prime(f"{seed}/p", 1024), _roca_prime(f"{seed}/q", 1024), 65537)


def sign_pss(key: rsa.RSAPrivateKey, message: bytes, hash_name: str) -> bytes:
    """RSASSA-PSS with a salt of digest length that is derived from the message (RFC 8017, 9.1.1)."""
    numbers = key.private_numbers()
    modulus, size = numbers.public_numbers.n, key.key_size // 8
    digest = hashlib.new(hash_name, message).digest()
    salt = hashlib.new(hash_name, b"salt" + message).digest()
    hashed = hashlib.new(hash_name, bytes(8) + digest + salt).digest()
    block = bytes(size - 2 * len(hashed) - 2) + b"\1" + salt
    mask = b"".join(
        hashlib.new(hash_name, hashed + i.to_bytes(4, "big")).digest()
        for i in range(size // len(hashed) + 1)
    )
    masked = bytes(a ^ b for a, b in zip(block, mask, strict=False))
    encoded = bytes([masked[0] & 0x7F]) + masked[1:] + hashed + b"\xbc"
    return pow(int.from_bytes(encoded, "big"), numbers.d, modulus).to_bytes(size, "big")
