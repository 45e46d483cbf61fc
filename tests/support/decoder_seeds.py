"""Small good inputs of every decoder: where properties and fuzzing start from."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc.jwk import ECKey

from support import ek_certificates, tpm_structures
from support.log_vectors import event_log_vectors, ima_vectors
from support.logbuilder import DATABASE, good_log, signature_list, variable
from support.variants import good_boot, variants
from trustauthority.appraisal.baseline import encode_baseline
from trustauthority.codec import tlog
from trustauthority.codec.bundle import encode_bundle
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.codec.ima_log import decode_ima_log
from trustauthority.codec.runtimerules import encode_runtime_rules
from trustauthority.codec.x509 import decode_certificate
from trustauthority.errors import AlgorithmUnsupported, MalformedEvidence
from trustauthority.model.certificate import Certificate
from trustauthority.model.report import REPORT_TYPE
from trustauthority.report.token import sign_token

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
AUDIT_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ORIGIN = "authority.example/audit"
REPORT_KEY = ECKey.import_key(ek_certificates.ec_private_key(1))


def _key() -> tpm_structures.SoftwareKey:
    return tpm_structures.SoftwareKey(private=ek_certificates.ec_private_key(2))


def attests() -> list[bytes]:
    quote = tpm_structures.make_quote(
        _key(), pcrs={"sha256": {0: bytes(32), 7: bytes(32)}}, extra_data=b"n" * 32
    )
    certify, _ = tpm_structures.make_certification(
        _key(), name=b"\0\x0b" + bytes(32), qualified_name=b"\0\x0b" + bytes(32)
    )
    return [quote.attest, certify]


def publics() -> list[bytes]:
    keys = [_key(), tpm_structures.SoftwareKey.rsa(), tpm_structures.SoftwareKey.rsa("rsapss")]
    storage = tpm_structures.public_area(
        _key().private.public_key(),
        tpm_structures.STORAGE_ATTRIBUTES,
        symmetric=tpm_structures.AES_128_CFB,
        policy=tpm_structures.POLICY_A,
    )
    return [key.public for key in keys] + [storage]


def signatures() -> list[bytes]:
    return [key.sign(b"m") for key in (_key(), tpm_structures.SoftwareKey.rsa())]


def boot_logs() -> list[bytes]:
    small = [vector.raw for vector in event_log_vectors() if len(vector.raw) < 4_000]
    return [good_log().bytes, *small[:12]]


def ima_logs() -> list[bytes]:
    return [vector.raw for vector in ima_vectors() if len(vector.raw) < 4_000][:30]


def ima_pieces() -> list[bytes]:
    return [b"\x07\x40\xff\x01" + raw for raw in ima_logs()]


def ima_entries() -> list[bytes]:
    found = []
    for raw in ima_logs():
        try:
            entries = decode_ima_log(raw).entries
        except (MalformedEvidence, AlgorithmUnsupported):
            continue
        found += [entry.template.encode() + b"\0" + entry.data for entry in entries[:2]]
    return found[:20] or [b"ima-ng\0"]


def variables() -> list[bytes]:
    lists = signature_list([bytes(32)])
    return [variable("SecureBoot", b"\x01"), variable("db", lists, DATABASE)]


def image_loads() -> list[bytes]:
    return [
        event.data
        for event in decode_boot_log((VECTORS / "boots/good/eventlog.bin").read_bytes()).events
        if event.type in {0x80000003, 0x80000004}
    ][:3]


def device_paths() -> list[bytes]:
    return [data[32:] for data in image_loads()] + [b"\x7f\xff\x04\x00"]


def partition_tables() -> list[bytes]:
    log = decode_boot_log((VECTORS / "boots/good/eventlog.bin").read_bytes())
    return [event.data for event in log.events if event.type == 0x80000006][:1] or [bytes(92)]


def certificates() -> list[bytes]:
    good = sorted((VECTORS / "ekcerts").glob("good*.der"))
    return [*[path.read_bytes() for path in good][:8], ek_certificates.root()]


def _inside_certificates(pick: Callable[[Certificate], list[bytes]]) -> Callable[[], list[bytes]]:
    return lambda: [
        part for raw in certificates() for part in pick(decode_certificate(raw)) if part
    ][:8]


def extension_values(identifier: str) -> Callable[[], list[bytes]]:
    return _inside_certificates(
        lambda certificate: [
            each.value for each in certificate.extensions if each.object_identifier == identifier
        ]
    )


def elements() -> list[bytes]:
    return [
        b"\x01\x01\xff",
        b"\x02\x01\x05",
        b"\x03\x02\x05\xa0",
        b"\x03\x02\x00\xa0",
        ek_certificates.sequence(ek_certificates.basic_constraints(authority=True)),
        b"\x06\x03\x55\x04\x03",
        b"\x17\x0d260101000000Z",
        b"\x18\x0f20260101000000Z",
        ek_certificates.common_name("a"),
        ek_certificates.algorithm("1.2.840.113549.1.1.11"),
        ek_certificates.public_key_info(ek_certificates.ec_private_key(3)),
    ]


def lists() -> list[bytes]:
    made = ek_certificates
    numbered = [made.extension("2.5.29.20", made.integer(7))]
    return [
        made.build_crl(made.ca_key(), made.CA_NAME),
        made.build_crl(made.ca_key(), made.CA_NAME, [5, 6], extensions=numbered),
    ]


def signed_data() -> list[bytes]:
    """PKCS #7 with certificates in it, and a certificate without."""
    root = ek_certificates.root()
    return [ek_certificates.pkcs7(root, ek_certificates.intermediate()), root]


def pems() -> list[bytes]:
    body = base64.encodebytes(certificates()[0])
    return [b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"]


def bundles() -> list[bytes]:
    return [encode_bundle({"nonce": "00ff", "n": 3}, {"quote.attest": b"a" * 20}, made_at_s=1)]


def cels() -> list[bytes]:
    record = {
        "pcr": 11,
        "digests": [{"hashAlg": "sha256", "digest": "00" * 32}],
        "content_type": "systemd",
        "content": {"eventType": "phase", "string": "ready", "bootId": "0" * 32},
    }
    return [b"\x1e" + json.dumps(record).encode() + b"\n"]


def rules() -> list[bytes]:
    key = ek_certificates.public_key_info(ek_certificates.ec_private_key(3))
    keys = [base64.b64encode(each).decode() for each in (key, ek_certificates.root())]
    rest = {
        "anywhere": ["sha256:" + "11" * 32],
        "buffers": {"kexec-cmdline": ["sha256:" + "22" * 32]},
        "excluded": ["/tmp/*"],
        "hashes": ["sha256"],
        "keyrings": {"distribution": {"keys": keys, "paths": ["/usr/*"]}},
    }
    files = {"/usr/bin/qemu": ["sha256:" + "00" * 32]}
    return [encode_runtime_rules(files, rest), encode_runtime_rules(files, {})]


def policies() -> list[bytes]:
    return [b'name = "a"\n[boot]\nsecure_boot = "required"\n', b"[evidence]\nmax_age_s = 60\n"]


def notes() -> list[bytes]:
    text = tlog.encode_checkpoint(
        tlog.Checkpoint(origin=ORIGIN, size=3, root=bytes(32), extensions=("era 1",))
    )
    public = AUDIT_KEY.public_key().public_bytes_raw()
    note = tlog.encode_note(
        text=text, name=ORIGIN, public_key=public, signature=AUDIT_KEY.sign(text.encode())
    )
    return [note.encode(), text.encode()]


def proofs() -> list[bytes]:
    leaves = [tlog.leaf_hash(bytes((number,))) for number in range(7)]
    old, root = tlog.tree_root(leaves[:3]), tlog.tree_root(leaves)
    consistency = b"".join(tlog.consistency_proof(leaves, 3))
    inclusion = b"".join(tlog.inclusion_proof(leaves, 2))
    return [b"\x03\x07" + root + old + consistency, b"\x02\x07" + root + leaves[2] + inclusion]


def tokens() -> list[bytes]:
    claims = {
        "iss": "ta",
        "aud": "kms",
        "sub": "h-1",
        "iat": 1_799_999_990,
        "exp": 1_800_000_300,
        "jti": "v-1",
        "ta": {"standing": "passed", "cluster": "lab"},
    }
    return [sign_token(claims, token_type=REPORT_TYPE, key=REPORT_KEY).encode()]


def claims() -> list[bytes]:
    return [b'{"exp":1800000300,"iat":1799999990,"ta":{"standing":"passed"}}', b'{"iat":NaN}']


def baselines() -> list[bytes]:
    return [encode_baseline(each).encode() for each in variants(good_boot())[:2]]
