"""The journal on structlog: one canonical line per event, JSON unless a person is looking."""

import logging
import sys

import structlog


def configure_logging() -> None:
    """Log to stdout: JSON lines for machines, a readable form on a terminal."""
    terminal = sys.stdout.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )


class StructlogJournal:
    """The Journal port."""

    def __init__(self, **bound: str) -> None:
        self._log = structlog.get_logger().bind(**bound)

    def record(self, event: str, **facts: str | float | bool) -> None:
        """Log one event."""
        self._log.info(event, **facts)

    def crash(self, error_id: str, where: str, error: BaseException) -> None:
        """Log an unexpected exception with its trace, without the values of its variables."""
        self._log.error(
            "crash",
            error_id=error_id,
            where=where,
            exc_info=(type(error), error, error.__traceback__),
        )
