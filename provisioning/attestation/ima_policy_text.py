"""IMA's part of a policy as it is written: `[ima]`. A mistake names its field, which becomes a line (`policy_text`)."""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from provisioning.attestation.algorithms import DIGEST_BYTES, HASH_NAMES
from provisioning.attestation.ima_policy import FileDigest, ImaKey, ImaPolicy
from provisioning.attestation.keys import verify_allowed
from provisioning.attestation.policy_text import POLICY_MOST, demand
from provisioning.refusals import AlgorithmRefused, WeakKey
from wire.codec import Cap, MalformedMessage

KEY_ID_BYTES = 4
_SIZES = {size: HASH_NAMES[number] for number, size in DIGEST_BYTES.items()}
_FILE = re.compile(r"(?:(ima|verity):)?(?:([a-z0-9]+):)?([0-9a-fA-F]+)(?: [ *](\S.*))?")
_PEM = re.compile(r"-----BEGIN (CERTIFICATE|PUBLIC KEY)-----[^-]+-----END \1-----")
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, AlgorithmRefused, WeakKey)


@dataclass(frozen=True, slots=True)
class ImaText:
    """`[ima]`."""

    files: Annotated[str, Cap(POLICY_MOST)] = ""
    keys: Annotated[tuple[Annotated[str, Cap(16 * 1024)], ...], Cap(16)] = ()
    excludes: Annotated[tuple[Annotated[str, Cap(1024)], ...], Cap(256)] = ()
    boot_aggregate: Literal["check", "accept"] = "check"
    violations: Literal["refuse", "accept"] = "refuse"
    sha1_template: Literal["refuse", "accept"] = "refuse"


def ima_of(written: ImaText) -> ImaPolicy:
    """The policy's part about IMA. Raises: MalformedMessage."""
    files = _files(written.files)
    demand(bool(files or written.keys), "ima", "has neither files nor keys: nothing could pass")
    for number, pattern in enumerate(written.excludes):
        where = f"ima.excludes[{number}]"
        demand(pattern.count("*") <= 1, where, "has more than one *")
        named = pattern.startswith("/") or ("/" not in pattern and "*" not in pattern and pattern != "")
        demand(named, where, "is neither an absolute path nor the name of a buffer")
        demand(pattern.lstrip("/") != "*", where, "excludes everything")
    return ImaPolicy(
        files=MappingProxyType(files),
        keys=tuple(_key(f"ima.keys[{number}]", text) for number, text in enumerate(written.keys)),
        excludes=written.excludes,
        boot_aggregate=written.boot_aggregate,
        violations=written.violations,
        sha1_template=written.sha1_template,
    )


def _files(text: str) -> dict[FileDigest, frozenset[str] | None]:
    """By digest, what the file may be called; a line without a path is for any."""
    found: dict[FileDigest, set[str] | None] = {}
    for digest, path in _lines(text):
        paths = found.setdefault(digest, set())
        if path is None:
            found[digest] = None
        elif paths is not None:
            paths.add(path)
    return {digest: None if paths is None else frozenset(paths) for digest, paths in found.items()}


def _lines(text: str) -> Iterator[tuple[FileDigest, str | None]]:
    """Lines as `sha256sum` writes them, with kind and algorithm before the digest where they are others."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"its line {number}"
        matched = _FILE.fullmatch(line.rstrip())
        demand(matched is not None, "ima.files", f"in {where} has no digest, two spaces, and a path")
        kind, algorithm, digits, path = matched.groups() if matched is not None else ("", "", "", "")
        named = _SIZES.get(len(digits) // 2) if len(digits) % 2 == 0 else None
        demand(named is not None, "ima.files", f"in {where} has no digest of SHA-256, SHA-384 or SHA-512")
        demand(algorithm in (None, named), "ima.files", f"in {where} has no digest of {algorithm}")
        absolute = path is None or path.startswith("/") or "/" not in path
        demand(absolute, "ima.files", f"in {where} has a path that is not absolute")
        yield FileDigest(kind or "ima", named or "", bytes.fromhex(digits)), path


def _key(where: str, text: str) -> ImaKey:
    matched = _PEM.fullmatch(text.strip())
    demand(matched is not None, where, "is not one PEM certificate or public key")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the serial number of a certificate that is not judged here
            return _parsed_key(text.strip())
    except _UNREADABLE as error:
        raise MalformedMessage(where, f"is not usable: {error}") from error


def _parsed_key(text: str) -> ImaKey:
    """The key; a certificate only names one: nothing else of it counts, as in the kernel."""
    ids = set[bytes]()
    if text.startswith("-----BEGIN CERTIFICATE"):
        certificate = x509.load_pem_x509_certificate(text.encode())
        key = verify_allowed(certificate.public_key())
        try:
            named = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
            ids.add(named.value.digest[-KEY_ID_BYTES:])
        except x509.ExtensionNotFound:
            pass
    else:
        key = verify_allowed(load_pem_public_key(text.encode()))
    ids.add(x509.SubjectKeyIdentifier.from_public_key(key).digest[-KEY_ID_BYTES:])
    return ImaKey(key, frozenset(ids))
