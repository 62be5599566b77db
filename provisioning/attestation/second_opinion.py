"""A quote in tpm2-tools' files, judged by the verifier's own functions, with what stays unproven said.

Outside of the protocol: no challenge of ours, so no binding and no activation. The files are those that
`tpm2_createak`, `tpm2_readpublic` and `tpm2_quote` write and `tpm2_checkquote` reads (lib/pcr.c, lib/tpm2_convert.c
there): TPM2B_PUBLIC, TPMT_PUBLIC or PEM; TPMS_ATTEST; TPMT_SIGNATURE or the bare signature; PCR values as C structures
in little-endian, or bare.
"""

import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from provisioning.attestation.algorithms import DIGEST, DIGEST_BYTES, ECDSA, HASH_NAMES, RSAPSS, RSASSA
from provisioning.attestation.attestation_key import AttestationKey, verify_attestation_key
from provisioning.attestation.keys import PublicKey, verify_allowed, verify_signature
from provisioning.attestation.structures import QuoteAttest, QuotedPcrs, Scheme, Signature, parse_quote, parse_signature
from provisioning.refusals import (
    AnswersAnotherChallenge,
    PcrSelectionWrong,
    PcrValuesNotQuoted,
    SignatureWrong,
    StructureMalformed,
)

FILE_MOST = 16 * 1024
_PEM = b"-----BEGIN "
_DER_SEQUENCE = b"\x30"
_SELECTIONS = 16
_SELECTION = struct.Struct("<HB4sx")
_SELECT_MOST = 4
_DIGESTS = 8
_SLOT = struct.Struct("<H64s")


@dataclass(frozen=True, slots=True)
class QuoteOpinion:
    """A quote whose signature is good. `values` is empty where no PCR file was given.

    `proven` and `not_proven` are sentences for the person who asked.
    """

    ak: AttestationKey | None
    scheme: Scheme
    quote: QuoteAttest
    values: Mapping[int, bytes]
    proven: tuple[str, ...]
    not_proven: tuple[str, ...]

    @property
    def bank(self) -> str:
        """The bank of the quoted PCRs."""
        return HASH_NAMES[self.quote.quoted.bank]


def verify_tool_quote(
    ak: bytes, message: bytes, signature: bytes, qualification: bytes | None, pcrs: bytes | None
) -> QuoteOpinion:
    """Is this quote authentic, as far as these files can say? See `QuoteOpinion.not_proven` for how far.

    Raises: StructureMalformed, AlgorithmRefused, WeakKey, AkAttributesRefused, NotGeneratedByTpm,
    WrongAttestationType, SignatureWrong, AnswersAnotherChallenge, PcrSelectionWrong, PcrValuesNotQuoted.
    """
    for name, data in (("AK", ak), ("message", message), ("signature", signature), ("PCR file", pcrs or b"")):
        if len(data) > FILE_MOST:
            raise StructureMalformed(expected=f"{name}: at most {FILE_MOST} bytes", actual=f"{len(data)} bytes")
    key, attested = parse_ak(ak)
    # (9) a quote, made by a TPM
    quote = parse_quote(message)
    # (10) signed by the AK
    scheme = _verify_signature(key, attested, quote, signature, message)
    # (11) for this qualification
    if qualification is not None and not hmac.compare_digest(qualification, quote.extra_data):
        raise AnswersAnotherChallenge(expected=qualification, actual=quote.extra_data)
    # (12) over these values
    values = {} if pcrs is None else parse_pcr_values(pcrs, quote.quoted)
    if pcrs is not None:
        digest = DIGEST[scheme.hash](b"".join(values.values())).digest()
        if digest != quote.quoted.digest:
            raise PcrValuesNotQuoted(expected=quote.quoted.digest, actual=digest)
    proven, not_proven = _said(attested, quote, qualification, values)
    return QuoteOpinion(attested, scheme, quote, values, proven, not_proven)


def parse_ak(data: bytes) -> tuple[PublicKey, AttestationKey | None]:
    """An AK out of PEM (then nothing is known of its attributes), TPM2B_PUBLIC or TPMT_PUBLIC.

    Raises: StructureMalformed, AlgorithmRefused, WeakKey, AkAttributesRefused.
    """
    if data.lstrip().startswith(_PEM):
        try:
            return verify_allowed(load_pem_public_key(data)), None
        except (ValueError, UnsupportedAlgorithm) as error:
            raise StructureMalformed(expected="a public key in PEM", actual=str(error)) from error
    sized = len(data) > 2 and int.from_bytes(data[:2], "big") == len(data) - 2  # noqa: PLR2004  a size of two bytes
    ak = verify_attestation_key(data[2:] if sized else data)
    return ak.key, ak


def parse_pcr_values(data: bytes, quoted: QuotedPcrs) -> dict[int, bytes]:
    """The values of exactly the quoted PCRs, in their order. Raises: PcrSelectionWrong, PcrValuesNotQuoted."""
    size = DIGEST_BYTES[quoted.bank]
    if len(data) == size * len(quoted.pcrs):
        values = [data[at : at + size] for at in range(0, len(data), size)]
        return dict(zip(quoted.pcrs, values, strict=True))
    bank, pcrs, values = _serialised(data)
    if bank != quoted.bank or pcrs != quoted.pcrs:
        expected, actual = _shown(quoted.bank, quoted.pcrs), _shown(bank, pcrs)
        raise PcrSelectionWrong(expected=expected, actual=actual)
    if len(values) != len(pcrs) or any(len(value) != size for value in values):
        actual = f"{len(values)} of {sorted({len(value) for value in values})} bytes"
        raise PcrValuesNotQuoted(expected=f"{len(pcrs)} values of {size} bytes", actual=actual)
    return dict(zip(pcrs, values, strict=True))


def _serialised(data: bytes) -> tuple[int, tuple[int, ...], list[bytes]]:
    """TPML_PCR_SELECTION, a count, and so many TPML_DIGEST of eight slots."""
    lists_at = 4 + _SELECTIONS * _SELECTION.size
    list_bytes = 4 + _DIGESTS * _SLOT.size
    count = int.from_bytes(data[lists_at : lists_at + 4], "little")
    if len(data) != lists_at + 4 + count * list_bytes:
        raise PcrValuesNotQuoted(expected="a file of tpm2_quote -o, or the bare values", actual=f"{len(data)} bytes")
    selections = int.from_bytes(data[:4], "little")
    if selections != 1:
        raise PcrSelectionWrong(expected="one bank", actual=f"{selections}")
    bank, select_bytes, bitmap = _SELECTION.unpack_from(data, 4)
    bits = int.from_bytes(bitmap[: min(select_bytes, _SELECT_MOST)], "little")
    pcrs = tuple(pcr for pcr in range(8 * _SELECT_MOST) if bits >> pcr & 1)
    values = []
    for number in range(count):
        at = lists_at + 4 + number * list_bytes
        held = int.from_bytes(data[at : at + 4], "little")
        if held > _DIGESTS:
            raise PcrValuesNotQuoted(expected=f"at most {_DIGESTS} values a list", actual=f"{held}")
        for slot in range(held):
            size, value = _SLOT.unpack_from(data, at + 4 + slot * _SLOT.size)
            values.append(value[:size])
    return bank, pcrs, values


def _verify_signature(
    key: PublicKey, ak: AttestationKey | None, quote: QuoteAttest, data: bytes, message: bytes
) -> Scheme:
    """The scheme in which the signature is good: the key's own; where only the key is known, an allow-listed one."""
    signatures = _signatures(key, ak, quote, data)
    for signature in signatures[:-1]:
        try:
            verify_signature(key, signature.scheme, signature, message)
        except SignatureWrong:
            continue
        return signature.scheme
    last = signatures[-1]
    verify_signature(key, last.scheme if ak is None else ak.scheme, last, message)
    return last.scheme


def _signatures(key: PublicKey, ak: AttestationKey | None, quote: QuoteAttest, data: bytes) -> list[Signature]:
    """What the file can mean. A bare signature names no scheme: RSA has two."""
    is_rsa = isinstance(key, rsa.RSAPublicKey)
    bare = len(data) == key.key_size // 8 if is_rsa else data[:1] == _DER_SEQUENCE
    if not bare:
        return [parse_signature(data)]
    if ak is not None:
        schemes = [ak.scheme]
    else:
        # The quote's digest is by the hash of the signing scheme (Part 3, 18.4).
        hashes = [number for number, size in DIGEST_BYTES.items() if size == len(quote.quoted.digest)]
        if not hashes:
            raise StructureMalformed(expected="a digest of SHA-256, SHA-384 or SHA-512", actual=quote.quoted.digest)
        schemes = [Scheme(one, hashes[0]) for one in ((RSASSA, RSAPSS) if is_rsa else (ECDSA,))]
    if is_rsa:
        return [Signature(scheme, data) for scheme in schemes]
    try:
        return [Signature(scheme, decode_dss_signature(data)) for scheme in schemes]
    except ValueError as error:
        raise StructureMalformed(expected="an ECDSA signature in DER", actual=f"{len(data)} bytes") from error


def _said(
    ak: AttestationKey | None, quote: QuoteAttest, qualification: bytes | None, values: Mapping[int, bytes]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    proven = ["The message is a quote (TPM_GENERATED, type 0x8018), and this key signed these very bytes."]
    missing = ["That a TPM holds the key: only opening a credential shows it (tpm2_makecredential, enrollment)."]
    if ak is None:
        missing.append("That the key is restricted: PEM says nothing of it. An unrestricted key signs forged quotes.")
    else:
        proven.append(
            "The key's public area says restricted, fixedTPM, fixedParent: so made, it signs no forged quote."
        )
        if quote.qualified_signer == ak.qualified_name:
            proven.append(
                "The key is a primary key of the endorsement hierarchy: clock and firmware version are plain."
            )
        else:
            missing.append("That the key is an endorsement primary: clock and firmware version may be obfuscated.")
    if qualification is None:
        missing.append("That the quote is fresh: no qualification was given. Compare the shown one with your nonce.")
    else:
        proven.append("The quote answers the given qualification.")
    if values:
        proven.append("The values of the file are the quoted PCRs.")
    else:
        missing.append("What the PCRs held: no values were given, and the quote has their digest alone.")
    missing.append("That what booted is acceptable: replay the boot log (muster attest log) and judge by a policy.")
    return tuple(proven), tuple(missing)


def _shown(bank: int, pcrs: tuple[int, ...]) -> str:
    return f"{HASH_NAMES.get(bank, f'{bank:#06x}')} {', '.join(map(str, pcrs)) or 'none'}"
