"""From a generation to what SGLang's `/generate` is asked; what it would not keep is refused.

The server holds an answer to a form itself, with one of several libraries ("grammar backends").
With llguidance it compiles what we compile, and allows the same texts as the other cores. xgrammar
has a notation of its own for grammars, passes over keywords of schemas that it does not know, and
puts blanks into JSON: it is asked for what it has. outlines has no grammars at all and is not used.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from aios_broker.contract.errors import UnsupportedOption
from aios_broker.contract.llm import PENALTIES
from aios_workers.llm.chat.tags import tags_format
from aios_workers.llm.constraint import FIELDS, JSON_STYLE, narrowed_constraint
from aios_workers.llm.core import (
    Constraint,
    CoreInfo,
    GenerationRequest,
    Sampling,
    given_fields,
    kv_key,
)
from aios_workers.llm.cores.sglang.client import Description

LLGUIDANCE, XGRAMMAR = "llguidance", "xgrammar"
BACKENDS = frozenset({LLGUIDANCE, XGRAMMAR})

_FREE_BLANKS = {"whitespace_flexible": True, "item_separator": ",", "key_separator": ":"}
# Without one of these at the beginning of a line the server takes a grammar for llama.cpp's.
_SEEN_AS_LARK = re.compile(r"^\s*(%llguidance\b|start\s*:)", re.MULTILINE)

_SCHEMA_LINE = re.compile(r"^([a-z0-9]+: %json )(.*)$", re.MULTILINE)  # of a grammar of calls

NO_TOP_K = -1
# The options that it is told, by their names in the contract, which are the server's too. None:
# left out.
_TOLD: dict[str, Callable[[Sampling], object]] = {
    "temperature": lambda asked: asked.temperature,
    "top_p": lambda asked: asked.top_p,
    "top_k": lambda asked: asked.top_k or NO_TOP_K,
    "min_p": lambda asked: asked.min_p,
    "frequency_penalty": lambda asked: asked.frequency_penalty,
    "presence_penalty": lambda asked: asked.presence_penalty,
    "repetition_penalty": lambda asked: asked.repetition_penalty,
    "logit_bias": lambda asked: {str(id_): bias for id_, bias in asked.logit_bias.items()} or None,
}
_CHANGE_LOGPROBS = PENALTIES | {"logit_bias"}


def constraint_params(constraint: Constraint, backend: str | None) -> dict[str, str]:
    """Return the sampling parameter by which a server holds an answer to a form."""
    if backend == LLGUIDANCE:
        constraint = narrowed_constraint(constraint)
    match constraint.kind:
        case "json" if backend == LLGUIDANCE:
            # Said in the schema it outweighs the server's flags.
            return {"json_schema": _guided(constraint.source, JSON_STYLE, {})}
        case "json":
            return {"json_schema": constraint.source}
        case "regex":
            return {"regex": constraint.source}
        case "grammar" if backend == XGRAMMAR and constraint.calls:
            form = tags_format(constraint.calls, constraint.trigger)
            return {"structural_tag": _dumped({"type": "structural_tag", "format": form})}
        case "grammar":
            marked = _SEEN_AS_LARK.search(constraint.source) is not None
            return {
                "ebnf": constraint.source if marked else f"%llguidance {{}}\n{constraint.source}"
            }


def read_constraint(constraint: Constraint, backend: str | None) -> Constraint:
    """Return what the answer of a server is read by: the form, with blanks where it puts some."""
    if backend != XGRAMMAR:
        return constraint
    if constraint.calls:
        return Constraint("grammar", _SCHEMA_LINE.sub(_with_free_blanks, constraint.source))
    if constraint.kind == "json":
        return Constraint("json", _guided(constraint.source, {}, _FREE_BLANKS))
    return constraint


def missing_constraint(constraint: Constraint, backend: str | None) -> str | None:
    """Return why a server cannot hold this form; None: it can."""
    if backend not in BACKENDS:
        return f"holds no forms: its server's grammar backend is {backend or 'none'}"
    if constraint.kind == "grammar" and not constraint.calls and backend == XGRAMMAR:
        return "holds no grammars in Lark's notation: its server's grammar backend is xgrammar"
    return None


def _with_free_blanks(line: re.Match[str]) -> str:
    return f"{line[1]}{_guided(line[2], {}, _FREE_BLANKS)}"


def _guided(schema: str, defaults: Mapping[str, object], overrides: Mapping[str, object]) -> str:
    """Return a schema, as text, that says itself how its JSON is written."""
    values = json.loads(schema)
    own = values.get("x-guidance") or {}
    return _dumped({**values, "x-guidance": {**defaults, **own, **overrides}})


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def kept_options(server: Description) -> frozenset[str]:
    """Return the options that a server keeps. It draws by a seed in deterministic inference alone.

    The server counts penalties from the beginning of a request: they are lost by a cut.
    """
    return frozenset(_TOLD) | ({"seed"} if server.enable_deterministic_inference else set())


def check_kept(
    request: GenerationRequest,
    info: CoreInfo,
    *,
    original_logprobs: bool,
    grammar_backend: str | None = None,
) -> None:
    """Raise for what this server would not do as asked, of what a core of its kind can do.

    Args:
        request: The generation.
        info: The core's.
        original_logprobs: Whether log-probabilities are those before temperature.
        grammar_backend: What holds the server's answers to a form.

    Raises:
        UnsupportedOption: An option does not hold on this server.
    """
    if request.constraint is not None:
        _check_constraint(request, request.constraint, info, grammar_backend)
    penalises = not PENALTIES.isdisjoint(given_fields(request.sampling))
    if request.resume_ids and penalises:
        raise _unsupported("does not keep penalties across a cut", "frequency_penalty", info)
    if request.logprobs is not None:
        _check_logprobs(request, info, original=original_logprobs)


def generate_body(
    request: GenerationRequest,
    rid: str,
    server: Description,
    turn_ends: Collection[int] = (),
) -> dict[str, Any]:
    """Return the body of a `/generate` that goes on from `resume_ids`.

    Args:
        request: The generation.
        rid: Its id on the server, of fixed length: an abort matches by prefix.
        server: What is asked. It draws by seed and position in deterministic inference alone.
        turn_ends: Tokens that end an answer, beside those that the server knows of.
    """
    seeded = server.enable_deterministic_inference
    body: dict[str, Any] = {
        "rid": rid,
        "input_ids": [*request.prompt_ids, *request.resume_ids],
        "stream": True,
        "sampling_params": _sampling_params(
            request.sampling, request.max_tokens - len(request.resume_ids), seeded=seeded
        ),
    }
    if turn_ends:
        body["sampling_params"]["stop_token_ids"] = sorted(turn_ends)
    if request.constraint is not None:
        body["sampling_params"] |= constraint_params(request.constraint, server.constraints_by)
    if request.logprobs is not None:
        body |= {"return_logprob": True, "top_logprobs_num": request.logprobs}
    if request.kv_owner:
        body["extra_key"] = kv_key(request.kv_owner)  # part of a context's name in its cache
    if request.lora is not None:
        body["lora_path"] = request.lora
    return body


def _sampling_params(sampling: Sampling, max_new_tokens: int, *, seeded: bool) -> dict[str, Any]:
    """Say every value: a server may have defaults of its own. Stop strings are the kernel's."""
    told = {option: tell(sampling) for option, tell in _TOLD.items()}
    params = {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": 0,
        "ignore_eos": False,
        "n": 1,
        **{option: value for option, value in told.items() if value is not None},
    }
    if seeded and sampling.temperature > 0:
        params["sampling_seed"] = sampling.seed
    return params


def _check_constraint(
    request: GenerationRequest, constraint: Constraint, info: CoreInfo, backend: str | None
) -> None:
    missing = missing_constraint(constraint, backend)
    if missing is not None:
        raise UnsupportedOption(
            f"core {info.name!r} {missing}",
            field=FIELDS[constraint.kind],
            remedy="start the server with --grammar-backend llguidance, or name another core",
        )
    if request.resume_ids:
        raise _unsupported("does not keep a form across a cut", "format", info)


def _check_logprobs(request: GenerationRequest, info: CoreInfo, *, original: bool) -> None:
    sampling = request.sampling
    changed = not _CHANGE_LOGPROBS.isdisjoint(given_fields(sampling))
    if changed or request.constraint is not None:
        raise _unsupported(
            "gives log-probabilities after penalties, bias and forms only", "logprobs", info
        )
    if sampling.temperature not in (0.0, 1.0) and not original:
        raise _unsupported(
            "gives log-probabilities after temperature (start it with "
            "SGLANG_RETURN_ORIGINAL_LOGPROB=1)",
            "logprobs",
            info,
        )


def _unsupported(what: str, option: str, info: CoreInfo) -> UnsupportedOption:
    return UnsupportedOption(
        f"core {info.name!r} {what}",
        field=f"body.{option}",
        remedy="leave it out, or name another core",
    )
