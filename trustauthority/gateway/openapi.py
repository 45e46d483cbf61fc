"""The OpenAPI description of the gateway: one document, by hand, compared with the routes by a test.

The records are those of ``ta -o json``; their fields are described in docs/reference/gateway.md.
"""

from typing import Any

Schema = dict[str, Any]

_NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 63}
_TTL: Schema = {"type": "integer", "minimum": 0, "maximum": 86_400_000, "default": 0}
_PROBLEM: Schema = {"$ref": "#/components/schemas/Problem"}
_UNMET: Schema = {"type": "array", "items": {"$ref": "#/components/schemas/Unmet"}}
_TEXTS: Schema = {"type": "array", "items": {"type": "string"}}


def _object(properties: Schema, *required: str, closed: bool = False) -> Schema:
    made: Schema = {"type": "object", "properties": properties, "required": list(required)}
    return {**made, "additionalProperties": False} if closed else made


def _list_of(name: str, schema: str) -> Schema:
    return _object(
        {name: {"type": "array", "items": {"$ref": f"#/components/schemas/{schema}"}}}, name
    )


def _operation(
    summary: str,
    answer: Schema,
    *,
    status: str = "200",
    body: Schema | None = None,
    parameters: tuple[Schema, ...] = (),
    media: str = "application/json",
) -> Schema:
    made: Schema = {
        "summary": summary,
        "responses": {
            status: {"description": "The answer", "content": {media: {"schema": answer}}},
            "default": {
                "description": "Why not",
                "content": {"application/problem+json": {"schema": _PROBLEM}},
            },
        },
    }
    if body is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if parameters:
        made["parameters"] = list(parameters)
    return made


def _query(name: str, schema: Schema | None = None) -> Schema:
    return {"name": name, "in": "query", "schema": schema or {"type": "string"}}


def _path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


_ORDER: Schema = {"$ref": "#/components/schemas/Order"}
_INTENT: Schema = {"$ref": "#/components/schemas/Intent"}
_VM: Schema = {"$ref": "#/components/schemas/Vm"}
_QUESTION = _object({"vm": _NAME, "host": _NAME}, "vm", "host", closed=True)

PATHS: Schema = {
    "/healthz": {
        "get": {
            **_operation("Whether the gateway serves", _object({"status": {"type": "string"}})),
            "security": [],
        }
    },
    "/openapi.json": {
        "get": {**_operation("This description", {"type": "object"}), "security": []},
    },
    "/v1/placement/check": {
        "post": _operation(
            "May these VMs run there? Advice; the grant decides",
            _list_of("answers", "Answer"),
            body=_object(
                {
                    "candidates": {
                        "type": "array",
                        "minItems": 1,
                        "maxItems": 1000,
                        "items": _QUESTION,
                    }
                },
                "candidates",
                closed=True,
            ),
        )
    },
    "/v1/vms": {
        "get": _operation(
            "Protected VMs by id",
            _list_of("vms", "Vm"),
            parameters=(
                _query("host"),
                _query("pageSize", {"type": "integer", "minimum": 1, "maximum": 500}),
                _query("pageToken"),
            ),
        )
    },
    "/v1/vms/{vm}": {"get": _operation("One VM", _VM, parameters=(_path("vm"),))},
    "/v1/vms/{vm}/candidates": {
        "get": _operation(
            "The hosts of its cluster, best first",
            _list_of("candidates", "Candidate"),
            parameters=(_path("vm"),),
        )
    },
    "/v1/intents": {
        "get": _operation(
            "Reasons that hosts were given",
            _list_of("intents", "Intent"),
            parameters=(_query("vm"),),
        ),
        "post": _operation(
            "Give a host a reason to ask for a VM, once, for a while",
            _INTENT,
            status="201",
            body=_object({"vm": _NAME, "host": _NAME, "ttlMs": _TTL}, "vm", "host", closed=True),
        ),
    },
    "/v1/orders": {
        "get": _operation(
            "Move orders, newest first",
            _list_of("orders", "Order"),
            parameters=(_query("vm"), _query("host"), _query("open", {"type": "boolean"})),
        ),
        "post": _operation(
            "Ask the host that runs a VM to move it",
            _ORDER,
            status="201",
            body=_object(
                {"vm": _NAME, "destination": _NAME, "ttlMs": _TTL, "dryRun": {"type": "boolean"}},
                "vm",
                "destination",
                closed=True,
            ),
        ),
    },
    "/v1/orders/{order}": {
        "get": _operation("One order", _ORDER, parameters=(_path("order"),)),
        "delete": _operation(
            "Take it back before it has begun", _ORDER, parameters=(_path("order"),)
        ),
    },
    "/v1/events": {
        "get": _operation(
            "What happens, as server-sent events; the id of each is the cursor to go on from",
            {"type": "string"},
            parameters=(
                _query("cursor"),
                _query("vm"),
                {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}},
            ),
            media="text/event-stream",
        )
    },
}

SCHEMAS: Schema = {
    "Problem": _object(
        {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "reason": {"type": "string", "description": "Stable, see docs/reference/errors.md"},
            "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
            "requestId": {"type": "string"},
        },
        *("type", "title", "status", "detail", "reason", "metadata"),
    ),
    "Unmet": _object(
        {
            "reason": {"type": "string"},
            "detail": {"type": "string"},
            "rule": {"type": "string"},
        },
        *("reason", "detail", "rule"),
    ),
    "Answer": _object(
        {
            "vmId": {"type": "string"},
            "host": {"type": "string"},
            "allowed": {"type": "boolean"},
            "unmet": _UNMET,
            "warnings": _TEXTS,
            "steps": _UNMET,
        },
        *("vmId", "host", "allowed", "unmet", "warnings", "steps"),
    ),
    "Candidate": _object(
        {
            "hostId": {"type": "string"},
            "hostName": {"type": "string"},
            "allowed": {"type": "boolean"},
            "unmet": _UNMET,
            "steps": _UNMET,
            "warnings": _TEXTS,
            "owner": {"type": "boolean"},
            "free": {"type": "integer"},
            "vms": {"type": "integer"},
            "attestedUntil": {"type": ["string", "null"], "format": "date-time"},
            "warned": {"type": "boolean"},
            "draining": {"type": "boolean"},
        },
        *("hostId", "hostName", "allowed", "unmet", "steps", "warnings", "owner", "free"),
    ),
    "Vm": _object(
        {
            "vmId": {"type": "string"},
            "cluster": {"type": "string"},
            "ownerHostId": {"type": "string"},
            "ownerHostName": {"type": "string"},
            "grantEpoch": {"type": "integer"},
            "leaseUntil": {"type": ["string", "null"], "format": "date-time"},
            "fenceUntil": {"type": ["string", "null"], "format": "date-time"},
            "preparedHostId": {"type": "string"},
            "retired": {"type": "boolean"},
        },
        *("vmId", "cluster", "ownerHostId", "grantEpoch"),
    ),
    "Intent": _object(
        {
            "intentId": {"type": "string"},
            "vmId": {"type": "string"},
            "hostId": {"type": "string"},
            "hostName": {"type": "string"},
            "createdBy": {"type": "string"},
            "expiresAt": {"type": ["string", "null"], "format": "date-time"},
            "used": {"type": "boolean"},
        },
        *("intentId", "vmId", "hostId", "used"),
    ),
    "Order": _object(
        {
            "orderId": {"type": "string"},
            "vmId": {"type": "string"},
            "sourceHostId": {"type": "string"},
            "sourceHostName": {"type": "string"},
            "destinationHostId": {"type": "string"},
            "destinationHostName": {"type": "string"},
            "state": {
                "type": "string",
                "enum": ["ordered", "running", "done", "failed", "cancelled", "expired"],
            },
            "phase": {
                "type": "string",
                "enum": ["unspecified", "offer", "prepare", "copy", "switch", "resume"],
            },
            "percent": {"type": "integer", "minimum": 0, "maximum": 100},
            "detail": {"type": "string"},
            "createdBy": {"type": "string"},
            "createdAt": {"type": ["string", "null"], "format": "date-time"},
            "updatedAt": {"type": ["string", "null"], "format": "date-time"},
            "expiresAt": {"type": ["string", "null"], "format": "date-time"},
        },
        *("orderId", "vmId", "state", "phase", "percent", "detail"),
    ),
}

DESCRIPTION: Schema = {
    "openapi": "3.1.0",
    "info": {"title": "Trust Authority placement gateway", "version": "1"},
    "paths": PATHS,
    "components": {
        "schemas": SCHEMAS,
        "securitySchemes": {
            "token": {"type": "http", "scheme": "bearer"},
            "certificate": {"type": "mutualTLS"},
        },
    },
    "security": [{"token": []}, {"certificate": []}],
}
