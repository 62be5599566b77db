"""EST requests as somebody: keys, CSRs, bodies, and the answers read again."""

import base64

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID

from provisioning import tokens
from tests.support import fleet
from tests.support.service import NAME

EST = "/.well-known/est"


def new_key():
    return ec.generate_private_key(ec.SECP256R1())


def names_of(device, serial):
    """Subject and alternative name of that device's LDevID."""
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, device), x509.NameAttribute(NameOID.SERIAL_NUMBER, serial)]
    return x509.Name(attributes), [x509.UniformResourceIdentifier(f"spiffe://{NAME}/device/{device}")]


def csr_for(key, subject=None, alternative=()):
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject or x509.Name([]))
    if alternative:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternative), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def renewal_of(certificate, key):
    """A request with the certificate's own names."""
    try:
        names = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        names = []
    return csr_for(key, certificate.subject, names)


def certificate_in(body):
    """The one certificate of an answer."""
    (found,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(body))
    return found


def basic(name, token):
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{token}".encode()).decode()}


async def token_for(service, name, **more):
    return await tokens.create_token(service, tokens.Wanted(name, **more), by="test")


async def ask(client, operation, csr=None, *, member=None, user=None, headers=(), data=None):
    """`(status, headers, body)`; `user` is (name, token)."""
    extra = {**dict(headers), **(basic(*user) if user else {})}
    if operation.endswith("enroll"):
        extra.setdefault("Content-Type", "application/pkcs10")
        data = base64.b64encode(csr) if data is None else data
        return await client.call("device", "POST", f"{EST}/{operation}", member=member, headers=extra, data=data)
    return await client.call("device", "GET", f"{EST}/{operation}", member=member, headers=extra)


async def enrolled(service, client, folder, serial, **more):
    """A device of assurance `token` with its LDevID, as `fleet.Member`; and the certificate."""
    made, key = await token_for(service, serial, **more), new_key()
    status, _, body = await ask(client, "simpleenroll", csr_for(key), user=(serial, made["token"]))
    assert status == 200, body
    certificate = certificate_in(body)
    issued = IssuedLike(format(certificate.serial_number, "x"), certificate.public_bytes(Encoding.DER))
    return fleet.member(folder, made["device"], key, issued, service), certificate


class IssuedLike:
    """What `fleet.member` looks at."""

    def __init__(self, serial, der):
        self.serial, self.der = serial, der
