"""What the service shows to others: its TLS key and certificate; how a bearer token is stored."""

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from ota.files import replace_file
from provisioning.issuance.profile import ServiceTls
from provisioning.issuing import Order, issue
from provisioning.service import Service


async def renew_service_certificate(service: Service) -> None:
    """A new TLS key and certificate for the listeners and the broker; the pair is replaced key first."""
    key = ec.generate_private_key(ec.SECP256R1())
    listen = service.config.listen
    hosts = tuple(host for host in (listen.advertised_host, listen.host) if host not in ("0.0.0.0", "::"))  # noqa: S104  it is left out here
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    wanted = ServiceTls(service.config.service_name, hosts, spki)
    order = Order(wanted, service.config.service_name)
    issued = await issue(service, order, lambda _tx, _certificate: None)
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    replace_file(service.directory.tls / "service.key", text, mode=0o600)
    # Whoever connects has the root, and none of what stands between.
    chain = (issued.der, *service.authorities.named(issued.issuer).chain[:-1])
    replace_file(service.directory.tls / "service.pem", b"".join(map(pem, chain)))


def hash_token(token: str) -> str:
    """How a bearer token is stored."""
    return hashlib.sha256(token.encode()).hexdigest()


def pem(der: bytes) -> bytes:
    """A certificate in PEM."""
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
