"""What tokens cost: exact, in whole numbers, rounded once."""

from decimal import ROUND_CEILING, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.cores import (
    LlamaSettings,
    OpenAISettings,
    Price,
    check_core,
    check_cores,
)
from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.money import (
    Billed,
    amount,
    cost_pico,
    nano,
    nano_of,
    pico_per_token,
    shown,
)
from aios_broker.contract.reply import Usage

PRICES = st.integers(0, 10_000_000_000).map(lambda millionths: millionths / 1_000_000)
TOKENS = st.integers(0, 1_000_000)


@given(PRICES, PRICES, st.none() | PRICES, TOKENS, TOKENS, TOKENS)
def test_a_cost_is_what_arithmetic_says(
    put: float, out: float, cached: float | None, prompt: int, hit: int, output: int
) -> None:
    hit = min(hit, prompt)
    price = Price(input=put, output=out, cached_input=cached)
    per_million = (
        (prompt - hit) * Decimal(repr(put))
        + hit * Decimal(repr(put if cached is None else cached))
        + output * Decimal(repr(out))
    )
    exact = per_million / 1_000_000
    pico = cost_pico(price, Billed(prompt, hit, output))
    assert Decimal(pico).scaleb(-12) == exact
    assert amount(nano(pico)) == exact.quantize(Decimal("1e-9"), ROUND_CEILING)


def test_a_price_of_fifteen_cents_a_million() -> None:
    assert pico_per_token(0.15) == 150_000
    assert nano(cost_pico(Price(0.15, 0.6), Billed(1000, 0, 100))) == 210_000


def test_a_price_with_more_digits_than_are_counted_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="six digits"):
        pico_per_token(0.000_000_1)
    with pytest.raises(InvalidConfig, match="per million"):
        pico_per_token(10_001.0)


def test_a_bad_price_names_its_core() -> None:
    core = LlamaSettings(price=Price(output=1.000_000_1))
    with pytest.raises(InvalidConfig) as caught:
        check_core("qwen", core)
    assert caught.value.field == "cores.qwen.price.output"


def test_prices_in_two_currencies_are_refused() -> None:
    hosted = OpenAISettings(url="http://localhost/v1", model="m", price=Price(1.0, currency="EUR"))
    with pytest.raises(InvalidConfig) as caught:
        check_cores({"a": LlamaSettings(price=Price(1.0)), "b": hosted, "c": LlamaSettings()})
    assert caught.value.field == "cores.b.price.currency"


@pytest.mark.parametrize(
    ("text", "units"), [("2.50", 2_500_000_000), ("0.000000001", 1), ("0", 0), ("1e3", 10**12)]
)
def test_an_amount_is_read_exactly(text: str, units: int) -> None:
    assert nano_of(text) == units


@pytest.mark.parametrize("text", ["", "five", "-1", "0.0000000001", "nan", "inf"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"amount of money|below nought"):
        nano_of(text)


def test_an_amount_as_people_read_it() -> None:
    assert shown(2_500_000_000, "USD") == "2.50 USD"
    assert shown(210_001, "EUR") == "0.000210001 EUR"
    assert shown(0, "") == "0.00"


def test_a_usage_without_a_price_has_no_cost() -> None:
    assert Usage(prompt_tokens=1).cost is None
    assert Usage(cost_nano=210_000, currency="USD").cost == Decimal("0.00021")
