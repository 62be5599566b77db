"""Evidence of real software TPMs: honest evidence passes, and each attack is refused by its own name."""

import hashlib
import subprocess
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tpm2_pytss import TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CC, TPM2_RH, TPM2_SE, TPM2_ST, TPMA_OBJECT
from tpm2_pytss.types import (
    TPM2B_DIGEST,
    TPM2B_ECC_PARAMETER,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE,
    TPML_DIGEST_VALUES,
    TPMS_ECC_POINT,
    TPMT_HA,
    TPMT_PUBLIC,
    TPMT_SENSITIVE,
    TPMT_SIG_SCHEME,
    TPMT_TK_HASHCHECK,
    TPMU_HA,
    TPMU_PUBLIC_ID,
)

from lab.ekca import create_ek_ca
from lab.swtpm import fresh_tpm
from provisioning.attestation.credential import make_credential
from provisioning.attestation.endorsement import verify_endorsement
from provisioning.attestation.evidence import verify_attestation_key
from provisioning.attestation.policy import parse_policy
from provisioning.refusals import (
    ActivationProofWrong,
    AkAttributesRefused,
    AkNotInEndorsementHierarchy,
    AnswersAnotherChallenge,
    CsrKeyNotCertified,
    DeviceKeyAttributesRefused,
    DeviceKeyNotCertified,
    PcrSelectionWrong,
    PcrsNotAccepted,
    PcrValuesNotQuoted,
    SignatureWrong,
    TpmFirmwareRefused,
    WrongAttestationType,
)
from tests.support.attestation import (
    AK_ATTRIBUTES,
    KEY_ATTRIBUTES,
    NOW,
    Device,
    Key,
    answer,
    bound,
    challenge_for,
    credential_opens,
    policy_text,
    proof,
    verify,
)
from wire.messages import Attestation, EnrollmentRequest, PcrSelection

PCRS = (0, 4, 7)


@pytest.fixture(scope="module")
def ek_ca(tmp_path_factory):
    return create_ek_ca(tmp_path_factory.mktemp("ek-ca") / "ca")


@pytest.fixture(scope="module")
def tpm(ek_ca):
    with fresh_tpm(ek_ca) as running:
        yield running


@pytest.fixture(scope="module")
def policy(ek_ca, tpm):
    values = tpm.pcrs()
    return parse_policy(policy_text(ek_ca.root_pem.read_text(), {pcr: values[pcr] for pcr in PCRS}))


@pytest.fixture(params=["rsa2048", "ecc384"])
def any_device(tpm, request):
    with tpm.esapi() as esapi, Device(esapi, tpm.ek_certificates()[request.param], request.param) as device:
        yield device


@pytest.fixture
def device(tpm):
    with tpm.esapi() as esapi, Device(esapi, tpm.ek_certificates()["rsa2048"]) as device:
        yield device


def test_a_tpm_opens_the_credential_for_its_own_ak(any_device, policy):
    ak = any_device.ak()
    assert credential_opens(any_device, ak, policy, verify_attestation_key(ak.public).name)


def test_a_tpm_does_not_open_the_credential_for_another_name(any_device, policy):
    ak = any_device.ak()
    with pytest.raises(TSS2_Exception, match="integrity"):
        credential_opens(any_device, ak, policy, b"\0\x0b" + bytes(32))


@pytest.mark.parametrize(
    "algorithm", ["ecc:ecdsa-sha256:null", "rsa2048:rsassa-sha256:null", "rsa2048:rsapss-sha256:null"]
)
def test_honest_evidence_passes(device, policy, algorithm):
    ak, key = device.ak(alg=algorithm), device.key()
    challenge = challenge_for(device, ak, PCRS)
    verified = verify(answer(device, ak, key, challenge), challenge, policy)
    assert verified.key.spki == verified.csr.spki
    assert set(verified.pcrs.values) == set(PCRS)
    assert verified.tpm.firmware_version > 0
    assert verified.findings == ()


def test_an_ak_of_sha384_hashes_its_quotes_with_sha384(device, policy):
    ak, key = device.ak(alg="ecc384:ecdsa-sha384:null"), device.key()
    challenge = challenge_for(device, ak, PCRS)
    assert verify(answer(device, ak, key, challenge), challenge, policy).pcrs.bank == "sha256"


# --- who signs (checks 5, 6, 7, 10) -------------------------------------------------------------------------------


def software_ak(attributes):
    private = ec.generate_private_key(ec.SECP256R1())
    numbers = private.public_key().public_numbers()
    public = TPMT_PUBLIC.parse("ecc:ecdsa-sha256:null", objectAttributes=attributes)
    x, y = numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")
    public.unique = TPMU_PUBLIC_ID(ecc=TPMS_ECC_POINT(x=TPM2B_ECC_PARAMETER(x), y=TPM2B_ECC_PARAMETER(y)))
    return private, TPM2B_PUBLIC(public)


def test_a_software_key_behind_a_true_ek_is_refused(device, policy):
    """The TPM opens the credential for a key that was put in from outside: only its attributes give it away."""
    private, public = software_ak(TPMA_OBJECT.SIGN_ENCRYPT | TPMA_OBJECT.USERWITHAUTH)
    sensitive = TPM2B_SENSITIVE(TPMT_SENSITIVE(sensitiveType=TPM2_ALG.ECC))
    sensitive.sensitiveArea.sensitive.ecc = TPM2B_ECC_PARAMETER(
        private.private_numbers().private_value.to_bytes(32, "big")
    )
    handle = device._keep(device.esapi.load_external(public, sensitive, ESYS_TR.NULL))
    forged = Key(handle, public.publicArea.marshal())
    assert credential_opens(device, forged, policy, bytes(public.get_name()))
    with pytest.raises(AkAttributesRefused, match="restricted"):
        verify_attestation_key(forged.public)


def test_a_key_that_only_claims_to_be_restricted_opens_nothing(device, policy):
    """Public-only objects may claim any attribute, and a policy of their maker's; the TPM lends them no authority."""
    trial = device.esapi.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.TRIAL, None, TPM2_ALG.SHA256)
    device.esapi.policy_command_code(trial, TPM2_CC.ActivateCredential)
    digest = bytes(device.esapi.policy_get_digest(trial))
    device.esapi.flush_context(trial)
    _, public = software_ak(AK_ATTRIBUTES)
    public.publicArea.authPolicy = TPM2B_DIGEST(digest)
    verify_attestation_key(public.publicArea.marshal())
    handle = device._keep(device.esapi.load_external(public, None, ESYS_TR.ENDORSEMENT))
    with pytest.raises(TSS2_Exception, match="not available"):
        credential_opens(device, Key(handle, public.publicArea.marshal()), policy, bytes(public.get_name()))


def raw_signature(device, key, message):
    """TPM2_Sign over a digest that the caller computed: what an unrestricted key is willing to do."""
    ticket = TPMT_TK_HASHCHECK(tag=TPM2_ST.HASHCHECK, hierarchy=TPM2_RH.NULL)
    digest = hashlib.sha256(message).digest()
    return device.esapi.sign(key.handle, digest, TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL), ticket).marshal()


def test_an_unrestricted_key_forges_a_quote_and_is_refused_as_ak(device, policy):
    """Its forged TPM_GENERATED blob verifies; the missing attribute is all that stops it."""
    ak, key = device.ak(), device.key()
    forger = device.ak(attributes=AK_ATTRIBUTES & ~TPMA_OBJECT.RESTRICTED)
    challenge = challenge_for(device, ak, PCRS)
    attest = device.quote(ak, bound(challenge, "quote", b"csr"), challenge.pcr_selection).attest
    forged = raw_signature(device, forger, attest)
    with pytest.raises(AkAttributesRefused):
        verify_attestation_key(forger.public)
    with pytest.raises(SignatureWrong):
        verify(answer(device, ak, key, challenge, quote=Attestation(attest, forged)), challenge, policy)


def test_a_restricted_key_does_not_sign_what_starts_like_a_tpms_words(device):
    ak = device.ak()
    ticket = TPMT_TK_HASHCHECK(tag=TPM2_ST.HASHCHECK, hierarchy=TPM2_RH.NULL)
    with pytest.raises(TSS2_Exception):
        device.esapi.sign(ak.handle, bytes(32), TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL), ticket)


def test_an_ak_of_the_owner_hierarchy_is_refused(device, policy):
    """Its quotes show an obfuscated firmware version and counters: checks 16 and 17 would mean nothing."""
    ak, key = device.ak(hierarchy=ESYS_TR.OWNER), device.key()
    challenge = challenge_for(device, ak, PCRS)
    with pytest.raises(AkNotInEndorsementHierarchy):
        verify(answer(device, ak, key, challenge), challenge, policy)


def test_an_ak_of_the_null_hierarchy_is_refused(device, policy):
    ak, key = device.ak(hierarchy=ESYS_TR.NULL), device.key()
    challenge = challenge_for(device, ak, PCRS)
    with pytest.raises(AkNotInEndorsementHierarchy):
        verify(answer(device, ak, key, challenge), challenge, policy)


def test_another_restricted_key_of_the_same_tpm_cannot_sign_for_the_ak(device, policy):
    ak, other, key = device.ak(), device.ak(attributes=AK_ATTRIBUTES | TPMA_OBJECT.NODA), device.key()
    challenge = challenge_for(device, ak, PCRS)
    csr = device.csr(key)
    quote = device.quote(other, bound(challenge, "quote", csr), challenge.pcr_selection)
    with pytest.raises(SignatureWrong):
        verify(answer(device, ak, key, challenge, csr=csr, quote=quote), challenge, policy)


def test_a_proof_without_the_secret_is_refused(device, policy):
    ak, key = device.ak(), device.key()
    challenge = challenge_for(device, ak, PCRS)
    honest = answer(device, ak, key, challenge)
    with pytest.raises(ActivationProofWrong) as refused:
        verify(replace(honest, activation_proof=bytes(32)), challenge, policy)
    assert (refused.value.expected, refused.value.actual) == ("", "")


# --- for what (checks 9, 11) --------------------------------------------------------------------------------------


def test_a_quote_presented_as_certify_is_refused(device, policy):
    ak, key = device.ak(), device.key()
    challenge = challenge_for(device, ak, PCRS)
    csr = device.csr(key)
    quote = device.quote(ak, bound(challenge, "certify", csr), challenge.pcr_selection)
    with pytest.raises(WrongAttestationType):
        verify(answer(device, ak, key, challenge, csr=csr, certify=quote), challenge, policy)


def test_a_certify_presented_as_quote_is_refused(device, policy):
    ak, key = device.ak(), device.key()
    challenge = challenge_for(device, ak, PCRS)
    csr = device.csr(key)
    certify = device.certify(ak, key, bound(challenge, "quote", csr))
    with pytest.raises(WrongAttestationType):
        verify(answer(device, ak, key, challenge, csr=csr, quote=certify), challenge, policy)


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": b"m" * 32},
        {"audience": "another.service"},
        {"enrollment_id": "enrollment-2"},
        {"flow": "rotate"},
    ],
    ids=["replayed", "relayed", "of another enrollment", "of another flow"],
)
def test_evidence_for_another_challenge_is_refused(device, policy, change):
    ak, key = device.ak(), device.key()
    first = challenge_for(device, ak, PCRS)
    second = challenge_for(device, ak, PCRS, **change)
    evidence = answer(device, ak, key, first)
    with pytest.raises(ActivationProofWrong):
        verify(evidence, second, policy)
    # Not even who can open the second credential makes the first quote, or the first certification, answer it.
    evidence = replace(evidence, activation_proof=proof(second, evidence.csr))
    with pytest.raises(AnswersAnotherChallenge):
        verify(evidence, second, policy)
    fresh = device.quote(ak, bound(second, "quote", evidence.csr), second.pcr_selection)
    with pytest.raises(AnswersAnotherChallenge):
        verify(replace(evidence, quote=fresh), second, policy)


def test_a_swapped_csr_is_refused(device, policy):
    ak, key, other = device.ak(), device.key(), device.key()
    challenge = challenge_for(device, ak, PCRS)
    evidence = replace(answer(device, ak, key, challenge), csr=device.csr(other))
    with pytest.raises(ActivationProofWrong):
        verify(evidence, challenge, policy)
    with pytest.raises(AnswersAnotherChallenge):
        verify(replace(evidence, activation_proof=proof(challenge, evidence.csr)), challenge, policy)


def test_the_quote_of_another_csr_is_refused(device, policy):
    """A thief of a quote cannot put a request of his own beside it."""
    ak, key = device.ak(), device.key()
    challenge = challenge_for(device, ak, PCRS)
    quote = device.quote(ak, bound(challenge, "quote", b"another request"), challenge.pcr_selection)
    with pytest.raises(AnswersAnotherChallenge):
        verify(answer(device, ak, key, challenge, quote=quote), challenge, policy)


# --- what booted (checks 12, 13, 17) ------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", [PcrSelection("sha256", (0, 4)), PcrSelection("sha256", (0, 4, 7, 8))])
def test_another_selection_is_refused(device, policy, selection):
    ak, key = device.ak(), device.key()
    challenge = challenge_for(device, ak, PCRS)
    csr = device.csr(key)
    quote = device.quote(ak, bound(challenge, "quote", csr), selection)
    evidence = answer(device, ak, key, challenge, csr=csr, quote=quote, pcrs=device.pcrs(selection))
    with pytest.raises(PcrSelectionWrong):
        verify(evidence, challenge, policy)


@pytest.mark.parametrize(
    "lie",
    [
        {"0": b"\xaa" * 32},
        {"0": b"short"},
        {"0": b""},
        {"8": bytes(32)},
    ],
)
def test_pcr_values_that_were_not_quoted_are_refused(device, policy, lie):
    ak, key = device.ak(), device.key()
    challenge = challenge_for(device, ak, PCRS)
    pcrs = device.pcrs(challenge.pcr_selection)
    evidence = answer(device, ak, key, challenge, pcrs={"sha256": pcrs["sha256"] | lie})
    with pytest.raises(PcrValuesNotQuoted):
        verify(evidence, challenge, policy)


@pytest.mark.parametrize("pcrs", [{}, {"sha256": {}}, {"sha384": {"0": bytes(48)}}])
def test_missing_pcr_values_are_refused(device, policy, pcrs):
    ak, key = device.ak(), device.key()
    challenge = challenge_for(device, ak, PCRS)
    with pytest.raises(PcrValuesNotQuoted):
        verify(answer(device, ak, key, challenge, pcrs=pcrs), challenge, policy)


def test_two_pcr_values_exchanged_are_refused(tpm, ek_ca):
    """The digest is over the values in the order of the PCRs, not over a set of them."""
    with tpm.esapi() as esapi, Device(esapi, tpm.ek_certificates()["rsa2048"]) as device:
        measured = TPML_DIGEST_VALUES([TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=b"\1" * 32))])
        esapi.pcr_extend(ESYS_TR.PCR16, measured)
        ak, key = device.ak(), device.key()
        challenge = challenge_for(device, ak, (0, 16))
        values = device.pcrs(challenge.pcr_selection)["sha256"]
        exchanged = {"sha256": {"0": values["16"], "16": values["0"]}}
        policy = parse_policy(policy_text(ek_ca.root_pem.read_text(), {0: values["16"], 16: values["0"]}))
        with pytest.raises(PcrValuesNotQuoted):
            verify(answer(device, ak, key, challenge, pcrs=exchanged), challenge, policy)


def test_every_pcr_that_the_policy_does_not_accept_is_named(device, ek_ca):
    policy = parse_policy(policy_text(ek_ca.root_pem.read_text(), {0: b"\1" * 32, 4: bytes(32), 7: b"\2" * 32}))
    ak, key = device.ak(), device.key()
    challenge = challenge_for(device, ak, PCRS)
    with pytest.raises(PcrsNotAccepted) as refused:
        verify(answer(device, ak, key, challenge), challenge, policy)
    assert [finding.what for finding in refused.value.findings] == ["PCR 0", "PCR 7"]
    assert refused.value.findings[0].expected == "01" * 32
    assert refused.value.findings[0].actual == "00" * 32
    assert "00" * 32 in refused.value.findings[0].cure


def test_an_old_firmware_of_the_tpm_is_refused(device, policy):
    ak, key = device.ak(), device.key()
    challenge = challenge_for(device, ak, PCRS)
    evidence = answer(device, ak, key, challenge)
    version = verify(evidence, challenge, policy).tpm.firmware_version
    assert verify(evidence, challenge, replace(policy, min_tpm_firmware=version))
    with pytest.raises(TpmFirmwareRefused):
        verify(evidence, challenge, replace(policy, min_tpm_firmware=version + 1))


# --- which key (checks 14, 15) ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "algorithm"),
    [
        (KEY_ATTRIBUTES & ~TPMA_OBJECT.FIXEDTPM & ~TPMA_OBJECT.FIXEDPARENT, "ecc:null:null"),
        (KEY_ATTRIBUTES | TPMA_OBJECT.RESTRICTED, "ecc:ecdsa-sha256:null"),
        (KEY_ATTRIBUTES | TPMA_OBJECT.DECRYPT, "ecc:null:null"),
        (KEY_ATTRIBUTES & ~TPMA_OBJECT.SIGN_ENCRYPT | TPMA_OBJECT.DECRYPT, "ecc:null:null"),
    ],
    ids=["exportable", "restricted", "also decrypts", "only decrypts"],
)
def test_a_device_key_of_another_kind_is_refused(device, policy, attributes, algorithm):
    ak, key = device.ak(), device.key(attributes, algorithm)
    challenge = challenge_for(device, ak, PCRS)
    evidence = answer(device, ak, key, challenge, csr=device.csr(device.key()))
    with pytest.raises(DeviceKeyAttributesRefused):
        verify(evidence, challenge, policy)


def test_an_imported_device_key_is_refused(device, policy):
    """A key from outside, loaded into the TPM: certified truthfully, and its attributes say where it came from."""
    private, public = software_ak(TPMA_OBJECT.SIGN_ENCRYPT | TPMA_OBJECT.USERWITHAUTH)
    sensitive = TPM2B_SENSITIVE(TPMT_SENSITIVE(sensitiveType=TPM2_ALG.ECC))
    sensitive.sensitiveArea.sensitive.ecc = TPM2B_ECC_PARAMETER(
        private.private_numbers().private_value.to_bytes(32, "big")
    )
    key = Key(device._keep(device.esapi.load_external(public, sensitive, ESYS_TR.NULL)), public.publicArea.marshal())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(private, SHA256())
    ak = device.ak()
    challenge = challenge_for(device, ak, PCRS)
    with pytest.raises(DeviceKeyAttributesRefused):
        verify(answer(device, ak, key, challenge, csr=csr.public_bytes(Encoding.DER)), challenge, policy)


def test_attributes_that_the_tpm_did_not_certify_are_refused(device, policy):
    """An exportable key whose public area is presented with fixedTPM set has another Name."""
    ak, key = device.ak(), device.key(KEY_ATTRIBUTES & ~TPMA_OBJECT.FIXEDTPM & ~TPMA_OBJECT.FIXEDPARENT)
    challenge = challenge_for(device, ak, PCRS)
    embellished = key.public[:4] + int(KEY_ATTRIBUTES).to_bytes(4, "big") + key.public[8:]
    with pytest.raises(DeviceKeyNotCertified):
        verify(answer(device, ak, key, challenge, device_public=embellished), challenge, policy)


def test_the_certification_of_another_key_is_refused(device, policy):
    ak, key, other = device.ak(), device.key(), device.key()
    challenge = challenge_for(device, ak, PCRS)
    csr = device.csr(key)
    certify = device.certify(ak, other, bound(challenge, "certify", csr))
    with pytest.raises(DeviceKeyNotCertified):
        verify(answer(device, ak, key, challenge, csr=csr, certify=certify), challenge, policy)


def test_a_csr_for_a_software_key_is_refused(device, policy):
    ak, key = device.ak(), device.key()
    private = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(private, SHA256())
    challenge = challenge_for(device, ak, PCRS)
    with pytest.raises(CsrKeyNotCertified):
        verify(answer(device, ak, key, challenge, csr=csr.public_bytes(Encoding.DER)), challenge, policy)


# --- the credential by other makers -------------------------------------------------------------------------------


def test_the_ek_template_is_that_of_the_tpm(any_device, policy):
    """The server never sees the EK's public area: the key of the certificate in the standard template is enough."""
    ak = any_device.ak()
    request = EnrollmentRequest(ak_public=ak.public, pcr_banks=("sha256",), ek_certificate=any_device.certificate)
    trusted = verify_endorsement(request, policy, NOW)
    blob, secret = make_credential(trusted, verify_attestation_key(ak.public).name, b"1" * 32)
    assert int.from_bytes(blob[:2], "big") == len(blob) - 2
    assert int.from_bytes(secret[:2], "big") == len(secret) - 2
    assert any_device.open(ak, blob, secret) == b"1" * 32


def test_tpm2_tools_make_credentials_that_open_the_same_way(device, tmp_path):
    """Guards the rig: tpm2_makecredential is the second maker (RSA only without a TPM), the TPM the one judge."""
    ak = device.ak()
    certificate = x509.load_der_x509_certificate(device.certificate)
    (tmp_path / "ek.pem").write_bytes(
        certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "secret").write_bytes(b"1" * 32)
    argv = ["tpm2_makecredential", "-T", "none", "-u", tmp_path / "ek.pem", "-s", tmp_path / "secret"]
    argv += ["-n", verify_attestation_key(ak.public).name.hex(), "-o", tmp_path / "credential", "-G", "rsa"]
    done = subprocess.run(argv, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    made = (tmp_path / "credential").read_bytes()
    assert made[:8] == bytes.fromhex("badcc0de00000001")  # tpm2-tools' header: magic and version
    end = 10 + int.from_bytes(made[8:10], "big")
    assert device.open(ak, made[8:end], made[end:]) == b"1" * 32
