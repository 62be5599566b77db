"""The extensions of our certificates in DER (RFC 5280 section 4.2.1), each out of plain values.

Which certificate gets which of them stands in `profile`.
"""

import hashlib
import ipaddress
import re
from functools import lru_cache

from provisioning.issuance import der
from provisioning.issuance.keys import subject_key
from provisioning.refusals import ToBeSignedRefused

DNS_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
SPIFFE_ID = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._-]+){0,2}")
"""Trust domain and path as SPIFFE-ID sections 2.1 and 2.2 have them: no empty segment, no `.`, no `..`.

Ours have two segments at most, so that no name brings one of its own.
"""
SPIFFE_MOST = 2048
"""Octets (SPIFFE-ID section 2.3)."""
SERVER_AUTH, CLIENT_AUTH, OCSP_SIGNING = (f"1.3.6.1.5.5.7.3.{number}" for number in (1, 2, 9))
_OCSP, _CA_ISSUERS = "1.3.6.1.5.5.7.48.1", "1.3.6.1.5.5.7.48.2"
_DIGITAL_SIGNATURE, _KEY_CERT_SIGN, _CRL_SIGN = 0, 5, 6


def end_entity(*purposes: str) -> bytes:
    """Basic constraints, key usage (digitalSignature) and, where any is given, the extended key usage."""
    constraints = der.extension("2.5.29.19", der.sequence(), critical=True)
    usage = der.extension("2.5.29.15", der.named_bits({_DIGITAL_SIGNATURE}), critical=True)
    return (
        constraints + usage + (der.extension("2.5.29.37", der.sequence(*map(der.oid, purposes))) if purposes else b"")
    )


def authority(path_length: int | None) -> bytes:
    """Basic constraints and key usage of a CA."""
    constraints = der.sequence(der.TRUE if path_length is None else der.TRUE + der.integer(path_length))
    usage = der.named_bits({_KEY_CERT_SIGN, _CRL_SIGN})
    return der.extension("2.5.29.19", constraints, critical=True) + der.extension("2.5.29.15", usage, critical=True)


def no_check() -> bytes:
    """id-pkix-ocsp-nocheck: NULL, not critical (RFC 6960 section 4.2.2.2.1)."""
    return der.extension("1.3.6.1.5.5.7.48.1.5", b"\x05\x00")


def alternative_names(uri: str | None, hosts: tuple[str, ...] = ()) -> bytes:
    """Hosts first, then the SPIFFE id; nothing where there is neither. Raises: ToBeSignedRefused."""
    names = b"".join(map(_host, hosts))
    if uri is not None:
        names += der.tlv(0x86, _spiffe(uri))
    return der.extension("2.5.29.17", der.sequence(names)) if names else b""


def permitted_names(dns: tuple[str, ...], uri: tuple[str, ...], ip: tuple[str, ...]) -> bytes:
    """Name constraints: permitted subtrees alone (section 4.2.1.10); nothing where none is given."""
    networks = (ipaddress.ip_network(text) for text in ip)
    names = [
        *(der.tlv(0x82, _ascii(name)) for name in dns),
        *(der.tlv(0x86, _ascii(name)) for name in uri),
        *(der.tlv(0x87, each.network_address.packed + each.netmask.packed) for each in networks),
    ]
    subtrees = der.tlv(0xA0, b"".join(map(der.sequence, names)))  # minimum is 0 and not written, maximum is absent
    return der.extension("2.5.29.30", der.sequence(subtrees), critical=True) if names else b""


def key_id_of(public_key: bytes) -> bytes:
    """Subject key identifier: the leftmost 160 bits of SHA-256 over the key (RFC 7093 section 2, method 1).

    The key is the content of the BIT STRING, without tag, length and number of unused bits. Raises: ToBeSignedRefused.
    """
    key = subject_key(public_key)
    if key is None:
        raise ToBeSignedRefused(expected="a key on P-256, P-384, P-521, Ed25519, or RSA", actual=public_key)
    return hashlib.sha256(key.content).digest()[:20]


_SUBJECT_KEY_ID = der.oid("2.5.29.14")


def subject_key_id(public_key: bytes) -> bytes:
    """Raises: ToBeSignedRefused."""
    return der.sequence(_SUBJECT_KEY_ID, der.tlv(der.OCTET_STRING, der.tlv(der.OCTET_STRING, key_id_of(public_key))))


@lru_cache(maxsize=64)
def about_issuer(key_id: bytes, crl_url: str | None, ocsp_url: str | None, ca_url: str | None) -> bytes:
    """Authority key identifier, where its CRL is, where its answers and its certificate are."""
    about = der.extension("2.5.29.35", der.sequence(der.tlv(0x80, key_id)))
    if crl_url is not None:
        full_name = der.tlv(0xA0, der.tlv(0xA0, der.tlv(0x86, _ascii(crl_url))))
        about += der.extension("2.5.29.31", der.sequence(der.sequence(full_name)))
    access = [
        der.sequence(der.oid(method), der.tlv(0x86, _ascii(url)))
        for method, url in ((_OCSP, ocsp_url), (_CA_ISSUERS, ca_url))
        if url is not None
    ]
    return about + (der.extension("1.3.6.1.5.5.7.1.1", der.sequence(*access)) if access else b"")


def _host(host: str) -> bytes:
    """A GeneralName: iPAddress where the text is an address, else dNSName."""
    try:
        return der.tlv(0x87, ipaddress.ip_address(host).packed)
    except ValueError:
        if not DNS_NAME.fullmatch(host):
            raise ToBeSignedRefused(expected="a DNS name in lower case, or an address", actual=host) from None
        return der.tlv(0x82, host.encode())


def _spiffe(uri: str) -> bytes:
    if not SPIFFE_ID.fullmatch(uri) or len(uri) > SPIFFE_MOST:
        raise ToBeSignedRefused(expected="a SPIFFE id", actual=uri)
    return uri.encode()


def _ascii(text: str) -> bytes:
    if not (text.isascii() and text.isprintable()):
        raise ToBeSignedRefused(expected="an ASCII name", actual=text)
    return text.encode()
