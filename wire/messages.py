"""Every message between a device, a factory station and the service, as data. Shapes and caps; no rule of trust."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from wire.codec import Cap

CSR_MOST = 16 * 1024
EVIDENCE_MOST = 64 * 1024
"""Bytes of the evidence message without its boot log."""
BOOT_LOG_MOST = 256 * 1024
IMA_LOG_MOST = 4 * 1024 * 1024
EVIDENCE_BODY_MOST = EVIDENCE_MOST + BOOT_LOG_MOST * 4 // 3 + 4
"""Bytes of an HTTPS body with evidence: base64url grows the boot log by a third."""
IMA_EVIDENCE_BODY_MOST = EVIDENCE_BODY_MOST + IMA_LOG_MOST * 4 // 3 + 4
"""The same where the challenge asks for an IMA log."""
ENROLLMENT_BODY_MOST = 64 * 1024

Certificate = Annotated[bytes, Cap(8 * 1024)]
"""DER."""
TpmStructure = Annotated[bytes, Cap(2 * 1024)]
"""A TPM's own bytes (TPMT_PUBLIC, TPMS_ATTEST, TPMT_SIGNATURE …), never re-encoded."""
Digest = Annotated[bytes, Cap(64)]
Identifier = Annotated[str, Cap(64)]
BootLog = Annotated[bytes, Cap(BOOT_LOG_MOST)]
ImaLog = Annotated[bytes, Cap(IMA_LOG_MOST)]
LogRule = Literal["none", "optional", "required"]
BootLogRule = LogRule

# --- enrollment ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EnrollmentRequest:
    """Step 1, device to service: which TPM this is and which AK it will quote with.

    `serial`, if given, must be the record's. `ek_public` (TPMT_PUBLIC) is of a TPM that holds no certificate. An AK
    with its maker's certificate (`iak_certificate`) comes without an EK, and with an IDevID where that is registered.
    """

    ak_public: TpmStructure
    pcr_banks: Annotated[tuple[Annotated[str, Cap(16)], ...], Cap(8)]
    ek_certificate: Certificate | None = None
    ek_public: TpmStructure | None = None
    ek_intermediates: Annotated[tuple[Certificate, ...], Cap(4)] = ()
    serial: Identifier | None = None
    profile: Annotated[str, Cap(32)] | None = None
    state_of: Identifier | None = None
    """The device id in the state that the agent found: another one's, where a state folder came to another TPM."""
    iak_certificate: Certificate | None = None
    iak_intermediates: Annotated[tuple[Certificate, ...], Cap(4)] = ()
    idevid_certificate: Certificate | None = None


@dataclass(frozen=True, slots=True)
class PcrSelection:
    """Which PCRs of which bank a quote must cover, in this order."""

    bank: Annotated[str, Cap(16)]
    pcrs: Annotated[tuple[int, ...], Cap(24)]


@dataclass(frozen=True, slots=True)
class Challenge:
    """Step 1, the answer; also the body of a rotate and of an attest command.

    `credential_blob` is a TPM2B_ID_OBJECT, `encrypted_secret` a TPM2B_ENCRYPTED_SECRET, both with their size fields;
    both are empty for an AK with its maker's certificate.
    """

    enrollment_id: Identifier
    audience: Annotated[str, Cap(255)]
    credential_blob: TpmStructure
    encrypted_secret: TpmStructure
    nonce: Digest
    pcr_selection: PcrSelection
    boot_log: BootLogRule
    expires_at: datetime
    ima_log: LogRule = "none"


@dataclass(frozen=True, slots=True)
class Attestation:
    """A TPMS_ATTEST and the TPMT_SIGNATURE over it, in the TPM's own bytes."""

    attest: TpmStructure
    signature: TpmStructure


Pcrs = Annotated[dict[str, Annotated[dict[str, Digest], Cap(24)]], Cap(4)]
"""`{"sha256": {"0": digest, …}}`: what the device says its PCRs are. Believed only as far as a quote covers them."""


@dataclass(frozen=True, slots=True)
class PlatformEvidence:
    """What the platform booted, and that it is the challenged TPM that says so. The answer to an attest command."""

    quote: Attestation
    pcrs: Pcrs
    activation_proof: Digest
    boot_log: BootLog | None = None
    boot_log_sha256: Digest | None = None
    ima_log: ImaLog | None = None
    ima_log_sha256: Digest | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Step 2 of an enrollment, and the answer to a rotate command: platform, resident key, request.

    By MQTT a log travels as its SHA-256 and was uploaded before, by `PUT /v1/logs/<sha256>`.
    """

    csr: Annotated[bytes, Cap(CSR_MOST)]
    device_public: TpmStructure
    certify: Attestation
    quote: Attestation
    pcrs: Pcrs
    activation_proof: Digest
    boot_log: BootLog | None = None
    boot_log_sha256: Digest | None = None
    ima_log: ImaLog | None = None
    ima_log_sha256: Digest | None = None


@dataclass(frozen=True, slots=True)
class MqttAddress:
    """Where the broker is."""

    host: Annotated[str, Cap(255)]
    port: int


@dataclass(frozen=True, slots=True)
class Standing:
    """The answer to a device that asks whether its certificate still counts."""

    device_id: Annotated[str, Cap(64)]
    health: Annotated[str, Cap(16)]


@dataclass(frozen=True, slots=True)
class Issued:
    """Step 2, the answer. `chain` runs from the issuing CA to the root, DER."""

    device_id: Identifier
    certificate: Certificate
    chain: Annotated[tuple[Certificate, ...], Cap(4)]
    mqtt: MqttAddress
    renew_after: datetime


@dataclass(frozen=True, slots=True)
class SignedTime:
    """The payload of `GET /v1/time?nonce=…`, in an envelope by a command key."""

    nonce: Identifier
    now: datetime


# --- MQTT: every message is the payload of an envelope ------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What every payload carries. `sequence` rises within a session, in each direction by itself."""

    message_id: Identifier
    device: Identifier
    session: Identifier
    sequence: int
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Message):
    """Up. A new session, or the same one after a reconnect. `last_sequence` is the highest command accepted in it.

    `session_number` rises with each start of the agent (it keeps it in its state): an old hello, replayed, is known.
    """

    session_number: int
    last_sequence: int
    trust_version: int
    certificate_serial: Identifier
    release_counter: int
    release_version: Annotated[str, Cap(64)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(Message):
    """Down, the answer to hello: what the service has on record, for a device that lost its state."""

    in_reply_to: Identifier
    release_floor: int
    greet_again: bool = False
    """Say hello once more, at once: the service wants to know whether this very session is alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotate(Message):
    """Down: make a new key, attest, ask for a certificate over it."""

    challenge: Challenge


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationEvidence(Message):
    """Up, the answer to rotate."""

    in_reply_to: Identifier
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated(Message):
    """Down: the certificate. `in_reply_to` is the rotate command's message id."""

    in_reply_to: Identifier
    certificate: Certificate
    chain: Annotated[tuple[Certificate, ...], Cap(4)]
    renew_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed(Message):
    """Up, signed by the new key: the pair of this serial is in use."""

    in_reply_to: Identifier
    certificate_serial: Identifier


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew(Message):
    """Up: my certificate is past two thirds of its life. Answered by a rotate command."""

    certificate_serial: Identifier


@dataclass(frozen=True, slots=True, kw_only=True)
class Attest(Message):
    """Down: prove now what you run."""

    challenge: Challenge


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationEvidence(Message):
    """Up, the answer to attest."""

    in_reply_to: Identifier
    evidence: PlatformEvidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested(Message):
    """Down: the evidence passed, and until when that is worth something."""

    in_reply_to: Identifier
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(Message):
    """Down: the answer to evidence that did not pass. The class only."""

    in_reply_to: Identifier
    problem: Annotated[str, Cap(200)]
    code: Annotated[str, Cap(32)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Message):
    """Up: a command could not be carried out. `reason` is one line for the operator."""

    in_reply_to: Identifier
    reason: Annotated[str, Cap(500)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshTrust(Message):
    """Down: fetch the trust repository again. A command can ask that, never replace trust."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckForUpdate(Message):
    """Down: look now at the update repositories."""


UpdateState = Literal[
    "notified",
    "verifying",
    "refused",
    "downloading",
    "verified",
    "installing",
    "rebooting",
    "health_check",
    "committed",
    "rolled_back",
    "failed",
    "superseded",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport(Message):
    """Up: where the update to `version` stands."""

    state: UpdateState
    version: Annotated[str, Cap(64)]
    release_counter: int
    detail: Annotated[str, Cap(500)] | None = None


DOWN = (Welcome, Rotate, Rotated, Attest, Attested, Refused, RefreshTrust, CheckForUpdate)
UP = (Hello, RotationEvidence, Installed, Renew, AttestationEvidence, Failed, UpdateReport)

PAYLOAD_TYPE: dict[type[Message], str] = {
    kind: f"application/vnd.muster.{name}.v1+json"
    for kind, name in (
        (Welcome, "welcome"),
        (Rotate, "rotate"),
        (Rotated, "rotated"),
        (Attest, "attest"),
        (Attested, "attested"),
        (Refused, "refused"),
        (RefreshTrust, "refresh-trust"),
        (CheckForUpdate, "check-for-update"),
        (Hello, "hello"),
        (RotationEvidence, "rotation-evidence"),
        (Installed, "installed"),
        (Renew, "renew"),
        (AttestationEvidence, "attestation-evidence"),
        (Failed, "failed"),
        (UpdateReport, "update-report"),
    )
}
TIME_PAYLOAD_TYPE = "application/vnd.muster.time.v1+json"

# --- trust --------------------------------------------------------------------------------------------------------

PublicKey = Annotated[bytes, Cap(512)]
"""SubjectPublicKeyInfo, DER."""
CaKey = Annotated[bytes, Cap(2048)]
"""The same, of any kind that a CA may have."""


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """The one target of the trust repository: everything that a device trusts, beyond its anchor.

    `image_root` and `director_root` are TUF root metadata, as their own signed bytes. Key ids are the SHA-256 of the
    SubjectPublicKeyInfo, in hex. `issuing_keys`, where there are any, are the keys of the CAs that may stand right
    above a certificate of this service or of its devices: a retired one counts no more, although a root signed it.
    """

    version: int
    service_name: Annotated[str, Cap(255)]
    ca_roots: Annotated[tuple[Certificate, ...], Cap(8)]
    command_keys: Annotated[tuple[PublicKey, ...], Cap(8)]
    log_keys: Annotated[tuple[PublicKey, ...], Cap(8)]
    director_root: Annotated[bytes, Cap(64 * 1024)] | None = None
    image_root: Annotated[bytes, Cap(64 * 1024)] | None = None
    issuing_keys: Annotated[tuple[CaKey, ...], Cap(8)] = ()


@dataclass(frozen=True, slots=True)
class Anchor:
    """All that a device trusts before it has anything: the service's name and the trust repository's first root."""

    service_name: Annotated[str, Cap(255)]
    trust_root: Annotated[bytes, Cap(64 * 1024)]


BUNDLE_NAME = "bundle.json"
"""The one target of the trust repository."""
BUNDLE_MOST = 384 * 1024
"""Bytes of an encoded bundle."""
