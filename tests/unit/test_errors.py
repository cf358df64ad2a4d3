"""The error tree: drawn, coded, documented, and the same on both sides of the wire."""

import pickle
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract import errors
from aios_broker.contract.errors import ErrorBody, KernelError, all_errors, from_wire

ROOT = Path(__file__).parents[2]
ERRORS_PAGE = ROOT / "docs" / "errors.md"
DRAWN = re.compile(r"^    (?P<bars>[│├└─ ]*)(?P<name>[A-Z]\w+)  ", re.MULTILINE)
ALL = sorted(all_errors().items())


def drawn_tree() -> dict[str, str]:
    """Return each class that the module's docstring draws, and the class it hangs on."""
    parents: dict[str, str] = {}
    path = ["KernelError"]
    for line in DRAWN.finditer(errors.__doc__ or ""):
        depth = len(line["bars"]) // 4
        parents[line["name"]] = path[depth - 1]
        path[depth:] = [line["name"]]
    return parents


def real_tree() -> dict[str, str]:
    return {
        error.__name__: error.__bases__[0].__name__
        for error in all_errors().values()
        if error is not KernelError
    }


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    assert drawn_tree() == real_tree()


def test_each_class_has_a_code_of_its_own_made_from_its_name() -> None:
    for code, error in ALL:
        words = re.findall(r"[A-Z][a-z]+", error.__name__)
        assert code == "-".join(words).lower()


def filled(error: type[KernelError]) -> KernelError:
    return error(
        "what happened",
        field="body.seed",
        remedy="what to do",
        retry_after_s=1.5,
        syscall_id="0" * 32,
    )


@pytest.mark.parametrize(("code", "error"), ALL)
def test_an_error_survives_the_wire(code: str, error: type[KernelError]) -> None:
    sent = filled(error)
    body = msgspec.json.decode(msgspec.json.encode(sent.to_wire()), type=ErrorBody)
    read = from_wire(body)

    assert (type(read), read.code, body.code) == (error, code, code)
    assert vars(read) == {**vars(sent), "retryable": error.retryable}
    assert str(read) == "body.seed: what happened (what to do)"


@pytest.mark.parametrize(("code", "error"), ALL)
def test_an_error_survives_pickling(code: str, error: type[KernelError]) -> None:
    read = pickle.loads(pickle.dumps(filled(error)))  # noqa: S301  our own bytes

    assert type(read) is error
    assert read.to_wire() == filled(error).to_wire()
    assert read.code == code


def test_a_code_of_a_newer_kernel_is_a_plain_kernel_error_that_says_it() -> None:
    body = ErrorBody("quota-spent", "no tokens left", retryable=True, retry_after_s=60.0)
    read = from_wire(body)

    assert type(read) is KernelError
    assert str(read) == "quota-spent: no tokens left"
    assert (read.retryable, read.retry_after_s) == (True, 60.0)


def test_fields_of_a_newer_kernel_are_passed_by() -> None:
    data = b'{"code":"queue-full","message":"full","retryable":true,"surprise":[1]}'

    assert isinstance(from_wire(msgspec.json.decode(data, type=ErrorBody)), errors.QueueFull)


some_text = st.none() | st.text()
bodies = st.builds(
    ErrorBody,
    code=st.text(),
    message=st.text(),
    field=some_text,
    remedy=some_text,
    retryable=st.booleans(),
    retry_after_s=st.none() | st.floats(0, 1e6),
    syscall_id=some_text,
)


@given(bodies)
def test_whatever_body_arrives_becomes_an_error_that_keeps_what_it_says(body: ErrorBody) -> None:
    read = from_wire(body)
    wire = read.to_wire()

    assert body.message in str(read)
    assert (wire.field, wire.remedy, wire.retryable, wire.retry_after_s, wire.syscall_id) == (
        body.field,
        body.remedy,
        body.retryable,
        body.retry_after_s,
        body.syscall_id,
    )


# docs/errors.md


def sections() -> dict[str, str]:
    """Return the page's sections about codes, by code."""
    text = ERRORS_PAGE.read_text()
    parts = re.split(r"^### `([a-z-]+)`$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_has_one_section_per_code() -> None:
    headings = re.findall(r"^### `([a-z-]+)`$", ERRORS_PAGE.read_text(), flags=re.MULTILINE)

    assert sorted(headings) == [code for code, _ in ALL]


@pytest.mark.parametrize(("code", "error"), ALL)
def test_a_section_names_the_class_and_whether_to_send_again(
    code: str, error: type[KernelError]
) -> None:
    section = sections()[code]

    assert f"`{error.__name__}`" in section
    for question in ("What happened", "Did anything run", "May I send it again", "What to do"):
        assert f"**{question}" in section
    promise = re.search(r"\*\*May I send it again\?\*\* (Yes|No)\b", section)
    assert promise is not None
    assert promise[1] == ("Yes" if error.retryable else "No")
