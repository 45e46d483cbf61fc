"""A how-to, run as it is typed: its commands in one shell, in their order, and none left out.

Stage: test support. Takes the ``sh`` blocks of a page line by line. A test says for each line what comes of it
(or why it can't be run), under the very words of the page, so that a changed page is a failed test.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs" / "how-to"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a how-to that are in a language."""
    found = _BLOCK.findall((DOCS / page).read_text())
    return [text for known, text in found if known == language]


def commands(page: str) -> list[str]:
    """The commands of a how-to, without comments; one that goes on in the next line is one."""
    joined = "".join(blocks(page, "sh")).replace("\\\n", " ")
    lines = (re.sub(r"\s{2,}# .*", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


@dataclass(frozen=True, slots=True)
class Typed:
    """What a command said."""

    code: int
    out: str
    err: str


@dataclass(slots=True)
class Shell:
    """One bash, so that variables, umask and folder are those of the line before."""

    folder: Path
    environment: Mapping[str, str]
    names: Mapping[str, str]
    """What the page calls a thing, and what it is here."""
    _bash: subprocess.Popen[bytes] = field(init=False)
    _background: list[int] = field(default_factory=list)
    _number: int = 0

    def __post_init__(self) -> None:
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=self.folder,
            env=dict(self.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def here(self, text: str) -> str:
        """The text with the names of this world."""
        for name, ours in self.names.items():
            text = text.replace(name, ours)
        return text

    def run(self, line: str, *, limit_s: float = 90) -> Typed:
        """Type a line and wait for its end. Raises AssertionError after ``limit_s``."""
        out, err, code = self._files()
        self._type(
            f"{{ {self.here(line)}\n}} >{out} 2>{err} </dev/null; echo $? >{code}.new; mv {code}.new {code}"
        )
        deadline = time.monotonic() + limit_s
        while not code.exists():
            assert self._bash.poll() is None, line
            assert time.monotonic() < deadline, f"no end within {limit_s} s: {line}"
            time.sleep(0.02)
        return Typed(int(code.read_text()), out.read_text(), err.read_text())

    def start(self, line: str, says: str, *, limit_s: float = 30) -> Path:
        """Type a line that goes on until it is interrupted; returns its output once it ``says`` that."""
        out, err, pid = self._files()
        self._type(
            f"{self.here(line)} >{out} 2>{err} </dev/null & echo $! >{pid}.new; mv {pid}.new {pid}"
        )
        deadline = time.monotonic() + limit_s
        while not (out.exists() and says in out.read_text()):
            told = err.read_text() if err.exists() else ""
            assert time.monotonic() < deadline, (
                f"not said within {limit_s} s: {says}: {line}: {told}"
            )
            time.sleep(0.05)
        self._background.append(int(pid.read_text()))
        return out

    def close(self) -> None:
        """End what goes on, and the shell."""
        for pid in self._background:
            os.kill(pid, signal.SIGTERM)
        if self._bash.stdin is not None:
            self._bash.stdin.close()
        try:
            self._bash.wait(10)
        except subprocess.TimeoutExpired:
            self._bash.kill()
            self._bash.wait(5)

    def _files(self) -> tuple[Path, Path, Path]:
        self._number += 1
        said = self.folder / ".said"
        said.mkdir(exist_ok=True)
        return tuple(said / f"{self._number}.{each}" for each in ("out", "err", "end"))

    def _type(self, text: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(text.encode() + b"\n")
        self._bash.stdin.flush()
