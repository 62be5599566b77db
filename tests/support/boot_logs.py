"""Boot logs as firmware, shim and GRUB write them, and as whoever sends them may change them: digests stay true."""

import hashlib
import struct
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from provisioning.attestation.eventlog import EventLog, parse_event_log, replay, verify_replay
from provisioning.attestation.eventtext_types import (
    EV_EFI_ACTION,
    EV_EFI_BOOT_SERVICES_APPLICATION,
    EV_EFI_VARIABLE_AUTHORITY,
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    EV_IPL,
    EV_NO_ACTION,
    EV_SEPARATOR,
)
from provisioning.attestation.quote import TpmState, VerifiedPcrs

BANKS = (("sha256", 0x000B, 32), ("sha384", 0x000C, 48))
GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
DATABASES = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
X509_LIST = "a5c059a1-94e4-4aa7-87b5-ab155c2bf072"
OWNER = UUID("77fa9abd-0359-4d32-bd60-28f4e78f784b").bytes_le
TPM = TpmState(reset_count=1, restart_count=0, clock=1000, safe=True, firmware_version=7)


@dataclass(frozen=True, slots=True)
class Entry:
    """One event. `measured` is what was hashed; `data` is what the log shows of it."""

    pcr: int
    kind: int
    data: bytes
    measured: bytes

    def digests(self) -> dict[str, bytes]:
        return {name: hashlib.new(name, self.measured).digest() for name, _, _ in BANKS}

    def shown(self, **changes: object) -> "Entry":
        """The same measurement, told otherwise: another type, other data. What it extended is what it was."""
        assert not changes.keys() & {"pcr", "measured"}
        return replace(self, **changes)


def entry(pcr: int, kind: int, data: bytes, measured: bytes | None = None) -> Entry:
    return Entry(pcr, kind, data, data if measured is None else measured)


def variable(name: str, value: bytes, guid: str = GLOBAL, behind: bytes = b"") -> bytes:
    """UEFI_VARIABLE_DATA."""
    header = UUID(guid).bytes_le + struct.pack("<QQ", len(name), len(value))
    return header + name.encode("utf-16-le") + value + behind


def signature_list(*certificates: bytes) -> bytes:
    listed = b""
    for der in certificates:
        size = len(OWNER) + len(der)
        listed += UUID(X509_LIST).bytes_le + struct.pack("<III", 28 + size, 0, size) + OWNER + der
    return listed


@cache
def signer(name: str) -> bytes:
    """A certificate of that subject, DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.COUNTRY_NAME, "XX")])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
    return (
        builder.not_valid_after(datetime(2040, 1, 1, tzinfo=UTC)).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    )


def config(name: str, value: bytes, guid: str = GLOBAL) -> Entry:
    return entry(7, EV_EFI_VARIABLE_DRIVER_CONFIG, variable(name, value, guid))


def authority(name: str, der: bytes, guid: str = DATABASES, *, owner: bytes = OWNER, behind: bytes = b"") -> Entry:
    """What vouched for an image. `behind`: bytes that shim logs, and measures all but the last of."""
    data = variable(name, owner + der, guid, behind)
    return entry(7, EV_EFI_VARIABLE_AUTHORITY, data, data[:-1] if behind else data)


def separator(pcr: int) -> Entry:
    return entry(pcr, EV_SEPARATOR, bytes(4))


def image(name: bytes) -> Entry:
    """An image that was started: the digest is over the image, the data names it."""
    return entry(4, EV_EFI_BOOT_SERVICES_APPLICATION, bytes(24) + struct.pack("<Q", 0), b"image of " + name)


def action(pcr: int, text: str) -> Entry:
    return entry(pcr, EV_EFI_ACTION, text.encode())


def grub(label: str, text: str, pcr: int = 8) -> Entry:
    """GRUB logs a label before the string, and measures the string."""
    return entry(pcr, EV_IPL, f"{label} {text}".encode() + b"\0", text.encode())


def stub(text: str, pcr: int = 12) -> Entry:
    return entry(pcr, EV_IPL, (text + "\0").encode("utf-16-le"))


LINE = "/boot/vmlinuz-6.1.0 root=UUID=12-ab ro quiet console=ttyS0,115200n8"


def booted(
    *,
    secure_boot: bytes = b"\x01",
    signers: tuple[Entry, ...] | None = None,
    images: tuple[bytes, ...] = (b"shim", b"grub"),
    lines: tuple[Entry, ...] | None = None,
) -> list[Entry]:
    """A boot with Secure Boot through shim and GRUB."""
    vouched = (authority("db", signer("Maker")), authority("Shim", signer("Distribution"), SHIM, owner=b""))
    commands = (
        grub("grub_cmd:", "set root=hd0,gpt1"),
        grub("grub_cmd:", f"linux {LINE}"),
        grub("kernel_cmdline:", LINE),
    )
    return [
        config("SecureBoot", secure_boot),
        config("PK", signature_list(signer("Platform"))),
        config("KEK", signature_list(signer("Exchange"))),
        config("db", signature_list(signer("Maker"), signer("Other maker")), DATABASES),
        config("dbx", b"", DATABASES),
        separator(7),
        action(4, "Calling EFI Application from Boot Option"),
        separator(4),
        *(image(name) for name in images),
        *(vouched if signers is None else signers),
        *(commands if lines is None else lines),
    ]


def log_of(entries: list[Entry]) -> bytes:
    """The log of these events, crypto-agile, in both banks."""
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBB", 0, 0, 2, 105, 2) + struct.pack("<I", len(BANKS))
    spec += b"".join(struct.pack("<HH", number, size) for _, number, size in BANKS) + b"\0"
    data = struct.pack("<II20sI", 0, EV_NO_ACTION, bytes(20), len(spec)) + spec
    for one in entries:
        digests = one.digests()
        data += struct.pack("<III", one.pcr, one.kind, len(BANKS))
        data += b"".join(struct.pack("<H", number) + digests[name] for name, number, _ in BANKS)
        data += struct.pack("<I", len(one.data)) + one.data
    return data


def quoted(entries: list[Entry], pcrs: tuple[int, ...], bank: str = "sha256") -> VerifiedPcrs:
    """The PCRs after these events."""
    values = replay(parse_event_log(log_of(entries)), bank)
    return VerifiedPcrs(bank, {pcr: values[pcr] for pcr in pcrs}, TPM)


def replayed(sent: list[Entry], pcrs: VerifiedPcrs) -> EventLog:
    """The log that was sent, once it replays: what every rule is behind."""
    log = parse_event_log(log_of(sent))
    verify_replay(log, pcrs.bank, pcrs.values)
    return log
