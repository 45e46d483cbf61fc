"""What a command works with: its options, a screen, and a connection made when first needed.

``World`` is everything a command may take from its surroundings (streams, environment, clock,
keyboard), so that tests give another one.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TextIO

from trustauthority.cli.options import Options
from trustauthority.cli.render import Screen
from trustauthority.cli.text import absolute, span
from trustauthority.client.plain import plain
from trustauthority.errors import FailedPrecondition, InvalidRequest, NotFound, Unauthenticated

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from trustauthority.client.channel import Authority
    from trustauthority.client.contexts import Context


class Declined(Exception):
    """The person said no; nothing was changed."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The surroundings of one command."""

    out: TextIO = field(default_factory=lambda: sys.stdout)
    err: TextIO = field(default_factory=lambda: sys.stderr)
    keyboard: TextIO = field(default_factory=lambda: sys.stdin)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    now: Callable[[], datetime] = _utc_now


WORLD: ContextVar[World] = ContextVar("world")


def screen_for(options: Options) -> Screen:
    """The screen of a command that needs no authority, nor that ``ta`` started it."""
    world = WORLD.get(None) or World()
    return Screen(
        out=world.out,
        err=world.err,
        output=options.output,
        quiet=options.quiet,
        verbose=options.verbose,
        plain_text=options.no_color or bool(world.environment.get("NO_COLOR")),
        now=world.now(),
    )


@dataclass(slots=True, kw_only=True)
class Session:
    """One command that talks to the authority of a context."""

    options: Options
    screen: Screen
    context: "Context"
    authority: "Authority"

    @property
    def now(self) -> datetime:
        """Time at the start of the command."""
        return self.screen.now

    def scope(self, text: str) -> str:
        """A header line: what is shown, by which server, when."""
        return f"{text} · authority {self.context.server} · {self.now:%H:%M:%SZ}"

    def cluster(self, explicit: str) -> str:
        """The cluster a command means: the given one, the context's, or the only one there is.

        Raises NotFound when there is none and InvalidRequest when there are several.
        """
        if explicit or self.context.cluster:
            return explicit or self.context.cluster
        from trustauthority.v1 import admin_pb2 as admin
        from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

        request = admin.ListClustersRequest()
        service = self.authority.on(ClusterServiceStub)
        known = service.read(lambda s: s.ListClusters, request).clusters
        if not known:
            raise NotFound(
                "there is no cluster yet: ta cluster create NAME", kind="cluster", name=""
            )
        if len(known) > 1:
            names = ", ".join(cluster.name for cluster in known)
            raise InvalidRequest(f"which cluster? --cluster with one of: {names}", field="cluster")
        return known[0].name

    def confirm(self, question: str) -> None:
        """Ask before something that can't be taken back or widens trust, unless --yes was given.

        Raises Declined, or InvalidRequest when there is nobody to ask.
        """
        if self.options.yes:
            return
        world = WORLD.get()
        if not (world.keyboard.isatty() and world.err.isatty()):
            raise InvalidRequest(f"{question} Say so with --yes.", field="yes")
        world.err.write(f"{question} [y/N] ")
        world.err.flush()
        if world.keyboard.readline().strip().lower() not in {"y", "yes"}:
            raise Declined

    def done(self, text: str, data: "Message | dict[str, Any]", *, name: str = "") -> None:
        """Say that something was done whose result is no more than that."""
        if self.screen.for_machines:
            value = data if isinstance(data, dict) else plain(data)
            self.screen.machine(value, names=[name] if name else [])
            return
        self.screen.line(text)

    def would_send(self, request: "Message") -> None:
        """The dry run of a call that the server can't rehearse: show what would be sent."""
        self.screen.say("dry run: this would be sent; the authority was not asked")
        if self.screen.for_machines:
            self.screen.machine(plain(request), names=[request.DESCRIPTOR.name])
            return
        self.screen.line(request.DESCRIPTOR.name)
        for key, value in plain(request).items():
            self.screen.line(f"  {key}: {value}")


@contextlib.contextmanager
def session(options: Options) -> Iterator[Session]:
    """Open what a command needs, from its options and the contexts file."""
    from trustauthority.client.channel import Authority
    from trustauthority.client.checkpoints import CheckpointKeeper, checkpoint_path

    screen = screen_for(options)
    context, path = chosen_context(options)
    warn_about_certificate(screen, context)
    keeper = CheckpointKeeper(path=checkpoint_path(path, context.name), audit_key=context.audit_key)
    screen.detail(f"context {context.name}, server {context.server}")
    with Authority(
        context, keeper=keeper, timeout_s=options.timeout.total_seconds(), warn=screen.warn
    ) as authority:
        yield Session(options=options, screen=screen, context=context, authority=authority)


def chosen_context(options: Options) -> tuple["Context", Any]:
    """The context of these options, and where contexts are kept."""
    from trustauthority.client.contexts import load_contexts

    contexts = load_contexts(WORLD.get().environment)
    context = contexts.get(options.context)
    if options.server:
        # The address is another one, the pinned CA is not: still nobody else is believed.
        context = replace(context, server=options.server, key_server="")
    return context, contexts.path


def warn_about_certificate(screen: Screen, context: "Context") -> None:
    """Say in time that the certificate ends. Raises Unauthenticated when it has ended."""
    from trustauthority.client.certificates import read_validity

    validity = read_validity(context.certificate)
    end = absolute(validity.not_after)
    if validity.is_over(screen.now):
        raise Unauthenticated(
            f"the certificate of context {context.name} ended at {end}: "
            "ask for a new one (ta identity issue), then ta context add",
            context=context.name,
        )
    if validity.not_before - screen.now > timedelta(minutes=5):
        raise FailedPrecondition(
            f"the certificate of context {context.name} does not count before "
            f"{absolute(validity.not_before)}: is the clock of this machine right?",
            context=context.name,
        )
    if validity.is_near_its_end(screen.now):
        screen.warn(
            f"the certificate of context {context.name} ends in {span(validity.left(screen.now))} "
            f"({end}): ta identity renew"
        )
