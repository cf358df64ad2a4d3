"""The description of the API, OpenAPI 3.1, made of the operations and the contract's structs."""

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Any

import msgspec

from aios_kernel_api.operations import Answer, Operation

Json = dict[str, Any]
REF = "#/components/schemas/{name}"
# What any request may meet; beside these an operation names its own.
COMMON = (400, 408, 413, 415, 429, 503)
OF_A_TOKEN = (401, 403)
STATUS_WORDS = {
    400: "Something of the request is wrong: `field` says what",
    401: "No token, or one that is not good (any more)",
    403: "The token's agent, or its scope, may not",
    404: "There is none, or none that you may know of",
    408: "The request did not come in time",
    409: "It contradicts what is so already",
    412: "It is of another version by now",
    413: "The body is too large",
    415: "The body is of a kind that is not read",
    416: "The range lies behind the end",
    423: "Somebody else has locked it",
    429: "A quota or a limit of requests is met: come again after `retry_after_s`",
    500: "The module that ran it failed",
    501: "This kernel was started without what it would need: `field` names the setting",
    502: "The core failed",
    503: "A server of the kernel does not answer, or is full: come again after `retry_after_s`",
    504: "It did not end in time; `syscall_id` names it",
}
DISTRIBUTION = "aios-broker"
PATH_PART = re.compile(r"{(\w+)(?::\w+)?}")
DESCRIPTION = (
    "What an agent asks are syscalls: `POST /v1/syscalls`. The rest shows what becomes of them, or "
    "is a shorter way to the same. Errors are `application/problem+json`."
)


def release() -> str:
    """Return the release of the kernel that runs."""
    try:
        return installed_version(DISTRIBUTION)
    except PackageNotFoundError:  # a checkout
        return "0"


def document(operations: Sequence[Operation], version: str) -> Json:
    """Return the whole description."""
    schemas = Schemas(operations)
    paths: dict[str, Json] = {}
    for one in operations:
        paths.setdefault(shown_path(one.path), {})[one.method.lower()] = _operation(one, schemas)
    found: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "The kernel's API",
            "version": version,
            "description": DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "tags": [{"name": tag} for tag in dict.fromkeys(one.tag for one in operations)],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of the access module. It alone says who asks.",
                }
            },
            "schemas": schemas.components,
        },
    }
    return found


class Schemas:
    """The schemas of all types that operations name."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        kinds: list[Any] = []
        for one in operations:
            kinds += [each.kind for each in one.answers.values() if each.kind is not None]
            kinds += [one.query, one.error, *([] if one.body in (None, bytes) else [one.body])]
        self._kinds = list(dict.fromkeys(kinds))
        found, components = msgspec.json.schema_components(
            self._kinds, schema_hook=_anything, ref_template=REF
        )
        self._schemas: list[Json] = [_tidied(each) for each in found]
        self._all: dict[str, Json] = {name: _tidied(each) for name, each in components.items()}
        queries = {_name_of(self.of(one)) for one in [each.query for each in operations]}
        self.components = {
            name: each for name, each in sorted(self._all.items()) if name not in queries
        }

    def of(self, kind: object) -> Json:
        """Return the schema of a type."""
        return self._schemas[self._kinds.index(kind)]

    def fields(self, kind: object) -> tuple[Mapping[str, Json], Sequence[str]]:
        """Return the schema of each field of a struct, and which of them have to be there."""
        whole = self._all[_name_of(self.of(kind))]
        return whole.get("properties", {}), whole.get("required", [])


def _anything(kind: type) -> Json:
    """Return the schema of what may be any JSON value."""
    if kind is object:
        return {"description": "any JSON value"}
    raise NotImplementedError(f"{kind} has no schema")


def _name_of(schema: Json) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _tidied(schema: Any) -> Any:  # noqa: ANN401  JSON
    """Return a schema whose patterns end as those of JSON Schema do."""
    if isinstance(schema, dict):
        return {
            name: each.replace(r"\Z", "$")
            if name == "pattern" and isinstance(each, str)
            else _tidied(each)
            for name, each in schema.items()
        }
    return [_tidied(each) for each in schema] if isinstance(schema, list) else schema


def shown_path(path: str) -> str:
    """Return a path as OpenAPI writes it."""
    return PATH_PART.sub(r"{\1}", path)


def _operation(one: Operation, schemas: Schemas) -> Json:
    found: Json = {
        "operationId": _identifier(one),
        "tags": [one.tag],
        "summary": one.words,
        "parameters": [*_path_parameters(one), *_query_parameters(one, schemas), *_headers(one)],
        "responses": _responses(one, schemas),
    }
    scope = "It needs no token." if one.scope is None else f"Scope: {one.scope}."
    found["description"] = f"{one.more} {scope}".strip()
    if one.scope is None:
        found["security"] = []
    if one.body is not None:
        content: Json = {"schema": {} if one.body is bytes else schemas.of(one.body)}
        if one.body_example is not None:
            content["example"] = one.body_example
        found["requestBody"] = {"required": True, "content": {one.body_media: content}}
    return found


def _identifier(one: Operation) -> str:
    words = re.findall(r"\w+", shown_path(one.path).removeprefix("/v1"))
    return "_".join([one.method.lower(), *words])


def _path_parameters(one: Operation) -> list[Json]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1},
        }
        for name in PATH_PART.findall(one.path)
    ]


def _query_parameters(one: Operation, schemas: Schemas) -> list[Json]:
    fields, required = schemas.fields(one.query)
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "schema": _not_null(schema),
        }
        for name, schema in fields.items()
    ]


def _not_null(schema: Json) -> Json:
    """Return the schema of something that may be left out: it is never null."""
    if "anyOf" not in schema:
        return schema
    kinds = [each for each in schema["anyOf"] if each.get("type") != "null"]
    rest = {
        name: each
        for name, each in schema.items()
        if name != "anyOf" and not (name == "default" and each is None)
    }
    return {**kinds[0], **rest} if len(kinds) == 1 else {"anyOf": kinds, **rest}


def _headers(one: Operation) -> list[Json]:
    return [
        {
            "name": name,
            "in": "header",
            "required": False,
            "description": words,
            "schema": {"type": "string"},
        }
        for name, words in one.headers.items()
    ]


EVENT_STREAM = "text/event-stream"
EVENT: Json = {
    "type": "object",
    "description": "One of the events that are sent, each with these lines.",
    "properties": {
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "id": {"type": "string"},
    },
    "required": ["data"],
}


def _responses(one: Operation, schemas: Schemas) -> Json:
    found = {str(status): _answer(each, schemas) for status, each in one.answers.items()}
    errors = {*COMMON, *one.errors, *(() if one.scope is None else OF_A_TOKEN)} - {*one.answers}
    for status in sorted(errors):
        found[str(status)] = {
            "description": STATUS_WORDS[status],
            "content": {one.error_media: {"schema": schemas.of(one.error)}},
        }
    return found


def _answer(answer: Answer, schemas: Schemas) -> Json:
    found: Json = {"description": answer.words}
    if answer.headers:
        found["headers"] = {
            name: {"description": words, "schema": {"type": "string"}}
            for name, words in answer.headers.items()
        }
    if answer.media:
        content: Json = {} if answer.kind is None else {"schema": schemas.of(answer.kind)}
        if answer.media == EVENT_STREAM:
            content["schema"] = EVENT
        if answer.example is not None:
            content["example"] = answer.example
        found["content"] = {answer.media: content}
        if answer.streams:
            found["content"][EVENT_STREAM] = {"schema": EVENT}
    return found
