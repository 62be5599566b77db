"""CRLs in tests, which revoke oftener than once a second."""

import asyncio

from cryptography import x509

from provisioning import crls
from provisioning.config import DataDirectory
from provisioning.service import Service


async def publish_crl(service: Service) -> bytes:
    """Sign the issuing CA's next CRL and publish it: what changed must be waiting. At most one is signed a second."""
    authority = service.authorities.active
    while (der := await crls.sign_due(service, authority)) is None:  # noqa: ASYNC110  a clock has no event
        await asyncio.sleep(0.05)
    await crls.publish(service, authority)
    return der


def listed(directory: DataDirectory, name: str = "issuing") -> set[str]:
    """The serials in a published CRL."""
    crl = x509.load_der_x509_crl((directory.ca / f"{name}.crl").read_bytes())
    return {format(entry.serial_number, "x") for entry in crl}
