"""TPM structures as pure data: exact lengths, allow-listed algorithms, nothing behind the end.

Parsed means well-formed, never authentic. Layouts: TCG TPM 2.0 Library Specification, Part 2, Structures; the
clause stands at each parser. All integers are big-endian.
"""

import struct
from dataclasses import dataclass
from typing import NoReturn

from provisioning.attestation.algorithms import (
    AES,
    ATTRIBUTE_NAMES,
    CFB,
    CURVE_BYTES,
    DIGEST,
    DIGEST_BYTES,
    ECC,
    ECDSA,
    HASH_NAMES,
    MAX_PCR,
    NULL,
    RSA,
    RSA_BITS,
    RSA_EXPONENT,
    RSAPSS,
    RSASSA,
)
from provisioning.refusals import AlgorithmRefused, NotGeneratedByTpm, StructureMalformed, WrongAttestationType

_KNOWN_ATTRIBUTES = sum(ATTRIBUTE_NAMES)

GENERATED = 0xFF544347
"""TPM_GENERATED_VALUE (Part 2, 6.2): a TPM's restricted key signs it over nothing that came from outside."""
ATTEST_CERTIFY = 0x8017
ATTEST_QUOTE = 0x8018
_ATTEST_NAMES = {ATTEST_CERTIFY: "certify", ATTEST_QUOTE: "quote"}

MAX_DATA_BYTES = 2 + 64
"""TPM2B_DATA: at most a TPMT_HA (Part 2, 10.4.3), which for the hashes that count is SHA-512's."""
MAX_SELECT_BYTES = 4
_WELL_FORMED_SAFE = {0: False, 1: True}


@dataclass(frozen=True, slots=True)
class Scheme:
    """A signing scheme: algorithm and hash, as TPM_ALG_ID."""

    algorithm: int
    hash: int


@dataclass(frozen=True, slots=True)
class RsaKey:
    """A modulus, as its big-endian bytes: exactly as many as its bits say."""

    modulus: bytes

    @property
    def bits(self) -> int:
        """The key size."""
        return len(self.modulus) * 8


@dataclass(frozen=True, slots=True)
class EccPoint:
    """A point that claims to be on `curve` (TPM_ECC_CURVE), not checked here; x and y padded to the curve's size."""

    curve: int
    x: bytes
    y: bytes


@dataclass(frozen=True, slots=True)
class PublicArea:
    """A TPMT_PUBLIC of an asymmetric key. `symmetric_bits` is the AES-CFB key size of a storage key, None without."""

    raw: bytes
    name_alg: int
    attributes: int
    auth_policy: bytes
    symmetric_bits: int | None
    scheme: Scheme | None
    key: RsaKey | EccPoint

    @property
    def name(self) -> bytes:
        """The object's Name: nameAlg ‖ H(public area) (Part 1, 16)."""
        return self.raw[2:4] + DIGEST[self.name_alg](self.raw).digest()


@dataclass(frozen=True, slots=True)
class Clock:
    """TPMS_CLOCK_INFO. `clock` in milliseconds; `safe` False: the value may have been reported before (power cut)."""

    clock: int
    reset_count: int
    restart_count: int
    safe: bool


@dataclass(frozen=True, slots=True)
class QuotedPcrs:
    """TPMS_QUOTE_INFO with exactly one bank."""

    bank: int
    pcrs: tuple[int, ...]
    digest: bytes


@dataclass(frozen=True, slots=True)
class CertifiedName:
    """TPMS_CERTIFY_INFO."""

    name: bytes
    qualified_name: bytes


@dataclass(frozen=True, slots=True)
class Attest:
    """A TPMS_ATTEST of the expected magic and type. Whether a TPM made it is the signature's matter."""

    qualified_signer: bytes
    extra_data: bytes
    clock: Clock
    firmware_version: int


@dataclass(frozen=True, slots=True)
class QuoteAttest(Attest):
    """What TPM2_Quote returns."""

    quoted: QuotedPcrs


@dataclass(frozen=True, slots=True)
class CertifyAttest(Attest):
    """What TPM2_Certify returns."""

    certified: CertifiedName


@dataclass(frozen=True, slots=True)
class Signature:
    """A TPMT_SIGNATURE: RSA's bytes, or ECDSA's `(r, s)`."""

    scheme: Scheme
    value: bytes | tuple[int, int]


def parse_public(data: bytes) -> PublicArea:
    """Exactly one TPMT_PUBLIC of an RSA or ECC key (Part 2, 12.2.4). Raises: StructureMalformed, AlgorithmRefused."""
    reader = _Reader(data, "TPMT_PUBLIC")
    kind = reader.u16("type")
    if kind not in (RSA, ECC):
        reader.refuse("type", "RSA or ECC", kind)
    name_alg = reader.hash("nameAlg")
    attributes = reader.u32("objectAttributes")
    if attributes & ~_KNOWN_ATTRIBUTES:
        reader.malformed("objectAttributes", "no reserved bit", f"{attributes:#010x}")
    auth_policy = reader.sized("authPolicy", 64)
    if len(auth_policy) not in (0, DIGEST_BYTES[name_alg]):
        reader.malformed("authPolicy", "empty, or a digest of nameAlg", f"{len(auth_policy)} bytes")
    symmetric_bits = _symmetric_bits(reader)
    scheme = _scheme(reader, "scheme", frozenset({RSASSA, RSAPSS} if kind == RSA else {ECDSA}))
    key = _rsa_key(reader) if kind == RSA else _ecc_point(reader)
    reader.end()
    return PublicArea(data, name_alg, attributes, auth_policy, symmetric_bits, scheme, key)


def name_of(public: bytes) -> bytes:
    """The Name of a TPMT_PUBLIC: nameAlg ‖ H(public). Raises: StructureMalformed, AlgorithmRefused."""
    reader = _Reader(public, "TPMT_PUBLIC")
    reader.u16("type")
    name_alg = reader.hash("nameAlg")
    return public[2:4] + DIGEST[name_alg](public).digest()


def parse_quote(data: bytes) -> QuoteAttest:
    """Exactly one TPMS_ATTEST of a quote (Part 2, 10.12.12, 10.12.4).

    Raises: StructureMalformed, AlgorithmRefused, NotGeneratedByTpm, WrongAttestationType.
    """
    reader = _Reader(data, "TPMS_ATTEST")
    signer, extra, clock, firmware = _attest_header(reader, ATTEST_QUOTE)
    banks = reader.u32("attested.pcrSelect.count")
    if banks != 1:
        reader.malformed("attested.pcrSelect", "one bank", f"{banks}")
    bank = reader.hash("attested.pcrSelect.hash")
    pcrs = _selected(reader)
    digest = reader.sized("attested.pcrDigest", 64)
    reader.end()
    return QuoteAttest(signer, extra, clock, firmware, QuotedPcrs(bank, pcrs, digest))


def parse_certify(data: bytes) -> CertifyAttest:
    """Exactly one TPMS_ATTEST of a certification (Part 2, 10.12.12, 10.12.3).

    Raises: StructureMalformed, NotGeneratedByTpm, WrongAttestationType.
    """
    reader = _Reader(data, "TPMS_ATTEST")
    signer, extra, clock, firmware = _attest_header(reader, ATTEST_CERTIFY)
    name = reader.sized("attested.name", 2 + 64)
    qualified_name = reader.sized("attested.qualifiedName", 2 + 64)
    reader.end()
    return CertifyAttest(signer, extra, clock, firmware, CertifiedName(name, qualified_name))


def parse_signature(data: bytes) -> Signature:
    """Exactly one TPMT_SIGNATURE (Part 2, 11.3.4). Raises: StructureMalformed, AlgorithmRefused."""
    reader = _Reader(data, "TPMT_SIGNATURE")
    scheme = _scheme(reader, "sigAlg", frozenset({RSASSA, RSAPSS, ECDSA}))
    if scheme is None:
        reader.refuse("sigAlg", "RSASSA, RSAPSS or ECDSA", NULL)
    value: bytes | tuple[int, int]
    if scheme.algorithm == ECDSA:
        most = max(CURVE_BYTES.values())
        value = (
            int.from_bytes(reader.sized("signatureR", most), "big"),
            int.from_bytes(reader.sized("signatureS", most), "big"),
        )
    else:
        value = reader.sized("sig", max(RSA_BITS) // 8)
    reader.end()
    return Signature(scheme, value)


def _attest_header(reader: "_Reader", expected: int) -> tuple[bytes, bytes, Clock, int]:
    """Check 9: magic AND type, before anything behind them is read."""
    magic = reader.u32("magic")
    if magic != GENERATED:
        raise NotGeneratedByTpm(expected=f"{GENERATED:#010x}", actual=f"{magic:#010x}")
    kind = reader.u16("type")
    if kind != expected:
        actual = _ATTEST_NAMES.get(kind, "another")
        raise WrongAttestationType(
            expected=f"{expected:#06x} {_ATTEST_NAMES[expected]}", actual=f"{kind:#06x} {actual}"
        )
    signer = reader.sized("qualifiedSigner", 2 + 64)
    extra = reader.sized("extraData", MAX_DATA_BYTES)
    clock, resets, restarts, safe, firmware = reader.unpack(_CLOCK_AND_FIRMWARE, "clockInfo")
    if safe not in _WELL_FORMED_SAFE:
        reader.malformed("clockInfo.safe", "0 or 1", str(safe))
    return signer, extra, Clock(clock, resets, restarts, _WELL_FORMED_SAFE[safe]), firmware


def _selected(reader: "_Reader") -> tuple[int, ...]:
    """TPMS_PCR_SELECT: bit n of octet m is PCR 8m + n (Part 2, 10.6.1)."""
    size = reader.u8("attested.pcrSelect.sizeofSelect")
    if size > MAX_SELECT_BYTES:
        reader.malformed("attested.pcrSelect.sizeofSelect", f"at most {MAX_SELECT_BYTES}", str(size))
    bits = int.from_bytes(reader.take(size, "attested.pcrSelect"), "little")
    if bits >> (MAX_PCR + 1):
        reader.malformed("attested.pcrSelect", f"PCRs 0 to {MAX_PCR}", f"{bits:#x}")
    return tuple(pcr for pcr in range(MAX_PCR + 1) if bits >> pcr & 1)


def _symmetric_bits(reader: "_Reader") -> int | None:
    """TPMT_SYM_DEF_OBJECT: NULL, or AES in CFB mode (Part 2, 11.1.7)."""
    algorithm = reader.u16("symmetric")
    if algorithm == NULL:
        return None
    if algorithm != AES:
        reader.refuse("symmetric", "AES or NULL", algorithm)
    bits = reader.u16("symmetric.keyBits")
    mode = reader.u16("symmetric.mode")
    if bits not in (128, 256) or mode != CFB:
        reader.refuse("symmetric", "AES-128 or AES-256 in CFB mode", f"{bits} bits, mode {mode:#06x}")
    return bits


def _scheme(reader: "_Reader", field: str, allowed: frozenset[int]) -> Scheme | None:
    algorithm = reader.u16(field)
    if algorithm == NULL:
        return None
    if algorithm not in allowed:
        reader.refuse(field, "a scheme of the allow-list", algorithm)
    return Scheme(algorithm, reader.hash(f"{field}.hash"))


def _rsa_key(reader: "_Reader") -> RsaKey:
    """TPMS_RSA_PARMS' tail and TPM2B_PUBLIC_KEY_RSA (Part 2, 12.2.3.5, 11.2.4.5)."""
    bits = reader.u16("keyBits")
    if bits not in RSA_BITS:
        reader.refuse("keyBits", "2048, 3072 or 4096", str(bits))
    exponent = reader.u32("exponent")
    if exponent not in (0, RSA_EXPONENT):
        reader.refuse("exponent", f"0 or {RSA_EXPONENT}", str(exponent))
    modulus = reader.sized("unique", bits // 8)
    if len(modulus) != bits // 8 or not modulus[0] & 0x80 or not modulus[-1] & 1:
        reader.malformed("unique", f"an odd modulus of {bits} bits", f"{len(modulus)} bytes")
    return RsaKey(modulus)


def _ecc_point(reader: "_Reader") -> EccPoint:
    """TPMS_ECC_PARMS' tail and TPMS_ECC_POINT (Part 2, 12.2.3.6, 11.2.5.2)."""
    curve = reader.u16("curveID")
    if curve not in CURVE_BYTES:
        reader.refuse("curveID", "P-256 or P-384", curve)
    kdf = reader.u16("kdf")
    if kdf != NULL:
        reader.refuse("kdf", "NULL", kdf)
    size = CURVE_BYTES[curve]
    return EccPoint(
        curve, reader.sized("unique.x", size).rjust(size, b"\0"), reader.sized("unique.y", size).rjust(size, b"\0")
    )


_U8 = struct.Struct(">B")
_U32 = struct.Struct(">I")
_CLOCK_AND_FIRMWARE = struct.Struct(">QIIBQ")


class _Reader:
    """A cursor that refuses to read past the end, and says in which field of which structure."""

    __slots__ = ("_at", "_data", "_structure")

    def __init__(self, data: bytes, structure: str) -> None:
        self._data = data
        self._structure = structure
        self._at = 0

    def unpack(self, layout: struct.Struct, field: str) -> tuple[int, ...]:
        try:
            values: tuple[int, ...] = layout.unpack_from(self._data, self._at)
        except struct.error:
            self.malformed(field, f"{layout.size} bytes", f"{len(self._data) - self._at}")
        self._at += layout.size
        return values

    def u8(self, field: str) -> int:
        return self.unpack(_U8, field)[0]

    def u16(self, field: str) -> int:
        # The hot one: half a verification's time outside of signatures is spent in reading sizes and algorithms.
        piece = self._data[self._at : self._at + 2]
        if len(piece) != 2:  # noqa: PLR2004  two octets
            self.malformed(field, "2 bytes", f"{len(piece)}")
        self._at += 2
        return int.from_bytes(piece, "big")

    def u32(self, field: str) -> int:
        return self.unpack(_U32, field)[0]

    def take(self, size: int, field: str) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) != size:
            self.malformed(field, f"{size} bytes", f"{len(piece)}")
        self._at += size
        return piece

    def sized(self, field: str, most: int) -> bytes:
        """A TPM2B: two bytes of size, then so many bytes."""
        size = self.u16(field)
        if size > most:
            self.malformed(field, f"at most {most} bytes", f"{size}")
        return self.take(size, field)

    def hash(self, field: str) -> int:
        algorithm = self.u16(field)
        if algorithm not in HASH_NAMES:
            self.refuse(field, "SHA-256, SHA-384 or SHA-512", algorithm)
        return algorithm

    def end(self) -> None:
        if self._at != len(self._data):
            self.malformed("end", "no more bytes", f"{len(self._data) - self._at} bytes")

    def malformed(self, field: str, expected: str, actual: str) -> NoReturn:
        raise StructureMalformed(expected=f"{self._structure}.{field}: {expected}", actual=actual)

    def refuse(self, field: str, expected: str, actual: int | str) -> NoReturn:
        shown = actual if isinstance(actual, str) else f"{actual:#06x}"
        raise AlgorithmRefused(expected=f"{self._structure}.{field}: {expected}", actual=shown)
