"""Every way from bytes of a stranger into a model, for properties and fuzzing alike.

``DECODERS`` names each public decoder of the codec, and the few elsewhere that read a stranger's bytes.
A new public function of the codec that takes bytes must stand here or in ``NO_DECODERS`` of
tests/properties/test_decoder_properties.py, with the reason why not; that test compares.
"""

from collections.abc import Callable
from dataclasses import dataclass

from support import decoder_seeds as seeds
from support import decoder_ways as ways
from support.bundle_parts import part_seeds, with_part
from support.decoder_seeds import AUDIT_KEY, ORIGIN
from support.logbuilder import DATABASE, guid, signature_list
from support.pe_images import Built
from trustauthority.codec import der, devicepath, efi, ima, tlog
from trustauthority.codec import x509_extensions as extensions
from trustauthority.codec.cel import decode_userspace_log
from trustauthority.codec.efi_text import byte_text, looks_like_utf16, utf16_text
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.codec.ima_ascii import decode_ima_ascii
from trustauthority.codec.ima_log import decode_ima_log, is_ascii
from trustauthority.codec.policy import decode_policy
from trustauthority.codec.runtimerules import decode_runtime_rules
from trustauthority.codec.tpm import (
    decode_attest,
    decode_public_sized,
    decode_signature,
    decode_sized,
    encode_sized,
)
from trustauthority.codec.x509 import (
    decode_certificates,
    decode_chain,
    decode_public_key_info,
    decode_signature_algorithm,
    split_chain,
)
from trustauthority.codec.x509_crl import decode_revocation_list
from trustauthority.codec.x509_framing import (
    certificates_inside,
    der_sequence,
    pem_blocks,
    unframe,
)
from trustauthority.codec.x509_names import decode_alternative_name, decode_name
from trustauthority.errors import (
    AlgorithmUnsupported,
    CheckpointInvalid,
    EvidenceRejected,
    InvalidRequest,
    MalformedEvidence,
    PolicyInvalid,
    ReportRejected,
)

_MALFORMED = (MalformedEvidence,)
_UNSUPPORTED = (MalformedEvidence, AlgorithmUnsupported)


@dataclass(frozen=True)
class Decoder:
    """Bytes to a model, by the errors that it may raise for any bytes at all."""

    name: str
    """Module and function; several rows may share one, for several ways in."""
    family: str
    """The fuzz target that it belongs to."""
    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    errors: tuple[type[Exception], ...] = _MALFORMED


_PUBLIC = AUDIT_KEY.public_key().public_bytes_raw()

DECODERS: tuple[Decoder, ...] = (
    Decoder("tpm_attest.decode_attest", "tpm", decode_attest, seeds.attests),
    Decoder("tpm_public.decode_public", "tpm", ways.whole_public, seeds.publics, _UNSUPPORTED),
    Decoder(
        "tpm_public.decode_public_sized",
        "tpm",
        decode_public_sized,
        lambda: [encode_sized(each) for each in seeds.publics()],
    ),
    Decoder("tpm_signature.decode_signature", "tpm", decode_signature, seeds.signatures),
    Decoder(
        "tpm_reader.decode_sized",
        "tpm",
        lambda data: decode_sized(data, "part"),
        lambda: [b"\0\x03abc"],
    ),
    Decoder("eventlog.decode_boot_log", "eventlog", decode_boot_log, seeds.boot_logs),
    Decoder("efi.decode_variable", "efi", efi.decode_variable, seeds.variables),
    Decoder(
        "efi.decode_variable",
        "efi",
        lambda data: efi.decode_variable(data, allow_trailing=True),
        seeds.variables,
    ),
    Decoder("efi.variable_value_range", "efi", efi.variable_value_range, seeds.variables),
    Decoder(
        "efi.decode_signature_lists",
        "efi",
        efi.decode_signature_lists,
        lambda: [signature_list([bytes(32)]), signature_list([b"\x01" * 32, bytes(32)])],
    ),
    Decoder(
        "efi.count_signatures",
        "efi",
        efi.count_signatures,
        lambda: [signature_list([bytes(32), b"\x01" * 32])],
    ),
    Decoder("efi.decode_image_load", "efi", efi.decode_image_load, seeds.image_loads),
    Decoder(
        "efi.decode_partition_table", "efi", efi.decode_partition_table, seeds.partition_tables
    ),
    Decoder(
        "devicepath.decode_device_path", "efi", devicepath.decode_device_path, seeds.device_paths
    ),
    Decoder("efi_text.format_guid", "efi", ways.guid_text, lambda: [guid(DATABASE)]),
    Decoder("efi_text.utf16_text", "efi", utf16_text, lambda: ["Boot0000".encode("utf-16-le")]),
    Decoder("efi_text.byte_text", "efi", byte_text, lambda: [b"grub_cmd: linux\0"]),
    Decoder("efi_text.looks_like_utf16", "efi", looks_like_utf16, lambda: [b"a\0b\0"]),
    Decoder("ima.decode_ima_binary", "ima", ima.decode_ima_binary, seeds.ima_logs, _UNSUPPORTED),
    Decoder("ima.ImaStream", "ima", ways.stream, seeds.ima_pieces, _UNSUPPORTED),
    Decoder(
        "ima.decode_ima_fields",
        "ima",
        ways.entry(ima.decode_ima_fields),
        seeds.ima_entries,
        _UNSUPPORTED,
    ),
    Decoder(
        "ima.path_and_digest",
        "ima",
        ways.entry(ima.path_and_digest),
        seeds.ima_entries,
        _UNSUPPORTED,
    ),
    Decoder(
        "ima.template_fields",
        "ima",
        lambda data: ima.template_fields(data.decode("latin-1")),
        lambda: [b"ima-ng", b"d-ng|n-ng"],
        _UNSUPPORTED,
    ),
    Decoder("ima_ascii.decode_ima_ascii", "ima", decode_ima_ascii, seeds.ima_logs, _UNSUPPORTED),
    Decoder("ima.ima_windows", "ima", ways.windows, seeds.ima_logs, _UNSUPPORTED),
    Decoder("ima.unsigned_part", "ima", ways.entry(ima.unsigned_part), seeds.ima_entries),
    Decoder("ima_log.is_ascii", "ima", is_ascii, seeds.ima_logs),
    Decoder("ima_log.decode_ima_log", "ima", decode_ima_log, seeds.ima_logs, _UNSUPPORTED),
    Decoder(
        "x509.decode_certificate",
        "x509",
        ways.certificate_and_key,
        seeds.certificates,
        _UNSUPPORTED,
    ),
    Decoder("x509.decode_certificates", "x509", decode_certificates, seeds.pems),
    Decoder("x509.split_chain", "x509", split_chain, seeds.certificates),
    Decoder("x509.decode_chain", "x509", decode_chain, seeds.certificates),
    Decoder(
        "x509.decode_signature_algorithm",
        "x509",
        ways.element(decode_signature_algorithm),
        seeds.elements,
    ),
    Decoder(
        "x509.decode_public_key_info", "x509", ways.element(decode_public_key_info), seeds.elements
    ),
    Decoder("x509_crl.decode_revocation_list", "x509", decode_revocation_list, seeds.lists),
    Decoder(
        "x509_extensions.decode_extensions",
        "x509",
        ways.element(extensions.decode_extensions),
        seeds.elements,
    ),
    Decoder(
        "x509_extensions.decode_basic_constraints",
        "x509",
        extensions.decode_basic_constraints,
        seeds.extension_values("2.5.29.19"),
    ),
    Decoder(
        "x509_extensions.decode_key_usage",
        "x509",
        extensions.decode_key_usage,
        seeds.extension_values("2.5.29.15"),
    ),
    Decoder(
        "x509_extensions.decode_extended_key_usage",
        "x509",
        extensions.decode_extended_key_usage,
        seeds.extension_values("2.5.29.37"),
    ),
    Decoder(
        "x509_extensions.decode_authority_key_identifier",
        "x509",
        extensions.decode_authority_key_identifier,
        seeds.extension_values("2.5.29.35"),
    ),
    Decoder(
        "x509_extensions.decode_subject_key_identifier",
        "x509",
        extensions.decode_subject_key_identifier,
        seeds.extension_values("2.5.29.14"),
    ),
    Decoder(
        "x509_framing.unframe",
        "x509",
        lambda data: unframe(data, part="p", label=b"CERTIFICATE"),
        seeds.pems,
    ),
    Decoder(
        "x509_framing.pem_blocks", "x509", lambda data: list(pem_blocks(data, part="p")), seeds.pems
    ),
    Decoder(
        "x509_framing.der_sequence",
        "x509",
        lambda data: list(der_sequence(data, part="p")),
        seeds.certificates,
    ),
    Decoder(
        "x509_framing.certificates_inside",
        "x509",
        lambda data: list(certificates_inside(data, part="p")),
        seeds.signed_data,
    ),
    Decoder("x509_names.decode_name", "x509", ways.element(decode_name), seeds.elements),
    Decoder(
        "x509_names.decode_alternative_name",
        "x509",
        decode_alternative_name,
        seeds.extension_values("2.5.29.17"),
    ),
    *(
        Decoder(f"der.{read.__name__}", "x509", ways.element(read), seeds.elements)
        for read in (
            der.boolean,
            der.integer,
            der.bit_string,
            der.octet_aligned,
            der.named_bits,
            der.object_identifier,
            der.instant,
        )
    ),
    Decoder("cel.decode_userspace_log", "cel", decode_userspace_log, seeds.cels),
    Decoder("bundle.decode_bundle", "bundle", ways.bundle, seeds.bundles),
    Decoder(
        "appraisal.judge_bundle",
        "bundle",
        with_part,
        part_seeds,
        (InvalidRequest, EvidenceRejected),
    ),
    Decoder("pe.decode_pe", "pe", ways.pe_image, lambda: [Built().bytes, Built(plus=False).bytes]),
    Decoder(
        "runtimerules.decode_runtime_rules",
        "rules",
        decode_runtime_rules,
        seeds.rules,
        (PolicyInvalid,),
    ),
    Decoder(
        "policy.decode_policy", "rules", ways.text(decode_policy), seeds.policies, (PolicyInvalid,)
    ),
    Decoder(
        "tlog.decode_checkpoint",
        "tlog",
        ways.text(tlog.decode_checkpoint),
        seeds.notes,
        (CheckpointInvalid,),
    ),
    Decoder(
        "tlog.unverified_checkpoint",
        "tlog",
        ways.text(tlog.unverified_checkpoint),
        seeds.notes,
        (CheckpointInvalid,),
    ),
    Decoder(
        "tlog.open_note",
        "tlog",
        ways.text(lambda note: tlog.open_note(note, name=ORIGIN, public_key=_PUBLIC)),
        seeds.notes,
        (CheckpointInvalid,),
    ),
    Decoder(
        "tlog.open_checkpoint",
        "tlog",
        ways.text(lambda note: tlog.open_checkpoint(note, origin=ORIGIN, public_key=_PUBLIC)),
        seeds.notes,
        (CheckpointInvalid,),
    ),
    Decoder("tlog.check_consistency", "tlog", ways.consistency, seeds.proofs, (CheckpointInvalid,)),
    Decoder("tlog.check_inclusion", "tlog", ways.inclusion, seeds.proofs, (CheckpointInvalid,)),
    Decoder("report.check_report", "report", ways.report, seeds.tokens, (ReportRejected,)),
    Decoder("report.check_report", "report", ways.signed_claims, seeds.claims, (ReportRejected,)),
)


def families() -> dict[str, list[Decoder]]:
    """The decoders by fuzz target."""
    found: dict[str, list[Decoder]] = {}
    for decoder in DECODERS:
        found.setdefault(decoder.family, []).append(decoder)
    return found
