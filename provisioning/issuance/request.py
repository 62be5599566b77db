"""What a request for an issuing CA says (PKCS #10, RFC 2986), for a key that signs elsewhere. Pure."""

from provisioning.issuance import der
from provisioning.issuance.extensions import authority

_EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
_COMMON_NAME = "2.5.4.3"


def ca_request_info(common_name: str, public_key: bytes) -> bytes:
    """The CertificationRequestInfo that the key signs: a CA with path length 0. `public_key` is an SPKI, DER.

    The request is `tbs.assemble(info, signature, algorithm)`: the same three parts as a certificate's.
    """
    extensions = der.sequence(authority(0))
    attribute = der.sequence(der.oid(_EXTENSION_REQUEST), der.tlv(der.SET, extensions))
    name = der.distinguished_name((_COMMON_NAME, der.UTF8_STRING, common_name))
    return der.sequence(der.integer(0), name, public_key, der.tlv(0xA0, attribute))
