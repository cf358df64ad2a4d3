"""What a tool's rules let through, however it is spelled; and what the internet's addresses are."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.tools import NetworkRule
from aios_workers.addresses import is_public
from aios_workers.modules.tool.egress.rules import (
    Refused,
    host_of,
    origin_of,
    pattern_of,
    rule_for,
    wrong_rule,
)
from aios_workers.modules.tool.egress.secrets import Scrubber

RULE = NetworkRule("api.example.org", methods=("GET", "POST"), paths=("/v1",))


def passes(rule: NetworkRule, url: str, method: str = "GET") -> bool:
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    try:
        origin = origin_of(scheme, authority)  # type: ignore[arg-type]
        return rule_for([rule], origin, method, slash + path) is rule
    except Refused:
        return False


@pytest.mark.parametrize(
    ("url", "method"),
    [
        ("https://api.example.org/v1", "GET"),
        ("https://api.example.org/v1/things", "POST"),
        ("https://API.Example.ORG./v1/things", "GET"),
        ("https://api.example.org:443/v1/", "GET"),
        ("https://api.example.org/v1/a%20b", "GET"),
    ],
)
def test_what_a_rule_names_passes(url: str, method: str) -> None:
    assert passes(RULE, url, method)


@pytest.mark.parametrize(
    ("url", "method"),
    [
        ("https://api.example.org/v1", "DELETE"),
        ("https://api.example.org/v1", "get"),
        ("https://api.example.org/v1beta", "GET"),
        ("https://api.example.org/", "GET"),
        ("https://api.example.org/v1/../admin", "GET"),
        ("https://api.example.org/v1/%2e%2e/admin", "GET"),
        ("https://api.example.org/v1/%252e%252e/admin", "GET"),
        ("https://api.example.org/v1%2f..%2fadmin", "GET"),
        ("https://api.example.org/v1/..\\admin", "GET"),
        ("https://api.example.org/v1/%5c..%5cadmin", "GET"),
        ("https://api.example.org/v1/..;/admin", "GET"),
        ("https://api.example.org//v1/x", "GET"),
        ("https://api.example.org/v1/%00", "GET"),
        ("https://api.example.org:8443/v1", "GET"),
        ("http://api.example.org/v1", "GET"),
        ("https://xapi.example.org/v1", "GET"),
        ("https://api.example.org.evil.test/v1", "GET"),
        ("https://evil.test/v1", "GET"),
        ("https://api.example.org@evil.test/v1", "GET"),
        ("https://user@api.example.org/v1", "GET"),
        ("https://api.example.org\x00/v1", "GET"),
        ("https:///v1", "GET"),
    ],
)
def test_what_a_rule_does_not_name_is_refused(url: str, method: str) -> None:
    assert not passes(RULE, url, method)


def test_a_star_is_for_every_name_below_and_not_for_the_name_itself() -> None:
    rule = NetworkRule("*.example.org")
    assert passes(rule, "https://a.example.org/x")
    assert passes(rule, "https://a.b.example.org/x")
    assert not passes(rule, "https://example.org/x")
    assert not passes(rule, "https://badexample.org/x")


def test_plain_http_and_other_ports_have_to_be_named() -> None:
    rule = NetworkRule("http://api.example.org:8080")
    assert passes(rule, "http://api.example.org:8080/x")
    assert not passes(rule, "http://api.example.org/x")
    assert not passes(rule, "https://api.example.org:8080/x")


@pytest.mark.parametrize(
    "host",
    [
        *("0x7f.0.0.1", "0x7f000001", "2130706433", "127.1", "0177.0.0.1", "127.0.0.1.1"),
        *("1.2.3.0x4", "\uff11\uff12\uff17.0.0.1", "[::1", "[fe80::1%eth0]"),
        *("[::ffff:127.0.0.1]x", "a b", "a..b", "-a.b", ""),
    ],
)
def test_an_address_has_one_spelling(host: str) -> None:
    with pytest.raises(Refused):
        host_of(host)


def test_usual_spellings_are_one() -> None:
    assert host_of("[0:0:0:0:0:0:0:1]") == "::1"
    assert host_of("127.0.0.1.") == "127.0.0.1"
    assert host_of("Example.ORG.") == "example.org"


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.0.9", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254"),
        *("100.64.0.1", "100.100.100.200", "0.0.0.0", "192.0.0.192", "168.63.129.16", "224.0.0.1"),
        *("255.255.255.255", "240.0.0.1", "198.18.0.1", "::", "::1", "fe80::1", "fc00::1"),
        *("fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254"),
        *("::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:7f00:1::"),
        *("2002:a9fe:a9fe::1", "2001:0:4136:e378:8000:63bf:5601:5601"),
    ],
)
def test_no_address_that_is_not_the_internets_is_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "::ffff:8.8.8.8"]
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4, network="10.0.0.0/8") | st.ip_addresses(v=4, network="169.254.0.0/16"))
def test_no_address_within_another_one_is_public(inner: ipaddress.IPv4Address) -> None:
    number = int(inner)
    for outer in (
        (0xFFFF << 32) | number,
        (0x64FF9B << 96) | number,
        (0x2002 << 112) | number << 80,
    ):
        assert not is_public(ipaddress.IPv6Address(outer))


@pytest.mark.parametrize(
    ("rule", "secrets", "word"),
    [
        (NetworkRule("*"), (), "host"),
        (NetworkRule("*.10.0.0.1"), (), "host"),
        (NetworkRule("https://a.b/c"), (), "host"),
        (NetworkRule("a.b", methods=("get",)), (), "capitals"),
        (NetworkRule("a.b", paths=("v1",)), (), "begin with /"),
        (NetworkRule("a.b", secrets=("KEY",)), (), "`secrets`"),
        (NetworkRule("a.b"), ("a/b",), "variable"),
    ],
)
def test_a_wrong_rule_is_told_when_the_tool_is_loaded(
    rule: NetworkRule, secrets: tuple[str, ...], word: str
) -> None:
    assert word in str(wrong_rule([rule], secrets))


def test_a_right_rule_is_not_told() -> None:
    rule = NetworkRule("*.a.b:8443", methods=("GET", "PATCH"), secrets=("KEY",))
    assert wrong_rule([rule], ["KEY"]) is None
    assert pattern_of("https://a.b") == pattern_of("a.b:443")


@given(st.lists(st.sampled_from(["sk-12345678", "sk-1", "x", "s", "-12345678"])), st.data())
def test_a_key_is_taken_out_wherever_a_stream_is_cut(parts: list[str], data: st.DataObject) -> None:
    whole = "".join(parts).encode()
    scrubber, found, left = Scrubber(["sk-12345678"]), b"", whole
    while left:
        size = data.draw(st.integers(1, len(left)))
        found += scrubber.feed(left[:size])
        left = left[size:]
    found += scrubber.rest()
    assert found == whole.replace(b"sk-12345678", b"*" * 11)
