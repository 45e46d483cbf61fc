"""The certificates of the mock KMS."""

from ipaddress import IPv4Address

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from kms_mock import pki


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pki") / "kms"
    pki.init(made)
    return made


def load(folder, name):
    return x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())


class TestInit:
    def test_private_keys_are_private(self, folder):
        """N60: nobody else reads a key, not even in between."""
        assert {path.stat().st_mode & 0o777 for path in folder.glob("*.key")} == {0o600}
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(list(folder.glob("*.key"))) == 3

    @pytest.mark.parametrize(
        ("name", "usage"),
        [
            ("server", ExtendedKeyUsageOID.SERVER_AUTH),
            ("client", ExtendedKeyUsageOID.CLIENT_AUTH),
        ],
    )
    def test_each_certificate_is_good_for_one_thing(self, folder, name, usage):
        """A client can't pose as the KMS, nor the KMS as a client."""
        certificate = load(folder, name)
        extensions = certificate.extensions
        assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
        assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
        certificate.verify_directly_issued_by(load(folder, "ca"))

    def test_the_server_is_this_machine_only(self, folder):
        """Host names are checked by our client: 127.0.0.1 and localhost, nothing else."""
        names = (
            load(folder, "server")
            .extensions.get_extension_for_class(x509.SubjectAlternativeName)
            .value
        )
        assert names.get_values_for_type(x509.IPAddress) == [IPv4Address("127.0.0.1")]
        assert names.get_values_for_type(x509.DNSName) == ["localhost"]

    def test_the_ca_says_what_it_is(self, folder):
        """A development CA that got into a trust store is recognised."""
        assert "development only" in load(folder, "ca").subject.rfc4514_string()

    def test_it_replaces_nothing(self, folder):
        """A second init would orphan every certificate and key."""
        before = (folder / "ca.key").read_bytes()
        with pytest.raises(FileExistsError):
            pki.init(folder)
        assert (folder / "ca.key").read_bytes() == before

    def test_an_issued_name_is_not_issued_again(self, folder):
        """Clients keep their keys."""
        with pytest.raises(FileExistsError):
            pki.issue(folder, "client")

    @pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", "a\n", "."])
    def test_a_name_is_no_path(self, folder, name):
        """Files are written inside the folder only."""
        with pytest.raises(ValueError, match="names have"):
            pki.issue(folder, name)
