"""One contract for every KMS adapter, against a real server of each kind.

Wrapping and what breaks it, the faults of a KMS, credentials, health. What only one kind has is in
test_kms_kmip, test_kms_pkcs11, test_kms_transit and test_kms_aws; the same KMSes behind the key room's
child are in test_kms_rooms.
"""

from contextlib import ExitStack
from dataclasses import replace

import pytest
from support.kms_peers import AAD, VM_KEY, copy_of
from support.kms_suite import CHECKS_WHO_ASKS, PEERS, WIRED, each_peer

from kms_mock import pki
from trustauthority.adapters.kms.envelope import PASSPHRASE_LENGTH
from trustauthority.adapters.kms.port import is_outage
from trustauthority.errors import KmsUnavailable
from trustauthority.model.grant import MAX_VM_KEY
from trustauthority.model.kms import HealthState, ProviderKind

SHORT_S = 0.5


@pytest.fixture
def kek(peer):
    return peer.kek


@pytest.fixture
def wrapped(peer):
    return peer.wrapped


def refused(kms, kek, wrapped, words, aad=AAD):
    with pytest.raises(KmsUnavailable, match=words) as caught:
        kms.unwrap(kek, wrapped, aad)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert not {*VM_KEY.split()} & {*str(caught.value).encode().split()} - {b"a", b"of"}
    return caught.value


def quick(peer):
    """The rightful client, without patience where there is a wire."""
    return peer.kms(timeout_s=SHORT_S) if peer.has_network else peer.kms()


@each_peer()
class TestWrapping:
    @pytest.mark.parametrize("size", [1, PASSPHRASE_LENGTH, MAX_VM_KEY])
    def test_what_was_wrapped_is_unwrapped(self, peer, kek, size):
        """Every length of a VM key comes back, in memory that can be wiped."""
        vm_key = bytes(range(256)) * 16
        blob = peer.kms().wrap(kek, bytearray(vm_key[:size]), AAD)
        opened = peer.kms().unwrap(kek, blob, AAD)
        assert isinstance(opened, bytearray)
        assert opened == vm_key[:size]

    @pytest.mark.parametrize("size", [0, MAX_VM_KEY + 1])
    def test_a_key_of_a_wrong_size_is_a_bug(self, peer, kek, size):
        """A VM key has 1 to 4096 bytes (design 8)."""
        with pytest.raises((ValueError, KmsUnavailable)) as caught:
            peer.kms().wrap(kek, bytearray(size), AAD)
        assert isinstance(caught.value, ValueError) or "ValueError" in str(caught.value)

    def test_no_two_blobs_are_alike(self, peer, kek):
        """Nonces and one-time keys are used once."""
        blobs = {peer.kms().wrap(kek, bytearray(VM_KEY), AAD) for _ in range(4)}
        assert len(blobs) == 4

    def test_the_blob_says_who_made_it_and_hides_the_key(self, peer, wrapped):
        """Version, kind, algorithm; no negotiation, and nothing of the VM key in it."""
        kind = peer.settings().kind
        assert wrapped[:3] == bytes((1, [*ProviderKind].index(kind) + 1, peer.algorithm))
        assert VM_KEY not in wrapped

    def test_a_name_taken_twice_gives_two_keks(self, peer):
        """Names are labels: only ids count, and one KEK does not open the blobs of another."""
        kms = peer.kms()
        one, two = kms.create_kek("ta-kek-same"), kms.create_kek("ta-kek-same")
        assert one != two
        refused(
            kms, two, kms.wrap(one, bytearray(VM_KEY), AAD), "wrong key|does not|not wrapped by"
        )

    def test_rotation_keeps_the_old_and_wraps_under_the_new(self, peer):
        """N59: after a rotation old blobs open under the old id, new ones under the new id only."""
        kms = peer.kms()
        old = kms.create_kek("ta-kek-rotated")
        before = kms.wrap(old, bytearray(VM_KEY), AAD)
        new = kms.rotate(old, "ta-kek-rotated")
        assert new != old
        after = kms.wrap(new, bytearray(VM_KEY), AAD)
        assert kms.unwrap(old, before, AAD) == kms.unwrap(new, after, AAD) == VM_KEY
        refused(kms, old, after, "wrong key|not wrapped by|does not")
        refused(kms, new, before, "wrong key|not wrapped by|does not")

    def test_another_connection_opens_it(self, peer, kek, wrapped):
        """A blob depends on the KEK in the KMS alone, not on who wrapped it or when."""
        assert peer.kms().unwrap(kek, wrapped, AAD) == VM_KEY

    @pytest.mark.parametrize("uid", ["", "x" * 200, "1\n2", "ü", "../sys/seal", "a b"])
    def test_what_is_no_id_is_not_sent(self, peer, wrapped, uid):
        """Ids come from our database, yet reach no path and no log as they like (N44)."""
        error = refused(peer.kms(), uid, wrapped, r"no id|not found|has no|does not")
        assert "\n" not in str(error)

    def test_an_unknown_kek_opens_and_wraps_nothing(self, peer, kek, wrapped):
        """A KEK that is gone is a refusal, not an empty key (N56)."""
        other = kek.replace("ta-kek", "ta-kek-x") if ":" in kek else f"{'0' * (len(kek) - 1)}7"
        refused(peer.kms(), other, wrapped, r"not found|has no|does not|no id")
        with pytest.raises(KmsUnavailable):
            peer.kms().wrap(other, bytearray(VM_KEY), AAD)


@each_peer()
class TestTampering:
    @pytest.mark.parametrize(
        "aad", [b"", AAD[:-1], AAD + b" ", AAD.replace(b"vm-1", b"vm-2"), AAD.replace(b"1,", b"2,")]
    )
    def test_another_aad_opens_nothing(self, peer, kek, wrapped, aad):
        """N56, N57: the blob of one VM, epoch or provider can't be passed off as another's."""
        refused(peer.kms(), kek, wrapped, "wrong key|does not open", aad)

    def test_no_changed_bit_opens(self, peer, kek, wrapped):
        """N57: header, wrapped key, nonce, ciphertext and tag: one bit at 24 places over all of it."""
        kms = peer.kms()
        places = {0, 1, 2, 3, 4, 5, len(wrapped) - 1}
        places |= {len(wrapped) * n // 18 for n in range(18)}
        for place in sorted(places):
            changed = bytearray(wrapped)
            changed[place] ^= 1
            refused(kms, kek, bytes(changed), r".")
        assert kms.unwrap(kek, wrapped, AAD) == VM_KEY

    @pytest.mark.parametrize("keep", [0, 1, 3, 4, 5, 20, 50, -16, -1])
    def test_a_truncated_blob_opens_nothing(self, peer, kek, wrapped, keep):
        """A row that lost its end is a refusal."""
        refused(peer.kms(), kek, wrapped[:keep], r".")

    def test_a_blob_with_more_behind_it_opens_nothing(self, peer, kek, wrapped):
        """Nor one that gained an end."""
        refused(peer.kms(), kek, wrapped + b"\x00", r".")

    @pytest.mark.parametrize("kind", ProviderKind)
    def test_the_blob_of_another_kind_is_refused_by_name(self, peer, kek, wrapped, kind):
        """After a move the row says which kind of provider opens it."""
        if kind is peer.settings().kind:
            assert peer.kms().unwrap(kek, wrapped, AAD) == VM_KEY
            return
        other = bytes((1, [*ProviderKind].index(kind) + 1)) + wrapped[2:]
        refused(peer.kms(), kek, other, f"was wrapped by a provider of kind {kind}, not")

    def test_the_ends_of_two_blobs_cannot_be_exchanged(self, peer, kek, wrapped):
        """N57: the wrapped one-time key of one VM with the ciphertext of another."""
        kms = peer.kms()
        other = kms.wrap(kek, bytearray(VM_KEY), AAD.replace(b"vm-1", b"vm-2"))
        sealed = 12 + len(VM_KEY) + 16
        refused(kms, kek, wrapped[:-sealed] + other[-sealed:], r".")


class TestFaults:
    @each_peer(WIRED)
    def test_a_slow_kms_costs_the_time_limit(self, peer, kek, wrapped):
        """N56: an answer after a minute is an outage after the limit; afterwards all is as before."""
        with peer.slow():
            error = refused(quick(peer), kek, wrapped, "did not answer in time")
            assert is_outage(error)
        assert peer.kms().unwrap(kek, wrapped, AAD) == VM_KEY

    @each_peer()
    def test_a_kms_that_is_gone_fails_closed(self, peer, kek, wrapped):
        """N56: no cached plaintext: the same adapter that just opened it can't any more."""
        kms = quick(peer)
        assert kms.unwrap(kek, wrapped, AAD) == VM_KEY
        with peer.down():
            for ask in (
                lambda: kms.unwrap(kek, wrapped, AAD),
                lambda: kms.wrap(kek, bytearray(VM_KEY), AAD),
                lambda: kms.create_kek("ta-kek-none"),
            ):
                with pytest.raises(
                    KmsUnavailable, match=r"closed|failed|can't be reached"
                ) as error:
                    ask()
                assert is_outage(error.value)
        assert kms.unwrap(kek, wrapped, AAD) == VM_KEY

    @each_peer()
    @pytest.mark.parametrize("after", [0, 1, 100, 700, 1500, 3000])
    def test_half_an_answer_is_none(self, peer, kek, wrapped, after):
        """N56: wherever an answer ends early, no key comes of it."""
        kms = quick(peer)
        with peer.truncating(after):
            try:
                opened = kms.unwrap(kek, wrapped, AAD)
            except KmsUnavailable:
                opened = None
        # a relay may let a short answer pass whole: then it is the right one
        assert opened in (None, VM_KEY)
        assert opened is None or after >= 1500
        assert peer.kms().unwrap(kek, wrapped, AAD) == VM_KEY

    @each_peer()
    def test_a_wrong_key_opens_nothing(self, peer, kek, wrapped):
        """N56: a KMS that answers with another key is found out here, whatever it claims."""
        with peer.lying():
            refused(peer.kms(), kek, wrapped, "wrong key")
        assert peer.kms().unwrap(kek, wrapped, AAD) == VM_KEY

    @each_peer()
    def test_a_kek_that_was_taken_out_of_use_opens_nothing(self, peer):
        """Those who run the KMS can end a KEK, at once, and the message says what it is now."""
        kms = peer.kms()
        kek = kms.create_kek("ta-kek-ended")
        wrapped = kms.wrap(kek, bytearray(VM_KEY), AAD)
        words = peer.take_out_of_use(kek)
        error = refused(kms, kek, wrapped, words)
        assert not is_outage(error)
        with pytest.raises(KmsUnavailable, match=words):
            kms.wrap(kek, bytearray(VM_KEY), AAD)


class TestCredentials:
    @each_peer()
    def test_another_tenant_opens_nothing(self, peer, kek, wrapped):
        """N56, wrong tenant: a client that the KMS knows does not get at our KEK."""
        error = refused(peer.open(peer.stranger()), kek, wrapped, r"refused|has no|does not allow")
        assert not is_outage(error)

    @each_peer(CHECKS_WHO_ASKS)
    def test_a_credential_that_ended_opens_nothing(self, peer, kek, wrapped):
        """An expired certificate, a wrong PIN or key: refused by the KMS, and told as such."""
        error = refused(peer.open(peer.unknown()), kek, wrapped, r"does not (accept|take|know)")
        assert not is_outage(error)

    @each_peer()
    def test_a_credential_that_is_revoked_opens_nothing_from_then_on(self, peer, kek, wrapped):
        """Revoked at the KMS between two uses: refused, told, and good again when it is given back."""
        assert peer.kms().unwrap(kek, wrapped, AAD) == VM_KEY
        with peer.revoking():
            refused(peer.kms(), kek, wrapped, r"does not (accept|take|know)")
            health = peer.kms().health()
            assert (health.state, health.trusted_by_server) == (HealthState.ERROR, False)
        assert peer.kms().unwrap(kek, wrapped, AAD) == VM_KEY

    @each_peer()
    def test_a_secret_that_others_can_read_is_not_used(self, peer, kek, wrapped, tmp_path):
        """A key, PIN or token that others could have read is as good as lost (N60)."""
        settings = peer.settings()
        name = next(f for f in ("key", "pin", "credentials") if getattr(settings, f, None))
        spoilt = copy_of(getattr(settings, name), tmp_path, 0o644)
        refused(peer.kms(**{name: spoilt}), kek, wrapped, "open to others")
        (tmp_path / "absent").mkdir()
        refused(peer.kms(**{name: tmp_path / "gone"}), kek, wrapped, "missing or unreadable")

    @each_peer(WIRED)
    def test_a_server_of_another_ca_is_not_asked(self, peer, kek, wrapped, tmp_path):
        """We ask no server that somebody else certified, and the flag says who does not trust whom."""
        pki.init(tmp_path / "other")
        kms = peer.kms(ca=tmp_path / "other" / "ca.pem")
        refused(kms, kek, wrapped, "certificate that we do not accept")
        health = kms.health()
        assert (health.trusts_server, health.trusted_by_server) == (False, None)
        assert not health.usable


class TestHealth:
    @each_peer()
    def test_a_good_one_is_told_with_both_directions_of_trust(self, peer):
        """Who answers, and that we trust each other."""
        health = peer.kms().health()
        assert (health.state, health.kind) == (HealthState.OK, peer.settings().kind)
        assert health.trusted_by_server is True
        assert health.trusts_server is (True if peer.has_network else None)
        assert "answers" in health.detail

    @each_peer()
    def test_each_fault_is_told(self, peer):
        """N56: health is an answer, never an exception, and recovers by itself."""
        with ExitStack() as faults:
            faults.enter_context(peer.down())
            health = quick(peer).health()
        assert health.state is HealthState.ERROR
        assert health.trusted_by_server is not True
        if peer.has_network:
            with peer.slow():
                health = quick(peer).health()
            assert "did not answer in time" in health.detail
            assert (health.trusts_server, health.trusted_by_server) == (None, None)
            with peer.truncating(1):
                assert not quick(peer).health().usable
        assert peer.kms().health().state is HealthState.OK

    @each_peer(CHECKS_WHO_ASKS)
    def test_a_stranger_is_not_mistaken_for_us(self, peer):
        """Health is about the configured client."""
        health = peer.open(peer.unknown()).health()
        assert (health.state, health.trusted_by_server) == (HealthState.ERROR, False)

    @each_peer(WIRED)
    @pytest.mark.parametrize(("ahead_s", "way"), [(-7200, "ahead of"), (7200, "behind")])
    def test_a_clock_that_is_off_is_told(self, peer, ahead_s, way):
        """Skew breaks certificates, tokens and signatures sooner or later: a warning before."""
        kms = peer.kms()
        now = kms._now_ms
        kms._now_ms = lambda: now() + ahead_s * 1000
        health = kms.health()
        assert health.state is HealthState.WARNING
        assert way in health.detail
        assert "NTP" in health.detail

    @each_peer()
    def test_settings_tell_no_secret(self, peer):
        """Settings name files; what is in them is in no repr and in no message."""
        told = repr(peer.settings()) + peer.kms().health().detail
        for word in ("PRIVATE KEY", "12345678", "aws_secret_access_key"):
            assert word not in told


@each_peer()
def test_each_kind_of_provider_is_here(peer):
    """A new kind of provider comes with a peer, or this fails."""
    assert {p.name.partition("-")[0] for p in PEERS} == {str(kind) for kind in ProviderKind}
    assert replace(peer.settings()) == peer.settings()
