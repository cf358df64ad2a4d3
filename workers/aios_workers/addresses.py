"""Which addresses are of the internet: all others may lead to what believes its neighbours.

Asked before anything is called that an agent named (egress), or whose name somebody else may answer
for (the approval webhook).
"""

import ipaddress
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# Public for Python, and yet not of the internet: what clouds tell their machines, and old relays.
_OTHERS = tuple(
    ipaddress.ip_network(text) for text in ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24")
)


def is_public(address: Address) -> bool:
    """Whether an address is of the internet, and so is every IPv4 address that lies within it."""
    inner = _inner(address)
    if address.is_multicast or any(address in network for network in _OTHERS):
        return False
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return bool(inner) and all(map(is_public, inner))
    return address.is_global and all(map(is_public, inner))


def _inner(address: Address) -> Sequence[ipaddress.IPv4Address]:
    if isinstance(address, ipaddress.IPv4Address):
        return ()
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or address in _IPV4_COMPATIBLE:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in found if each is not None]
