"""A device maker in a test: certificates for attestation keys and device identities of real (software) TPMs."""

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509.oid import ObjectIdentifier

from provisioning.attestation.identity import VERIFIED_TPM_RESIDENCY, VERIFIED_TPM_RESTRICTED
from provisioning.attestation.keys import spki_of
from provisioning.attestation.structures import parse_public
from tests.support.ek_certificates import element, key_usage, pem

HARDWARE_MODULE_NAME = ObjectIdentifier("1.3.6.1.5.5.7.8.4")
TPM_2_0 = bytes.fromhex("06056781050102")
SERIAL = b"\x00\x00\x10\x14:lab-1"


class PublicOnly:
    """A key whose private half is in a TPM, as a certificate authority sees it."""

    def __init__(self, tpmt_public):
        self._key = load_der_public_key(spki_of(parse_public(tpmt_public)))

    def public_key(self):
        return self._key


def _certificate(maker, title, key, policies, serial, **given):
    stated = [x509.PolicyInformation(ObjectIdentifier(oid), None) for oid in policies]
    module = element(0x30, TPM_2_0 + element(0x04, serial))
    extensions = [
        (key_usage(digital_signature=True), True),
        (x509.CertificatePolicies(stated), False),
        (x509.SubjectAlternativeName([x509.OtherName(HARDWARE_MODULE_NAME, module)]), False),
    ]
    return maker.issue(title, key, extensions, **given)


def iak(maker, tpmt_public, serial=SERIAL, policies=(VERIFIED_TPM_RESIDENCY, VERIFIED_TPM_RESTRICTED), **given):
    """The certificate of an attestation key (TPMT_PUBLIC), DER."""
    return _certificate(maker, "IAK", PublicOnly(tpmt_public), policies, serial, **given)


def idevid(maker, key, serial=SERIAL, **given):
    """The certificate of a device identity, DER; nobody here ever signs with its key."""
    return _certificate(maker, "IDevID", key, (VERIFIED_TPM_RESIDENCY,), serial, **given)


def identity_roots(*makers):
    """The part of a policy that names these makers."""
    tables = (
        f'[[identity_roots]]\ncertificate = """{pem(maker.der)}"""\nmanufacturers = ["id:00001014"]' for maker in makers
    )
    return "\n".join(tables)
