"""Which public keys are strong enough to be relied on.

Stage: verification. Trusts nothing about the key; guarantees that what it returns is RSA of 2048 to
4096 bits with exponent 65537 and without the ROCA fingerprint, or a point on P-256, P-384 or P-521.
Does not say where the private part lives: ``verification.residency`` does.
Source: pitfalls 13-15; CVE-2017-15361; NIST SP 800-57 part 1, table 2.
"""

from functools import lru_cache

from trustauthority.codec.tpm import PublicKey, public_key
from trustauthority.errors import AlgorithmUnsupported
from trustauthority.model.tpm import RsaParameters, TpmPublic

MIN_RSA_BITS = 2048
MAX_RSA_BITS = 4096
"""A verification with a longer key would cost an attacker nothing and us a lot (pitfall 65)."""
REQUIRED_EXPONENT = 65537


@lru_cache(maxsize=4096)
def strong_public_key(public: TpmPublic) -> PublicKey:
    """The key of ``public`` when it is strong enough; remembered, as it does not change.

    Raises:
        AlgorithmUnsupported: a size, exponent, curve or fingerprint that is not accepted.
        MalformedEvidence: a modulus or point that contradicts its parameters.
    """
    parameters = public.parameters
    if isinstance(parameters, RsaParameters) and isinstance(public.unique, bytes):
        check_rsa_strength(
            modulus=int.from_bytes(public.unique, "big"), exponent=parameters.public_exponent
        )
    return public_key(public)


def check_rsa_strength(*, modulus: int, exponent: int) -> None:
    """Refuse RSA keys that are too short, too long, of another exponent than 65537, or ROCA's.

    Raises:
        AlgorithmUnsupported: saying which of these it is.
    """
    bits = modulus.bit_length()
    if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS or modulus % 2 == 0:
        raise AlgorithmUnsupported(
            f"an RSA modulus of {bits} bits is not accepted", algorithm=f"RSA-{bits}"
        )
    if exponent != REQUIRED_EXPONENT:
        raise AlgorithmUnsupported(f"RSA exponent {exponent} is not 65537", algorithm="RSA")
    if has_roca_fingerprint(modulus):
        raise AlgorithmUnsupported(
            "the modulus carries the ROCA fingerprint (CVE-2017-15361)", algorithm="RSA"
        )


def has_roca_fingerprint(modulus: int) -> bool:
    """Say whether a modulus was made by the flawed Infineon library.

    Its primes are powers of 65537 modulo every small prime, so the modulus is one too; a random
    modulus passes all of these by chance about once in 2^27.
    """
    return all(modulus % prime in powers for prime, powers in _ROCA_POWERS.items())


def _powers_of_65537(prime: int) -> frozenset[int]:
    powers, value = set(), 1
    while value not in powers:
        powers.add(value)
        value = value * 65537 % prime
    return frozenset(powers)


def _roca_powers() -> dict[int, frozenset[int]]:
    """The odd primes up to 167 modulo which the powers of 65537 are not everything but zero."""
    primes = [n for n in range(3, 168) if all(n % d for d in range(2, n))]
    subgroups = {prime: _powers_of_65537(prime) for prime in primes}
    return {prime: powers for prime, powers in subgroups.items() if len(powers) < prime - 1}


_ROCA_POWERS = _roca_powers()
