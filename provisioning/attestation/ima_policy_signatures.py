"""Signatures of files in an IMA log: by one of the policy's keys, over the very digest that was measured.

The kernel's security/integrity/digsig_asymmetric.c and ima_appraise.c. Version 2 signs the file's digest. Version 3
signs the hash of struct ima_file_id: the type of the signature, the hash's number, the digest; so a digest of one
kind never passes for another.
"""

import hashlib
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from provisioning.attestation.eventtext_reading import MalformedData
from provisioning.attestation.ima_fields import signature_of
from provisioning.attestation.ima_policy import FileDigest, ImaKey

VERIFIED_MOST = 8192
"""Answers that are kept: devices of one model run the same files."""
_OVER_DIGEST, _OVER_FILE_ID = 2, 3
_KINDS = {"ima": "ima", "verity": "verity"}
"""By the signature's kind, the kind of digest that it is over. `evm-portable` signs no content."""
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


def why_not_signed(keys: tuple[ImaKey, ...], digest: FileDigest, data: bytes) -> str | None:
    """Why this field is no signature over the digest by one of the keys; None where it is one."""
    try:
        signature = signature_of(data)
    except MalformedData as error:
        return str(error)
    kind, version, algorithm_number = data[0], data[1], data[2]
    if _KINDS.get(signature.kind) != digest.kind or signature.hash != digest.algorithm:
        return f"a signature of kind {signature.kind} with {signature.hash}, over another digest"
    algorithm = _HASHES.get(digest.algorithm)
    if algorithm is None or len(digest.value) != algorithm.digest_size:
        return f"a signature with {digest.algorithm}, which does not count"
    if version == _OVER_FILE_ID:
        signed = hashlib.new(digest.algorithm, bytes((kind, algorithm_number)) + digest.value).digest()
    elif signature.kind == "ima":
        signed = digest.value
    else:
        return f"a signature of version {version}, which a {signature.kind} digest has not"
    named_first = sorted(keys, key=lambda key: signature.key_id not in key.ids)
    if any(_verifies(key, digest.algorithm, signed, signature.value) for key in named_first):
        return None
    return f"a signature that names the key {signature.key_id.hex()}, by no key of the policy"


@lru_cache(maxsize=VERIFIED_MOST)
def _verifies(key: ImaKey, algorithm: str, digest: bytes, signature: bytes) -> bool:
    """Is it the key's signature over this digest: ECDSA, or RSA with PKCS #1 v1.5?"""
    try:
        if isinstance(key.key, rsa.RSAPublicKey):
            key.key.verify(signature, digest, padding.PKCS1v15(), Prehashed(_HASHES[algorithm]))
        else:
            key.key.verify(signature, digest, ec.ECDSA(Prehashed(_HASHES[algorithm])))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True
