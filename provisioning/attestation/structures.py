"""TPM structures as pure data: exact lengths, allow-listed algorithms, nothing behind the end.

Parsed means well-formed, never authentic. Layouts: TCG TPM 2.0 Library Specification, Part 2, Structures; the
clause stands at each parser. All integers are big-endian. What has the shape that nearly all have is read by `usual`.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from provisioning.attestation import usual
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
    P256,
    RSA,
    RSA_BITS,
    RSA_EXPONENT,
    RSAPSS,
    RSASSA,
    SHA256,
)
from provisioning.attestation.reader import Reader, Run
from provisioning.refusals import NotGeneratedByTpm, WrongAttestationType

_KNOWN_ATTRIBUTES = sum(ATTRIBUTE_NAMES)

GENERATED = 0xFF544347
"""TPM_GENERATED_VALUE (Part 2, 6.2): a TPM's restricted key signs it over nothing that came from outside."""
ATTEST_CERTIFY = 0x8017
ATTEST_QUOTE = 0x8018
_ATTEST_NAMES = {ATTEST_CERTIFY: "certify", ATTEST_QUOTE: "quote"}

MAX_DATA_BYTES = 2 + 64
"""TPM2B_DATA: at most a TPMT_HA (Part 2, 10.4.3), which for the hashes that count is SHA-512's."""
MAX_SELECT_BYTES = 4
_COORDINATE_MOST = max(CURVE_BYTES.values())
_MODULUS_MOST = max(RSA_BITS) // 8
_WELL_FORMED_SAFE = {0: False, 1: True}

_NAME_HEAD = Run({"type": "H", "nameAlg": "H"})
_PUBLIC_HEAD = Run({"nameAlg": "H", "objectAttributes": "I"})
_CIPHER = Run({"symmetric.keyBits": "H", "symmetric.mode": "H"})
_RSA_PARMS = Run({"keyBits": "H", "exponent": "I"})
_ECC_PARMS = Run({"curveID": "H", "kdf": "H"})
_ATTEST_HEAD = Run({"magic": "I", "type": "H"})
_CLOCK_AND_FIRMWARE = Run({"clockInfo": "QIIBQ"})
_SELECTION_HEAD = Run(
    {"attested.pcrSelect.count": "I", "attested.pcrSelect.hash": "H", "attested.pcrSelect.sizeofSelect": "B"}
)


@dataclass(frozen=True, slots=True)
class Scheme:
    """A signing scheme: algorithm and hash, as TPM_ALG_ID."""

    algorithm: int
    hash: int


_SCHEMES_OF = {RSA: frozenset({RSASSA, RSAPSS}), ECC: frozenset({ECDSA})}
_ALL_SCHEMES = frozenset[int]().union(*_SCHEMES_OF.values())
_SCHEMES = {(algorithm, digest): Scheme(algorithm, digest) for algorithm in _ALL_SCHEMES for digest in HASH_NAMES}
_ECDSA_SHA256 = _SCHEMES[ECDSA, SHA256]
_USUAL_KEYS = ((usual.SIGNING_KEY, _ECDSA_SHA256), (usual.KEY, None))


@dataclass(frozen=True, slots=True)
class RsaKey:
    """A modulus, as its big-endian bytes: exactly as many as its bits say."""

    modulus: bytes

    @property
    def bits(self) -> int:
        """The key size."""
        return len(self.modulus) * 8


class EccPoint(NamedTuple):
    """A point that claims to be on `curve` (TPM_ECC_CURVE), not checked here; x and y padded to the curve's size."""

    curve: int
    x: bytes
    y: bytes


class PublicArea(NamedTuple):
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


class Clock(NamedTuple):
    """TPMS_CLOCK_INFO. `clock` in milliseconds; `safe` False: the value may have been reported before (power cut)."""

    clock: int
    reset_count: int
    restart_count: int
    safe: bool


class QuotedPcrs(NamedTuple):
    """TPMS_QUOTE_INFO with exactly one bank."""

    bank: int
    pcrs: tuple[int, ...]
    digest: bytes


class CertifiedName(NamedTuple):
    """TPMS_CERTIFY_INFO."""

    name: bytes
    qualified_name: bytes


class QuoteAttest(NamedTuple):
    """What TPM2_Quote returns."""

    qualified_signer: bytes
    extra_data: bytes
    clock: Clock
    firmware_version: int
    quoted: QuotedPcrs


class CertifyAttest(NamedTuple):
    """What TPM2_Certify returns."""

    qualified_signer: bytes
    extra_data: bytes
    clock: Clock
    firmware_version: int
    certified: CertifiedName


Attest = QuoteAttest | CertifyAttest
"""A TPMS_ATTEST of the expected magic and type. Whether a TPM made it is the signature's matter."""


class Signature(NamedTuple):
    """A TPMT_SIGNATURE: RSA's bytes, or ECDSA's `(r, s)`."""

    scheme: Scheme
    value: bytes | tuple[int, int]


def parse_public(data: bytes) -> PublicArea:
    """Exactly one TPMT_PUBLIC of an RSA or ECC key (Part 2, 12.2.4). Raises: StructureMalformed, AlgorithmRefused."""
    for shape, scheme in _USUAL_KEYS:
        found = shape.read(data)
        if found is not None and not found[0] & ~_KNOWN_ATTRIBUTES:
            attributes, x, y = found
            return PublicArea(data, SHA256, attributes, b"", None, scheme, EccPoint(P256, x, y))
    return read_public(data)


def read_public(data: bytes) -> PublicArea:
    """`parse_public`, field by field."""
    reader = Reader(data, "TPMT_PUBLIC")
    kind = reader.u16("type")
    if kind not in _SCHEMES_OF:
        reader.refuse("type", "RSA or ECC", kind)
    name_alg, attributes = reader.run(_PUBLIC_HEAD)
    reader.demand_hash("nameAlg", name_alg)
    if attributes & ~_KNOWN_ATTRIBUTES:
        reader.malformed("objectAttributes", "no reserved bit", f"{attributes:#010x}")
    auth_policy = reader.sized("authPolicy", 64)
    if auth_policy and len(auth_policy) != DIGEST_BYTES[name_alg]:
        reader.malformed("authPolicy", "empty, or a digest of nameAlg", f"{len(auth_policy)} bytes")
    symmetric_bits = _symmetric_bits(reader)
    scheme = _scheme(reader, "scheme", _SCHEMES_OF[kind])
    key = _rsa_key(reader) if kind == RSA else _ecc_point(reader)
    reader.end()
    return PublicArea(data, name_alg, attributes, auth_policy, symmetric_bits, scheme, key)


def name_of(public: bytes) -> bytes:
    """The Name of a TPMT_PUBLIC: nameAlg ‖ H(public). Raises: StructureMalformed, AlgorithmRefused."""
    reader = Reader(public, "TPMT_PUBLIC")
    _, name_alg = reader.run(_NAME_HEAD)
    reader.demand_hash("nameAlg", name_alg)
    return public[2:4] + DIGEST[name_alg](public).digest()


def parse_quote(data: bytes) -> QuoteAttest:
    """Exactly one TPMS_ATTEST of a quote (Part 2, 10.12.12, 10.12.4).

    Raises: StructureMalformed, AlgorithmRefused, NotGeneratedByTpm, WrongAttestationType.
    """
    found = usual.QUOTE.read(data)
    if found is not None and (safe := _WELL_FORMED_SAFE.get(found[5])) is not None:
        signer, extra, clock, resets, restarts, _, firmware, select, digest = found
        quoted = QuotedPcrs(SHA256, _pcrs_of(int.from_bytes(select, "little")), digest)
        return QuoteAttest(signer, extra, Clock(clock, resets, restarts, safe), firmware, quoted)
    return read_quote(data)


def read_quote(data: bytes) -> QuoteAttest:
    """`parse_quote`, field by field."""
    reader = Reader(data, "TPMS_ATTEST")
    signer, extra, clock, firmware = _attest_header(reader, ATTEST_QUOTE)
    banks, bank, size = reader.run(_SELECTION_HEAD)
    if banks != 1:
        reader.malformed("attested.pcrSelect", "one bank", f"{banks}")
    reader.demand_hash("attested.pcrSelect.hash", bank)
    pcrs = _selected(reader, size)
    digest = reader.sized("attested.pcrDigest", 64)
    reader.end()
    return QuoteAttest(signer, extra, clock, firmware, QuotedPcrs(bank, pcrs, digest))


def parse_certify(data: bytes) -> CertifyAttest:
    """Exactly one TPMS_ATTEST of a certification (Part 2, 10.12.12, 10.12.3).

    Raises: StructureMalformed, NotGeneratedByTpm, WrongAttestationType.
    """
    found = usual.CERTIFY.read(data)
    if found is not None and (safe := _WELL_FORMED_SAFE.get(found[5])) is not None:
        signer, extra, clock, resets, restarts, _, firmware, name, qualified = found
        certified = CertifiedName(name, qualified)
        return CertifyAttest(signer, extra, Clock(clock, resets, restarts, safe), firmware, certified)
    return read_certify(data)


def read_certify(data: bytes) -> CertifyAttest:
    """`parse_certify`, field by field."""
    reader = Reader(data, "TPMS_ATTEST")
    signer, extra, clock, firmware = _attest_header(reader, ATTEST_CERTIFY)
    name = reader.sized("attested.name", 2 + 64)
    qualified_name = reader.sized("attested.qualifiedName", 2 + 64)
    reader.end()
    return CertifyAttest(signer, extra, clock, firmware, CertifiedName(name, qualified_name))


def parse_signature(data: bytes) -> Signature:
    """Exactly one TPMT_SIGNATURE (Part 2, 11.3.4). Raises: StructureMalformed, AlgorithmRefused."""
    if found := usual.SIGNATURE.read(data):
        return Signature(_ECDSA_SHA256, (int.from_bytes(found[0], "big"), int.from_bytes(found[1], "big")))
    return read_signature(data)


def read_signature(data: bytes) -> Signature:
    """`parse_signature`, field by field."""
    reader = Reader(data, "TPMT_SIGNATURE")
    scheme = _scheme(reader, "sigAlg", _ALL_SCHEMES)
    if scheme is None:
        reader.refuse("sigAlg", "RSASSA, RSAPSS or ECDSA", NULL)
    value: bytes | tuple[int, int]
    if scheme.algorithm == ECDSA:
        value = (
            int.from_bytes(reader.sized("signatureR", _COORDINATE_MOST), "big"),
            int.from_bytes(reader.sized("signatureS", _COORDINATE_MOST), "big"),
        )
    else:
        value = reader.sized("sig", _MODULUS_MOST)
    reader.end()
    return Signature(scheme, value)


def _attest_header(reader: Reader, expected: int) -> tuple[bytes, bytes, Clock, int]:
    """Check 9: magic AND type, before anything behind them is read."""
    magic, kind = reader.run(_ATTEST_HEAD)
    if magic != GENERATED:
        raise NotGeneratedByTpm(expected=f"{GENERATED:#010x}", actual=f"{magic:#010x}")
    if kind != expected:
        actual = _ATTEST_NAMES.get(kind, "another")
        raise WrongAttestationType(
            expected=f"{expected:#06x} {_ATTEST_NAMES[expected]}", actual=f"{kind:#06x} {actual}"
        )
    signer = reader.sized("qualifiedSigner", 2 + 64)
    extra = reader.sized("extraData", MAX_DATA_BYTES)
    clock, resets, restarts, safe, firmware = reader.run(_CLOCK_AND_FIRMWARE)
    if safe not in _WELL_FORMED_SAFE:
        reader.malformed("clockInfo.safe", "0 or 1", str(safe))
    return signer, extra, Clock(clock, resets, restarts, _WELL_FORMED_SAFE[safe]), firmware


def _selected(reader: Reader, size: int) -> tuple[int, ...]:
    """TPMS_PCR_SELECT, behind its size."""
    if size > MAX_SELECT_BYTES:
        reader.malformed("attested.pcrSelect.sizeofSelect", f"at most {MAX_SELECT_BYTES}", str(size))
    bits = int.from_bytes(reader.take(size, "attested.pcrSelect"), "little")
    if bits >> (MAX_PCR + 1):
        reader.malformed("attested.pcrSelect", f"PCRs 0 to {MAX_PCR}", f"{bits:#x}")
    return _pcrs_of(bits)


@lru_cache(maxsize=256)  # a fleet has as many selections as policies
def _pcrs_of(bits: int) -> tuple[int, ...]:
    """Bit n of octet m is PCR 8m + n (Part 2, 10.6.1)."""
    return tuple(pcr for pcr in range(MAX_PCR + 1) if bits >> pcr & 1)


def _symmetric_bits(reader: Reader) -> int | None:
    """TPMT_SYM_DEF_OBJECT: NULL, or AES in CFB mode (Part 2, 11.1.7)."""
    algorithm = reader.u16("symmetric")
    if algorithm == NULL:
        return None
    if algorithm != AES:
        reader.refuse("symmetric", "AES or NULL", algorithm)
    bits, mode = reader.run(_CIPHER)
    if bits not in (128, 256) or mode != CFB:
        reader.refuse("symmetric", "AES-128 or AES-256 in CFB mode", f"{bits} bits, mode {mode:#06x}")
    return bits


def _scheme(reader: Reader, field: str, allowed: frozenset[int]) -> Scheme | None:
    algorithm = reader.u16(field)
    if algorithm == NULL:
        return None
    if algorithm not in allowed:
        reader.refuse(field, "a scheme of the allow-list", algorithm)
    digest = reader.u16(f"{field}.hash")
    reader.demand_hash(f"{field}.hash", digest)
    return _SCHEMES[algorithm, digest]


def _rsa_key(reader: Reader) -> RsaKey:
    """TPMS_RSA_PARMS' tail and TPM2B_PUBLIC_KEY_RSA (Part 2, 12.2.3.5, 11.2.4.5)."""
    bits, exponent = reader.run(_RSA_PARMS)
    if bits not in RSA_BITS:
        reader.refuse("keyBits", "2048, 3072 or 4096", str(bits))
    if exponent not in (0, RSA_EXPONENT):
        reader.refuse("exponent", f"0 or {RSA_EXPONENT}", str(exponent))
    modulus = reader.sized("unique", bits // 8)
    if len(modulus) != bits // 8 or not modulus[0] & 0x80 or not modulus[-1] & 1:
        reader.malformed("unique", f"an odd modulus of {bits} bits", f"{len(modulus)} bytes")
    return RsaKey(modulus)


def _ecc_point(reader: Reader) -> EccPoint:
    """TPMS_ECC_PARMS' tail and TPMS_ECC_POINT (Part 2, 12.2.3.6, 11.2.5.2)."""
    curve, kdf = reader.run(_ECC_PARMS)
    if curve not in CURVE_BYTES:
        reader.refuse("curveID", "P-256 or P-384", curve)
    if kdf != NULL:
        reader.refuse("kdf", "NULL", kdf)
    size = CURVE_BYTES[curve]
    return EccPoint(
        curve, reader.sized("unique.x", size).rjust(size, b"\0"), reader.sized("unique.y", size).rjust(size, b"\0")
    )
