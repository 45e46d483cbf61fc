"""Files of the runtime log against the rules: what is not known for sure is refused by name."""

import base64
import datetime as dt
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from trustauthority.appraisal.runtimefiles import (
    FileJudgement,
    file_checks,
    judge_files,
)
from trustauthority.codec.runtimerules import decode_runtime_rules, encode_runtime_rules, key_id
from trustauthority.errors import PolicyInvalid
from trustauthority.model.ima import ImaEntry
from trustauthority.model.policy import Requirement, RuntimePolicy
from trustauthority.model.runtimerules import RuntimeRules, path_matches
from trustauthority.model.verdict import CheckState

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ECC = ec.generate_private_key(ec.SECP256R1())
CONTENT, OTHER = b"the program", b"another program"


def sized(field: bytes) -> bytes:
    return len(field).to_bytes(4, "little") + field


def digest_of(content: bytes, algorithm: str = "sha256") -> bytes:
    return hashlib.new(algorithm, content).digest()


def entry(
    path: str | bytes,
    content: bytes = CONTENT,
    *,
    number: int = 7,
    template: str = "ima-ng",
    algorithm: str = "sha256",
    tail: bytes = b"",
    violation: bool = False,
) -> ImaEntry:
    """One entry as a kernel writes it."""
    name = path if isinstance(path, bytes) else path.encode()
    digest = algorithm.encode() + b":\0" + digest_of(content, algorithm)
    data = sized(digest) + sized(name + b"\0") + tail
    logged = bytes(20) if violation else hashlib.sha1(data, usedforsecurity=False).digest()
    return ImaEntry(number, 0, 10, logged, template, data)


def signed(
    path: str,
    content: bytes = CONTENT,
    *,
    key: Any = RSA,
    over: bytes | None = None,
    number: int = 4,
    version: int = 2,
    identifier: bytes | None = None,
    kind: int = 3,
    extra: bytes = b"",
    algorithm: str = "sha256",
) -> ImaEntry:
    """An entry with a signature over its digest, or over something else."""
    message = content if over is None else over
    over_hash = {4: hashes.SHA256(), 5: hashes.SHA384(), 6: hashes.SHA512()}.get(
        number, hashes.SHA256()
    )
    if isinstance(key, rsa.RSAPrivateKey):
        made = key.sign(message, padding.PKCS1v15(), over_hash)
    else:
        made = key.sign(message, ec.ECDSA(over_hash))
    named = key_id(key.public_key()) if identifier is None else identifier
    head = bytes([kind, version, number]) + named + len(made).to_bytes(2, "big")
    tail = sized(head + made + extra)
    return entry(path, content, template="ima-sig", tail=tail, algorithm=algorithm)


def encoded(key: Any) -> str:
    info = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(info).decode()


def rules(**changes: Any) -> RuntimeRules:
    """Rules with one known file, one excluded tree, and a keyring for /opt."""
    document = {
        "version": 1,
        "files": {"/usr/bin/ls": ["sha256:" + digest_of(CONTENT).hex()]},
        "excluded": ["/var/log/*", "/etc/motd"],
        "keyrings": {"vendor": {"keys": [encoded(RSA), encoded(ECC)], "paths": ["/opt/*"]}},
        "buffers": {"kexec-cmdline": ["sha256:" + digest_of(b"quiet").hex()]},
    }
    return decode_runtime_rules(json.dumps(document | changes).encode())


def judged(*entries: ImaEntry, under: RuntimeRules | None = None, **options: Any) -> FileJudgement:
    return judge_files(entries, under or rules(), **options)


def why(one: ImaEntry, under: RuntimeRules | None = None) -> str:
    found = judged(one, under=under)
    assert found.refused == 1, found
    assert found.by_digest == found.by_signature == found.excluded == 0
    return found.named[0].why


class TestDigests:
    def test_known_content_under_its_path(self) -> None:
        """A file counts by its digest for its path, the boot aggregate by its own check."""
        first = entry("boot_aggregate", number=0)
        assert judged(first, entry("/usr/bin/ls")).by_digest == 2

    def test_anywhere(self) -> None:
        """Contents can be accepted under every path, such as /proc/self/fd links."""
        everywhere = rules(files={}, anywhere=["sha256:" + digest_of(CONTENT).hex()])
        assert judged(entry("/x"), under=everywhere).by_digest == 1
        assert why(entry("/x", OTHER), everywhere) == "the rules do not name this file"

    @pytest.mark.parametrize(
        ("one", "said"),
        [
            (entry("/usr/bin/ls", OTHER), "the file has another content"),
            (entry("/usr/bin/cat"), "the rules do not name this file"),
            (entry(""), "the rules do not name this file"),
            (entry("usr/bin/ls"), "the rules do not name this file"),
            (entry("/usr/bin/ls\n"), "the rules do not name this file"),
            (entry("/usr/bin/../bin/ls"), "the rules do not name this file"),
            (entry("/USR/BIN/LS"), "the rules do not name this file"),
            (entry(b"/usr/bin/ls\xff"), "the rules do not name this file"),
            (entry("/usr/bin/ls", algorithm="sha1"), "sha1 digests do not count here"),
            (entry("/usr/bin/ls", algorithm="md5"), "md5 digests do not count here"),
            (entry("boot_aggregate", number=3), "the rules do not name this file"),
        ],
    )
    def test_anything_else(self, one, said) -> None:
        """Another content, path or hash is another file, whatever it looks like (rules 53, 56)."""
        assert why(one) == said

    def test_weak_hashes_only_where_they_are_named(self) -> None:
        """SHA-1 digests of old kernels count only when the document says so."""
        weak = "sha1:" + digest_of(CONTENT, "sha1").hex()
        old = rules(files={"/usr/bin/ls": [weak]}, hashes=["sha1"])
        assert judged(entry("/usr/bin/ls", algorithm="sha1"), under=old).by_digest == 1
        assert "sha1 digests" in why(
            entry("/usr/bin/ls", algorithm="sha1"), rules(files={"/usr/bin/ls": [weak]})
        )

    def test_an_entry_with_a_defect(self) -> None:
        """An entry whose digest is not that of its data approves nothing, known or not (rule 58)."""
        bad = judged(entry("/usr/bin/ls", number=3), defective=frozenset({3}))
        assert (bad.refused, bad.by_digest) == (1, 0)
        assert bad.named[0].why == "the entry's digest is not that of its content"

    def test_more_defects_than_are_listed(self) -> None:
        """Flooding the list of defects hides none: nothing after the last counts."""
        entries = [entry("/usr/bin/ls", number=number) for number in (1, 2, 3)]
        found = judged(*entries, defective=frozenset({1}), defects_cut=True)
        assert (found.by_digest, found.refused) == (0, 3)
        between = judged(*entries, defective=frozenset({1, 3}), defects_cut=True)
        assert [each.number for each in between.named] == [1, 3]

    @pytest.mark.parametrize("template", ["ima-new", "d-ng", "n-ng|d-ng|what"])
    def test_unknown_templates(self, template) -> None:
        """A template that can't be read is refused, never skipped (rule 53)."""
        assert "can't be read" in why(entry("/usr/bin/ls", template=template))

    def test_fields_that_do_not_fill_the_entry(self) -> None:
        """Bytes behind the fields make an entry that nothing approves (rule 53)."""
        assert "can't be read" in why(entry("/usr/bin/ls", tail=b"x"))

    def test_violations(self) -> None:
        """A violation approves nothing and is counted for its own check (rule 52)."""
        found = judged(entry("/usr/bin/ls", violation=True))
        assert (found.violations, found.by_digest, found.refused) == (1, 0, 0)


class TestBuffers:
    def measured(self, name: str, content: bytes) -> ImaEntry:
        return entry(name, content, template="ima-buf", tail=sized(content))

    def test_known(self) -> None:
        """A measured buffer counts by its name and content (rule 57)."""
        assert judged(self.measured("kexec-cmdline", b"quiet")).by_digest == 1

    @pytest.mark.parametrize("name", ["kexec-cmdline", ".ima", "/usr/bin/ls", "/var/log/x"])
    def test_others(self, name) -> None:
        """A key or command line nobody approved is refused, and is never taken for a file."""
        assert why(self.measured(name, CONTENT)) == "the rules do not name this measured buffer"


class TestExclusions:
    def test_what_they_cover(self) -> None:
        """Excluded trees and files are counted and not judged."""
        assert judged(entry("/var/log/x/y"), entry("/etc/motd")).excluded == 2

    @pytest.mark.parametrize(
        "path",
        [
            "/var/log",
            "/var/logs/x",
            "/var/log/../../usr/bin/evil",
            "/var/log/..",
            "var/log/x",
            "/etc/motd2",
            " /etc/motd",
        ],
    )
    def test_nobody_walks_out_of_them(self, path) -> None:
        """A path that climbs out, is not absolute or only begins alike is no excluded one."""
        assert why(entry(path)) == "the rules do not name this file"
        assert not path_matches(path, ("/var/log/*", "/etc/motd"))


class TestSignatures:
    @pytest.mark.parametrize("key", [RSA, ECC])
    def test_good(self, key) -> None:
        """A file of the keyring's paths counts by the key's signature over its digest (rule 57)."""
        found = judged(signed("/opt/tool", key=key))
        assert (found.by_signature, found.refused) == (1, 0)

    @pytest.mark.parametrize(("number", "hash_name"), [(4, "sha256"), (5, "sha384"), (6, "sha512")])
    @pytest.mark.parametrize("key", [RSA, ECC])
    def test_over_each_hash_that_counts(self, key, number, hash_name) -> None:
        """A signature is over the entry's own digest, in the hash that both name (rule 57)."""
        found = judged(signed("/opt/tool", key=key, number=number, algorithm=hash_name))
        assert (found.by_signature, found.refused) == (1, 0)
        other = "sha512" if hash_name != "sha512" else "sha256"
        assert "the entry's digest is" in why(
            signed("/opt/tool", key=key, number=number, algorithm=other)
        )

    @pytest.mark.parametrize(
        ("one", "said"),
        [
            (entry("/opt/tool", template="ima-sig", tail=sized(b"")), "carries no signature"),
            (signed("/opt/tool", over=OTHER), "not that key's over this digest"),
            (signed("/opt/tool", over=OTHER, key=ECC), "not that key's over this digest"),
            (signed("/opt/tool", identifier=b"none"), "no keyring holds the key"),
            (signed("/opt/tool", key=RSA, identifier=key_id(ECC.public_key())), "not that key's"),
            (signed("/opt/tool", version=1), "version 1 are not verified"),
            (signed("/opt/tool", version=3), "version 3 are not verified"),
            (signed("/opt/tool", kind=1), "type 0x1"),
            (signed("/opt/tool", number=5), "over sha384, the entry's digest is sha256"),
            (signed("/opt/tool", number=2), "hash number 2 do not count"),
            (signed("/opt/tool", extra=b"x"), "size is not what its header says"),
            (entry("/opt/tool", template="ima-sig", tail=sized(b"\x03\x02")), "type 0x3"),
            (
                entry(
                    "/opt/tool",
                    template="ima-sig",
                    tail=sized(b"\x03\x02\x04" + key_id(RSA.public_key()) + b"\0\0"),
                ),
                "not that key's over this digest",
            ),
        ],
    )
    def test_bad(self, one, said) -> None:
        """No signature, another's, of another digest, hash or form: the file is unknown (rule 57)."""
        assert said in why(one)

    def test_only_for_the_keyrings_paths(self) -> None:
        """A vendor's key vouches for the vendor's files, not for /usr/bin."""
        assert why(signed("/usr/bin/tool")) == "the rules do not name this file"
        assert why(signed("/opt/../usr/bin/tool")) == "the rules do not name this file"

    def test_everywhere_when_the_rules_say_so(self) -> None:
        """A distribution's key may vouch for every absolute path."""
        everywhere = rules(keyrings={"distro": {"keys": [encoded(RSA)], "paths": ["/*"]}})
        assert judged(signed("/usr/bin/tool"), under=everywhere).by_signature == 1
        assert why(signed("usr/bin/tool"), everywhere) == "the rules do not name this file"
        assert why(signed("/opt/../bin/tool"), everywhere) == "the rules do not name this file"

    def test_each_keyring_for_the_path_is_asked(self) -> None:
        """A keyring for other paths, or without the key, keeps no other one from vouching."""
        ring = {"keys": [encoded(RSA)], "paths": ["/opt/*"]}
        several = rules(
            keyrings={
                "a": {"keys": [encoded(RSA)], "paths": ["/srv/*"]},
                "b": {"keys": [encoded(ECC)], "paths": ["/opt/*"]},
                "c": ring,
            }
        )
        assert judged(signed("/opt/tool"), under=several).by_signature == 1
        assert why(signed("/opt/tool", over=OTHER), several).count("; keyring") == 1

    def test_key_of_another_kind(self) -> None:
        """A key that signs no files never vouches, however it came into a keyring."""
        strange = rules()
        ring = replace(
            strange.keyrings[0],
            keys={key_id(RSA.public_key()): ed25519.Ed25519PrivateKey.generate().public_key()},
        )
        assert "signs no files" in why(signed("/opt/tool"), replace(strange, keyrings=(ring,)))


class TestOverTime:
    def test_what_was_refused_stays_refused(self) -> None:
        """A bad file is not forgotten with the next delta (rule 54)."""
        before = judged(entry("/evil"))
        after = judge_files([entry("/usr/bin/ls")], rules(), before=before)
        assert (after.refused, after.by_digest) == (1, 1)
        assert after.named[0].path == "/evil"

    def test_other_rules_begin_anew(self) -> None:
        """A judgement under other rules counts for nothing."""
        before = judged(entry("/usr/bin/ls"))
        after = judge_files([], rules(excluded=[]), before=before)
        assert after.by_digest == 0

    def test_flood(self) -> None:
        """However many are refused, all are counted and a few are named."""
        found = judged(*(entry(f"/evil/{number}") for number in range(500)))
        assert (found.refused, len(found.named)) == (500, 20)

    def test_names_are_safe_to_show(self) -> None:
        """A path breaks no line and no terminal (N44)."""
        (named,) = judged(entry(b"/x\n\x1b[31m\xff" + b"y" * 9000)).named
        assert named.path.isprintable()
        assert named.path.startswith(r"/x\x0a\x1b[31m\xff")
        (long,) = judged(entry("/" + "y" * 500)).named
        assert long.path == "/" + "y" * 299
        assert len(named.path) < 400


class TestCheck:
    POLICY = RuntimePolicy(files=Requirement.REQUIRED, rules=rules().sha256)

    def state(self, judgement: FileJudgement | None, policy: RuntimePolicy = POLICY) -> CheckState:
        return file_checks(judgement, policy)[0].state

    def test_states(self) -> None:
        """Approved passes; one refused file fails; nothing judged fails too (N04)."""
        assert self.state(judged(entry("/usr/bin/ls"))) is CheckState.PASSED
        assert self.state(judged(entry("/evil"))) is CheckState.FAILED
        assert self.state(None) is CheckState.FAILED
        assert self.state(FileJudgement(rules="other")) is CheckState.FAILED
        assert self.state(None, RuntimePolicy()) is CheckState.SKIPPED

    def test_it_says_which_and_why(self) -> None:
        """The first files are named with digest, entry and remedy."""
        (check,) = file_checks(judged(entry("/evil"), entry("/bad")), self.POLICY)
        assert check.detail == "/evil: the rules do not name this file, and 1 more"
        assert [child.title for child in check.children] == ["/evil", "/bad"]
        assert check.children[0].found == "sha256:" + digest_of(CONTENT).hex()
        assert check.remedy

    def test_an_unreadable_entry_has_a_name_too(self) -> None:
        """What has no path is shown as such."""
        (check,) = file_checks(judged(entry("/x", template="what")), self.POLICY)
        assert check.children[0].title == "an entry that can't be read"
        assert check.children[0].found == ""
        assert "an entry: the entry can't be read" in check.detail


def certificate(key: Any, *, identifier: bytes | None) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "files")])
    begin = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(begin)
        .not_valid_after(begin + dt.timedelta(days=1))
    )
    if identifier is not None:
        made = made.add_extension(x509.SubjectKeyIdentifier(identifier), critical=False)
    return base64.b64encode(made.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)).decode()


class TestDocument:
    def test_round_trip(self) -> None:
        """What is written is what is read, and its hash is its name."""
        files = {"/a b": ["sha256:" + "00" * 32], "/z": ["sha512:" + "11" * 64]}
        rest = {"excluded": ["/tmp/*"], "buffers": {"kexec-cmdline": ["sha256:" + "22" * 32]}}
        document = encode_runtime_rules(files, rest)
        read = decode_runtime_rules(document)
        assert read.sha256 == hashlib.sha256(document).hexdigest()
        assert read.digests["/a b"] == {("sha256", bytes(32))}
        assert read.excluded == ("/tmp/*",)
        assert set(read.buffers) == {"kexec-cmdline"}

    def test_certificates_name_their_keys(self) -> None:
        """A key id is the end of the certificate's key identifier, or of the key's own hash."""
        for identifier in (b"0123456789abcdefWXYZ", None):
            ring = {"keys": [certificate(RSA, identifier=identifier)], "paths": ["/opt/*"]}
            (read,) = rules(keyrings={"v": ring}).keyrings
            expected = b"WXYZ" if identifier else key_id(RSA.public_key())
            assert list(read.keys) == [expected]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"version": 2}, "version 1"),
            ({"version": None}, "version 1"),
            ({"filez": {}}, "unknown keys: filez"),
            ({"files": []}, "must be an object"),
            ({"files": {"relative": []}}, "not an absolute path"),
            ({"files": {"/nul\0": []}}, "not an absolute path"),
            ({"files": {"/x": "sha256:"}}, "list of texts"),
            ({"files": {"/x": [7]}}, "list of texts"),
            ({"files": {"/x": ["sha256:zz"]}}, "not hash:hex"),
            ({"files": {"/x": ["sha256:" + "AA" * 32]}}, "lower case"),
            ({"files": {"/x": ["sha256:" + "aa" * 31]}}, "size"),
            ({"files": {"/x": ["crc32:" + "aa" * 4]}}, "size"),
            ({"hashes": ["crc32"]}, "unknown hash: crc32"),
            ({"excluded": ["tmp/*"]}, "absolute path"),
            ({"excluded": ["/a*/b"]}, "absolute path"),
            ({"excluded": ["/a/../b"]}, "absolute path"),
            ({"excluded": ["/*"]}, "judge nothing"),
            ({"excluded": ["/x"] * 1001}, "more than 1000"),
            ({"buffers": {"/x": []}}, "measured buffer"),
            ({"buffers": {"boot_aggregate": []}}, "measured buffer"),
            ({"keyrings": {"v": {"keys": []}}}, "keys and paths"),
            ({"keyrings": {"v": {"keys": [], "paths": []}}}, "1 to 256"),
            ({"keyrings": {"v": {"keys": ["?"], "paths": []}}}, "base64"),
            ({"keyrings": {"v": {"keys": ["AAAA"], "paths": []}}}, "X.509"),
            ({"keyrings": {"v": {"keys": [encoded(RSA)] * 2, "paths": []}}}, "same key id"),
            (
                {
                    "keyrings": {
                        "v": {"keys": [encoded(ed25519.Ed25519PrivateKey.generate())], "paths": []}
                    }
                },
                "RSA of 2048 bits",
            ),
            (
                {
                    "keyrings": {
                        "v": {
                            "keys": [encoded(ec.generate_private_key(ec.SECP256K1()))],
                            "paths": [],
                        }
                    }
                },
                "P-256",
            ),
        ],
    )
    def test_refused_with_the_field(self, change, said) -> None:
        """A document with a mistake is refused whole and says where (rule 65)."""
        with pytest.raises(PolicyInvalid, match=said):
            rules(**change)

    @pytest.mark.parametrize(
        ("document", "said"),
        [
            (b"", "not JSON"),
            (b"[]", "must be an object"),
            (b"\xff", "UTF-8"),
            (b'{"version":1,"version":1}', "stands twice"),
            (b'{"version":1,"files":{"/x":[],"/x":[]}}', "stands twice"),
            (b"[" * 100_000, "not JSON"),
        ],
    )
    def test_bytes_that_are_no_document(self, document, said) -> None:
        """Any bytes are a document or PolicyInvalid; a path that stands twice is a mistake (rule 65)."""
        with pytest.raises(PolicyInvalid, match=said):
            decode_runtime_rules(document)

    def test_bounds(self, monkeypatch) -> None:
        """A document and its paths are bounded before they are looked at."""
        monkeypatch.setattr("trustauthority.codec.runtimerules.MAX_PATHS", 1)
        with pytest.raises(PolicyInvalid, match="more than 1 paths"):
            rules(files={"/a": [], "/b": []})
        monkeypatch.setattr("trustauthority.codec.runtimerules.MAX_DOCUMENT_BYTES", 10)
        with pytest.raises(PolicyInvalid, match="64 MiB"):
            rules()
