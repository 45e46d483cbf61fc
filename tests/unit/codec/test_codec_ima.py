"""IMA fields and the text form (rules 51, 53)."""

import pytest
from support.log_vectors import ima_templates
from support.logbuilder import digest, ima_record, ng_data, sized

from trustauthority.codec.ima import (
    decode_ima_binary,
    decode_ima_fields,
    template_fields,
    unsigned_part,
)
from trustauthority.codec.ima_ascii import decode_ima_ascii
from trustauthority.codec.ima_log import decode_ima_log
from trustauthority.errors import AlgorithmUnsupported, MalformedEvidence
from trustauthority.model.ima import ImaEncoding, ImaEntry

CONTENT = digest("sha256", b"content")


def fields(template: str, data: bytes):
    """The fields of one entry."""
    return decode_ima_fields(ImaEntry(0, 0, 10, bytes(20), template, data))


def test_fields_of_each_template():
    """What each template of the kernel says, field by field."""
    templates = ima_templates()
    for template, data in templates.items():
        found = fields(template, data)
        assert (found.algorithm, found.digest) == ("sha256", CONTENT)
        assert found.path == ("kexec-cmdline" if template == "ima-buf" else "/bin/tool")
    assert fields("ima-sigv2", templates["ima-sigv2"]).digest_type == "verity"
    assert fields("ima-sig", templates["ima-sig"]).signature[:1] == b"\x03"
    assert fields("ima-buf", templates["ima-buf"]).buffer == b"ro quiet"
    modsig = fields("ima-modsig", templates["ima-modsig"])
    assert (modsig.module_algorithm, modsig.module_digest) == (
        "sha512",
        digest("sha512", b"module"),
    )
    assert modsig.module_signature == b"\x30\x82"
    evm = fields("evm-sig", templates["evm-sig"])
    assert (evm.uid, evm.gid, evm.mode, evm.signature) == (1000, 100, 0o100644, b"\x05")
    assert evm.extended_attributes == (b"security.ima\0", b"\x03\0\0\0", b"abc")


def test_empty_fields_are_absent_not_zero():
    """An absent owner is unknown, never root (evm-sig)."""
    data = sized(b"sha256:\0" + CONTENT) + sized(b"/x\0") + sized(b"") * 7
    found = fields("evm-sig", data)
    assert (found.uid, found.gid, found.mode) == (None, None, None)
    modsig = sized(b"sha256:\0" + CONTENT) + sized(b"/x\0") + sized(b"") * 3
    assert fields("ima-modsig", modsig).module_digest == b""


def test_a_number_of_odd_size_is_malformed():
    """Owners have 1, 2, 4 or 8 bytes."""
    data = sized(b"sha256:\0" + CONTENT) + sized(b"/x\0") + sized(b"") * 4 + sized(b"abc") * 3
    with pytest.raises(MalformedEvidence):
        fields("evm-sig", data)


@pytest.mark.parametrize(
    "template",
    [
        "ima-new",
        "d-ng",
        "n-ng",
        "d-ng|n-ng|new",
        "d-ng|d-ng|n-ng",
        "n-ng|sig",
        "d-ng|sig",
        "d|n",
        "|",
        "",
    ],
)
def test_a_template_that_can_not_be_verified_is_refused(template):
    """Unknown is refused, never skipped (rule 53)."""
    with pytest.raises(AlgorithmUnsupported):
        template_fields(template)


def test_a_template_that_the_command_line_spelt_out():
    """``ima_template_fmt=`` names the fields in the log."""
    assert template_fields("n-ng|d-ng|sig") == ("n-ng", "d-ng", "sig")


def text_of(template: str, value: bytes, shown: str) -> bytes:
    """One line of the text form."""
    return f"10 {value.hex()} {template} {shown}\n".encode()


SHOWN = {
    "ima-ng": f"sha256:{CONTENT.hex()} /bin/tool",
    "ima-ngv2": f"verity:sha256:{CONTENT.hex()} /bin/tool",
    "ima-buf": f"sha256:{CONTENT.hex()} kexec-cmdline {b'ro quiet'.hex()}",
    "ima-modsig": (
        f"sha256:{CONTENT.hex()} /bin/tool  sha512:{digest('sha512', b'module').hex()} 3082"
    ),
    "evm-sig": (f"sha256:{CONTENT.hex()} /bin/tool 05 security.ima 03000000 616263 1000 100 33188"),
    "d-ng|n-ng|sig": f"sha256:{CONTENT.hex()} /bin/tool ",
}


@pytest.mark.parametrize("template", list(SHOWN))
def test_the_text_form_gives_the_same_entry(template):
    """Both files of securityfs describe the same measurements, to the byte."""
    data = ima_templates()[template]
    (binary,) = decode_ima_binary(ima_record(data, template.encode()))
    (text,) = decode_ima_ascii(text_of(template, digest("sha1", data), SHOWN[template]))
    assert text[2:] == binary[2:]


def test_the_old_template_in_text():
    """``ima`` hashes 20 bytes of digest and the padded name."""
    data = digest("sha1", b"x") + b"/bin/old".ljust(256, b"\0")
    shown = f"{digest('sha1', b'x').hex()} /bin/old"
    (entry,) = decode_ima_ascii(text_of("ima", digest("sha1", data), shown))
    assert entry.data == data
    assert fields("ima", entry.data).path == "/bin/old"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"/with blank", "/with blank"),
        (b"/new\nline", "/new\\x0aline"),
        (b"/back\\x41slash", "/back\\x41slash"),
        (b"", ""),
    ],
)
def test_the_template_digest_decides_how_a_name_is_read(path, shown):
    """Blanks and escapes are ambiguous in text; only the digest may decide (rule 53)."""
    data = ng_data(path)
    line = text_of("ima-ng", digest("sha1", data), f"sha256:{CONTENT.hex()} {shown}")
    (entry,) = decode_ima_ascii(line)
    assert entry.data == data


def test_a_stripped_signature_field_is_still_the_same_entry():
    """Editors strip the blank after which an empty signature stands (ima-sig)."""
    data = ng_data(b"/bin/tool") + sized(b"")
    line = text_of("ima-sig", digest("sha1", data), f"sha256:{CONTENT.hex()} /bin/tool")
    assert decode_ima_ascii(line)[0].data == data
    assert decode_ima_ascii(line[:-1] + b" \n")[0].data == data


@pytest.mark.parametrize("blank", ["\t", "\v", "\f"])
def test_blanks_within_a_digest_are_no_digits(blank):
    """Python's fromhex skips blanks, the kernel writes none: such a line is malformed (rule 53)."""
    data = ng_data(b"/bin/tool")
    line = text_of("ima-ng", digest("sha1", data), f"sha256:{CONTENT.hex()} /bin/tool")
    logged = digest("sha1", data).hex().encode()
    for text in (logged, CONTENT.hex().encode()):
        with pytest.raises(MalformedEvidence):
            decode_ima_ascii(line.replace(text, text[:2] + blank.encode() + text[2:]))


def test_a_text_that_no_digest_proves_is_kept_and_not_believed():
    """The first reading stays, and the check of digests refuses it (rule 58)."""
    line = text_of("ima-ng", b"\x01" * 20, f"sha256:{CONTENT.hex()} /bin/tool")
    assert decode_ima_ascii(line)[0].data == ng_data(b"/bin/tool")
    unknown = text_of("ima-new", b"\x01" * 20, "anything at all")
    assert decode_ima_ascii(unknown)[0].data == b"anything at all"


@pytest.mark.parametrize(
    "line",
    [
        b"10\n",
        b"10 aa ima-ng x y\n",
        b"10 0 ima-ng x y\n",
        b"99 " + b"0" * 40 + b" ima-ng x y\n",
        b"1x " + b"0" * 40 + b" ima-ng x y\n",
        b"10 " + b"0" * 40 + b" ima\xff x y\n",
        b"10 " + b"0" * 40 + b" " + b"i" * 300 + b" x y\n",
        b"10 " + b"0" * 40 + b" ima-ng x /y\n",
        b"10 " + b"0" * 40 + b" ima-ng sha256:0 /y\n",
        b"10 " + b"0" * 40 + b" ima 00 /y\n",
        b"10 " + b"0" * 40 + b" ima " + b"0" * 40 + b" " + b"y" * 256 + b"\n",
        b"10 " + b"0" * 40 + b" evm-sig :00 /y 05 a 00 00 x 1 1\n",
        b"10 " + b"0" * 40 + b" evm-sig :00 /y 05 a 00 00 99999999999 1 1\n",
        b"10 " + b"0" * 40 + b" evm-sig x\n",
        b"10 " + b"0" * 40 + b" ima-ng " + b"x" * (4 << 20) + b"\n",
    ],
    ids=lambda line: line[40:60].decode("latin-1"),
)
def test_a_line_that_makes_no_sense_is_malformed(line):
    """A line is an entry, or the log is refused with its place (rule 45)."""
    good = text_of("ima-ng", digest("sha1", ng_data(b"/a")), f"sha256:{CONTENT.hex()} /a")
    with pytest.raises(MalformedEvidence) as caught:
        decode_ima_ascii(good + line)
    assert caught.value.offset == len(good)


def test_which_form_a_file_has():
    """The two forms can't be confused: text begins with a decimal index."""
    raw = ima_record(ng_data(b"/a"))
    assert decode_ima_log(raw).encoding is ImaEncoding.BINARY
    text = text_of("ima-ng", digest("sha1", ng_data(b"/a")), f"sha256:{CONTENT.hex()} /a")
    assert decode_ima_log(text).encoding is ImaEncoding.ASCII
    assert decode_ima_log(b" " + text).entries[0].data == ng_data(b"/a")
    assert decode_ima_log(text + b"\n").entries == decode_ima_log(text).entries


def test_an_evm_entry_of_a_file_without_attributes_in_text():
    """Fields may be empty; blanks then follow each other."""
    data = sized(b"sha256:\0" + CONTENT) + sized(b"/x\0") + sized(b"") * 7
    line = text_of("evm-sig", digest("sha1", data), f"sha256:{CONTENT.hex()} /x       ")
    assert decode_ima_ascii(line)[0].data == data
    empty = sized(b"") + sized(b"/x\0") + sized(b"") * 3
    line = text_of("ima-modsig", digest("sha1", empty), " /x   ")
    assert decode_ima_ascii(line)[0].data == empty


@pytest.mark.parametrize("path", [b"/bin/tool", b"/bin/toolX", b"", b"/bin/\xff"])
@pytest.mark.parametrize("padding", [0, 1, 7])
def test_the_old_template_has_a_digest_and_a_name(path, padding):
    """Kernels before ``ima-ng``: 20 bytes of SHA-1, then the name, which zeros may fill up (rule 53)."""
    found = fields("ima", bytes(range(20)) + path + bytes(padding))
    assert (found.algorithm, found.digest) == ("sha1", bytes(range(20)))
    assert found.path == path.decode("utf-8", "surrogateescape")


NG = ng_data(b"/bin/tool", b"content")


@pytest.mark.parametrize(
    ("template", "data", "unsigned"),
    [
        ("ima-sig", NG + sized(b""), NG),
        ("ima-sig", NG + sized(b"a signature"), NG),
        ("ima-ng", NG + sized(b""), b""),
        ("ima-sigv2", NG + sized(b""), b""),
        ("ima-sig", NG, b""),
        ("ima-sig", NG + sized(b"")[:-1], b""),
        ("ima-sig", NG + sized(b"") + b"x", b""),
        ("ima-sig", NG + sized(b"a signature")[:-1], b""),
        ("ima-sig", ng_data(b"/bin/tool", b"content", "sha512") + sized(b""), b""),
        ("ima-sig", b"\x28\0\0\0sha256;\0" + NG[12:] + sized(b""), b""),
        ("ima-sig", b"\x28\0\0\0sha256:\1" + NG[12:] + sized(b""), b""),
        ("ima-sig", NG[:44], b""),
        ("ima-sig", NG[:47], b""),
        ("ima-sig", b"", b""),
    ],
)
def test_what_of_a_signed_entry_the_rules_are_asked_for(template, data, unsigned):
    """Rule 53: digest and path of a well-formed entry by SHA-256, and nothing of any other."""
    assert unsigned_part(ImaEntry(0, 0, 10, bytes(20), template, data)) == unsigned
