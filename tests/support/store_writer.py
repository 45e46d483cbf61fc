"""Writers that are killed while they write: ``python -m support.store_writer FOLDER KILLS SEED``.

The parent imports everything once, then forks one writer after another, lets it write for a random
moment and kills it with SIGKILL. A writer appends audit entries and says each sequence number on a
pipe only after its transaction was committed. After each kill the parent checks the file: whole,
and with every entry that was said. It prints how many entries were said in all.
"""

import asyncio
import os
import random
import select
import signal
import sqlite3
import sys
import time
from pathlib import Path

from fakes.clock import FakeClock

from trustauthority.adapters.sql.store import open_store
from trustauthority.codec import tlog
from trustauthority.model.audit import AuditEvent

PADDING = "x" * 3_000
"""Several pages per transaction, so that a kill can fall between them."""


async def _write(path: Path, said: int) -> None:
    store = await open_store(path, FakeClock(), must_exist=True)
    event = AuditEvent(actor="a", operation="o", subject="s", decision="done", reason=PADDING)
    while True:
        async with store.transaction() as tx:
            await tx.archive.put_blob(os.urandom(5_000))
            sequence = await tx.audit.append(event)
        os.write(said, sequence.to_bytes(4, "big"))


def _kill_one(path: Path, after_s: float) -> list[int]:
    """Run a writer, kill it ``after_s`` after its first entry; returns what it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        asyncio.run(_write(path, writing))
    os.close(writing)
    select.select([reading], [], [], 30)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = b""
    while block := os.read(reading, 65_536):
        said += block
    os.close(reading)
    return [int.from_bytes(said[at : at + 4], "big") for at in range(0, len(said), 4)]


def _check(path: Path, said: list[int]) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    query = "SELECT sequence, content, leaf, frontier FROM audit ORDER BY sequence"
    rows = connection.execute(query).fetchall()
    blobs = connection.execute("SELECT count(*) FROM evidence_blob").fetchone()[0]
    connection.close()
    assert [row[0] for row in rows] == list(range(len(rows)))
    assert blobs == len(rows), "an entry without its decision, or a decision without its entry"
    assert set(said) <= {row[0] for row in rows}, "an acknowledged entry was lost"
    frontier = tlog.Frontier()
    for _, content, leaf, edge in rows:
        assert tlog.leaf_hash(content) == leaf
        frontier = frontier.append(leaf)
        assert b"".join(frontier.nodes) == edge


async def _create(path: Path) -> None:
    await (await open_store(path, FakeClock())).close()


def main(folder: str, kills: str, seed: str) -> None:
    """Create the database in a child, so that no thread is alive when writers are forked."""
    path, moments = Path(folder) / "killed.db", random.Random(seed)
    child = os.fork()
    if child == 0:
        asyncio.run(_create(path))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    said: list[int] = []
    for _ in range(int(kills)):
        said += _kill_one(path, moments.uniform(0, 0.05))
        _check(path, said)
    print(len(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
