"""The key room with real children and a real KMIP server: what it makes and what it refuses."""

from dataclasses import replace

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from support.escrow import OTHER_PRIVATE, PRIVATE, public
from support.escrow import binding as escrow_binding
from support.keyroom_orders import (
    AAD,
    COUNTERS,
    PCRS,
    RELEASE,
    STORAGE,
    binding,
    open_grant,
    release_order,
    room_settings,
    write_release_key,
)
from support.kms_process import running_kms
from support.storage_key import storage_public

from hostagent.grant import read_key_grant
from trustauthority.adapters.keyfiles import private_pem
from trustauthority.adapters.keyroom import ChildKeyRoom, EscrowSettings, KeyRoomSettings
from trustauthority.adapters.kms.kmip import KmipKms
from trustauthority.codec.tpm_public import decode_public, encode_public
from trustauthority.errors import KmsUnavailable
from trustauthority.keyrelease.escrow import drill_answer, encode_escrow_key, open_escrowed
from trustauthority.keyrelease.keyimport import seal_import
from trustauthority.keyrelease.wrap import policy_digest
from trustauthority.model.escrow import StoredKey
from trustauthority.model.keyjob import RewrapOrder
from trustauthority.model.kms import HealthState, KmsHealth
from trustauthority.model.tpm import ObjectAttributes
from trustauthority.ports import KeyRoom

ORIGIN = "authority.test"
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def kms(tmp_path_factory):
    with running_kms(tmp_path_factory.mktemp("kms") / "kms") as running:
        yield running


@pytest.fixture(scope="module")
def kek_id(kms):
    return KmipKms(kms.settings()).create_kek("kek")


@pytest.fixture
def release_key(kms):
    path = kms.folder / "release.key"
    path.unlink(missing_ok=True)
    return write_release_key(path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_room(kms):
    made = ChildKeyRoom(room_settings(kms.settings(), kms.folder / "release.key"))
    yield made
    await made.close()


@pytest.fixture
def room(shared_room, release_key):
    return shared_room


def wrapped_by_hand(kms, kek_id, vm_key=b"known passphrase", aad=AAD):
    return KmipKms(kms.settings()).wrap(kek_id, bytearray(vm_key), aad)


@pytest.fixture
def import_key(kms):
    private = X25519PrivateKey.generate()
    path = kms.folder / "import.key"
    path.touch(mode=0o600)
    path.write_bytes(private_pem(private))
    yield private, path
    path.unlink()


def rewrap_order(kek_id, wrapped, **changes):
    """From ``kek_id`` to another KEK, bound to other words."""
    fields = {
        "provider": "default",
        "kek_id": kek_id,
        "wrapped": wrapped,
        "aad": AAD,
        "target": "default",
        "target_kek_id": kek_id,
        "target_aad": AAD + b" moved",
    }
    return RewrapOrder(**(fields | changes))


async def refused(room, words, order):
    with pytest.raises(KmsUnavailable, match=words) as caught:
        await room.release(order)
    return caught.value


class TestCreate:
    async def test_a_key_is_made_wrapped(self, room, kms):
        """The authority gets a blob; only the KEK in the KMS opens it, to a LUKS passphrase."""
        port: KeyRoom = room
        kek_id = await port.create_kek("default")
        wrapped = (await port.create_key("default", kek_id, AAD)).wrapped
        vm_key = KmipKms(kms.settings()).unwrap(kek_id, wrapped, AAD)
        assert len(vm_key) == 43
        assert bytes(vm_key).replace(b"-", b"").replace(b"_", b"").isalnum()

    async def test_keys_and_nonces_are_fresh(self, room, kms, kek_id):
        """No two VMs share a key, no two wrappings a nonce."""
        blobs = [(await room.create_key("default", kek_id, AAD)).wrapped for _ in range(4)]
        provider = KmipKms(kms.settings())
        assert len({bytes(provider.unwrap(kek_id, blob, AAD)) for blob in blobs}) == 4
        assert len({blob[3:15] for blob in blobs}) == 4

    async def test_an_unknown_kek_makes_no_key(self, room):
        """A key that nobody could unwrap must not be made."""
        with pytest.raises(KmsUnavailable, match="item not found"):
            await room.create_key("default", "98765", AAD)

    async def test_an_unknown_provider_is_refused(self, room):
        """A provider name stands for a KMS of the configuration or for nothing."""
        with pytest.raises(KmsUnavailable, match="no KMS is configured"):
            await room.create_kek("other")
        assert await room.health("other") == KmsHealth(
            state=HealthState.ERROR, detail="no KMS is configured for key provider 'other'"
        )


class TestImport:
    async def test_what_was_sealed_is_what_is_released(self, kms, kek_id, release_key, import_key):
        """From the owner's file to the host: the same bytes, opened by the child alone."""
        private, path = import_key
        settings = room_settings(kms.settings(), release_key, import_key=path)
        made = ChildKeyRoom(settings)
        try:
            for passphrase in (b"k", b"old passphrase\n", bytes(range(256)) * 16):
                sealed = seal_import(passphrase, private.public_key().public_bytes_raw(), "vm-1")
                # one byte is in any ciphertext by chance
                assert len(passphrase) == 1 or passphrase not in sealed
                new = await made.import_key("default", kek_id, AAD, sealed=sealed, vm="vm-1")
                grant = await made.release(release_order(kek_id, new.wrapped))
                assert open_grant(grant) == passphrase
            for wrong, vm in (
                (sealed, "vm-2"),
                (sealed[:-1], "vm-1"),
                (sealed[:40] + bytes([sealed[40] ^ 1]) + sealed[41:], "vm-1"),
                (b"\2" + sealed[1:], "vm-1"),
                (b"", "vm-1"),
            ):
                with pytest.raises(KmsUnavailable, match="sealed_key") as refusal:
                    await made.import_key("default", kek_id, AAD, sealed=wrong, vm=vm)
                assert "old passphrase" not in str(refusal.value)
            path.chmod(0o644)
            with pytest.raises(KmsUnavailable, match="import key"):
                await made.import_key("default", kek_id, AAD, sealed=sealed, vm="vm-1")
        finally:
            await made.close()

    async def test_without_an_import_key(self, room, kek_id):
        """A room that has none takes nothing in."""
        with pytest.raises(KmsUnavailable, match="import key"):
            await room.import_key("default", kek_id, AAD, sealed=b"s" * 60, vm="vm-1")


class TestRewrap:
    async def test_by_another_kek(self, room, kms, kek_id):
        """N59: the same key, opened by the new KEK under the new AAD only."""
        other = await room.rotate_kek("default", kek_id)
        order = rewrap_order(kek_id, wrapped_by_hand(kms, kek_id), target_kek_id=other)
        wrapped = await room.rewrap(order)
        provider = KmipKms(kms.settings())
        assert provider.unwrap(other, wrapped, order.target_aad) == b"known passphrase"
        for kek, aad in ((kek_id, order.target_aad), (other, AAD)):
            with pytest.raises(KmsUnavailable):
                provider.unwrap(kek, wrapped, aad)

    async def test_by_another_provider(self, kms, kek_id, release_key):
        """KMIP to OpenBao and the like: one child opens with the one and wraps with the other."""
        settings = room_settings(kms.settings(), release_key)
        both = {"default": kms.settings(), "second": kms.settings()}
        made = ChildKeyRoom(replace(settings, providers=both))
        try:
            other = await made.create_kek("second")
            order = rewrap_order(
                kek_id, wrapped_by_hand(kms, kek_id), target="second", target_kek_id=other
            )
            wrapped = await made.rewrap(order)
        finally:
            await made.close()
        opened = KmipKms(kms.settings()).unwrap(other, wrapped, order.target_aad)
        assert opened == b"known passphrase"

    @pytest.mark.parametrize(
        "changes",
        [
            {"wrapped": b""},
            {"aad": b"another"},
            {"kek_id": "98765"},
            {"target_kek_id": "98765"},
            {"target": "nobody"},
            {"provider": "nobody"},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    async def test_refused(self, room, kms, kek_id, changes):
        """N56, N59: wrong in one thing, nothing comes back and the caller keeps the old wrapping."""
        order = rewrap_order(kek_id, wrapped_by_hand(kms, kek_id), target_kek_id=kek_id)
        with pytest.raises(KmsUnavailable) as refusal:
            await room.rewrap(replace(order, **changes))
        assert "known" not in str(refusal.value)


class TestRelease:
    async def test_the_host_opens_what_was_created(self, room, kms, kek_id):
        """From creation to the host: the same key, and never in the clear in between (design 6.4)."""
        wrapped = (await room.create_key("default", kek_id, AAD)).wrapped
        grant = await room.release(release_order(kek_id, wrapped))
        vm_key = KmipKms(kms.settings()).unwrap(kek_id, wrapped, AAD)
        assert open_grant(grant) == vm_key
        assert bytes(vm_key) not in grant

    @pytest.mark.parametrize("vm_key", [b"k", bytes(range(256)) * 16])
    async def test_the_shortest_and_the_longest_key_pass(self, room, kms, kek_id, vm_key):
        """1 byte and 4 KiB fit all frames."""
        wrapped = wrapped_by_hand(kms, kek_id, vm_key)
        assert open_grant(await room.release(release_order(kek_id, wrapped))) == vm_key

    async def test_each_release_has_its_own_randomness(self, room, kms, kek_id):
        """The one-time key of a grant is used once."""
        order = release_order(kek_id, wrapped_by_hand(kms, kek_id))
        first, second = await room.release(order), await room.release(order)
        assert first != second
        assert open_grant(first) == open_grant(second) == b"known passphrase"

    async def test_the_policy_is_that_of_the_order(self, room, kms, kek_id):
        """PCRs, counters and bound reach the child unchanged, the order of the banks included."""
        wire = await room.release(release_order(kek_id, wrapped_by_hand(kms, kek_id)))
        received = read_key_grant(wire, [RELEASE.public_key()])
        policy = decode_public(received.sealed.public).auth_policy
        assert policy == policy_digest(PCRS, COUNTERS, 1000)

    async def test_the_blob_of_another_vm_opens_nothing(self, room, kms, kek_id):
        """N56, AAD mismatch: a row copied to another VM in the database is worth nothing."""
        wrapped = wrapped_by_hand(kms, kek_id, aad=AAD.replace(b"vm-1", b"vm-2"))
        await refused(room, "wrong key", release_order(kek_id, wrapped))

    async def test_the_kek_of_another_key_opens_nothing(self, room, kms, kek_id):
        """N56: the KEK id in the row must be the one of the wrapping."""
        other = KmipKms(kms.settings()).create_kek("other")
        wrapped = wrapped_by_hand(kms, kek_id)
        await refused(room, "wrong key", release_order(other, wrapped))

    async def test_another_storage_parent_than_the_bound_one_is_refused(self, room, kms, kek_id):
        """The grant is wrapped to the key that its signed head names, or not at all."""
        other = storage_public(ec.derive_private_key(5, ec.SECP256R1()))
        order = release_order(
            kek_id, wrapped_by_hand(kms, kek_id), storage_public=encode_public(other)
        )
        await refused(room, "nothing left it", order)

    async def test_a_signing_key_is_no_storage_parent(self, room, kms, kek_id):
        """Nothing is wrapped to a key that is not a storage parent (N82)."""
        public = storage_public(
            ec.derive_private_key(5, ec.SECP256R1()), attributes=ObjectAttributes.SIGN
        )
        order = release_order(
            kek_id, wrapped_by_hand(kms, kek_id), storage_public=encode_public(public)
        )
        await refused(room, r".", order)

    @pytest.mark.parametrize(
        "change",
        [
            {"storage_public": b""},
            {"storage_public": b"\x00\x23" * 20},
            {"sealed_pcrs": {}},
            {"wrapped": b""},
            {"wrapped": b"\x02" * 60},
            {"counters": b"1234"},
            {"kek_id": ""},
        ],
    )
    async def test_an_order_with_a_hole_releases_nothing(self, room, kms, kek_id, change):
        """Fail closed on every field, and the room goes on."""
        wrapped = wrapped_by_hand(kms, kek_id)
        await refused(room, r".", replace(release_order(kek_id, wrapped), **change))
        assert await room.release(release_order(kek_id, wrapped))

    async def test_a_negative_epoch_never_gets_that_far(self):
        """N84: bindings check their numbers themselves."""
        with pytest.raises(ValueError, match="64-bit"):
            binding(grant_epoch=-1)


class TestReleaseKey:
    @pytest.mark.parametrize(
        "spoil",
        [
            lambda path: path.chmod(0o640),
            lambda path: path.chmod(0o604),
            lambda path: path.unlink(),
            lambda path: path.write_bytes(b"garbage"),
            lambda path: write_release_key(path, ec.derive_private_key(9, ec.SECP384R1())),
            lambda path: (
                path.rename(path.with_suffix(".real")).parent.joinpath(path.name)
                and path.symlink_to(path.with_suffix(".real"))
            ),
        ],
        ids=["group", "others", "absent", "garbage", "P-384", "link"],
    )
    async def test_an_unusable_one_signs_nothing(self, room, kms, kek_id, release_key, spoil):
        """N60: refused with a sentence that tells a host no path; health warns before."""
        order = release_order(kek_id, wrapped_by_hand(kms, kek_id))
        assert open_grant(await room.release(order)) == b"known passphrase"
        spoil(release_key)
        error = await refused(room, r"release key|P-256", order)
        assert str(release_key) not in str(error)
        assert (await room.create_key("default", kek_id, AAD)).wrapped

    async def test_health_looks_at_it(self, room, release_key):
        """An admin sees it before the first release fails."""
        assert (await room.health("default")).usable
        release_key.chmod(0o644)
        health = await room.health("default")
        assert not health.usable
        assert health.detail == "the key room can't use its release key; its own log says why"


class TestHealth:
    async def test_it_names_the_kms(self, room):
        """The mock introduces itself through the whole chain."""
        health = await room.health("default")
        assert health.usable
        assert "DEVELOPMENT MOCK" in health.detail

    async def test_it_says_what_is_wrong(self, room, kms):
        """N56: down is an answer, not an exception."""
        with kms.fault("down"):
            health = await room.health("default")
        assert not health.usable
        assert "closed the connection" in health.detail


class TestSettings:
    @pytest.mark.parametrize(
        "change", [{"batch": 0}, {"parallel": 0}, {"timeout_s": 0}, {"lifetime_s": -1}]
    )
    async def test_limits_that_make_no_sense_are_refused(self, tmp_path, change):
        """A room without a limit would keep keys for ever."""
        with pytest.raises(ValueError, match=r"at least one|positive"):
            KeyRoomSettings(providers={}, release_key=tmp_path / "k", **change)

    async def test_the_storage_of_these_tests_is_a_real_one(self):
        """The oracle of these tests holds the private half of what orders are made for."""
        assert binding().storage_name == STORAGE.key.name


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def escrowing(kms):
    """A room whose keys are sealed to an offline key besides."""
    path = kms.folder / "escrow.pub"
    path.write_text(encode_escrow_key(public()))
    chosen = EscrowSettings(public_key=path, key_id=public().key_id.hex(), origin=ORIGIN)
    made = ChildKeyRoom(room_settings(kms.settings(), kms.folder / "release.key", escrow=chosen))
    yield made
    await made.close()


class TestEscrow:
    async def test_what_is_escrowed_is_what_is_wrapped(self, escrowing, kms, kek_id):
        """Survival: the child seals the very key that it wraps, as the key of that VM and epoch."""
        new = await escrowing.create_key("default", kek_id, AAD)
        bound = escrow_binding("vm-1", origin=ORIGIN)
        key = open_escrowed(new.escrowed, PRIVATE, expected=bound)
        assert key == KmipKms(kms.settings()).unwrap(kek_id, new.wrapped, AAD)
        assert len(key) == 43
        stored = StoredKey(provider="default", kek_id=kek_id, wrapped=new.wrapped, aad=AAD)
        again = await escrowing.escrow(stored)
        assert again != new.escrowed
        assert open_escrowed(again, PRIVATE, expected=bound) == key
        challenge = bytes(range(32))
        answer = await escrowing.answer_drill(stored, challenge)
        assert answer == drill_answer(key, bound, challenge)

    async def test_without_an_escrow_key_nothing_is_sealed(self, room, kek_id):
        """No escrow was chosen: no blob, and no drill."""
        new = await room.create_key("default", kek_id, AAD)
        assert new.escrowed == b""
        stored = StoredKey(provider="default", kek_id=kek_id, wrapped=new.wrapped, aad=AAD)
        with pytest.raises(KmsUnavailable, match="no escrow key"):
            await room.answer_drill(stored, bytes(32))

    @pytest.mark.parametrize("content", [None, "rubbish", encode_escrow_key(public(OTHER_PRIVATE))])
    async def test_no_key_is_made_when_the_escrow_key_was_swapped(
        self, kms, kek_id, tmp_path, content
    ):
        """Fail closed: an escrow key that is gone, damaged or another one makes no VM key at all."""
        path = tmp_path / "escrow.pub"
        if content is not None:
            path.write_text(content)
        chosen = EscrowSettings(public_key=path, key_id=public().key_id.hex(), origin=ORIGIN)
        made = ChildKeyRoom(
            room_settings(kms.settings(), kms.folder / "release.key", escrow=chosen)
        )
        try:
            with pytest.raises(KmsUnavailable, match="escrow key; its own log says why"):
                await made.create_key("default", kek_id, AAD)
        finally:
            await made.close()

    async def test_a_stored_key_of_something_else(self, escrowing, kek_id):
        """N57: a wrapped key that is not bound to this VM is neither sealed nor drilled."""
        new = await escrowing.create_key("default", kek_id, AAD)
        other = AAD.replace(b"vm-1", b"vm-2")
        stored = StoredKey(provider="default", kek_id=kek_id, wrapped=new.wrapped, aad=other)
        for asked in (escrowing.escrow(stored), escrowing.answer_drill(stored, bytes(32))):
            with pytest.raises(KmsUnavailable):
                await asked
