"""Which network addresses a URL of somebody's manifest may lead to: pure, a verdict on an address.

Lists: IANA's special-purpose registries (RFC 6890 and what came after); clouds' metadata services answer on link-local addresses and
on the few others named here.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Nobody's file server: not even with data.allowHttp.
_NEVER: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ip_network(network), what)
    for network, what in (
        ("0.0.0.0/8", "stands for this machine"),
        ("100.100.100.200/32", "is a cloud's metadata service"),
        ("169.254.0.0/16", "is link-local, where clouds keep their metadata service"),
        ("192.0.0.0/24", "is reserved"),
        ("224.0.0.0/4", "is a multicast address"),
        ("240.0.0.0/4", "is reserved"),
        ("::/128", "stands for this machine"),
        ("2001::/32", "is a Teredo tunnel"),
        ("fd00:ec2::/32", "is a cloud's metadata service"),
        ("fe80::/10", "is link-local"),
        ("fec0::/10", "is reserved"),
        ("ff00::/8", "is a multicast address"),
    )
)
# Not global, and unknown as such to some versions of the standard library.
_PRIVATE: Final[tuple[Network, ...]] = tuple(
    ip_network(network) for network in ("100.64.0.0/10", "198.18.0.0/15", "64:ff9b:1::/48", "fc00::/7")
)
_NAT64: Final = IPv6Network("64:ff9b::/96")
_COMPATIBLE: Final = IPv6Network("::/96")


def find_fault(address: str, allow_private: bool) -> str | None:
    """Why nothing may be fetched from the address, as the rest of a sentence; None where it may. Addresses within addresses are judged too.

    `allow_private`: for servers of one's own. Raises ValueError for what is no address.
    """
    for judged in _unwrap(ip_address(address.partition("%")[0])):
        fault = _judge(judged, allow_private)
        if fault is not None:
            return fault if str(judged) == address else f"stands for {judged}, which {fault}"
    return None


def _unwrap(address: Address) -> Iterator[Address]:
    """The IPv4 address that an IPv6 one leads to (mapped, NAT64, 6to4, compatible), else itself."""
    if isinstance(address, IPv4Address):
        yield address
    elif address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    elif address.sixtofour is not None:
        yield address.sixtofour
    elif address in _NAT64 or (address in _COMPATIBLE and int(address) > 0xFFFF):
        yield IPv4Address(int(address) & 0xFFFFFFFF)
    else:
        yield address


def _judge(address: Address, allow_private: bool) -> str | None:
    for network, what in _NEVER:
        if address.version == network.version and address in network:
            return what
    if address.is_multicast:
        return "is a multicast address"
    if allow_private:
        return None
    if address.is_loopback:
        return "is this machine's own"
    if not address.is_global or any(address in network for network in _PRIVATE if network.version == address.version):
        return "is private"
    return "is reserved" if address.is_reserved else None
