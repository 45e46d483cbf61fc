"""The contract of the store ports: hosts, challenges, verdicts, purge."""

import pytest
from sqlalchemy.exc import DBAPIError
from support.stores import (
    CLUSTER,
    A,
    B,
    Stores,
    cluster,
    enrolment,
    host_row,
    pending,
    populate,
    position,
    rows_of,
    verdict,
)

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.enrolments import decode_pending, encode_pending
from trustauthority.model.host import Admission

DIGEST = bytes(range(32))
U32, U64 = 2**32 - 1, 2**64 - 1


class TestEnrolment:
    @pytest.mark.parametrize(
        "changes",
        [
            {"host_id": "h-a"},
            {"ek_sha256": enrolment("h-a").ek_sha256},
            {"ak_public": enrolment("h-a").ak_public},
            {"tls_spki_sha256": enrolment("h-a").tls_spki_sha256},
            {"name": "name-of-h-a"},
        ],
        ids=["id", "ek", "ak", "tls-key", "reserved-name"],
    )
    async def test_identities_are_insert_only(self, stores: Stores, changes) -> None:
        """Whatever of a host comes again, the old binding stays byte-identical (N01, N77, S5)."""
        store = await stores.open()
        await populate(store)
        before = await rows_of(store, tables.host)
        async with store.transaction() as tx:
            assert not await tx.hosts.enrol(pending("h-c", **changes), Admission.ADMITTED)
        assert await rows_of(store, tables.host) == before

    async def test_a_wish_reserves_no_name(self, stores: Stores) -> None:
        """Two waiting hosts may wish for one name; the first that is admitted has it (N77)."""
        store = await stores.open()
        async with store.transaction() as tx:
            await tx.catalogue.create_cluster(cluster())
            for host in (A, B):
                assert await tx.hosts.enrol(pending(host, name="web"), Admission.WAITING)
            assert await tx.hosts.get("web") is None
            assert await tx.hosts.set_admission(B, Admission.ADMITTED, name="web")
            assert not await tx.hosts.set_admission(A, Admission.ADMITTED, name="web")
        assert (await host_row(store, "web")).host_id == B
        assert (await host_row(store, A)).admission is Admission.WAITING

    async def test_an_id_beats_a_name(self, stores: Stores) -> None:
        """A host that calls itself by another's id is not found in its place (N77)."""
        store = await stores.open()
        async with store.transaction() as tx:
            await tx.catalogue.create_cluster(cluster())
            assert await tx.hosts.enrol(pending("h-1", name="h-2"), Admission.ADMITTED)
            assert await tx.hosts.enrol(pending("h-2", name="h-1"), Admission.ADMITTED)
        assert (await host_row(store, "h-1")).host_id == "h-1"
        assert (await host_row(store, "h-2")).host_id == "h-2"

    async def test_an_unknown_cluster_is_an_error(self, stores: Stores) -> None:
        """A broken reference is never taken for "exists already", and leaves nothing."""
        store = await stores.open()
        with pytest.raises(DBAPIError):
            async with store.transaction() as tx:
                await tx.hosts.enrol(pending(A), Admission.ADMITTED)
        assert await rows_of(store, tables.host) == []

    async def test_record_reads_back(self, stores: Stores) -> None:
        """A host is found by id, name and TLS key with exactly what was enrolled."""
        store = await stores.open()
        await populate(store)
        wanted = enrolment(A)
        async with store.snapshot() as tx:
            found = [
                await tx.hosts.get(A),
                await tx.hosts.get(wanted.name),
                await tx.hosts.by_tls_key(wanted.tls_spki_sha256),
            ]
            assert await tx.hosts.by_tls_key("0" * 64) is None
        for host in found:
            assert host is not None
            assert (host.host_id, host.ak_public, host.ek_public, host.trust_epoch) == (
                A,
                wanted.ak_public,
                wanted.ek_public,
                1,
            )

    async def test_pages_by_name(self, stores: Stores) -> None:
        """Pages are ordered by name, then id, and no host is told twice or left out."""
        store = await stores.open()
        names = {"h-1": "c", "h-2": "a", "h-3": "b", "h-4": "a"}
        async with store.transaction() as tx:
            await tx.catalogue.create_cluster(cluster())
            for host, name in names.items():
                assert await tx.hosts.enrol(pending(host, name=name), Admission.WAITING)
        told: list[str] = []
        async with store.snapshot() as tx:
            while page := await tx.hosts.page(
                cluster=CLUSTER, after=told[-1] if told else "", limit=1
            ):
                told += [each.host_id for each in page]
            assert await tx.hosts.page(cluster="other", after="", limit=9) == []
        assert told == ["h-2", "h-4", "h-3", "h-1"]


class TestPending:
    async def test_single_use(self, stores: Stores) -> None:
        """A pending row answers one attempt, whatever the attempt was (rule 21, N05)."""
        store = await stores.open()
        waiting = pending(A, expires_at_ms=stores.clock.wall_ms + 1_000)
        async with store.transaction() as tx:
            await tx.enrolments.put("p1", DIGEST, waiting)
        async with store.transaction() as tx:
            assert await tx.enrolments.take("p1") == (DIGEST, waiting)
        async with store.transaction() as tx:
            assert await tx.enrolments.take("p1") is None
            assert await tx.enrolments.take("p2") is None

    async def test_expiry(self, stores: Stores) -> None:
        """An expired pending row is not given out, not counted, and purged (L4)."""
        store = await stores.open()
        async with store.transaction() as tx:
            for name, life_ms in (("p1", 1_000), ("p2", 2_000)):
                row = pending(A, expires_at_ms=tx.now_ms + life_ms)
                await tx.enrolments.put(name, DIGEST, row)
            assert await tx.enrolments.count("peer") == 2
            assert await tx.enrolments.count("another") == 0
        stores.clock.pass_ms(1_000)
        async with store.transaction() as tx:
            assert await tx.enrolments.take("p1") is None
            assert await tx.enrolments.count("peer") == 1
            await tx.enrolments.purge()
        assert [row["pending_id"] for row in await rows_of(store, tables.pending)] == ["p2"]

    async def test_document_reads_back(self) -> None:
        """The hash that a host answers over is that of one canonical text."""
        row = pending(A, expires_at_ms=7)
        assert decode_pending(encode_pending(row)) == row
        assert encode_pending(decode_pending(encode_pending(row))) == encode_pending(row)


class TestChallenge:
    async def test_once(self, stores: Stores) -> None:
        """A challenge is used up by its first use, on any node (S4, N07)."""
        first, second = await stores.open(), await stores.open()
        until_ms = stores.clock.wall_ms + 1_000
        async with first.transaction() as tx:
            assert await tx.enrolments.consume_challenge(DIGEST, expires_at_ms=until_ms)
        async with second.transaction() as tx:
            assert not await tx.enrolments.consume_challenge(DIGEST, expires_at_ms=until_ms + 1)

    async def test_use_is_undone_with_its_transaction(self, stores: Stores) -> None:
        """An attempt that was not recorded did not use the challenge up (L1)."""
        store = await stores.open()

        async def attempt() -> None:
            async with store.transaction() as tx:
                assert await tx.enrolments.consume_challenge(DIGEST, expires_at_ms=2**60)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await attempt()
        async with store.transaction() as tx:
            assert await tx.enrolments.consume_challenge(DIGEST, expires_at_ms=2**60)

    async def test_purge(self, stores: Stores) -> None:
        """Used challenges are forgotten when they expired, not before (L4, N07)."""
        store = await stores.open()
        async with store.transaction() as tx:
            for byte, life_ms in ((b"1", 1_000), (b"2", 1_001)):
                await tx.enrolments.consume_challenge(byte * 32, expires_at_ms=tx.now_ms + life_ms)
        stores.clock.pass_ms(1_000)
        async with store.transaction() as tx:
            await tx.enrolments.purge()
        left = [row["challenge_sha256"] for row in await rows_of(store, tables.challenge_used)]
        assert left == [b"2" * 32]


class TestVerdict:
    ORDER = (
        position(0, 0, 1),
        position(0, 0, 2**63 - 1),
        position(0, 0, 2**63),
        position(0, 0, U64),
        position(0, 2**31, 0),
        position(0, U32, 0),
        position(1, 0, 0),
        position(2**31 - 1, U32, U64),
        position(2**31, 0, 0),
        position(U32, U32, U64),
    )

    async def test_positions_compare_as_unsigned(self, stores: Stores) -> None:
        """(reset, restart, clock) only moves forward, up to 2^64-1 (N17, N84, S14)."""
        store = await stores.open()
        async with store.transaction() as tx:
            await tx.catalogue.create_cluster(cluster())
            assert await tx.hosts.enrol(pending(A), Admission.ADMITTED)
            seen: list[bytes] = []
            for at in self.ORDER:
                values = verdict(tx.now_ms)
                assert await tx.hosts.record_verdict(A, position=at, values=values)
                seen.append(at)
                for old in seen:
                    assert not await tx.hosts.record_verdict(
                        A, position=old, values=verdict(tx.now_ms, verdict_id="replayed")
                    )
        row = await host_row(store, A)
        assert (row.tpm_position, row.verdict_id) == (self.ORDER[-1], "v")
        assert row.boot == self.ORDER[-1][:8]

    @pytest.mark.parametrize("size", [1, 15, 17])
    async def test_a_position_has_one_size(self, stores: Stores, size) -> None:
        """Blobs of other sizes would compare wrongly, so the database refuses them (N84)."""
        store = await stores.open()
        await populate(store)
        with pytest.raises(DBAPIError, match=r"host_position_size"):
            async with store.transaction() as tx:
                await tx.hosts.record_verdict(A, position=b"\xff" * size, values={})

    async def test_unknown_host(self, stores: Stores) -> None:
        """A verdict about nobody is not recorded."""
        store = await stores.open()
        async with store.transaction() as tx:
            values = verdict(tx.now_ms)
            assert not await tx.hosts.record_verdict(A, position=position(), values=values)


class TestRevocation:
    async def test_trust_epoch_only_grows(self, stores: Stores) -> None:
        """Revoking, reinstating and removing each void every verdict so far (S6, S7)."""
        store = await stores.open()
        await populate(store)
        async with store.transaction() as tx:
            assert await tx.hosts.set_revoked(A, revoked=True) == 2
            assert await tx.hosts.set_revoked(A, revoked=False) == 3
            assert await tx.hosts.set_admission(A, Admission.REMOVED, name=None)
        row = await host_row(store, A)
        assert (row.trust_epoch, row.attested_until_ms, row.reserved_name) == (4, 0, None)
        assert (await host_row(store, B)).trust_epoch == 1

    async def test_revoke_all(self, stores: Stores) -> None:
        """The global epoch grows and the bound on evidence never falls (S6)."""
        store = await stores.open()
        async with store.transaction() as tx:
            assert await tx.hosts.revoke_all(no_report_before_ms=500) == 2
            assert await tx.hosts.revoke_all(no_report_before_ms=400) == 3
            assert (await tx.placement.authority()).no_report_before_ms == 500
