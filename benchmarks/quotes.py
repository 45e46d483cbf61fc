"""What a full quote verification costs over the bare OpenSSL verification: ``python benchmarks/quotes.py``.

Paired in one run on one core: each round times the bare verification and then the whole stage
(parse, key and scheme checks, signature, selection, digest, clock). The AK is decoded beforehand, as
an enrolled one is. Prints medians in microseconds, their difference and their ratio. Aim: at most
15 µs over the bare verification for RSA-2048 and P-256.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time_ns

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support import tpm_structures as build

from trustauthority.codec.tpm import decode_public
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import ClockInfo, PcrSelection
from trustauthority.verification.quote import QuoteExpectation, verify_quote

ROUNDS = 300
BATCH = 20
NONCE = b"n" * 32


def _time(call: Callable[[], object]) -> float:
    """Microseconds of CPU per call, over one batch."""
    start = process_time_ns()
    for _ in range(BATCH):
        call()
    return (process_time_ns() - start) / BATCH / 1_000


def _bare(key: build.SoftwareKey, quote: build.SignedQuote) -> Callable[[], object]:
    public = key.private.public_key()
    if isinstance(key.private, ec.EllipticCurvePrivateKey):
        r = int.from_bytes(quote.signature[6:38], "big")
        s = int.from_bytes(quote.signature[40:], "big")
        signature = build.encode_dss_signature(r, s)
        scheme = ec.ECDSA(hashes.SHA256())
        return lambda: public.verify(signature, quote.attest, scheme)
    signature, pad, algorithm = quote.signature[6:], padding.PKCS1v15(), hashes.SHA256()
    return lambda: public.verify(signature, quote.attest, pad, algorithm)


def measure(name: str, key: build.SoftwareKey, pcr_count: int) -> None:
    """Print the line of one scheme."""
    pcrs = {"sha256": {index: bytes([index]) * 32 for index in range(pcr_count)}}
    signer = b"\0\x0b" + b"q" * 32
    quote = build.make_quote(key, pcrs=pcrs, extra_data=NONCE, signer=signer)
    expectation = QuoteExpectation(
        attestation_key=decode_public(key.public),
        qualified_name=signer,
        qualifying_data=NONCE,
        selection=(PcrSelection(bank=HashAlgorithm.SHA256, indices=tuple(range(pcr_count))),),
        last_clock=ClockInfo(clock=1, reset_count=1, restart_count=1, safe=True),
    )

    def whole() -> object:
        return verify_quote(
            attest=quote.attest,
            signature=quote.signature,
            pcr_values=quote.pcr_values,
            expectation=expectation,
        )

    bare = _bare(key, quote)
    whole(), bare()
    pairs = [(_time(bare), _time(whole)) for _ in range(ROUNDS)]
    bare_us, whole_us = median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
    over = median(pair[1] - pair[0] for pair in pairs)
    print(
        f"{name:10} {pcr_count:2} PCRs  bare {bare_us:6.1f} µs  whole {whole_us:6.1f} µs"
        f"  over {over:5.1f} µs  ratio {whole_us / bare_us:4.2f}"
    )


if __name__ == "__main__":
    for count in (8, 24):
        measure("RSA-2048", build.SoftwareKey.rsa(), count)
        measure("P-256", build.SoftwareKey.ecdsa(), count)
