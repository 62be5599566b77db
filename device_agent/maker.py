"""The device maker's certificates for keys of this TPM: an attestation key (IAK), a device identity (IDevID).

Where `iak_certificate` is configured the device enrolls by it, and by no EK.
"""

import base64
import binascii
import re
from pathlib import Path
from typing import TYPE_CHECKING

from device_agent.config import AgentConfig, ConfigMistake
from device_agent.tpm import IAK, Endorsement

if TYPE_CHECKING:
    from device_agent.tpm.keys import Tpm

FILE_MOST = 64 * 1024
INTERMEDIATES_MOST = 4
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----")


def makers_endorsement(config: AgentConfig, tpm: "Tpm") -> Endorsement | None:
    """What the configuration names; None where it names no IAK certificate. Raises: ConfigMistake, TpmRefused."""
    if config.iak_certificate is None:
        return None
    iak, *above = _certificates("iak_certificate", config.iak_certificate, tpm)
    idevid: bytes | None = None
    if config.idevid_certificate is not None:
        idevid, *more = _certificates("idevid_certificate", config.idevid_certificate, tpm)
        above += more
    intermediates = tuple(dict.fromkeys(above))[:INTERMEDIATES_MOST]
    return Endorsement(IAK, iak, intermediates, idevid=idevid)


def _certificates(name: str, place: Path | int, tpm: "Tpm") -> tuple[bytes, ...]:
    """The certificates at a place, the key's own first; DER. What they say is the service's to judge."""
    found = tpm.certificates_at(place) if isinstance(place, int) else _of_file(name, place)
    if not found:
        where = f"NV {place:#x}" if isinstance(place, int) else place
        raise ConfigMistake(f"{name}: {where}: holds no certificate")
    return found


def _of_file(name: str, path: Path) -> tuple[bytes, ...]:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_MOST + 1)
    except OSError as error:
        raise ConfigMistake(f"{name}: {path}: {error.strerror}") from error
    if len(content) > FILE_MOST:
        raise ConfigMistake(f"{name}: {path}: is larger than {FILE_MOST} bytes")
    if content[:1] == b"\x30":
        return (content,)
    try:
        return tuple(base64.b64decode(b"".join(body.split()), validate=True) for body in _PEM.findall(content))
    except binascii.Error as error:
        raise ConfigMistake(f"{name}: {path}: holds broken base64") from error
