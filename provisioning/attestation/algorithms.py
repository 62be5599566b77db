"""The numbers of TPM algorithms, curves and attributes that count here: the allow-lists, and their names.

TCG TPM 2.0 Library Specification, Part 2, Structures.
"""

import hashlib

# TPM_ALG_ID (Part 2, 6.3)
RSA = 0x0001
AES = 0x0006
NULL = 0x0010
RSASSA = 0x0014
RSAPSS = 0x0016
ECDSA = 0x0018
ECC = 0x0023
CFB = 0x0043
SHA256 = 0x000B
SHA384 = 0x000C
SHA512 = 0x000D

HASH_NAMES = {SHA256: "sha256", SHA384: "sha384", SHA512: "sha512"}
"""The name algorithms, signature hashes and PCR banks that count. SHA-1 is not among them."""
HASH_IDS = {name: number for number, name in HASH_NAMES.items()}
DIGEST_BYTES = {SHA256: 32, SHA384: 48, SHA512: 64}
DIGEST = {SHA256: hashlib.sha256, SHA384: hashlib.sha384, SHA512: hashlib.sha512}

# TPM_ECC_CURVE (Part 2, 6.4)
P256 = 0x0003
P384 = 0x0004
CURVE_BYTES = {P256: 32, P384: 48}

RSA_BITS = frozenset({2048, 3072, 4096})
RSA_EXPONENT = 65537
"""The only exponent: the TPM's default, which it also writes as 0 (Part 2, 12.2.3.5)."""

# TPMA_OBJECT (Part 2, 8.3)
FIXED_TPM = 1 << 1
ST_CLEAR = 1 << 2
FIXED_PARENT = 1 << 4
SENSITIVE_DATA_ORIGIN = 1 << 5
USER_WITH_AUTH = 1 << 6
ADMIN_WITH_POLICY = 1 << 7
NO_DA = 1 << 10
ENCRYPTED_DUPLICATION = 1 << 11
RESTRICTED = 1 << 16
DECRYPT = 1 << 17
SIGN = 1 << 18
X509_SIGN = 1 << 19
ATTRIBUTE_NAMES = {
    FIXED_TPM: "fixedTPM",
    ST_CLEAR: "stClear",
    FIXED_PARENT: "fixedParent",
    SENSITIVE_DATA_ORIGIN: "sensitiveDataOrigin",
    USER_WITH_AUTH: "userWithAuth",
    ADMIN_WITH_POLICY: "adminWithPolicy",
    NO_DA: "noDA",
    ENCRYPTED_DUPLICATION: "encryptedDuplication",
    RESTRICTED: "restricted",
    DECRYPT: "decrypt",
    SIGN: "sign",
    X509_SIGN: "x509sign",
}

MAX_PCR = 23
"""The PC Client profile's PCRs are 0 to 23."""


def attribute_names(bits: int) -> str:
    """The attributes as the specification spells them, for `expected` and `actual`."""
    return ", ".join(name for bit, name in ATTRIBUTE_NAMES.items() if bits & bit) or "none"
