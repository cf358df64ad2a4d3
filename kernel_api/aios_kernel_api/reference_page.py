"""The reference as a page: the description of the API, as HTML without scripts or foreign hosts."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

import msgspec

Json = dict[str, Any]
STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
:root { --faint: color-mix(in srgb, currentColor 10%, transparent); }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; }
nav ul { columns: 22rem; list-style: none; padding: 0; }
code, pre { font: 0.875rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; padding: 0.75rem; background: var(--faint); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.75rem 0.25rem 0; }
section { border-top: 1px solid var(--faint); padding-top: 1rem; }
.method { font-weight: 700; }
@media (max-width: 45rem) {
  table, tbody, tr, td { display: block; }
  tr:first-child { display: none; }
  tr { padding: 0.4rem 0; border-bottom: 1px solid var(--faint); }
  td { padding: 0; overflow-wrap: anywhere; }
  td:empty { display: none; }
  td[data-label]::before { content: attr(data-label) ": "; opacity: 0.7; }
}
"""
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def page(described: Json) -> str:
    """Return the whole page."""
    info = described["info"]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(info['title'])}</title>",
            '<link rel="stylesheet" href="/reference.css"></head><body>',
            f"<h1>{escape(info['title'])}</h1>",
            f"<p>Version {escape(info['version'])}. {_words(info['description'])} "
            'For programs: <a href="/openapi.json">openapi.json</a>.</p>',
            *_contents(described),
            *(line for each in _operations(described) for line in _section(*each)),
            "<section><h2>Types</h2>",
            *_types(described["components"]["schemas"]),
            "</section></body></html>",
        ]
    )


def _operations(described: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in described["paths"].items():
        for method, one in methods.items():
            yield method.upper(), path, one


def _contents(described: Json) -> Iterator[str]:
    yield "<nav>"
    for tag in described["tags"]:
        yield f"<h2>{escape(tag['name'])}</h2><ul>"
        for method, path, one in _operations(described):
            if tag["name"] in one["tags"]:
                yield (
                    f'<li><a href="#{escape(one["operationId"])}">'
                    f"<code>{method} {escape(path)}</code></a></li>"
                )
        yield "</ul>"
    yield "</nav>"


def _section(method: str, path: str, one: Json) -> Iterator[str]:
    yield f'<section id="{escape(one["operationId"])}">'
    yield f'<h2><code><span class="method">{method}</span> {escape(path)}</code></h2>'
    yield f"<p>{_words(one['summary'])}. {_words(one['description'])}</p>"
    if one["parameters"]:
        yield from _table(
            ("Parameter", "Where", "What"),
            (
                (f"<code>{escape(each['name'])}</code>", escape(each["in"]), _parameter(each))
                for each in one["parameters"]
            ),
        )
    body = one.get("requestBody")
    if body is not None:
        for media, content in body["content"].items():
            yield f"<p>Body: <code>{escape(media)}</code> {_type(content.get('schema', {}))}</p>"
            if "example" in content:
                yield f"<pre>{_json(content['example'])}</pre>"
    yield from _table(("Status", "Meaning", "Body"), map(_response, one["responses"].items()))
    yield "</section>"


def _response(response: tuple[str, Json]) -> tuple[str, str, str]:
    status, said = response
    bodies = (
        f"<code>{escape(media)}</code> {_type(content.get('schema', {}))}"
        for media, content in said.get("content", {}).items()
    )
    return escape(status), _words(said["description"]), "<br>".join(bodies)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    heads = [escape(each) for each in titles]
    yield "<table><tr>" + "".join(f"<th>{each}</th>" for each in heads) + "</tr>"
    for first, *others in rows:
        labelled = zip(heads[1:], others, strict=True)  # a narrow screen shows no heads
        cells = "".join(f'<td data-label="{head}">{cell}</td>' for head, cell in labelled)
        yield f"<tr><td>{first}</td>{cells}</tr>"
    yield "</table>"


def _types(schemas: Json) -> Iterator[str]:
    for name, schema in schemas.items():
        yield f'<h3 id="type-{escape(name)}"><code>{escape(name)}</code></h3>'
        if "description" in schema:
            yield f"<p>{_words(schema['description'])}</p>"
        required = schema.get("required", [])
        fields = schema.get("properties")
        if not fields:
            yield f"<p>{_type({k: v for k, v in schema.items() if k != 'description'})}</p>"
            continue
        yield from _table(
            ("Field", "Type", "Default"),
            (
                (
                    f"<code>{escape(field)}</code>",
                    _type(of),
                    "needed" if field in required else _default(of),
                )
                for field, of in fields.items()
            ),
        )


def _default(schema: Json) -> str:
    return f"<code>{_json(schema['default'])}</code>" if "default" in schema else ""


def _parameter(parameter: Json) -> str:
    words = _words(parameter.get("description", ""))
    return f"{_type(parameter['schema'])} {words}".strip()


def _type(schema: Json) -> str:
    """Return a type in a few words, with a link where it has a name."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#type-{name}"><code>{name}</code></a>'
    kinds = schema.get("anyOf") or schema.get("oneOf")
    if kinds:
        return " or ".join(map(_type, kinds))
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if values:
        return " | ".join(f"<code>{_json(each)}</code>" for each in values)
    for name, words in (("items", "list"), ("additionalProperties", "object")):
        if isinstance(schema.get(name), dict):
            return f"{words} of {_type(schema[name])}"
    return escape(_limits(schema))


def _limits(schema: Json) -> str:
    words = [str(schema.get("type", "anything"))]
    names = {
        "minimum": "from {}",
        "exclusiveMinimum": "over {}",
        "maximum": "to {}",
        "minLength": "{} characters or more",
        "maxLength": "up to {} characters",
        "pattern": "like {}",
    }
    words += [text.format(schema[name]) for name, text in names.items() if name in schema]
    if "description" in schema:
        words.append(schema["description"])
    return ", ".join(words)


def _words(text: str) -> str:
    """Return a text whose code is shown as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{each}</code>" if i % 2 else each for i, each in enumerate(parts))


def _json(value: object) -> str:
    text = msgspec.json.encode(value)
    return escape((msgspec.json.format(text) if len(text) > 60 else text).decode())
