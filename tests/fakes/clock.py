"""A clock that stands still until a test moves it."""


class FakeClock:
    """The Clock port: wall clock, CLOCK_BOOTTIME and boot id, each moved by hand."""

    def __init__(self, *, wall_ms: int = 1_700_000_000_000, boot_ms: int = 50_000) -> None:
        self.wall_ms = wall_ms
        self.boot_ms = boot_ms
        self.boot = "boot-1"

    def now_ms(self) -> int:
        """Wall clock, milliseconds since the epoch."""
        return self.wall_ms

    def boottime_ms(self) -> int:
        """Milliseconds since boot."""
        return self.boot_ms

    def boot_id(self) -> str:
        """Identify this boot."""
        return self.boot

    def pass_ms(self, length: int) -> None:
        """Time passes on both clocks."""
        self.wall_ms += length
        self.boot_ms += length

    def step_ms(self, length: int) -> None:
        """Somebody sets the wall clock; no time passes."""
        self.wall_ms += length

    def reboot(self, *, down_ms: int = 0) -> None:
        """The machine starts again."""
        self.wall_ms += down_ms
        self.boot_ms = 1_000
        self.boot = f"{self.boot}+"
