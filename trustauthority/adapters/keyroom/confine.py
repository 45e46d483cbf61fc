"""What the child does to itself before it sees a key: no dump, no debugger, no swap, no long life.

Guarantees, or it raises and the child never starts: no core file (RLIMIT_CORE 0), memory that only
root can read (PR_SET_DUMPABLE 0), no new privileges. With an unlimited RLIMIT_MEMLOCK all memory is
locked, so that none is swapped; without, the unit's MemorySwapMax=0 must do that. Source: prctl(2),
setrlimit(2), mlockall(2).
"""

import ctypes
import os
import resource
import signal

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_MCL_CURRENT_AND_FUTURE = 3
_ADDRESS_SPACE = 1 << 30
"""Bytes: an answer that announces gigabytes ends in MemoryError, not in a dead machine."""


def confine() -> None:
    """Apply all limits. Raises OSError when one can't be had."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    os.umask(0o077)
    libc = ctypes.CDLL(None, use_errno=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    _check(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        _check(libc.mlockall(_MCL_CURRENT_AND_FUTURE))


def die_after(seconds: float) -> None:
    """Let the kernel end this process, whatever it is doing then."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "the child of the key room can't confine itself")
