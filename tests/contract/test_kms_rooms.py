"""Every KMS behind the key room: in a confined child without environment, late, gone, racing; N69."""

import asyncio
import base64
import time

import pytest
from support.keyroom_orders import (
    AAD,
    open_grant,
    release_order,
    room_settings,
    write_release_key,
)
from support.keyroom_watch import Parent, current_children, found_in_memory, proc
from support.kms_suite import PEERS, WIRED, each_peer

from trustauthority.adapters.keyroom import ChildKeyRoom
from trustauthority.adapters.keyroom.frames import health_from_json, health_to_json
from trustauthority.errors import KmsUnavailable
from trustauthority.model.kms import HealthState

VM_KEY = b"known passphrase"
LATE_S = 6.0


@pytest.fixture
async def make_room(peer):
    rooms = []

    def make(settings=None, **changes):
        release_key = peer.folder / "release.key"
        if not release_key.exists():
            write_release_key(release_key)
        rooms.append(
            ChildKeyRoom(room_settings(settings or peer.settings(), release_key, **changes))
        )
        return rooms[-1]

    yield make
    for room in rooms:
        await room.close()


@pytest.fixture
def order(peer):
    return release_order(peer.kek, peer.kms().wrap(peer.kek, bytearray(VM_KEY), AAD))


@each_peer()
class TestOrders:
    async def test_from_a_new_kek_to_the_host(self, make_room, peer):
        """Its library works in a child with 1 GiB and no environment; the host opens the key."""
        room = make_room()
        kek_id = await room.create_kek("default")
        wrapped = (await room.create_key("default", kek_id, AAD)).wrapped
        grant = await room.release(release_order(kek_id, wrapped))
        assert open_grant(grant) == peer.kms().unwrap(kek_id, wrapped, AAD)

    async def test_after_a_rotation_both_keys_are_released(self, make_room, order):
        """N59: a rotation stops no VM whose key is still wrapped under the KEK of before."""
        room = make_room()
        new = await room.rotate_kek("default", order.kek_id)
        wrapped = (await room.create_key("default", new, AAD)).wrapped
        assert open_grant(await room.release(order)) == VM_KEY
        assert len(open_grant(await room.release(release_order(new, wrapped)))) == 43

    async def test_racing_orders_are_all_answered(self, make_room, order):
        """Children of one provider do not get into each other's way, library or token."""
        room = make_room(parallel=3)
        releases = [room.release(order) for _ in range(6)]
        made = [room.create_key("default", order.kek_id, AAD) for _ in range(3)]
        answers = await asyncio.gather(*releases, *made)
        assert {open_grant(grant) for grant in answers[:6]} == {VM_KEY}
        assert len({made.wrapped for made in answers[6:]}) == 3

    async def test_a_late_kms_costs_the_limit_and_nothing_leaves(self, peer, make_room, order):
        """N56, N66: an answer that takes a minute is cut off, the child killed; then all is well."""
        room = make_room(timeout_s=LATE_S)
        await room.start()
        with peer.slow():
            begun = time.monotonic()
            with pytest.raises(KmsUnavailable, match="did not answer"):
                await room.release(order)
            assert time.monotonic() - begun < LATE_S + 5
        assert open_grant(await room.release(order)) == VM_KEY

    async def test_a_kms_that_is_gone_trips_the_breaker_and_is_found_again(
        self, peer, make_room, order
    ):
        """N56: fail closed, refusals at once, recovery without anybody's doing."""
        room = make_room(trip_after=2, rest_s=0.3)
        await room.release(order)
        with peer.down():
            for _ in range(2):
                with pytest.raises(KmsUnavailable):
                    await room.release(order)
            with pytest.raises(KmsUnavailable, match="2 times in a row"):
                await room.release(order)
        await asyncio.sleep(0.4)  # the rest that was asked for
        assert open_grant(await room.release(order)) == VM_KEY

    async def test_what_a_lying_kms_answers_is_not_released(self, peer, make_room, order):
        """N56: a wrong key becomes no grant; it is no outage, so others are still served."""
        with peer.lying():
            room = make_room(peer.settings(), trip_after=1, rest_s=60.0)
            with pytest.raises(KmsUnavailable, match="wrong key"):
                await room.release(order)
            with pytest.raises(KmsUnavailable, match="wrong key"):
                await room.release(order)

    async def test_health_arrives_with_its_flags(self, peer, make_room):
        """What ta status shows: state, detail, kind, both directions of trust."""
        room = make_room()
        health = await room.health("default")
        assert health == health_from_json(health_to_json(health))
        assert (health.state, health.kind) == (HealthState.OK, peer.settings().kind)
        assert health.trusted_by_server is True
        with peer.revoking():
            health = await room.health("default")
        assert (health.state, health.trusted_by_server) == (HealthState.ERROR, False)


@each_peer(WIRED)
async def test_a_dead_provider_does_not_slow_the_releases_of_another(peer, make_room, order):
    """N66: with every turn of one provider stuck, another one's releases take their usual time."""
    room = make_room(
        providers={"default": peer.settings(), "stuck": peer.settings(timeout_s=50.0)},
        parallel=2,
    )
    await room.release(order)
    with peer.slow():
        stuck = [asyncio.create_task(room.create_kek("stuck")) for _ in range(4)]
        async with asyncio.timeout(30):
            while not room._pools["stuck"].slots.locked():  # noqa: ASYNC110  another process
                await asyncio.sleep(0.02)
    async with asyncio.timeout(30):
        assert open_grant(await room.release(order)) == VM_KEY
    for task in stuck:
        task.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)


@each_peer()
def test_no_key_is_in_the_parent_while_it_releases(peer):
    """N69 per adapter: memory, log, argv, environ of the parent; the canary shows that we look."""
    if not (peer.folder / "release.key").exists():
        write_release_key(peer.folder / "release.key")
    parent = Parent(peer.settings(), peer.folder)
    try:
        kek_id, wrapped = parent.news["kek_id"], bytes.fromhex(parent.news["wrapped"])
        vm_key = bytes(peer.kms().unwrap(kek_id, wrapped, AAD))
        assert open_grant(bytes.fromhex(parent.news["grant"])) == vm_key
        needles = {
            "raw": vm_key,
            "entropy": base64.urlsafe_b64decode(vm_key + b"="),
            "hex": vm_key.hex().encode(),
            "base64": base64.b64encode(vm_key).rstrip(b"="),
        }
        for name, secret in secrets_of(peer).items():
            needles[name] = secret
        canary = bytes(byte ^ 0xFF for byte in parent.news["canary"])
        for _ in range(3):
            assert parent.process.poll() is None, parent.log.read_text()
            found = found_in_memory(parent.process.pid, needles | {"canary": canary})
            assert found == {"canary"}
            time.sleep(0.1)  # another moment of another release
        texts = [str(parent.news).encode(), parent.log.read_bytes()]
        for pid in [parent.process.pid, *current_children(parent.process.pid)]:
            texts += [proc(pid, "cmdline"), proc(pid, "environ")]
        assert not [name for name, each in needles.items() if any(each in text for text in texts)]
    finally:
        parent.stop()


def secrets_of(peer):
    """Credentials that only the child may read."""
    settings = peer.settings()
    found = {}
    for field in ("key", "pin", "credentials"):
        path = getattr(settings, field, None)
        if path is not None:
            lines = path.read_bytes().splitlines()
            secret = max(lines, key=len)
            if len(secret) >= 16:  # shorter ones are in any memory by chance
                found[field] = secret
    return found


def test_every_peer_is_tried():
    """A new kind of provider is in the suite, or this fails."""
    assert len(PEERS) == 6
    assert {peer.algorithm for peer in PEERS} == {1, 2, 3, 4, 5}
