"""Public areas of the keys that the agent makes, and where the TCG puts EK certificates.

TCG EK Credential Profile for TPM Family 2.0 (NV indices, EK templates: by tpm2-pytss); TSS 2.0 key files for parents.
"""

from tpm2_pytss.constants import TPM2_ALG, TPM2_ECC, TPMA_OBJECT
from tpm2_pytss.types import (
    TPM2B_PUBLIC,
    TPMS_ECC_PARMS,
    TPMS_ECC_POINT,
    TPMS_SCHEME_HASH,
    TPMT_ECC_SCHEME,
    TPMT_KDF_SCHEME,
    TPMT_PUBLIC,
    TPMT_SYM_DEF_OBJECT,
    TPMU_ASYM_SCHEME,
    TPMU_PUBLIC_ID,
    TPMU_PUBLIC_PARMS,
    TPMU_SYM_KEY_BITS,
    TPMU_SYM_MODE,
)

EK_KINDS = {
    0x01C00002: "EK-RSA2048",
    0x01C0000A: "EK-ECC256",
    0x01C00012: "EK-HIGH-RSA2048",
    0x01C00014: "EK-HIGH-ECC256",
    0x01C00016: "EK-HIGH-ECC384",
    0x01C0001C: "EK-HIGH-RSA3072",
}
"""NV index of an EK certificate -> the name that tpm2-pytss gives the template, in the order of preference within
an algorithm."""

BARE_EK_KINDS = ("EK-RSA2048", "EK-ECC256")
"""The templates L-1 and L-2, which every TPM 2.0 of a PC has one of, without looking into NV."""

EK_KINDS_FIRST = 0x01C00002
EK_CHAIN_FIRST = 0x01C00100
EK_CHAIN_LAST = 0x01C001FF

SRK_HANDLE = 0x81000001

_RESIDENT = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.SENSITIVEDATAORIGIN
_PLAIN_USE = TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.NODA


def _ecc(attributes: int, parameters: TPMS_ECC_PARMS, x: bytes = b"") -> TPM2B_PUBLIC:
    return TPM2B_PUBLIC(
        publicArea=TPMT_PUBLIC(
            type=TPM2_ALG.ECC,
            nameAlg=TPM2_ALG.SHA256,
            objectAttributes=attributes,
            authPolicy=b"",
            parameters=TPMU_PUBLIC_PARMS(eccDetail=parameters),
            unique=TPMU_PUBLIC_ID(ecc=TPMS_ECC_POINT(x=x, y=b"")),
        )
    )


def attestation_key(unique: bytes) -> TPM2B_PUBLIC:
    """An ECC P-256 restricted signing key: the TPM signs with it only what it made itself. `unique` is 32 bytes."""
    parameters = TPMS_ECC_PARMS(
        symmetric=TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL),
        scheme=TPMT_ECC_SCHEME(
            scheme=TPM2_ALG.ECDSA, details=TPMU_ASYM_SCHEME(ecdsa=TPMS_SCHEME_HASH(hashAlg=TPM2_ALG.SHA256))
        ),
        curveID=TPM2_ECC.NIST_P256,
        kdf=TPMT_KDF_SCHEME(scheme=TPM2_ALG.NULL),
    )
    return _ecc(_RESIDENT | _PLAIN_USE | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.SIGN_ENCRYPT, parameters, unique)


def device_key() -> TPM2B_PUBLIC:
    """An ECC P-256 signing key that never leaves this TPM. No scheme of its own: TLS names the hash each time."""
    parameters = TPMS_ECC_PARMS(
        symmetric=TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL),
        scheme=TPMT_ECC_SCHEME(scheme=TPM2_ALG.NULL),
        curveID=TPM2_ECC.NIST_P256,
        kdf=TPMT_KDF_SCHEME(scheme=TPM2_ALG.NULL),
    )
    return _ecc(_RESIDENT | _PLAIN_USE | TPMA_OBJECT.SIGN_ENCRYPT, parameters)


def storage_parent() -> TPM2B_PUBLIC:
    """The owner-hierarchy primary that a TSS2 key file of parent 0x40000001 means; the provider makes the same one."""
    parameters = TPMS_ECC_PARMS(
        symmetric=TPMT_SYM_DEF_OBJECT(
            algorithm=TPM2_ALG.AES,
            keyBits=TPMU_SYM_KEY_BITS(aes=128),
            mode=TPMU_SYM_MODE(aes=TPM2_ALG.CFB),
        ),
        scheme=TPMT_ECC_SCHEME(scheme=TPM2_ALG.NULL),
        curveID=TPM2_ECC.NIST_P256,
        kdf=TPMT_KDF_SCHEME(scheme=TPM2_ALG.NULL),
    )
    return _ecc(_RESIDENT | _PLAIN_USE | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.DECRYPT, parameters)
