"""Rebuilds the EK certificates of this folder: each is named by its one defect, ``good-*`` have none.

Run it as ``python tests/vectors/ekcerts/build_vectors.py`` from the root of the project; a test runs it too
and compares byte by byte. ``index.json`` holds what the verifier must say of each.
"""

import base64
import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from support import ek_certificates as make
from support.deterministic_keys import roca_private_key, rsa_private_key

FOLDER = Path(__file__).parent
GENUINE = {"result": "genuine"}
OTHER_KEY = rsa_private_key("ekcerts/other")


def refused(rule: str, reason: str = "ENDORSEMENT_REJECTED") -> dict[str, str]:
    """The expectation of a refusal."""
    return {"result": "refused", "reason": reason, "rule": rule}


def untrusted(rule: str) -> dict[str, str]:
    """The expectation of a missing chain."""
    return refused(rule, "ENDORSEMENT_UNTRUSTED")


def malformed(part: str) -> dict[str, str]:
    """The expectation of bytes that are no certificate."""
    return {"result": "malformed", "reason": "EVIDENCE_MALFORMED", "part": part}


def pem(der: bytes) -> bytes:
    """PEM with a line of text above, as vendors ship it."""
    text = base64.encodebytes(der).decode("ascii")
    return f"EK\r\n-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n".encode()


def nv_header(der: bytes) -> bytes:
    """TCG_PCCLIENT_STORED_CERT."""
    return b"\x10\x01\x00" + (len(der) + 2).to_bytes(2, "big") + b"\x10\x02" + der


def genuine() -> dict[str, bytes]:
    """What must be accepted."""
    good = make.endorsement()
    pss = {"algorithm_id": make.PSS, "algorithm_parameters": make.pss_parameters()}
    return {
        "good-rsa.der": good,
        "good-ecc-p256.der": make.ecc_endorsement(256),
        "good-ecc-p384.der": make.ecc_endorsement(384),
        "good-ecc-p521.der": make.ecc_endorsement(521),
        "good-rsa-oaep-spki.der": make.endorsement(
            public_key_info=make.oaep_key_info(make.ek_key())
        ),
        "good-signed-sha384.der": make.endorsement(algorithm_id=make.SHA384_RSA),
        "good-signed-sha512.der": make.endorsement(algorithm_id=make.SHA512_RSA),
        "good-signed-pss.der": make.endorsement(**pss),
        "good-no-extended-key-usage.der": make.endorsement(
            extensions=make.ek_extensions(purpose=None)
        ),
        "good-serial-zero.der": make.endorsement(serial=0),
        "good-serial-negative.der": make.endorsement(serial=-4711),
        "good-critical-false-encoded.der": make.endorsement(
            extensions=make.ek_extensions(purpose=make.purposes(make.EK_PURPOSE, critical=False))
        ),
        "good-unknown-extension-not-critical.der": make.endorsement(
            extensions=make.ek_extensions(extra=make.extension("1.2.3.4", b"\x05\x00"))
        ),
        "good-issuer-in-printable-string.der": make.endorsement(
            issuer=make.common_name("Vector TPM EK CA 001", tag=0x13)
        ),
        "good-named-subject.der": make.endorsement(
            subject=make.common_name("TPM 17"),
            extensions=make.ek_extensions(san=make.tpm_name(critical=None)),
        ),
        "good-ecc-with-key-encipherment.der": make.ecc_endorsement(extensions=make.ek_extensions()),
        "good-rsa-with-key-agreement.der": make.endorsement(
            extensions=make.ek_extensions(usage=make.key_usage(4))
        ),
        "good.pem": pem(good),
        "good-old-label.pem": pem(good).replace(b" CERTIFICATE", b" X509 CERTIFICATE"),
        "good-nv-header.bin": nv_header(good),
        "good-nv-padding-ff.bin": good + b"\xff" * (1600 - len(good)),
        "good-nv-padding-00.bin": good + bytes(1600 - len(good)),
        "good-nv-header-padding-ff.bin": nv_header(good) + b"\xff" * 100,
    }


def wrong_leaf() -> dict[str, tuple[bytes, dict[str, str]]]:
    """Leaves with one defect of their own."""
    leaf, ext = make.endorsement, make.ek_extensions
    long_ago = make.tlv(0x17, b"210101000000Z")
    later = make.tlv(0x17, b"490101000000Z")
    return {
        "critical-unknown-extension.der": (
            leaf(extensions=ext(extra=make.extension("1.2.3.4", b"\x05\x00", critical=True))),
            refused("unknown-critical-extension"),
        ),
        "critical-directory-attributes.der": (
            leaf(extensions=ext(extra=make.extension("2.5.29.9", b"\x30\x00", critical=True))),
            refused("unknown-critical-extension"),
        ),
        "san-missing.der": (leaf(extensions=ext(san=None)), refused("subject-alternative-name")),
        "san-without-version.der": (
            leaf(extensions=ext(san=make.tpm_name(version=None))),
            refused("subject-alternative-name"),
        ),
        "san-not-critical-empty-subject.der": (
            leaf(extensions=ext(san=make.tpm_name(critical=None))),
            refused("subject-alternative-name"),
        ),
        "leaf-is-a-ca.der": (
            leaf(extensions=ext(basic=make.basic_constraints(authority=True))),
            refused("key-usage"),
        ),
        "leaf-may-sign-certificates.der": (
            leaf(extensions=ext(usage=make.key_usage(2, 5))),
            refused("basic-constraints"),
        ),
        "extended-key-usage-other.der": (
            leaf(extensions=ext(purpose=make.purposes("1.3.6.1.5.5.7.3.1"))),
            refused("role"),
        ),
        "platform-certificate.der": (
            leaf(extensions=ext(purpose=make.purposes("2.23.133.8.2"))),
            refused("role"),
        ),
        "key-usage-missing.der": (leaf(extensions=ext(usage=None)), refused("role")),
        "key-usage-other.der": (leaf(extensions=ext(usage=make.key_usage(1, 3))), refused("role")),
        "name-constraints.der": (
            leaf(extensions=ext(extra=make.extension("2.5.29.30", b"\x30\x00", critical=True))),
            refused("name-constraints"),
        ),
        "expired.der": (leaf(not_after=long_ago), refused("expired")),
        "not-yet-valid.der": (leaf(not_before=later), refused("not-yet-valid")),
        "version-1.der": (leaf(version=None, extensions=None), refused("role")),
        "rsa-1024.der": (
            leaf(public_key_info=make.public_key_info(rsa_private_key("ekcerts/short", 1024))),
            refused("weak-key"),
        ),
        "rsa-2041.der": (
            leaf(public_key_info=make.public_key_info(rsa_private_key("ekcerts/odd", 2041))),
            refused("weak-key"),
        ),
        "rsa-exponent-3.der": (
            leaf(public_key_info=make.public_key_info(rsa_private_key("ekcerts/e3", 2048, 3))),
            refused("weak-key"),
        ),
        "rsa-roca.der": (
            leaf(public_key_info=make.public_key_info(roca_private_key("ekcerts/roca"))),
            refused("weak-key"),
        ),
        "key-ed25519.der": (
            leaf(
                public_key_info=make.sequence(
                    make.algorithm("1.3.101.112", None), make.bits(bytes(32))
                )
            ),
            refused("weak-key"),
        ),
        "key-curve-secp256k1.der": (
            leaf(
                public_key_info=make.sequence(
                    make.algorithm("1.2.840.10045.2.1", make.oid("1.3.132.0.10")),
                    make.bits(b"\x04" + bytes(64)),
                )
            ),
            refused("weak-key"),
        ),
        "key-point-off-curve.der": (
            make.ecc_endorsement(
                public_key_info=make.sequence(
                    make.algorithm("1.2.840.10045.2.1", make.oid("1.2.840.10045.3.1.7")),
                    make.bits(b"\x04" + b"\x01" * 64),
                )
            ),
            refused("key-malformed"),
        ),
    }


def wrong_chain() -> dict[str, tuple[bytes, dict[str, str]]]:
    """Leaves that are right in themselves but have no chain."""
    leaf = make.endorsement
    return {
        "signed-by-another-key.der": (leaf(signer=OTHER_KEY), untrusted("signature-invalid")),
        "self-signed.der": (
            leaf(
                signer=make.ek_key(),
                issuer=make.common_name("TPM 17"),
                subject=make.common_name("TPM 17"),
            ),
            untrusted("issuer-unknown"),
        ),
        "issuer-unknown.der": (
            leaf(issuer=make.common_name("Somebody Else")),
            untrusted("issuer-unknown"),
        ),
        "signed-with-sha1.der": (leaf(algorithm_id=make.SHA1_RSA), refused("sha1-signature")),
        "signature-algorithm-unknown.der": (
            make.build(
                make.Template(
                    signer=make.ec_private_key(3),
                    public_key_info=make.public_key_info(make.ek_key()),
                    issuer=make.CA_NAME,
                    subject=make.EMPTY_NAME,
                    extensions=make.ek_extensions(),
                    algorithm_id=make.SHA256_ECDSA,
                    algorithm_parameters=None,
                )
            ),
            untrusted("algorithm-unsupported"),
        ),
    }


def broken_bytes() -> dict[str, tuple[bytes, dict[str, str]]]:
    """What is no certificate."""
    good = make.endorsement()
    twice = make.ek_extensions(again=make.basic_constraints(authority=False))
    other = make.algorithm(make.SHA384_RSA)
    return {
        "empty.bin": (b"", malformed("certificate")),
        "truncated.bin": (good[:-1], malformed("certificate")),
        "trailing-byte.bin": (good + b"\x01", malformed("certificate")),
        "padding-mixed.bin": (good + b"\xff\xff\x00", malformed("certificate")),
        "nv-header-length-short.bin": (
            b"\x10\x01\x00\x00\x10\x10\x02" + good,
            malformed("certificate"),
        ),
        "nv-header-not-full.bin": (
            b"\x10\x01\x00\x05\x00\x10\x03" + good,
            malformed("certificate"),
        ),
        "pem-twice.pem": (pem(good) * 2, malformed("certificate")),
        "pem-bad-base64.pem": (
            pem(good).replace(b"-----END", b"A\n-----END"),
            malformed("certificate"),
        ),
        "length-not-shortest.bin": (
            b"\x30\x83\x00" + good[2:],
            malformed("certificate"),
        ),
        "length-indefinite.bin": (b"\x30\x80" + good[4:] + b"\x00\x00", malformed("certificate")),
        "extension-twice.der": (make.endorsement(extensions=twice), malformed("extension")),
        "inner-algorithm-differs.der": (
            make.endorsement(inner_algorithm=other),
            malformed("signatureAlgorithm"),
        ),
        "san-two-manufacturers.der": (
            make.endorsement(
                extensions=make.ek_extensions(
                    san=make.extension(
                        "2.5.29.17",
                        make.sequence(
                            make.tlv(
                                0xA4,
                                make.name(
                                    ("2.23.133.2.1", "id:49465800"),
                                    ("2.23.133.2.1", "id:53544D20"),
                                    ("2.23.133.2.2", "m"),
                                    ("2.23.133.2.3", "id:1"),
                                ),
                            )
                        ),
                        critical=True,
                    )
                )
            ),
            malformed("attribute value"),
        ),
        "time-without-seconds.der": (
            make.endorsement(not_after=make.tlv(0x17, b"4901010000Z")),
            malformed("notAfter"),
        ),
        "version-4.der": (make.endorsement(version=3), malformed("version")),
    }


def vectors() -> dict[str, tuple[bytes, dict[str, str]]]:
    """Every vector: file name, bytes, expectation."""
    good = {name: (data, GENUINE) for name, data in genuine().items()}
    return good | wrong_leaf() | wrong_chain() | broken_bytes()


def files() -> dict[str, bytes]:
    """Every file that the script writes."""
    index = {name: expectation for name, (_, expectation) in sorted(vectors().items())}
    written = {name: data for name, (data, _) in vectors().items()}
    return written | {
        "root.pem": pem(make.root()),
        "intermediate.pem": pem(make.intermediate()),
        "index.json": (json.dumps(index, indent=1) + "\n").encode(),
    }


if __name__ == "__main__":
    for file_name, content in files().items():
        (FOLDER / file_name).write_bytes(content)
    print(f"{len(files())} files")
