"""Random JSON schemas over the keywords that a form may have, and some that it may not."""

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Schema = dict[str, object]

KEYWORDS = (
    "$ref",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "contains",
    "dependentRequired",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "if",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "not",
    "oneOf",
    "pattern",
    "patternProperties",
    "prefixItems",
    "properties",
    "propertyNames",
    "required",
    "type",
    "unevaluatedProperties",
    "uniqueItems",
)
_NAMES = ("a", "b", "score", "enum", "$ref", 'q"t', "back\\slash", "ünï", "")
_PATTERNS = (
    "^[a-c]{1,3}$",
    '^[^"]{1,4}$',
    "^\\d{2,4}$",
    "^\\w+\\s\\w+$",
    "b",
    "^(yes|no)$",
    "^[^\\\\]+$",
    "^\\p{L}{1,5}$",
    "^[\\x00-\\x1f]$",
    "^a(?=b)",
    "^$",
    "^[\\u00e0-\\u00ff]{1,2}$",
)
_FORMATS = (
    "date",
    "date-time",
    "time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uri",
    "uuid",
    "regex",
)
_NUMBERS = st.one_of(
    st.integers(-1_000, 1_000),
    st.sampled_from([0, 1, -1, 2**53 + 1, 10**18 + 1, 0.5, 0.1, -0.25, 1e-7, 1e20, 99.99]),
)
_VALUES = st.one_of(st.none(), st.booleans(), _NUMBERS, st.sampled_from(["", "x", 'q"', "\u2028"]))


def _some(**fields: SearchStrategy[object]) -> SearchStrategy[Schema]:
    return st.fixed_dictionaries({}, optional=fields)


def _of(kind: object, rest: SearchStrategy[Schema]) -> SearchStrategy[Schema]:
    return rest.map(lambda found: {"type": kind, **found})


def _leaves() -> SearchStrategy[Schema]:
    bounds = _some(
        minimum=_NUMBERS,
        maximum=_NUMBERS,
        exclusiveMinimum=_NUMBERS,
        exclusiveMaximum=_NUMBERS,
        multipleOf=st.sampled_from([1, 2, 5, 0.5, 0.01]),
    )
    texts = _some(
        minLength=st.integers(0, 5), maxLength=st.integers(3, 9), pattern=st.sampled_from(_PATTERNS)
    )
    return st.one_of(
        _of("string", texts),
        _of("string", st.sampled_from(_FORMATS).map(lambda name: {"format": name})),
        _of("integer", bounds),
        _of("number", bounds),
        st.sampled_from(["boolean", "null", ["string", "null"], ["integer", "boolean"]]).map(
            lambda kind: {"type": kind}
        ),
        st.lists(_VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values}),
        _VALUES.map(lambda value: {"const": value}),
        st.just({"$ref": "#/$defs/shared"}),
    )


def _larger(inner: SearchStrategy[Schema]) -> SearchStrategy[Schema]:
    objects = _some(
        properties=st.dictionaries(st.sampled_from(_NAMES), inner, max_size=3),
        required=st.lists(st.sampled_from(_NAMES[:4]), unique=True, max_size=2),
        additionalProperties=st.one_of(st.booleans(), inner),
        patternProperties=st.dictionaries(st.sampled_from(("^s", "^x_")), inner, max_size=1),
        minProperties=st.integers(0, 3),
        maxProperties=st.integers(2, 4),
    )
    rows = _some(
        items=inner,
        prefixItems=st.lists(inner, min_size=1, max_size=2),
        minItems=st.integers(0, 2),
        maxItems=st.integers(1, 4),
        uniqueItems=st.sampled_from([False, False, True]),
    )
    branches = st.lists(inner, min_size=1, max_size=3)
    rare: SearchStrategy[Schema] = st.sampled_from(
        [
            {"not": {"type": "string"}},
            {"if": {"type": "string"}, "then": {"minLength": 1}},
            {"dependentRequired": {"a": ["b"]}},
            {"type": "object", "unevaluatedProperties": False},
            {"type": "array", "contains": {"type": "string"}},
            {"propertyNames": {"pattern": "^a"}},
        ]
    )
    return st.one_of(
        _of("object", objects),
        _of("object", objects),
        _of("array", rows),
        branches.map(lambda found: {"anyOf": found}),
        branches.map(lambda found: {"oneOf": found}),
        branches.map(lambda found: {"allOf": found}),
        rare,
    )


def schemas() -> SearchStrategy[Schema]:
    """Return a strategy of schemas that are valid, and not always satisfiable."""
    shared = {"$defs": {"shared": {"type": "string", "maxLength": 3}}}
    return st.recursive(_leaves(), _larger, max_leaves=6).map(lambda found: {**found, **shared})


def drawn(count: int, number: int) -> list[Schema]:
    """Return the schemas of one draw, for what cannot be run by Hypothesis."""
    found: list[Schema] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(schemas())
    def keep(schema: Schema) -> None:
        found.append(schema)

    keep()
    return found[:count]
