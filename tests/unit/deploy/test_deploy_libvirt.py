"""What deploy/libvirt ships: the hook lands where libvirtd looks, and certificates are what QEMU wants."""

import json
import re
import stat
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from hostagent.hooks import qemu

FOLDER = Path(__file__).parents[3] / "deploy" / "libvirt"
HOOKS = "etc/libvirt/hooks"


def certificates(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run the script of migration certificates."""
    command = [FOLDER / "migration-certificate.sh", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A CA and the certificate of one host."""
    assert certificates("ca", tmp_path / "ca").returncode == 0
    assert certificates("host", tmp_path / "ca", "host-a", "192.0.2.11").returncode == 0
    return tmp_path / "ca"


class TestHook:
    def test_it_is_installed_whole(self, tmp_path: Path) -> None:
        """libvirtd runs it, and it reads its settings."""
        subprocess.run([FOLDER / "install-hook.sh", tmp_path], check=True, timeout=30)
        hook = tmp_path / HOOKS / "qemu.d" / "trustauthority"
        assert hook.read_bytes() == Path(qemu.__file__).read_bytes()
        assert stat.S_IMODE(hook.stat().st_mode) == 0o755
        settings = tmp_path / HOOKS / "trustauthority.json"
        assert stat.S_IMODE(settings.stat().st_mode) == 0o644
        assert set(json.loads(settings.read_text())) <= set(qemu.DEFAULTS)

    def test_an_update_keeps_the_settings(self, tmp_path: Path) -> None:
        """What an administrator changed stays."""
        for _ in range(2):
            subprocess.run([FOLDER / "install-hook.sh", tmp_path], check=True, timeout=30)
            settings = tmp_path / HOOKS / "trustauthority.json"
            settings.write_text('{"marks_required": true}\n')
        assert json.loads(settings.read_text()) == {"marks_required": True}


class TestCertificates:
    def test_they_serve_both_sides(self, made: Path) -> None:
        """A host is server and client of migrations, under its address, for a year."""
        ca = x509.load_pem_x509_certificate((made / "ca-cert.pem").read_bytes())
        for side in ("server", "client"):
            loaded = (made / "host-a" / f"{side}-cert.pem").read_bytes()
            certificate = x509.load_pem_x509_certificate(loaded)
            assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
            certificate.verify_directly_issued_by(ca)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            assert names.value.get_values_for_type(x509.IPAddress) == [ip_address("192.0.2.11")]
            assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days >= 364
        assert (made / "host-a" / "ca-cert.pem").read_bytes() == (made / "ca-cert.pem").read_bytes()

    def test_a_host_is_no_authority(self, made: Path, tmp_path: Path) -> None:
        """A stolen host key signs no certificate of another host."""
        folder = made / "host-a"
        forged = tmp_path / "forged"
        forged.mkdir()
        (forged / "ca-key.pem").write_bytes((folder / "server-key.pem").read_bytes())
        (forged / "ca-cert.pem").write_bytes((folder / "server-cert.pem").read_bytes())
        assert certificates("host", forged, "host-b", "host-b.example").returncode == 0
        ca = x509.load_pem_x509_certificate((made / "ca-cert.pem").read_bytes())
        middle, leaf = (
            x509.load_pem_x509_certificate(path.read_bytes())
            for path in (folder / "server-cert.pem", forged / "host-b" / "server-cert.pem")
        )
        verifier = PolicyBuilder().store(Store([ca]))
        with pytest.raises(VerificationError):
            verifier.build_client_verifier().verify(leaf, [middle])

    def test_private_keys_are_private(self, made: Path) -> None:
        """Nobody else reads them."""
        for key in made.rglob("*-key.pem"):
            assert not key.stat().st_mode & 0o007, key

    @pytest.mark.parametrize(
        "words",
        [(), ("ca",), ("host", "FOLDER"), ("host", "FOLDER", "host-a", "192.0.2.11"), ("other",)],
    )
    def test_asked_wrongly(self, words: tuple[str, ...], tmp_path: Path) -> None:
        """Said, with status 2; nothing is made."""
        done = certificates(*(str(tmp_path / "new") if w == "FOLDER" else w for w in words))
        assert done.returncode == 2
        assert "migration-certificate: " in done.stderr
        assert not list(tmp_path.rglob("*.pem"))

    def test_a_second_ca_does_not_replace_the_first(self, made: Path) -> None:
        """That would cut every host off."""
        before = (made / "ca-cert.pem").read_bytes()
        assert certificates("ca", made).returncode == 2
        assert (made / "ca-cert.pem").read_bytes() == before


def test_the_rules_deny_what_has_no_hook() -> None:
    """Each operation that shows memory or a decrypted disk is denied to people by polkit."""
    text = (FOLDER / "50-trustauthority.rules").read_text()
    allowed = set(re.findall(r'"(org\.libvirt\.[a-z.-]+)"', text))
    assert "org.libvirt.api.domain.start" in allowed
    for operation in (
        *("hibernate", "core-dump", "snapshot", "block-read", "block-write", "mem-read", "write"),
        *("suspend", "migrate", "screenshot", "read-secure", "open-device", "open-namespace"),
    ):
        assert f"org.libvirt.api.domain.{operation}" not in allowed
    assert not any(action.startswith("org.libvirt.api.secret.") for action in allowed)
    assert "polkit.Result.NO" in text.rpartition("return ")[2]
