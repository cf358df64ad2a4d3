"""The password of a server's address is printed nowhere: not in a log, not in an error."""

import traceback
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.config import KernelConfig
from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.urls import without_password
from aios_broker.postgres.database import check_database_url
from aios_broker.redis.address import parse_url

SECRET = "s3cr3t"
READERS: list[Callable[[str], object]] = [parse_url, check_database_url]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:s3cr3t@host:1/0", "redis://:***@host:1/0"),
        ("redis://ada:s3cr3t@a:1,b:2/0", "redis://ada:***@a:1,b:2/0"),
        ("unix://:s3cr3t@/run/redis.sock?db=0", "unix://:***@/run/redis.sock?db=0"),
        ("postgresql+psycopg://ada:s3cr3t@host/db", "postgresql+psycopg://ada:***@host/db"),
        (
            "postgresql://host/db?user=a&password=s3cr3t&x=1",
            "postgresql://host/db?user=a&password=***&x=1",
        ),
        ("postgresql://ada@host/db", "postgresql://ada@host/db"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://ada:s3@cr3t/#?@host", "redis://ada:***@host"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


@given(st.text(min_size=1), st.text())
def test_nothing_between_a_colon_and_the_last_at_is_shown(before: str, after: str) -> None:
    url = f"redis://ada:{before}{SECRET}{after}@host:1/0"
    assert without_password(url) == "redis://ada:***@host:1/0"


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "rest",
    [
        f":{SECRET}@host:port",
        f":{SECRET}/x@host",
        f":x/{SECRET}@host:1/0",
        f":{SECRET}#x@host",
        f":x#{SECRET}@host",
        f":x?{SECRET}@host:p/0",
        f":{SECRET}@[::host",
        f":%{SECRET}@host",
        f":x@{SECRET}@host:1/z",
        f":x:{SECRET}@host:1/z",
        f":{SECRET}@a,,b/0",
    ],
)
@pytest.mark.parametrize("scheme", ["redis", "postgresql", "http"])
def test_no_error_about_an_address_tells_its_password(
    read: Callable[[str], object], scheme: str, rest: str
) -> None:
    told = ""
    try:
        read(f"{scheme}://ada{rest}")
    except InvalidConfig as error:
        told = "".join(traceback.format_exception(error))
    assert SECRET not in told


@pytest.mark.parametrize("variable", ["AIOS_REDIS_URL", "AIOS_DATABASE_URL"])
@pytest.mark.parametrize("url", [f":{SECRET}@host", f"ada:{SECRET}@host", f"{SECRET}@host:1"])
def test_a_setting_without_a_scheme_is_not_repeated(variable: str, url: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        KernelConfig.from_environment({variable: url})
    assert SECRET not in str(caught.value)
    assert caught.value.field == variable
