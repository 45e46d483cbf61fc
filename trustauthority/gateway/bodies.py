"""Bodies and parameters of requests: read within limits, checked strictly, made into messages.

Stage: edge. Trusts nothing. Guarantees that a body has at most so many bytes and came within so many
seconds, that it is one JSON object with exactly the keys that are known, and that no key is told
twice. Names are checked by the authority, whose word about them is passed on.
"""

import asyncio
import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from trustauthority.gateway.problems import Refused

BODY_S = 10.0
MAX_BATCH = 1_000
MAX_NAME = 63
MAX_TTL_MS = 24 * 3_600_000
INVALID = "INVALID_REQUEST"

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Question(_Body):
    """May this VM run there?"""

    vm: Name
    host: Name


class Questions(_Body):
    """One or many questions."""

    candidates: Annotated[list[Question], Field(min_length=1, max_length=MAX_BATCH)]


class NewIntent(_Body):
    """A reason for a host to ask."""

    vm: Name
    host: Name
    ttlMs: Annotated[int, Field(ge=0, le=MAX_TTL_MS)] = 0  # noqa: N815 - as JSON names it


class NewOrder(_Body):
    """The wish that a VM moves."""

    vm: Name
    destination: Name
    ttlMs: Annotated[int, Field(ge=0, le=MAX_TTL_MS)] = 0  # noqa: N815
    dryRun: bool = False  # noqa: N815


Body = TypeVar("Body", bound=_Body)


async def read_body(request: Request, kind: type[Body], *, most: int) -> Body:
    """Read a request's body.

    Raises:
        Refused: too large, too slow, no JSON, or not what is expected.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise Refused(415, INVALID, "Content-Type: application/json is expected")
    content = await _content(request, most)
    try:
        document = json.loads(content, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(400, INVALID, "the body is not JSON, or tells a key twice") from error
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:200]
        raise Refused(400, INVALID, f"{where or 'body'}: {first['msg']}", field=where) from error


async def _content(request: Request, most: int) -> bytes:
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                content += chunk
                if len(content) > most:
                    raise Refused(413, INVALID, f"the body has more than {most} bytes")
    except TimeoutError as error:
        raise Refused(400, INVALID, f"the body did not come within {BODY_S:.0f} s") from error
    return bytes(content)


def parameters(request: Request, *known: str) -> dict[str, str]:
    """The query's parameters: only known ones, each once. Raises Refused."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known or name in found:
            raise Refused(400, INVALID, f"parameters: {', '.join(known)}, each once", field="query")
        found[name] = value
    return found


def flag(value: str, field: str) -> bool:
    """A parameter that is true or false. Raises Refused."""
    if value not in {"", "true", "false"}:
        raise Refused(400, INVALID, f"{field}: true or false", field=field)
    return value == "true"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands there twice")
    return made


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
