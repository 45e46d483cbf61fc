"""``ta policy runtime``: rules from good sources, checked before and after they are uploaded."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fakes.fake_authority import FakeAuthority

from trustauthority.cli.exit import ExitCode
from trustauthority.codec.runtimerules import decode_runtime_rules
from trustauthority.v1 import admin_pb2 as admin

VECTORS = Path(__file__).parent.parent / "vectors"
LOG = VECTORS / "boots" / "good" / "ima.bin"


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def files_of(document: Path) -> dict[str, list[str]]:
    read: dict[str, list[str]] = json.loads(document.read_text())["files"]
    return read


class TestCreate:
    def test_from_a_log(self, ta, capsys) -> None:
        """Rules made from a good host's log approve that log, whole and by themselves."""
        rules = ta.home / "rules.json"
        made = ta("policy", "runtime", "create", "--log", str(LOG), "--out", str(rules))
        assert made.code is ExitCode.YES
        assert "boot_aggregate" not in files_of(rules)
        checked = ta("policy", "runtime", "check", str(rules), "--log", str(LOG), "-o", "json")
        answer = json.loads(capsys.readouterr().out)
        assert (checked.code, answer["result"], answer["refused"]) == (0, "accepted", 0)
        assert answer["byDigest"] == answer["entries"]

    def test_from_a_root(self, ta) -> None:
        """Programs, libraries and firmware count, data and links do not; nothing outside is read."""
        root = ta.home / "root"
        for name, content, mode in (
            ("usr/bin/tool", b"tool", 0o755),
            ("usr/lib/libx.so.1", b"library", 0o644),
            ("usr/lib/firmware/a.bin", b"firmware", 0o644),
            ("etc/motd", b"data", 0o644),
        ):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(mode)
        outside = ta.home / "outside"
        outside.mkdir()
        (outside / "evil").write_bytes(b"evil")
        (outside / "evil").chmod(0o755)
        (root / "usr/bin/link").symlink_to(outside / "evil")
        (root / "usr/linked").symlink_to(outside)
        rules = ta.home / "rules.json"
        assert ta("policy", "runtime", "create", "--root", str(root), "--out", str(rules)).code == 0
        assert files_of(rules) == {
            "/usr/bin/tool": [sha256(b"tool")],
            "/usr/lib/libx.so.1": [sha256(b"library")],
            "/usr/lib/firmware/a.bin": [sha256(b"firmware")],
        }

    def test_from_a_package(self, ta) -> None:
        """Every file of a Debian package, also where a merged system has it."""
        tree = ta.home / "tree"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(
            "Package: tool\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\n"
            "Description: a tool\n"
        )
        (tree / "bin").mkdir()
        (tree / "bin" / "tool").write_bytes(b"tool")
        package, rules = ta.home / "tool.deb", ta.home / "rules.json"
        dpkg = shutil.which("dpkg-deb")
        assert dpkg, "dpkg-deb is part of Debian"
        subprocess.run([dpkg, "--build", tree, package], check=True, capture_output=True)
        assert (
            ta("policy", "runtime", "create", "--package", str(package), "--out", str(rules)).code
            == 0
        )
        assert files_of(rules) == {
            "/bin/tool": [sha256(b"tool")],
            "/usr/bin/tool": [sha256(b"tool")],
        }
        package.write_bytes(b"no package")
        bad = ta(
            "policy", "runtime", "create", "--package", str(package), "--out", str(ta.home / "x")
        )
        assert bad.code is ExitCode.USAGE
        assert "no Debian package" in bad.err

    def test_on_top_of_another(self, ta) -> None:
        """A base keeps what it says; more files, exclusions and keyrings are added."""
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        pem = ta.home / "vendor.pem"
        pem.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        base, rules = ta.home / "base.json", ta.home / "rules.json"
        base.write_text(
            json.dumps(
                {
                    "version": 1,
                    "files": {"/a": [sha256(b"a")]},
                    "anywhere": [sha256(b"b")],
                    "excluded": ["/tmp/*"],
                    "hashes": ["sha256"],
                }
            )
        )
        made = ta(
            *("policy", "runtime", "create", "--base", str(base), "--exclude", "/var/log/*"),
            *("--keyring", f"vendor={pem}", "--signed", "/opt/*", "--out", str(rules)),
        )
        assert made.code is ExitCode.YES
        read = decode_runtime_rules(rules.read_bytes())
        assert set(read.digests) == {"/a"}
        assert read.excluded == ("/tmp/*", "/var/log/*")
        assert read.hashes == {"sha256"}
        assert len(read.anywhere) == 1
        assert [(ring.name, ring.paths) for ring in read.keyrings] == [("vendor", ("/opt/*",))]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "at least one of"),
            (["--root", "nowhere"], "not a folder"),
            (["--log", "nowhere"], "No such file"),
            (["--log", str(VECTORS / "imalogs" / "template_digest_wrong.bin")], "good host"),
            (["--log", str(VECTORS / "imalogs" / "cut_at_20.bin")], "cut"),
            (["--keyring", "vendor"], "NAME=FILE"),
            (["--keyring", f"vendor={LOG}"], "PEM"),
            (["--log", str(LOG), "--exclude", "tmp"], "absolute path"),
        ],
    )
    def test_refused(self, ta, arguments, said) -> None:
        """A bad source writes no document and says which."""
        rules = ta.home / "rules.json"
        made = ta("policy", "runtime", "create", *arguments, "--out", str(rules))
        assert made.code is not ExitCode.YES
        assert said in made.err.replace("\n", " ")
        assert not rules.exists()

    def test_nothing_is_overwritten(self, ta) -> None:
        """A document that is there stays unless --force says otherwise."""
        rules = ta.home / "rules.json"
        rules.write_text("mine")
        command = ("policy", "runtime", "create", "--log", str(LOG), "--out", str(rules))
        assert "--force" in ta(*command).err
        assert rules.read_text() == "mine"
        assert ta(*command, "--force").code is ExitCode.YES


class TestCheck:
    def test_it_names_what_is_not_approved(self, ta, capsys) -> None:
        """Exit 1 with each file, its digest and why; 2 for what is no log (rule 65)."""
        rules = ta.home / "rules.json"
        rules.write_text('{"version": 1}')
        answer = ta("policy", "runtime", "check", str(rules), "--log", str(LOG))
        assert answer.code == 1
        shown = capsys.readouterr().out
        assert "FILES_NOT_APPROVED" in shown
        assert "the rules do not name this file" in shown
        broken = VECTORS / "imalogs" / "cut_at_20.bin"
        assert ta("policy", "runtime", "check", str(rules), "--log", str(broken)).code == 2
        rules.write_text("{")
        assert ta("policy", "runtime", "check", str(rules), "--log", str(LOG)).code == 2


class TestUpload:
    def test_in_parts(self, ta, authority: FakeAuthority) -> None:
        """A large document goes in messages that a server takes, whole and in order."""
        rules = ta.home / "rules.json"
        document = {"version": 1, "files": {f"/file/{n}": [sha256(b"%d" % n)] for n in range(9000)}}
        rules.write_text(json.dumps(document))
        reply = admin.UploadRuntimeRulesResponse(sha256="ab" * 32, files=9000, added=True)
        authority.answer("UploadRuntimeRules", reply)
        done = ta("policy", "runtime", "upload", str(rules))
        assert done.code is ExitCode.YES
        assert f'rules = "{"ab" * 32}"' in done.out
        sent = [r for r in authority.requests if isinstance(r, admin.UploadRuntimeRulesRequest)]
        assert len(sent) > 1
        assert b"".join(part.chunk for part in sent) == rules.read_bytes()
        assert "nothing was kept" in ta("policy", "runtime", "upload", str(rules), "--dry-run").out

    def test_a_bad_document_is_not_sent(self, ta, authority: FakeAuthority) -> None:
        """What the authority would refuse is refused here, with the place."""
        rules = ta.home / "rules.json"
        rules.write_text('{"version": 1, "files": {"relative": []}}')
        refused = ta("policy", "runtime", "upload", str(rules))
        assert refused.code is ExitCode.USAGE
        assert "not an absolute path" in refused.err
        assert not authority.requests

    def test_get(self, ta, authority: FakeAuthority) -> None:
        """What is fetched is the document of that hash, or nothing is written."""
        document = b'{"version": 1}'
        authority.answer(
            "GetRuntimeRules", lambda _: [admin.GetRuntimeRulesResponse(chunk=document)]
        )
        out = ta.home / "rules.json"
        name = hashlib.sha256(document).hexdigest()
        assert ta("policy", "runtime", "get", "00" * 32, "--out", str(out)).code is ExitCode.USAGE
        assert not out.exists()
        assert ta("policy", "runtime", "get", name, "--out", str(out)).code is ExitCode.YES
        assert out.read_bytes() == document
        assert "--force" in ta("policy", "runtime", "get", name, "--out", str(out)).err
