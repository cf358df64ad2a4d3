"""A syscall as an RQ job: the one callable that jobs may name, and how the data is read.

RQ's job data is `[function, instance, args, kwargs]`. Ours is JSON, names one public entry
point and carries the syscall as the only argument. Whatever names anything else is foreign:
it is refused here, before anybody could import it. Two syscalls of one id are compared
here, too: the same one, sent again, or a key that was used twice.
"""

import re
import zlib

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from aios_broker.contract.access import AccessRegister, TokenIssued
from aios_broker.contract.errors import ForeignJob, InvalidSyscall, KernelError, KeyConflict
from aios_broker.contract.json_text import (
    DuplicateKey,
    has_more_values,
    is_nested_deeper,
    refuse_duplicate_keys,
)
from aios_broker.contract.names import MAX_TEXT_BYTES
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import (
    MAX_LEVELS,
    MAX_VALUES,
    Syscall,
    check_syscall,
    decode_syscall,
    encode_syscall,
    name_digest,
)
from aios_broker.contract.tokens import digest

ENTRY = "aios_workers.entry.syscall"
MAX_JOB_BYTES = 2 * MAX_TEXT_BYTES  # a stock producer escapes non-ASCII text: it grows
_NAME_SHOWN = 100  # characters of a foreign name that an error repeats

_ID = re.compile(r"[0-9a-f]{32}")
_AROUND_LEVELS = 2  # of a call around its syscall: the call itself and its arguments
_AROUND_VALUES = 8
_Call = tuple[str, None, list[msgspec.Raw], dict[str, msgspec.Raw]]
_call_decoder = msgspec.json.Decoder(_Call)
_encoder = msgspec.json.Encoder()
_HEAD = b'["%s",null,[' % ENTRY.encode()  # what stands around a syscall: written by hand, it is
_TAIL = b"],{}]"  # the same for all

# What may differ when a syscall is sent again: the time that is left, a new token, its urgency, and
# whose trace that is part of.
_PASSING = ("deadline_s", "token", "nice", "traceparent")


def encode_job(syscall: Syscall) -> bytes:
    """Return the job data of a syscall, without the tokens that its client has."""
    return encode_call(encode_syscall(without_tokens(syscall)))


def without_tokens(syscall: Syscall) -> Syscall:
    """Return a syscall as it is queued: no token in it, but the digest of one that is to be."""
    body = syscall.body
    if isinstance(body, AccessRegister) and body.token:
        body = replace(body, token="", token_digest=digest(body.token))
        return replace(syscall, token="", body=body)
    return replace(syscall, token="") if syscall.token else syscall


def encode_call(request: bytes) -> bytes:
    """Return the job data that carries `request`, a syscall that is JSON already."""
    return b"".join((_HEAD, request, _TAIL))


def decode_job(data: bytes, job_id: str, *, trusted: bool = True) -> Syscall:
    """Read the syscall of a job; `data` may be compressed, as RQ's own producers do it.

    A stock producer (`trusted` False) does not know of syscall ids: its job's id decides.

    Raises:
        ForeignJob: not JSON, not a call, or a call of anything but our entry point.
        InvalidSyscall: our entry point, called with something that is no syscall.
        UnsupportedVersion: a syscall of another version of the contract.
    """
    plain = _inflated(data)
    if has_more_values(plain, MAX_VALUES + _AROUND_VALUES):
        raise _foreign("its data has more values than any syscall")
    if is_nested_deeper(plain, MAX_LEVELS + _AROUND_LEVELS):
        raise _foreign("its data is nested deeper than any syscall")
    request = _request(plain)
    if not trusted:
        request = _with_id(_once_each(request), syscall_id_of(job_id))
    syscall = decode_syscall(request, is_flat=True)
    if syscall.id != job_id and syscall.id != syscall_id_of(job_id):
        raise InvalidSyscall(
            f"job {job_id} carries syscall {syscall.id}",
            field="id",
            remedy="publish a syscall under its own id",
        )
    return syscall


def with_token(syscall: Syscall, result: Result) -> Result:
    """Return a result with the token that its client made: the kernel has only the digest."""
    body = syscall.body
    if isinstance(body, AccessRegister) and isinstance(result, TokenIssued):
        return replace(result, token=body.token)
    return result


def without_arguments(data: bytes) -> bytes:
    """Return the call that a job names, without what it is called with: that may hold tokens.

    Of data that is no call in JSON (a pickle) nothing is left but that it was foreign.
    """
    try:
        function = _call_decoder.decode(_inflated(data))[0]
    except (KernelError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        function = "foreign"
    return _encoder.encode((function[:_NAME_SHOWN], None, (), {}))


def syscall_id_of(job_id: str) -> str:
    """Return the syscall id that a job stands for; RQ's own ids are UUIDs with dashes."""
    if _ID.fullmatch(job_id):
        return job_id
    plain = job_id.replace("-", "").lower()
    return plain if _ID.fullmatch(plain) else name_digest("rq", "rq", job_id)


def _inflated(data: bytes) -> bytes:
    if data[:1] == b"[":
        return data
    inflate = zlib.decompressobj()
    try:
        plain = inflate.decompress(data, MAX_JOB_BYTES)
    except zlib.error:
        return data
    if inflate.unconsumed_tail:
        raise InvalidSyscall(
            f"the job's data has more than {MAX_JOB_BYTES} bytes when it is unpacked",
            field="body",
            remedy="shorten it, or keep large content in storage and name it",
        )
    return plain


def _request(data: bytes) -> bytes:
    try:
        function, _, arguments, named = _call_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _foreign("its data is not a call in JSON") from error
    if function != ENTRY:
        raise _foreign(f"it names {function[:_NAME_SHOWN]!r}, and the one entry point is {ENTRY!r}")
    if len(arguments) != 1 or named:
        raise InvalidSyscall(
            f"{ENTRY} takes one positional argument, the syscall; the job has "
            f"{len(arguments)} and {len(named)} named ones",
            field="syscall",
            remedy="enqueue it with one object: agent, token, body",
        )
    return bytes(arguments[0])


def _once_each(request: bytes) -> bytes:
    """Return a request that somebody else has written; one with a key twice is refused."""
    try:
        refuse_duplicate_keys(request)
    except DuplicateKey as error:
        raise InvalidSyscall(
            f"the syscall is ambiguous: {error}", field=error.key, remedy="send each key once"
        ) from error
    return request


def _with_id(request: bytes, syscall_id: str) -> bytes:
    try:
        fields = msgspec.json.decode(request, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidSyscall(
            f"not a syscall: {error}", field="syscall", remedy="send one JSON object"
        ) from error
    fields["id"] = msgspec.Raw(_encoder.encode(syscall_id))
    return _encoder.encode(fields)


def _foreign(why: str) -> ForeignJob:
    return ForeignJob(
        f"this job is not ours and was not run: {why}",
        field="data",
        remedy=f"enqueue {ENTRY!r} with the JSON serializer and one object as argument",
    )


def conflict_with(syscall: Syscall, data: bytes) -> KeyConflict | None:
    """Return the conflict of a syscall with the job that has its id already, or None."""
    try:
        first = decode_job(data, syscall.id)
    except KernelError as error:
        return _conflict(syscall, f"a job that cannot be read ({error})")
    return conflict_of(first, syscall)


def conflict_of(first: Syscall, again: Syscall) -> KeyConflict | None:
    """Return the conflict of two syscalls of one id, or None where they are the same.

    Raises:
        InvalidSyscall: one of them cannot be written.
    """
    if first.body == again.body and _who(first) == _who(again):
        return None
    if first.kind != again.kind:
        return _conflict(again, f"a syscall of kind {first.kind}")
    # As they are queued: lists and tuples are the same.
    first, again = check_syscall(without_tokens(first)), check_syscall(without_tokens(again))
    for name in first.__struct_fields__:
        if name not in _PASSING and getattr(first, name) != getattr(again, name):
            where = _where(name, first, again)
            return _conflict(again, f"a syscall of kind {first.kind} with another {where}")
    return None


def _who(syscall: Syscall) -> tuple[str, str, str]:
    return syscall.tenant, syscall.agent, syscall.program


def _where(name: str, first: Syscall, again: Syscall) -> str:
    """Return the path of the first field that differs, at most two steps deep."""
    one, other = getattr(first, name), getattr(again, name)
    if not isinstance(one, Struct):
        return name
    differing = (
        field for field in one.__struct_fields__ if getattr(one, field) != getattr(other, field)
    )
    return f"{name}.{next(differing)}"


def _conflict(again: Syscall, stands_for: str) -> KeyConflict:
    return KeyConflict(
        f"this key was used before, for {stands_for}; this one is a {again.kind}",
        field="key",
        remedy="give each step a key of its own",
        syscall_id=again.id,
    )
