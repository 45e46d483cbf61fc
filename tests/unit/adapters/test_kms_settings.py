"""Settings of key providers: what makes no sense is refused before anything is asked."""

from dataclasses import replace
from pathlib import Path

import pytest

from trustauthority.adapters.kms import providers
from trustauthority.adapters.kms.settings import (
    AwsSettings,
    KmipSettings,
    Pkcs11Settings,
    TransitSettings,
    provider_from_json,
    provider_to_json,
)
from trustauthority.errors import ConfigurationInvalid, KmsUnavailable
from trustauthority.main.providers import key_providers
from trustauthority.settings import KeyRoleSettings

P = Path("/etc/kms")
KMIP = {"host": "kms.example", "ca": P, "certificate": P, "key": P}
PKCS11 = {"module": P, "token": "ta", "pin": P}
TRANSIT = {"url": "https://bao.example:8200", "ca": P, "certificate": P, "key": P}
AWS = {"region": "eu-central-1", "credentials": P}
ALL = (
    KmipSettings(**KMIP, more_servers=("kms-2", "kms-3:15696"), version="2.0"),
    KmipSettings(**KMIP, transport_key_id="7", transport_key=P),
    Pkcs11Settings(**PKCS11, environment={"SOFTHSM2_CONF": "/etc/softhsm2.conf"}),
    TransitSettings(**TRANSIT, role="ta"),
    TransitSettings(url="https://bao.example", ca=P, token=P),
    AwsSettings(**AWS, endpoint="https://vpce.example", ca=P),
)


@pytest.mark.parametrize("settings", ALL, ids=lambda each: each.kind)
def test_they_arrive_in_the_child_as_they_left(settings):
    """The child asks the KMS that was configured, with everything that was said about it."""
    assert provider_from_json(provider_to_json(settings)) == settings


def test_servers_are_asked_in_their_order():
    """The one that is named as host is the first; the KMIP port is the default."""
    assert ALL[0].servers() == (("kms.example", 5696), ("kms-2", 5696), ("kms-3", 15696))


@pytest.mark.parametrize(
    ("kind", "good", "change"),
    [
        (Pkcs11Settings, PKCS11, {"module": Path("libsofthsm2.so")}),
        (Pkcs11Settings, PKCS11, {"token": ""}),
        (Pkcs11Settings, PKCS11, {"token": "x" * 33}),
        (Pkcs11Settings, PKCS11, {"mechanism": "aes-cbc"}),
        (Pkcs11Settings, PKCS11, {"environment": {"LD_PRELOAD": "/tmp/x.so"}}),
        (Pkcs11Settings, PKCS11, {"environment": {"PYTHONPATH": "/tmp"}}),
        (Pkcs11Settings, PKCS11, {"environment": {"PATH": "/tmp"}}),
        (Pkcs11Settings, PKCS11, {"environment": {"a=b": "c"}}),
        (TransitSettings, TRANSIT, {"url": "http://bao.example"}),
        (TransitSettings, TRANSIT, {"url": "https://user:secret@bao.example"}),
        (TransitSettings, TRANSIT, {"url": "https://bao.example/v1"}),
        (TransitSettings, TRANSIT, {"mount": "../sys"}),
        (TransitSettings, TRANSIT, {"mount": "/transit"}),
        (TransitSettings, TRANSIT, {"auth_mount": "cert?x=1"}),
        (TransitSettings, TRANSIT, {"key": None}),
        (TransitSettings, TRANSIT, {"token": P}),
        (TransitSettings, TRANSIT, {"certificate": None, "key": None}),
        (TransitSettings, TRANSIT, {"timeout_s": 0}),
        (AwsSettings, AWS, {"region": "Frankfurt"}),
        (AwsSettings, AWS, {"region": "eu-central-1.evil.example/"}),
        (AwsSettings, AWS, {"endpoint": "http://127.0.0.1:4566"}),
        (AwsSettings, AWS, {"timeout_s": 301}),
    ],
)
def test_what_makes_no_sense_is_refused(kind, good, change):
    """No plain HTTP, no path out of a mount, no variable that changes the process itself."""
    kind(**good)
    with pytest.raises(ValueError, match=r"KMS|PKCS"):
        kind(**(good | change))


def test_an_unknown_kind_is_none():
    """A kind that this version does not know is not guessed."""
    with pytest.raises(KeyError):
        provider_from_json({"kind": "barbican"})


class TestConfiguration:
    def role(self, **providers_):
        return KeyRoleSettings.model_validate({"providers": providers_})

    def test_a_section_of_each_kind_is_taken(self):
        """The configuration file's sections become the adapters' settings, one to one."""
        some = (replace(ALL[0], timeout_s=2.0), *ALL[1:])
        sections = {f"p{i}": provider_to_json(each) for i, each in enumerate(some)}
        assert tuple(key_providers(self.role(**sections)).values()) == some

    def test_all_problems_are_told_at_once(self):
        """trustauthority config validate finds what would fail at the first key."""
        bad = {**provider_to_json(ALL[5]), "region": "moon"}
        slow = {**provider_to_json(ALL[0]), "timeout_s": 10.0}
        with pytest.raises(ConfigurationInvalid) as caught:
            key_providers(self.role(aws=bad, kmip=slow))
        assert "key.providers.aws: a KMS region" in str(caught.value)
        assert "key.providers.kmip.timeout_s: not below key.timeout_s (10)" in str(caught.value)

    def test_there_is_time_for_the_last_server(self):
        """Two silent servers must leave the third one time to answer before the child is killed."""
        three = {**provider_to_json(ALL[0]), "timeout_s": 4.9}
        assert len(ALL[0].more_servers) == 2
        assert key_providers(self.role(kmip=three))
        with pytest.raises(ConfigurationInvalid, match="one wait per server before the last"):
            key_providers(self.role(kmip={**three, "timeout_s": 5.0}))

    @pytest.mark.parametrize(
        "section", [{}, {"kind": "barbican"}, {**provider_to_json(ALL[5]), "secret": "x"}]
    )
    def test_a_section_without_a_kind_or_with_more_is_refused(self, section):
        """Unknown keys and kinds are errors: a typo must not turn into a default."""
        with pytest.raises(ValueError, match=r"kind|secret"):
            self.role(x=section)


def test_a_library_that_is_not_installed_is_told(monkeypatch):
    """The message names the extra; the other providers go on."""

    def missing(_):
        raise ModuleNotFoundError("No module named 'hvac'", name="hvac")

    monkeypatch.setattr(providers, "_open", missing)
    with pytest.raises(
        KmsUnavailable, match=r"need the Python package hvac: install .*\[transit\]"
    ):
        providers.open_kms(ALL[3])
