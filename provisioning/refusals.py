"""One class for each thing that is refused. A class names the check; an instance says expected and actual.

The device and the client learn `problem`, `code` and `title`. `expected`, `actual` and `findings` are the operator's
(`muster explain`, audit). `cure` says what would make the request pass. Codes are stable: a code is never reused.
"""

from dataclasses import dataclass
from typing import ClassVar

from wire.problems import Problem


@dataclass(frozen=True, slots=True)
class Finding:
    """One mismatch that a person must fix: `what` (a PCR, an event, a field), expected, actual, and what mends it.

    `refused`: the policy's mode let this pass, and `enforce` would have refused it.
    """

    what: str
    expected: str
    actual: str
    cure: str = ""
    refused: bool = False


class Refusal(Exception):
    """Something from outside was refused, by name."""

    code: ClassVar[str]
    problem: ClassVar[Problem]
    title: ClassVar[str]
    cure: ClassVar[str] = ""
    check: ClassVar[int | None] = None
    """The number in the table of checks (docs/protocol.md, section 1)."""

    def __init__(self, *, expected: object = "", actual: object = "", findings: tuple[Finding, ...] = ()) -> None:
        super().__init__(self.title)
        self.expected = _text(expected)
        self.actual = _text(actual)
        self.findings = findings
        self.instance: str | None = None
        """The id under which it was recorded: what `muster explain` takes."""
        self.retry_after_seconds: int | None = None


def _text(value: object) -> str:
    """Hex for bytes; control characters escaped, so that a hostile field cannot forge a line of a log."""
    text = value.hex() if isinstance(value, bytes) else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)[:2000]


# --- the request itself (check 1) ---------------------------------------------------------------------------------


class RequestMalformed(Refusal):
    code, problem, check = "MUSTER-REQ-001", Problem.MALFORMED, 1
    title = "The request is not a message of this protocol"
    cure = "Send the fields that docs/protocol.md names, and no others."


class RequestTooLarge(Refusal):
    code, problem, check = "MUSTER-REQ-002", Problem.TOO_LARGE, 1
    title = "The request is larger than its cap"
    cure = "Stay under the caps that docs/protocol.md names."


class StructureMalformed(Refusal):
    code, problem, check = "MUSTER-REQ-003", Problem.MALFORMED, 1
    title = "A TPM structure is malformed"
    cure = "Send the TPM's own bytes, complete and with nothing behind them."


class AlgorithmRefused(Refusal):
    code, problem, check = "MUSTER-REQ-004", Problem.ATTESTATION_REFUSED, 1
    title = "An algorithm, curve or parameter is not on the allow-list"
    cure = "Use SHA-256 or stronger, RSA of 2048 bits or more, or the curves P-256 and P-384."


class BankRefused(Refusal):
    code, problem, check = "MUSTER-REQ-005", Problem.ATTESTATION_REFUSED, 1
    title = "The TPM offers no PCR bank that the model's policy takes"
    cure = "Allocate the bank in the firmware's settings, or name it in the model's policy (SHA-1 never counts)."


class CertificateMalformed(Refusal):
    code, problem, check = "MUSTER-REQ-006", Problem.MALFORMED, 1
    title = "A certificate cannot be parsed"
    cure = "Send one X.509 certificate in DER."


class ProfileUnknown(Refusal):
    code, problem, check = "MUSTER-REQ-007", Problem.FORBIDDEN, 15
    title = "The device's record does not allow that certificate profile"
    cure = "Ask for no profile: the record decides."


class OnlySha1Banks(Refusal):
    code, problem, check = "MUSTER-REQ-008", Problem.ATTESTATION_REFUSED, 1
    title = "The TPM has no PCR bank but SHA-1"
    cure = "Allocate a SHA-256 bank in the firmware's settings; a TPM that has none cannot be attested."


# --- the endorsement key (checks 2, 3, 18, 20) --------------------------------------------------------------------


class EkNotRegistered(Refusal):
    code, problem, check = "MUSTER-ATT-001", Problem.NOT_REGISTERED, 18
    title = "No factory station registered this TPM"
    cure = "Register the device: muster factory register FILE.csv."


class SerialHasAnotherTpm(Refusal):
    code, problem, check = "MUSTER-ATT-002", Problem.NOT_REGISTERED, 18
    title = "The claimed serial is registered with another TPM"
    cure = "Find out whether a board was swapped; if so, decommission the old record and register the new TPM."


class NoPolicyForModel(Refusal):
    code, problem, check = "MUSTER-ATT-003", Problem.NO_POLICY, 20
    title = "The device's model has no policy"
    cure = "Set one: muster policy set FILE."


class EkChainRefused(Refusal):
    code, problem, check = "MUSTER-ATT-004", Problem.ENDORSEMENT_REFUSED, 2
    title = "The EK certificate does not chain to a root that the model's policy names"
    cure = "Name the manufacturer's root in the model's policy, or send the missing intermediate."


class EkCertificateUnfit(Refusal):
    code, problem, check = "MUSTER-ATT-005", Problem.ENDORSEMENT_REFUSED, 2
    title = "The certificate is not an EK certificate"
    cure = "An EK certificate has the TCG key usage, EKU 2.23.133.8.1, manufacturer, model and version, and is no CA."


class EkManufacturerRefused(Refusal):
    code, problem, check = "MUSTER-ATT-006", Problem.ENDORSEMENT_REFUSED, 2
    title = "The root that vouches for this EK may not speak for its manufacturer"
    cure = "Name the manufacturer beside the root in the model's policy."


class SoftwareTpmRefused(Refusal):
    code, problem, check = "MUSTER-ATT-007", Problem.ENDORSEMENT_REFUSED, 2
    title = "The TPM is software, and the model's policy does not allow that"
    cure = "Only for development: software_tpm = true in the model's policy."


class WeakKey(Refusal):
    code, problem, check = "MUSTER-ATT-008", Problem.ENDORSEMENT_REFUSED, 2
    title = "The key is weak (ROCA, or too short)"
    cure = "Update the TPM's firmware and make the keys again, or replace the TPM."


class EkPublicNotRegistered(Refusal):
    code, problem, check = "MUSTER-ATT-009", Problem.ENDORSEMENT_REFUSED, 3
    title = "An EK without certificate counts only where its very key was registered"
    cure = "Register the EK's public key as an own trust level, or send the EK certificate."


class EkCertificateExpired(Refusal):
    code, problem, check = "MUSTER-ATT-010", Problem.ENDORSEMENT_REFUSED, 2
    title = "The EK certificate has expired, and the model's policy does not accept that"
    cure = 'Set expired_ek = "accept" in the model\'s policy where the manufacturer gives no new certificates.'


class DeviceRevoked(Refusal):
    code, problem, check = "MUSTER-ATT-011", Problem.REVOKED, 18
    title = "The device is revoked"
    cure = "Revocation is final. Register the device again after it was examined."


class ApprovalRequired(Refusal):
    code, problem, check = "MUSTER-ATT-012", Problem.TPM_CLEARED, 18
    title = "The device has another attestation key than before"
    cure = "If the TPM was cleared or the device changed hands on purpose: muster devices approve NAME."


class EkCertificateRevoked(Refusal):
    code, problem, check = "MUSTER-ATT-014", Problem.ENDORSEMENT_REFUSED, 2
    title = "The manufacturer revoked this EK, or an authority above it"
    cure = "Ask the manufacturer why. A revoked EK is replaced together with its TPM."


class EnrollmentQuotaSpent(Refusal):
    code, problem, check = "MUSTER-ATT-013", Problem.TOO_MANY_REQUESTS, 18
    title = "The device enrolled too often"
    cure = "Wait; or find out why it loses its certificate."


class Tpm12Refused(Refusal):
    code, problem, check = "MUSTER-ATT-015", Problem.ENDORSEMENT_REFUSED, 2
    title = "The certificate is of a TPM 1.2"
    cure = "A TPM 1.2 knows SHA-1 only and cannot prove what this service asks. Replace it, or switch on its 2.0 mode."


class EkTrustTooLow(Refusal):
    code, problem, check = "MUSTER-ATT-016", Problem.ENDORSEMENT_REFUSED, 3
    title = "The EK is known by its key alone, and the model's policy asks for a manufacturer's certificate"
    cure = 'Register the EK certificate, or set ek_trust = "key" in the policy of the model.'


class IdentityCertificateUnfit(Refusal):
    code, problem, check = "MUSTER-ATT-017", Problem.ENDORSEMENT_REFUSED, 6
    title = "The certificate is not an attestation key's by the TCG's profile"
    cure = "An IAK certificate has digitalSignature, the policies of a verified restricted TPM key, and is no CA."


class IdentityChainRefused(Refusal):
    code, problem, check = "MUSTER-ATT-018", Problem.ENDORSEMENT_REFUSED, 6
    title = "The IAK certificate does not chain to a root that the model's policy names for identities"
    cure = "Name the device maker's root in [[identity_roots]] of the model's policy, or import the intermediate."


class IdentityKeyDiffers(Refusal):
    code, problem, check = "MUSTER-ATT-019", Problem.ENDORSEMENT_REFUSED, 6
    title = "The IAK certificate is of another key than the AK"
    cure = "Quote with the very key that the certificate is for."


# --- the attestation key (checks 5, 6, 7) -------------------------------------------------------------------------


class IdevidOfAnotherTpm(Refusal):
    code, problem, check = "MUSTER-ATT-024", Problem.ENDORSEMENT_REFUSED, 6
    title = "The IDevID certificate is not of the TPM that the IAK certificate names"
    cure = "Send both certificates as the device's maker wrote them for this TPM: one root, one hardware serial."


class AkAttributesRefused(Refusal):
    code, problem, check = "MUSTER-ATT-020", Problem.ATTESTATION_REFUSED, 5
    title = "The AK is not a restricted signing key that was made in and never leaves its TPM"
    cure = "Make it from the agent's template: restricted, sign, fixedTPM, fixedParent, sensitiveDataOrigin."


class AkNotInEndorsementHierarchy(Refusal):
    code, problem, check = "MUSTER-ATT-021", Problem.ATTESTATION_REFUSED, 5
    title = "The AK is not a primary key of the endorsement hierarchy"
    cure = "Make it with TPM2_CreatePrimary under the endorsement hierarchy."


class ActivationProofWrong(Refusal):
    code, problem, check = "MUSTER-ATT-022", Problem.ATTESTATION_REFUSED, 7
    title = "The credential was not opened: AK and EK are not in the same TPM"
    cure = "Open the challenge with the AK that the request named, in the TPM that holds the EK."


class AttestationKeyTaken(Refusal):
    code, problem, check = "MUSTER-ATT-023", Problem.ATTESTATION_REFUSED, 18
    title = "The attestation key is that of another device in service"
    cure = "One TPM is one device: take one of its two records out of service (muster devices revoke NAME)."


# --- the challenge (checks 7, 8) ----------------------------------------------------------------------------------


class ChallengeUnknown(Refusal):
    code, problem, check = "MUSTER-ATT-030", Problem.CHALLENGE_GONE, 8
    title = "There is no such open challenge"
    cure = "Start again with step 1."


class ChallengeExpired(Refusal):
    code, problem, check = "MUSTER-ATT-031", Problem.CHALLENGE_GONE, 8
    title = "The challenge has expired"
    cure = "Start again with step 1."


class ChallengeTaken(Refusal):
    code, problem, check = "MUSTER-ATT-032", Problem.CHALLENGE_TAKEN, 8
    title = "The challenge was answered already, with other evidence"
    cure = "Start again with step 1."


# --- quote and certify (checks 9 to 14) ---------------------------------------------------------------------------


class NotGeneratedByTpm(Refusal):
    code, problem, check = "MUSTER-ATT-040", Problem.ATTESTATION_REFUSED, 9
    title = "The attestation structure does not start with TPM_GENERATED"
    cure = "Send what TPM2_Quote and TPM2_Certify return."


class WrongAttestationType(Refusal):
    code, problem, check = "MUSTER-ATT-041", Problem.ATTESTATION_REFUSED, 9
    title = "The attestation structure is of another type"
    cure = "Send a quote as quote and a certification as certify."


class SignatureWrong(Refusal):
    code, problem, check = "MUSTER-ATT-042", Problem.ATTESTATION_REFUSED, 10
    title = "The signature is not by the AK over these bytes"
    cure = "Sign with the AK that the request named."


class AnswersAnotherChallenge(Refusal):
    code, problem, check = "MUSTER-ATT-043", Problem.ATTESTATION_REFUSED, 11
    title = "The evidence answers another challenge, or is for another request"
    cure = "Bind quote and certify to this challenge and this CSR (docs/protocol.md, binding)."


class PcrSelectionWrong(Refusal):
    code, problem, check = "MUSTER-ATT-044", Problem.ATTESTATION_REFUSED, 12
    title = "The quote does not cover the PCRs that the policy asks for"
    cure = "Quote the selection of the challenge."


class PcrValuesNotQuoted(Refusal):
    code, problem, check = "MUSTER-ATT-045", Problem.ATTESTATION_REFUSED, 12
    title = "The reported PCR values are not the quoted ones"
    cure = "Read the PCRs again, together with the quote."


class BootLogMissing(Refusal):
    code, problem, check = "MUSTER-ATT-046", Problem.ATTESTATION_REFUSED, 13
    title = "The policy asks for a boot log and none was sent"
    cure = 'Send it, or set boot_log = "optional" in the model\'s policy.'


class BootLogMalformed(Refusal):
    code, problem, check = "MUSTER-ATT-047", Problem.ATTESTATION_REFUSED, 13
    title = "The boot log cannot be parsed"
    cure = "Send the TCG log of this boot, whole."


class BootLogDoesNotReplay(Refusal):
    code, problem, check = "MUSTER-ATT-048", Problem.ATTESTATION_REFUSED, 13
    title = "The boot log does not replay to the quoted PCRs"
    cure = "The log is of another boot, cut, or forged; reboot and attest again."


class ImaLogMalformed(Refusal):
    code, problem, check = "MUSTER-ATT-058", Problem.ATTESTATION_REFUSED, 13
    title = "The IMA log cannot be parsed"
    cure = "Send the kernel's binary_runtime_measurements, whole."


class ImaLogDoesNotReplay(Refusal):
    code, problem, check = "MUSTER-ATT-059", Problem.ATTESTATION_REFUSED, 13
    title = "No beginning of the IMA log replays to the quoted PCR 10"
    cure = "Read the log after the quote, of the same boot; it may be longer than what was quoted, not shorter."


class ImaLogMissing(Refusal):
    code, problem, check = "MUSTER-ATT-060", Problem.ATTESTATION_REFUSED, 13
    title = "The policy asks for an IMA log and none was sent"
    cure = "Let the agent read the kernel's binary_runtime_measurements: ima_log in agent.toml."


class PcrsNotAccepted(Refusal):
    code, problem, check = "MUSTER-ATT-049", Problem.ATTESTATION_REFUSED, 13
    title = "The device booted something that the policy does not accept"
    cure = "Install the firmware that the policy names; or, if what it booted is meant to run, add it to the policy."


class EventRuleBroken(Refusal):
    code, problem, check = "MUSTER-ATT-061", Problem.ATTESTATION_REFUSED, 13
    title = "The boot log shows something that a rule of the policy does not accept"
    cure = "Boot what the rule accepts; or, if this boot is meant, change the rule of the policy."


class ImaNotAccepted(Refusal):
    code, problem, check = "MUSTER-ATT-062", Problem.ATTESTATION_REFUSED, 13
    title = "The device ran or read a file that the policy does not accept"
    cure = "Remove the file; or, if it is meant, sign it by a key of the policy, or add its digest to the policy."


class DeviceKeyNotCertified(Refusal):
    code, problem, check = "MUSTER-ATT-050", Problem.ATTESTATION_REFUSED, 14
    title = "The certification names another key than the device key"
    cure = "Certify the very key that the CSR is for."


class DeviceKeyAttributesRefused(Refusal):
    code, problem, check = "MUSTER-ATT-051", Problem.ATTESTATION_REFUSED, 14
    title = "The device key could leave its TPM, or is of the wrong kind"
    cure = "Make it with sign, fixedTPM, fixedParent, sensitiveDataOrigin; neither restricted nor decrypt."


class CsrRefused(Refusal):
    code, problem, check = "MUSTER-ATT-052", Problem.ATTESTATION_REFUSED, 15
    title = "The CSR is malformed or does not prove possession of its key"
    cure = "Send a PKCS#10 request in DER, signed by the device key."


class CsrKeyNotCertified(Refusal):
    code, problem, check = "MUSTER-ATT-053", Problem.ATTESTATION_REFUSED, 15
    title = "The CSR is for another key than the certified one"
    cure = "Make the CSR with the key that the TPM certified."


class TpmWentBack(Refusal):
    code, problem, check = "MUSTER-ATT-054", Problem.ATTESTATION_REFUSED, 16
    title = "The TPM's counters or clock went back"
    cure = "A state was restored or cloned. Examine the device."


class TpmCleared(Refusal):
    code, problem, check = "MUSTER-ATT-055", Problem.TPM_CLEARED, 16
    title = "The TPM was cleared"
    cure = "If that was on purpose: muster devices approve NAME, then the device enrolls again."


class TpmFirmwareRefused(Refusal):
    code, problem, check = "MUSTER-ATT-056", Problem.ATTESTATION_REFUSED, 17
    title = "The TPM's firmware is older than the policy accepts"
    cure = "Update the TPM's firmware."


class DeviceKeyReused(Refusal):
    code, problem, check = "MUSTER-ATT-057", Problem.ATTESTATION_REFUSED, 19
    title = "The device key is the EK, the AK, or a key that already has a certificate"
    cure = "Make a fresh device key."


# --- the key that is to be certified ------------------------------------------------------------------------------


class KeyKindRefused(Refusal):
    code, problem = "MUSTER-KEY-001", Problem.FORBIDDEN
    title = "The certificate profile does not take keys of this kind"
    cure = "Make a key of a kind that the profile names (muster profile show NAME)."


class KeyTooShort(Refusal):
    code, problem = "MUSTER-KEY-002", Problem.FORBIDDEN
    title = "The RSA key is shorter than the certificate profile wants"
    cure = "Make a longer key, or one on a curve."


class KeyExponentRefused(Refusal):
    code, problem = "MUSTER-KEY-003", Problem.FORBIDDEN
    title = "The RSA key's public exponent is not sound"
    cure = "Make a key with the exponent 65537."


class KeyIsRoca(Refusal):
    code, problem = "MUSTER-KEY-004", Problem.FORBIDDEN
    title = "The RSA key has the ROCA fingerprint (CVE-2017-15361)"
    cure = "Make a key with another library, or with the module's mended firmware."


class KeyWithSmallFactor(Refusal):
    code, problem = "MUSTER-KEY-005", Problem.FORBIDDEN
    title = "The RSA modulus has a small prime factor"
    cure = "Make a fresh key: this one is broken, or was damaged on its way."


class KeyPrimesTooClose(Refusal):
    code, problem = "MUSTER-KEY-006", Problem.FORBIDDEN
    title = "The RSA key's primes are so close that its modulus is factored at once"
    cure = "Make a key with another library (CVE-2022-26320)."


class KeyIsDebianWeak(Refusal):
    code, problem = "MUSTER-KEY-007", Problem.FORBIDDEN
    title = "The key is one of the few that Debian's OpenSSL could make (CVE-2008-0166)"
    cure = "Make a fresh key on a system with a working random number generator."


class KeyPointRefused(Refusal):
    code, problem = "MUSTER-KEY-008", Problem.FORBIDDEN
    title = "The key is no sound point on its curve"
    cure = "Make a fresh key: this one is broken, or everybody's."


# --- issuing ------------------------------------------------------------------------------------------------------


class ToBeSignedRefused(Refusal):
    code, problem = "MUSTER-ISS-001", Problem.UNAVAILABLE
    title = "The certificate that was about to be signed is not what the profile says"
    cure = "This is a defect of the service: nothing was signed. Report it."


class SigningUnavailable(Refusal):
    code, problem = "MUSTER-ISS-002", Problem.UNAVAILABLE
    title = "The signing key is not available"
    cure = "Look at the HSM: muster doctor."


class VerifierUnavailable(Refusal):
    code, problem = "MUSTER-ISS-004", Problem.UNAVAILABLE
    title = "The verifier is not available"
    cure = "It is started again by itself; look at the log of the service for why it ended."


class StorageUnavailable(Refusal):
    code, problem = "MUSTER-ISS-003", Problem.UNAVAILABLE
    title = "The database cannot write"
    cure = "Look at disk and database: muster doctor."


# --- factory ------------------------------------------------------------------------------------------------------


class BudgetSpent(Refusal):
    code, problem = "MUSTER-FAC-001", Problem.BUDGET_SPENT
    title = "The station's budget is spent"
    cure = "Ask an operator for a new budget: muster factory station add NAME --budget N."


class StationUnknown(Refusal):
    code, problem = "MUSTER-FAC-002", Problem.UNAUTHENTICATED
    title = "The caller is no registered factory station"
    cure = "Use the station's certificate: muster factory station add NAME."


class SerialTaken(Refusal):
    code, problem = "MUSTER-FAC-003", Problem.CONFLICT
    title = "The serial is registered already"
    cure = "Take the row out, or correct its serial."


class EkTaken(Refusal):
    code, problem = "MUSTER-FAC-004", Problem.CONFLICT
    title = "The EK is registered already, for another device"
    cure = "Each device has its own TPM: check where this EK certificate comes from."


class RegistrationMalformed(Refusal):
    code, problem = "MUSTER-FAC-005", Problem.MALFORMED
    title = "A row of the registration is malformed"
    cure = "serial: 1 to 63 of A-Z a-z 0-9 . -; model: a-z 0-9 . -; ek_certificate: PEM path or base64 DER."


# --- EST ------------------------------------------------------------------------------------------------------------


class AttestationRequired(Refusal):
    code, problem = "MUSTER-EST-001", Problem.ATTESTATION_REQUIRED
    title = "The device's record asks for an attestation, and this request does not stand on a fresh one"
    cure = "Enroll by attestation: muster-agent enroll. EST only renews the very key that was attested, for a while."


class EstBodyMalformed(Refusal):
    code, problem = "MUSTER-EST-002", Problem.MALFORMED
    title = "The body is not base64 of a PKCS#10 request"
    cure = "Send the DER of the request in base64, as application/pkcs10: openssl req -outform DER | openssl base64."


class CredentialRefused(Refusal):
    code, problem = "MUSTER-EST-003", Problem.FORBIDDEN
    title = "This credential does not open this route for this device"
    cure = "simpleenroll: what the record asks for (IDevID, or a token). simplereenroll: the LDevID in force."


class NamesDiffer(Refusal):
    code, problem = "MUSTER-EST-004", Problem.FORBIDDEN
    title = "The request names another subject than the presented certificate"
    cure = "Make the request with the subject and the subjectAltName of the certificate that is renewed."


# --- health -------------------------------------------------------------------------------------------------------


class PassRequired(Refusal):
    code, problem = "MUSTER-HLT-001", Problem.ATTESTATION_REQUIRED
    title = "The device is in quarantine, or silent: it has to pass its attestation first"
    cure = "Boot what the policy accepts and enroll again: muster-agent does it by itself."


class QuarantineStands(Refusal):
    code, problem = "MUSTER-HLT-002", Problem.ATTESTATION_REFUSED
    title = "The device stays in quarantine until somebody looked at what was found about it"
    cure = "Find out which of the two is the device (muster findings list), then close the finding."


# --- operators, devices over HTTPS and MQTT -----------------------------------------------------------------------


class NotAuthenticated(Refusal):
    code, problem = "MUSTER-ACC-001", Problem.UNAUTHENTICATED
    title = "The caller is not authenticated"
    cure = "Send a valid token or certificate."


class NotAuthorized(Refusal):
    code, problem = "MUSTER-ACC-002", Problem.FORBIDDEN
    title = "The caller may not do that"
    cure = "Ask for the role that may."


class NotFound(Refusal):
    code, problem = "MUSTER-ACC-003", Problem.NOT_FOUND
    title = "There is no such thing"
    cure = "Check the name."


class MethodNotAllowed(Refusal):
    code, problem = "MUSTER-ACC-004", Problem.METHOD_NOT_ALLOWED
    title = "The resource does not take this method"


class TooSlow(Refusal):
    code, problem = "MUSTER-ACC-005", Problem.TOO_SLOW
    title = "The request took longer than its deadline"


class TooManyRequests(Refusal):
    code, problem = "MUSTER-ACC-006", Problem.TOO_MANY_REQUESTS
    title = "Too many requests"
    cure = "Wait as long as Retry-After says."


class UnsupportedMediaType(Refusal):
    code, problem = "MUSTER-ACC-007", Problem.UNSUPPORTED_MEDIA_TYPE
    title = "The body is of another media type"
    cure = "Send application/json."


class Busy(Refusal):
    code, problem = "MUSTER-ACC-008", Problem.UNAVAILABLE
    title = "The service cannot answer now"
    cure = "Try again later."


class StateConflict(Refusal):
    code, problem = "MUSTER-ACC-009", Problem.CONFLICT
    title = "The thing is in another state"
    cure = "Look at it first."


class ChangeNotReached(Refusal):
    code, problem = "MUSTER-CA-001", Problem.CONFLICT
    title = "Devices do not hold a trust bundle that names it yet"
    cure = "Publish a bundle (muster ca publish) and wait for the devices that muster ca status names; or --force."


class StillInUse(Refusal):
    code, problem = "MUSTER-CA-002", Problem.CONFLICT
    title = "Devices still depend on what is to be retired"
    cure = "Have them rotate (muster ca rotate NAME) and wait; or --force, which breaks the devices that are named."


class WrongStep(Refusal):
    code, problem = "MUSTER-CA-003", Problem.CONFLICT
    title = "An authority or key does not take this step in the state it is in"
    cure = "Look at muster ca status: the steps are prepare, publish, activate, retire."


class NotOnHold(Refusal):
    code, problem = "MUSTER-REV-001", Problem.CONFLICT
    title = "Only what is on hold can be released"
    cure = "Quarantine ends by a pass: muster devices attest. Other revocations are final: register the device again."


class OcspRequestMalformed(Refusal):
    code, problem = "MUSTER-REV-002", Problem.MALFORMED
    title = "The request is not an OCSP request"
    cure = "Send an OCSPRequest in DER (RFC 6960 section 4.1.1), at most 16 certificates, a nonce of 1 to 128 octets."


class MessageNotAuthentic(Refusal):
    code, problem = "MUSTER-MSG-001", Problem.FORBIDDEN
    title = "The MQTT message is not signed by the device's current key"
    cure = "Messages of a device are signed by the key of its certificate."


class MessageOutOfOrder(Refusal):
    code, problem = "MUSTER-MSG-002", Problem.CONFLICT
    title = "The MQTT message is of another session, replayed, or late"
    cure = "Nothing: replayed messages have no effect."


class OutsideCertificateRefused(Refusal):
    code, problem = "MUSTER-CER-001", Problem.CONFLICT
    title = "The certificate from the outside CA makes no issuing CA here"
    cure = "Have the request signed as a CA with path length 0, and bring every certificate up to the root."


class TranscriptRefused(Refusal):
    code, problem = "MUSTER-CER-002", Problem.CONFLICT
    title = "The transcript is not that of this installation's ceremony"
    cure = "Compare the paper, the file and the log; find out which of them was changed."


class ProfileMalformed(Refusal):
    code, problem = "MUSTER-PRF-001", Problem.MALFORMED
    title = "The certificate profile cannot be used"
    cure = "Correct the lines that are named."


class PolicyMalformed(Refusal):
    code, problem = "MUSTER-POL-001", Problem.MALFORMED
    title = "The policy cannot be used"
    cure = "Correct the line that is named."


class SecondPersonRequired(Refusal):
    code, problem = "MUSTER-POL-002", Problem.FORBIDDEN
    title = "One person alone may not put this policy into force"
    cure = "Propose it: muster policy propose FILE; then another operator: muster policy promote MODEL VERSION."


class NobodyToLearnFrom(Refusal):
    code, problem = "MUSTER-POL-003", Problem.MALFORMED
    title = "No devices to learn from are named, or too many"
    cure = 'Name them: muster policy learn MODEL --device NAME; or in the policy: learn_from = ["NAME"].'


class EkRootRefused(Refusal):
    code, problem = "MUSTER-EKR-001", Problem.MALFORMED
    title = "The certificate cannot vouch for EKs"
    cure = "Import certificates of authorities: basic constraints CA, key usage keyCertSign."


class ReleaseRefused(Refusal):
    code, problem = "MUSTER-OTA-001", Problem.CONFLICT
    title = "The release cannot be assigned"
    cure = "Publish it first, for this hardware, with a higher release counter."


# --- attestation results: asked for, and verified by a relying party ------------------------------------------------


class ResultsKeyMissing(Refusal):
    code, problem = "MUSTER-RES-001", Problem.CONFLICT
    title = "This installation has no key that signs attestation results"
    cure = "It is older than they are. Make the key: muster ca prepare results, then muster ca activate results."


class DeviceOutOfService(Refusal):
    code, problem = "MUSTER-RES-002", Problem.CONFLICT
    title = "The device is revoked, on hold or decommissioned: nothing is said for it"
    cure = "Treat it as not trustworthy. A hold can be released: muster devices release NAME."


class NeverAttested(Refusal):
    code, problem = "MUSTER-RES-003", Problem.CONFLICT
    title = "The device never passed an attestation"
    cure = "Let it enroll by attestation; what gets its certificate by EST alone has no result."


class AttestationStale(Refusal):
    code, problem = "MUSTER-RES-004", Problem.CONFLICT
    title = "The device's last attestation is too old to say anything about it now"
    cure = "Have it attest: muster devices rotate NAME; or wait until it does by itself."


class NoCertificateInForce(Refusal):
    code, problem = "MUSTER-RES-005", Problem.CONFLICT
    title = "The device has no certificate in force, so that no key speaks for it"
    cure = "Let it enroll again: it comes back by attestation."


class ResultMalformed(Refusal):
    code, problem = "MUSTER-RES-010", Problem.MALFORMED
    title = "The text is not an attestation result of this profile"
    cure = "Pass the JWT as the service gave it: three parts, a header of alg, kid and typ."


class ResultAlgorithmRefused(Refusal):
    code, problem = "MUSTER-RES-011", Problem.FORBIDDEN
    title = "The result is not signed by ES256"
    cure = "No other algorithm counts, and none least of all."


class ResultKeyUnknown(Refusal):
    code, problem = "MUSTER-RES-012", Problem.FORBIDDEN
    title = "The result names a key that is not in the key set"
    cure = "Fetch the key set again; the key may have been changed."


class ResultSignatureWrong(Refusal):
    code, problem = "MUSTER-RES-013", Problem.FORBIDDEN
    title = "The result's signature is not by the key that it names"
    cure = "It was changed, or made by somebody else. Ask the service itself."


class ResultIssuerDiffers(Refusal):
    code, problem = "MUSTER-RES-014", Problem.FORBIDDEN
    title = "The result is by another service"
    cure = "Name the service that is expected: --issuer."


class ResultForAnother(Refusal):
    code, problem = "MUSTER-RES-015", Problem.FORBIDDEN
    title = "The result is for another relying party"
    cure = "Ask for one with your own name as aud."


class ResultNonceDiffers(Refusal):
    code, problem = "MUSTER-RES-016", Problem.FORBIDDEN
    title = "The result answers another challenge, or none"
    cure = "Ask for one with a fresh nonce, and verify it with that nonce."


class ResultFromTheFuture(Refusal):
    code, problem = "MUSTER-RES-017", Problem.FORBIDDEN
    title = "The result was issued at a time that is still to come"
    cure = "Set this machine's clock."


class ResultExpired(Refusal):
    code, problem = "MUSTER-RES-018", Problem.FORBIDDEN
    title = "The result has expired"
    cure = "Ask for a fresh one."


class ResultKeysMalformed(Refusal):
    code, problem = "MUSTER-RES-019", Problem.MALFORMED
    title = "The key set is none that can be used"
    cure = "Fetch it from the service: /.well-known/jwks.json."


class ResultNotGoodEnough(Refusal):
    code, problem = "MUSTER-RES-020", Problem.FORBIDDEN
    title = "The result is authentic, and its verdict is not good enough"
    cure = "Look at what it says: -o json. The operator of the service sees more: muster devices show NAME."


def refusal_class(code: str) -> type[Refusal]:
    """The class of a stored refusal."""
    return next(known for known in Refusal.__subclasses__() if known.code == code)
