"""Which URIs the rows of a manifest may name, for manifests from untrusted authors.

A row may name the schemes in ROW_SCHEMES and those that the user adds. HTTP connections are made to public addresses
only, unless the user allows private ones. ``storage.http_session`` checks each address where it makes the socket:
after the name is resolved, for every redirect, and for addresses that are written as numbers.
"""

import errno
import ipaddress
from collections.abc import Collection

from speech.errors import AudioError
from speech.redaction import redact_uri
from storage.uris import protocol_of

ROW_SCHEMES = frozenset({"file", "local", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "https"})
# A NAT64 gateway connects to the IPv4 address in the last 32 bits (RFC 6052, 2.1).
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class PrivateHostError(PermissionError):
    """A row's host has a private address."""


def check_scheme(uri: str, added: Collection[str]) -> None:
    """Checks that a row may name the scheme of ``uri``.

    Raises:
        AudioError: ``forbidden``.
    """
    scheme = protocol_of(uri)
    if scheme not in ROW_SCHEMES and scheme not in added:
        raise AudioError(
            "forbidden", f"{redact_uri(uri)}: a row may not name {scheme}:// unless --allow-scheme {scheme} is given"
        )


def is_public(address: str) -> bool:
    """Whether an IP address is globally reachable (IANA special-purpose registries, RFC 6890)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded:
            ip = embedded
    return ip.is_global and not ip.is_multicast


def check_address(address: str) -> None:
    """Checks that an IP address is public.

    Raises:
        PrivateHostError: it is not.
    """
    if not is_public(address):
        raise PrivateHostError(errno.EACCES, "the host has a private address")
