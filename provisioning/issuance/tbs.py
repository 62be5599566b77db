"""The bytes that a CA key signs, and the certificate or CRL that they become once they are signed."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from provisioning.issuance import der
from provisioning.issuance.algorithms import SignatureAlgorithm, algorithm_in

SERIAL_OCTETS = 16
UNPARSED = (
    ValueError,
    TypeError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
)
"""What `cryptography` raises about bytes that it does not read."""


class Profile(StrEnum):
    """The kinds of certificate. A certificate profile (`profiles`) is of one kind, and says the rest."""

    ROOT_CA = "root-ca"
    ISSUING_CA = "issuing-ca"
    IDEVID = "idevid"
    LDEVID = "ldevid"
    QUARANTINE = "quarantine"
    GATEWAY = "gateway"
    STATION = "station"
    OPERATOR = "operator"
    SERVICE_TLS = "service-tls"
    OCSP_RESPONDER = "ocsp-responder"


@dataclass(frozen=True, slots=True)
class ToBeSigned:
    """A TBSCertificate (`der`) that follows its profile, and the facts of it that a database keeps.

    It is not a certificate: nothing has been signed. `not_before` and `not_after` are in UTC, to the second.
    """

    der: bytes
    serial: int
    profile: Profile
    not_before: datetime
    not_after: datetime


def serial_of(entropy: bytes) -> int:
    """A certificate serial out of at least 16 random bytes: positive, 16 octets, 126 of its bits random.

    Its first bits are always 01: no serial is negative, none has a leading zero, all are of one length. CA/Browser
    Forum asks for 64 random bits; RFC 5280 section 4.1.2.2 allows 20 octets.

    Raises: ValueError.
    """
    if len(entropy) < SERIAL_OCTETS:
        raise ValueError(f"a serial needs {SERIAL_OCTETS} random bytes, got {len(entropy)}")
    return int.from_bytes(entropy[:SERIAL_OCTETS], "big") & ~(0b11 << 126) | 0b01 << 126


def serial_text(serial: int) -> str:
    """The serial as it stands in the database, in messages and on the terminal: lower-case hex."""
    return format(serial, "x")


def assemble(tbs: bytes, signature: bytes, algorithm: SignatureAlgorithm | None = None) -> bytes:
    """The certificate or CRL in DER: to-be-signed bytes, AlgorithmIdentifier, signature.

    `algorithm` is by default the one that the bytes themselves name, which must be the same (RFC 5280 section 4.1.1.2):
    only what names none (an OCSP response) needs it given. Does not verify the signature. Raises: ValueError.
    """
    return der.sequence(tbs, (algorithm or algorithm_in(tbs)).identifier, der.bits(signature))


def unsigned(tbs: bytes) -> bytes:
    """The same with a signature in form only, for a parser to read what nobody signed yet. Raises: ValueError."""
    algorithm = algorithm_in(tbs)
    return assemble(tbs, algorithm.unsigned, algorithm)
