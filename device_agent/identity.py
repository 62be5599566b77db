"""The device's key pairs on disk: `current`, and `next` while a rotation is under way.

A pair is one folder that is complete before anything names it; one pointer file names the folders. Replacing that
file is the swap: power lost at any moment leaves the old pair or the new one, and a folder that nothing names is
swept at the next start.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from device_agent import state
from device_agent.state import StateDamaged
from wire.codec import Cap
from wire.messages import Certificate, Identifier, MqttAddress

_KEY, _CHAIN, _DETAILS = "key.pem", "chain.pem", "details.json"
_FILE_MOST = 128 * 1024


@dataclass(frozen=True, slots=True)
class IdentityDetails:
    """What came with a certificate. `chain` runs from the issuing CA to the root, DER.

    `ek_kind` is the EK that the service knows this device by. `reply_to` is the rotate command that the pair answers,
    None after an enrollment.
    """

    device_id: Identifier
    certificate: Certificate
    chain: Annotated[tuple[Certificate, ...], Cap(4)]
    mqtt: MqttAddress
    renew_after: datetime
    ek_kind: Identifier
    reply_to: Identifier | None = None


@dataclass(frozen=True, slots=True)
class _Pointer:
    current: int | None = None
    next: int | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A key (TSS2 PEM, usable in this TPM only) and the certificate over it."""

    number: int
    key_pem: bytes
    key_file: Path
    chain_file: Path
    details: IdentityDetails

    @property
    def certificate(self) -> x509.Certificate:
        """The device's certificate."""
        return x509.load_der_x509_certificate(self.details.certificate)

    @property
    def is_quarantine(self) -> bool:
        """Is it only the way back? Its name says so."""
        names = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return any("/quarantine/" in uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier))

    @property
    def serial(self) -> str:
        """The certificate's serial number, lower hex."""
        return format(self.certificate.serial_number, "x")

    @property
    def spki(self) -> bytes:
        """The public key, DER."""
        return self.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


class IdentityStore:
    """The pairs under one folder. One agent at a time works on it (`agent.lock`)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pairs = directory / "pairs"
        self._pointer_file = directory / "pointer.json"

    def current(self) -> Pair | None:
        """The pair in use, None before enrollment. Raises: StateDamaged."""
        return self._load(self._pointer().current)

    def next(self) -> Pair | None:
        """The pair that a rotation brought and that is not in use yet. Raises: StateDamaged."""
        return self._load(self._pointer().next)

    def store_next(self, key_pem: bytes, details: IdentityDetails) -> Pair:
        """A new pair, complete and durable, named as next. One that was next before goes."""
        pointer = self._pointer()
        number = max([0, *self._numbers(), pointer.current or 0, pointer.next or 0]) + 1
        folder = self._pairs / str(number)
        state.private_folder(folder)
        state.atomic_write(folder / _KEY, key_pem)
        state.atomic_write(folder / _CHAIN, _pem_chain(details))
        state.write_value(folder / _DETAILS, details)
        state.write_value(self._pointer_file, _Pointer(pointer.current, number))
        self.sweep()
        pair = self._load(number)
        if pair is None:
            raise StateDamaged(f"{folder}: is gone")
        return pair

    def swap(self) -> Pair:
        """Next becomes current, in one rename. The old pair goes. Raises: StateDamaged where there is no next."""
        pointer = self._pointer()
        pair = self._load(pointer.next)
        if pair is None:
            raise StateDamaged(f"{self._pointer_file}: names no next pair")
        state.write_value(self._pointer_file, _Pointer(pair.number, None))
        self.sweep()
        return pair

    def discard_next(self) -> None:
        """Forgets a next pair that does not work."""
        state.write_value(self._pointer_file, _Pointer(self._pointer().current, None))
        self.sweep()

    def sweep(self) -> None:
        """Removes every folder that nothing names: what an interrupted step left."""
        pointer = self._pointer()
        for number in self._numbers():
            if number not in (pointer.current, pointer.next):
                state.remove_folder(self._pairs / str(number))

    def _pointer(self) -> _Pointer:
        return state.read_value(_Pointer, self._pointer_file, _FILE_MOST) or _Pointer()

    def _numbers(self) -> list[int]:
        if not self._pairs.is_dir():
            return []
        return [int(entry.name) for entry in self._pairs.iterdir() if entry.name.isdecimal()]

    def _load(self, number: int | None) -> Pair | None:
        if number is None:
            return None
        folder = self._pairs / str(number)
        key = state.read(folder / _KEY, _FILE_MOST)
        details = state.read_value(IdentityDetails, folder / _DETAILS, _FILE_MOST)
        if key is None or details is None or not (folder / _CHAIN).is_file():
            raise StateDamaged(f"{folder}: is incomplete: remove {self._directory} to enroll again")
        try:
            x509.load_der_x509_certificate(details.certificate)
        except ValueError as error:
            raise StateDamaged(
                f"{folder / _DETAILS}: holds no certificate: remove {self._directory} to enroll again"
            ) from error
        return Pair(number, key, folder / _KEY, folder / _CHAIN, details)


def _pem_chain(details: IdentityDetails) -> bytes:
    """Certificate and issuing CAs as TLS wants them; the root is the peer's own."""
    certificates = [x509.load_der_x509_certificate(der) for der in (details.certificate, *details.chain)]
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates if one.subject != one.issuer)
