"""The mutants of what keeps JSON schemas: what is asked of the engine, and what is refused."""

from tests.mutants.catalogue import Mutant

_SCHEMAS = "workers/aios_workers/llm/schemas.py"
_TEST = "tests/unit/test_forms.py"

FORM_MUTANTS = (
    Mutant(
        "schemas: names may be written with escapes",
        _SCHEMAS,
        "{} if _has_control_characters(schema) else",
        "{} if True else",
        _TEST,
    ),
    Mutant(
        "schemas: what needs escapes is taken with other names",
        _SCHEMAS,
        "return _unkept_names(schema) if",
        "return None if",
        _TEST,
    ),
    Mutant(
        "schemas: a schema tells the engine to be lenient",
        _SCHEMAS,
        "style = {**_style(found",
        "style = {**(lambda told: told or {})(found",
        _TEST,
    ),
    Mutant(
        "schemas: a bound of zero that is excluded is left to the engine",
        _SCHEMAS,
        "if node.get(excluded) != 0 or",
        "if True or",
        _TEST,
    ),
    Mutant(
        "schemas: what allows nothing is left to the engine",
        _SCHEMAS,
        "if node.get(each) == []), None)",
        "if node.get(each) == [0]), None)",
        _TEST,
    ),
    Mutant(
        "schemas: negated classes keep NUL",
        _SCHEMAS,
        'found.append("^\\\\x00")',
        'found.append("^")',
        _TEST,
    ),
    Mutant(
        "schemas: strings without a length have none",
        _SCHEMAS,
        'node["maxLength"] = max(',
        'node["title"] = max(',
        _TEST,
    ),
    Mutant(
        "schemas: patterns of names may fit what is declared",
        "workers/aios_workers/llm/validation.py",
        "if name is not None:",
        "if name == pattern:",
        _TEST,
    ),
)
