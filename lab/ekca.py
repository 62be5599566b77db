"""A TPM manufacturer for the lab: a certificate authority of its own that signs the EKs of software TPMs.

Nothing outside its directory is read or written: no /etc/swtpm*, no home directory.
"""

import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lab import LabFailure

ROOT_LIFETIME = timedelta(days=30 * 365)
SETUP_TIMEOUT_SECONDS = 120
_LOCALCA_PLACES = ("/usr/bin/swtpm_localca", "/usr/share/swtpm/swtpm-localca", "/usr/lib/swtpm/swtpm_localca")


class EkCaFailure(LabFailure):
    """The EK CA cannot be used, or swtpm_setup refused to make a TPM; the message is one line."""


@dataclass(frozen=True, slots=True)
class EkCa:
    """A lab manufacturer's directory: `root.pem` (public), `key.pem` (0600), swtpm_setup's private configuration."""

    directory: Path

    @property
    def root_pem(self) -> Path:
        """The one certificate of the chain above every EK certificate of this CA."""
        return self.directory / "root.pem"

    def make_tpm(self, state: Path, serial: str) -> None:
        """Manufacture a software TPM in `state`: EKs, their certificates in NV, SHA-256 as its only PCR bank.

        Raises: EkCaFailure.
        """
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = state / "setup.log"
        argv = ["swtpm_setup", "--tpm2", "--tpmstate", str(state.resolve()), "--create-ek-cert", "--lock-nvram"]
        argv += ["--config", str(self.directory.resolve() / "setup.conf"), "--pcr-banks", "sha256"]
        argv += ["--vmid", serial, "--logfile", str(log.resolve())]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=SETUP_TIMEOUT_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as failure:
            raise EkCaFailure(f"swtpm_setup: {failure}") from failure
        if done.returncode != 0:
            said = (done.stderr + done.stdout).decode(errors="replace").strip().splitlines()
            reason = said[-1] if said else f"exit status {done.returncode}"
            raise EkCaFailure(f"swtpm_setup failed ({reason}); see {log}")


def create_ek_ca(directory: Path, name: str = "Muster Lab EK Root CA") -> EkCa:
    """Make a manufacturer's CA (P-384, self-signed) in a new or empty directory. Raises: EkCaFailure."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise EkCaFailure(f"{directory} is not empty")
    key = ec.generate_private_key(ec.SECP384R1())
    pkcs8 = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(directory / "key.pem", pkcs8)
    root = _self_signed(key, name).public_bytes(serialization.Encoding.PEM)
    _write(directory / "root.pem", root)
    place = directory.resolve()
    _write(
        directory / "localca.conf",
        f"statedir = {place}\nsigningkey = {place}/key.pem\nissuercert = {place}/root.pem\n"
        f"certserial = {place}/certserial\n".encode(),
    )
    _write(
        directory / "localca.options",
        b"--platform-manufacturer Muster\n--platform-version 1\n--platform-model Lab\n",
    )
    _write(
        directory / "setup.conf",
        f"create_certs_tool = {_localca()}\ncreate_certs_tool_config = {place}/localca.conf\n"
        f"create_certs_tool_options = {place}/localca.options\nactive_pcr_banks = sha256\n".encode(),
    )
    return EkCa(directory)


def open_ek_ca(directory: Path) -> EkCa:
    """The CA that `create_ek_ca` made there. Raises: EkCaFailure."""
    if not (directory / "setup.conf").is_file():
        raise EkCaFailure(f"{directory} holds no EK CA; make one with: python -m lab ek-ca {directory}")
    return EkCa(directory)


def _self_signed(key: ec.EllipticCurvePrivateKey, name: str) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    # A day early: a device whose clock is a little behind must not find its manufacturer in the future.
    start = datetime.now(UTC) - timedelta(days=1)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(secrets.randbits(127) + 1)
        .not_valid_before(start)
        .not_valid_after(start + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def _localca() -> str:
    for place in _LOCALCA_PLACES:
        if os.access(place, os.X_OK):
            return place
    found = shutil.which("swtpm_localca")
    if found is None:
        raise EkCaFailure("swtpm_localca is missing; install the package swtpm-tools")
    return found


def _write(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
