"""What a refused quote, file of tpm2-tools, or attestation result says to the operator: both sides, exactly."""

import hashlib
import json
import struct
from datetime import timedelta
from types import MappingProxyType

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from provisioning.attestation.algorithms import ECDSA, RSASSA, SHA256
from provisioning.attestation.attestation_key import verify_attestation_key
from provisioning.attestation.quote import TpmState, VerifiedPcrs, verify_continuity, verify_firmware, verify_quote
from provisioning.attestation.relying import Asked, appraise_result, parse_key_set
from provisioning.attestation.results import TYPE, Tier, key_set, parse_audience, parse_nonce
from provisioning.attestation.second_opinion import FILE_MOST, parse_ak, parse_pcr_values, verify_tool_quote
from provisioning.attestation.structures import QuotedPcrs
from provisioning.export import tpm2_tools_pcrs
from provisioning.refusals import (
    AnswersAnotherChallenge,
    Finding,
    PcrSelectionWrong,
    PcrValuesNotQuoted,
    Refusal,
    RequestMalformed,
    ResultAlgorithmRefused,
    ResultExpired,
    ResultForAnother,
    ResultFromTheFuture,
    ResultIssuerDiffers,
    ResultKeysMalformed,
    ResultKeyUnknown,
    ResultMalformed,
    ResultNonceDiffers,
    ResultNotGoodEnough,
    ResultSignatureWrong,
    StructureMalformed,
    TpmCleared,
    TpmFirmwareRefused,
    TpmWentBack,
)
from tests.unit.attestation import test_results as results
from tests.unit.attestation import test_second_opinion as tools
from wire.messages import Attestation, PcrSelection


def both_sides(refusal, call, *arguments):
    with pytest.raises(Refusal) as refused:
        call(*arguments)
    assert type(refused.value) is refusal
    return refused.value.expected, refused.value.actual


# --- a device's quote ---------------------------------------------------------------------------------------------

AK = verify_attestation_key(tools.public_area(tools.P256))
BOUND = b"b" * 32
VALUES = {pcr: hashlib.sha256(bytes([pcr])).digest() for pcr in (0, 4, 7)}


def made(values=None, **changes):
    message = tools.attest(VALUES if values is None else values, BOUND, AK.qualified_name, **changes)
    return Attestation(message, tools.tss(tools.sign(tools.P256, message), ECDSA))


def reported(values=None, bank="sha256"):
    return {bank: {str(pcr): value for pcr, value in (VALUES if values is None else values).items()}}


def judged(quote=None, values=None, pcrs=(0, 4, 7), bank="sha256"):
    return verify_quote(
        made() if quote is None else quote,
        reported() if values is None else values,
        PcrSelection(bank, pcrs),
        AK,
        BOUND,
    )


def test_a_quote_tells_values_and_counters():
    state = TpmState(1, 2, 5000, safe=True, firmware_version=0x20160511)
    assert judged(pcrs=(7, 0, 4, 4)) == VerifiedPcrs("sha256", MappingProxyType(VALUES), state)
    assert list(judged().values) == [0, 4, 7]


def test_another_selection_is_shown_beside_the_asked_one():
    assert both_sides(PcrSelectionWrong, lambda: judged(pcrs=(0, 4))) == ("sha256 0, 4", "sha256 0, 4, 7")
    assert both_sides(PcrSelectionWrong, lambda: judged(bank="sha384")) == ("sha384 0, 4, 7", "sha256 0, 4, 7")
    assert both_sides(PcrSelectionWrong, lambda: judged(made({}))) == ("sha256 0, 4, 7", "sha256 none")


def test_reported_values_are_of_the_quoted_pcrs():
    for values, actual in (
        ({}, "none"),
        (reported({0: VALUES[0], 4: VALUES[4]}), "sha256 0, 4"),
        (reported(VALUES | {8: bytes(32)}), "sha256 0, 4, 7, 8"),
        (reported() | reported({0: bytes(48)}, "sha384"), "sha256 0, 4, 7; sha384 0"),
        (reported(bank="sha384"), "sha384 0, 4, 7"),
        ({"sha256": {str(pcr): bytes(32) for pcr in range(25)}}, "sha256 " + ", ".join(map(str, range(24)))),
    ):
        assert both_sides(PcrValuesNotQuoted, judged, None, values) == ("sha256 0, 4, 7", actual)
    short = reported(VALUES | {4: bytes(31)})
    assert both_sides(PcrValuesNotQuoted, judged, None, short) == ("32 bytes each", "PCR 4: 31 bytes")
    digest = hashlib.sha256(VALUES[0] + bytes(32) + VALUES[7]).hexdigest()
    quoted = hashlib.sha256(VALUES[0] + VALUES[4] + VALUES[7]).hexdigest()
    assert both_sides(PcrValuesNotQuoted, judged, None, reported(VALUES | {4: bytes(32)})) == (quoted, digest)


def state(resets=10, restarts=2, clock=10_000_000, safe=True):
    return TpmState(resets, restarts, clock, safe, 1)


COUNTS = "resetCount, restartCount"


@pytest.mark.parametrize(
    ("after", "refusal", "findings"),
    [
        (state(9, 5), TpmWentBack, [Finding(COUNTS, "at least 10, 2", "9, 5")]),
        (state(10, 1), TpmWentBack, [Finding(COUNTS, "at least 10, 2", "10, 1")]),
        (state(clock=9_999_999), TpmWentBack, [Finding("clock", "at least 10000000 ms", "9999999 ms")]),
        (
            state(4, 7, 3_600_000),
            TpmCleared,
            [Finding(COUNTS, "at least 10, 2", "4, 7"), Finding("clock", "at least 10000000 ms", "3600000 ms")],
        ),
        (
            state(5, 7, 3_600_000),
            TpmWentBack,
            [Finding(COUNTS, "at least 10, 2", "5, 7"), Finding("clock", "at least 10000000 ms", "3600000 ms")],
        ),
        (
            state(4, 7, 3_600_001),
            TpmWentBack,
            [Finding(COUNTS, "at least 10, 2", "4, 7"), Finding("clock", "at least 10000000 ms", "3600001 ms")],
        ),
    ],
)
def test_each_step_back_is_a_finding(after, refusal, findings):
    with pytest.raises(Refusal) as refused:
        verify_continuity(after, state())
    assert type(refused.value) is refusal
    assert list(refused.value.findings) == findings
    assert (refused.value.expected, refused.value.actual) == (findings[0].expected, findings[0].actual)


def test_a_clock_that_stands_still_does_not_make_a_cleared_tpm():
    """Counters went back while the clock did not: a TPM that was cleared begins its clock anew."""
    with pytest.raises(TpmWentBack):
        verify_continuity(state(1, 0, 5000), state(2, 0, 5000))
    with pytest.raises(TpmWentBack):
        verify_continuity(state(0, 0, 10, safe=False), state(0, 1, 5000))


def test_firmware_is_shown_in_hex():
    tpm = TpmState(0, 0, 0, safe=True, firmware_version=0x2026)
    verify_firmware(tpm, 0x2026)
    assert both_sides(TpmFirmwareRefused, verify_firmware, tpm, 0x2027) == ("at least 0x2027", "0x2026")


# --- the files of tpm2-tools ----------------------------------------------------------------------------------------

GOOD = {"ak": tools.pem(tools.P256), "message": tools.MESSAGE, "signature": tools.EC_SIGNATURE}
PROVEN = [
    "The message is a quote (TPM_GENERATED, type 0x8018), and this key signed these very bytes.",
    "The key's public area says restricted, fixedTPM, fixedParent: so made, it signs no forged quote.",
    "The key is a primary key of the endorsement hierarchy: clock and firmware version are plain.",
    "The quote answers the given qualification.",
    "The values of the file are the quoted PCRs.",
]
NOT_PROVEN = [
    "That a TPM holds the key: only opening a credential shows it (tpm2_makecredential, enrollment).",
    "That the key is restricted: PEM says nothing of it. An unrestricted key signs forged quotes.",
    "That the key is an endorsement primary: clock and firmware version may be obfuscated.",
    "That the quote is fresh: no qualification was given. Compare the shown one with your nonce.",
    "What the PCRs held: no values were given, and the quote has their digest alone.",
    "That what booted is acceptable: replay the boot log (muster attest log) and judge by a policy.",
]


def test_the_opinion_says_exactly_what_is_proven_and_what_is_not():
    """An operator acts on these sentences: none may be there that is not true of what was given."""
    nothing = verify_tool_quote(**GOOD, qualification=None, pcrs=None)
    assert (list(nothing.proven), list(nothing.not_proven)) == (PROVEN[:1], [NOT_PROVEN[n] for n in (0, 1, 3, 4, 5)])
    area = tools.public_area(tools.P256)
    stranger = verify_tool_quote(area, tools.MESSAGE, tools.EC_SIGNATURE, tools.NONCE, tools.FILE)
    assert list(stranger.proven) == [PROVEN[n] for n in (0, 1, 3, 4)]
    assert list(stranger.not_proven) == [NOT_PROVEN[n] for n in (0, 2, 5)]
    primary = made()
    whole = verify_tool_quote(area, primary.attest, primary.signature, BOUND, b"".join(VALUES.values()))
    assert (list(whole.proven), list(whole.not_proven)) == (PROVEN, [NOT_PROVEN[0], NOT_PROVEN[5]])


@pytest.mark.parametrize(
    ("argument", "name"), [("ak", "AK"), ("message", "message"), ("signature", "signature"), ("pcrs", "PCR file")]
)
def test_a_file_has_its_cap(argument, name):
    given = {**GOOD, "qualification": None, "pcrs": None, argument: bytes(FILE_MOST + 1)}
    told = both_sides(StructureMalformed, lambda: verify_tool_quote(**given))
    assert told == (f"{name}: at most 16384 bytes", "16385 bytes")
    with pytest.raises(Refusal) as refused:
        verify_tool_quote(**{**given, argument: bytes(FILE_MOST)})
    assert "at most 16384" not in refused.value.expected


def test_another_qualification_is_shown():
    told = both_sides(AnswersAnotherChallenge, lambda: verify_tool_quote(**GOOD, qualification=b"\1", pcrs=None))
    assert told == ("01", "0a0b0c")


def test_pem_may_begin_with_blanks():
    assert parse_ak(b" \n" + tools.pem(tools.P256))[1] is None
    told = both_sides(StructureMalformed, parse_ak, b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    assert told[0] == "a public key in PEM"
    assert told[1]


QUOTED = QuotedPcrs(SHA256, (0, 4, 7), b"")
FILE = tpm2_tools_pcrs(SHA256, VALUES)


def with_slot(size, value=b"", at=0):
    """The file with another first value."""
    place = 136 + 4 + 66 * at
    return FILE[:place] + struct.pack("<H", size) + value + FILE[place + 2 + len(value) :]


@pytest.mark.parametrize(
    ("data", "refusal", "expected", "actual"),
    [
        (b"", PcrValuesNotQuoted, "a file of tpm2_quote -o, or the bare values", "0 bytes"),
        (FILE[:132], PcrValuesNotQuoted, "a file of tpm2_quote -o, or the bare values", "132 bytes"),
        (FILE[:135], PcrValuesNotQuoted, "a file of tpm2_quote -o, or the bare values", "135 bytes"),
        (FILE + b"\0", PcrValuesNotQuoted, "a file of tpm2_quote -o, or the bare values", f"{len(FILE) + 1} bytes"),
        (b"\2" + FILE[1:], PcrSelectionWrong, "one bank", "2"),
        (tpm2_tools_pcrs(SHA256, {0: bytes(32)}), PcrSelectionWrong, "sha256 0, 4, 7", "sha256 0"),
        (tpm2_tools_pcrs(0x0C, VALUES), PcrSelectionWrong, "sha256 0, 4, 7", "sha384 0, 4, 7"),
        (tpm2_tools_pcrs(0x9999, VALUES), PcrSelectionWrong, "sha256 0, 4, 7", "0x9999 0, 4, 7"),
        (
            FILE[:7] + b"\0\0\0\0" + FILE[11:],
            PcrSelectionWrong,
            "sha256 0, 4, 7",
            "sha256 none",
        ),
        (
            FILE[:6] + b"\4\0\0\0\x80" + FILE[11:],
            PcrSelectionWrong,
            "sha256 0, 4, 7",
            "sha256 31",
        ),
        (
            FILE[:6] + b"\2\x91\0\xff\xff" + FILE[11:136] + struct.pack("<I", 9) + FILE[140:],
            PcrValuesNotQuoted,
            "at most 8 values a list",
            "9",
        ),
        (with_slot(31), PcrValuesNotQuoted, "3 values of 32 bytes", "3 of [31, 32] bytes"),
        (
            FILE[:136] + struct.pack("<I", 8) + FILE[140:],
            PcrValuesNotQuoted,
            "3 values of 32 bytes",
            "8 of [0, 32] bytes",
        ),
    ],
)
def test_a_pcr_file_that_does_not_fit_says_why(data, refusal, expected, actual):
    assert both_sides(refusal, parse_pcr_values, data, QUOTED) == (expected, actual)


def test_a_selection_counts_as_far_as_its_size():
    """Octets behind sizeofSelect are nobody's."""
    assert parse_pcr_values(FILE[:6] + b"\1\x91\xff\xff\xff" + FILE[11:], QUOTED) == VALUES
    many = {pcr: bytes([pcr]) * 32 for pcr in range(24)}
    assert parse_pcr_values(tpm2_tools_pcrs(SHA256, many), QuotedPcrs(SHA256, tuple(many), b"")) == many


def test_values_that_were_not_quoted_are_shown_by_their_digest():
    values = tools.VALUES | {0: bytes(32)}
    digest = hashlib.sha256(b"".join(values[pcr] for pcr in sorted(values))).hexdigest()
    told = both_sides(
        PcrValuesNotQuoted,
        lambda: verify_tool_quote(**GOOD, qualification=None, pcrs=tpm2_tools_pcrs(SHA256, values)),
    )
    assert told == (hashlib.sha256(tools.BARE).hexdigest(), digest)


def test_a_bare_signature_is_told_from_none():
    area = tools.public_area(tools.RSA2048)
    found = verify_tool_quote(area, tools.MESSAGE, tools.RSA_SIGNATURE, None, None)
    assert (found.scheme.algorithm, found.scheme.hash) == (RSASSA, SHA256)
    message = tools.attest(hashed="sha1")
    told = both_sides(
        StructureMalformed,
        verify_tool_quote,
        tools.pem(tools.P256),
        message,
        tools.sign(tools.P256, message),
        None,
        None,
    )
    assert told == (
        "a digest of SHA-256, SHA-384 or SHA-512",
        hashlib.sha1(tools.BARE, usedforsecurity=False).hexdigest(),
    )
    told = both_sides(
        StructureMalformed, verify_tool_quote, tools.pem(tools.P256), tools.MESSAGE, b"\x30\0", None, None
    )
    assert told == ("an ECDSA signature in DER", "2 bytes")


# --- results, as a relying party takes them ------------------------------------------------------------------------

KID = results.HEADER["kid"]
NOW = "2026-11-22T04:00:00Z"
SAID = {
    "no text": ("three parts with dots between them, at most 16384 characters", "0 characters"),
    "four parts": (
        "three parts with dots between them, at most 16384 characters",
        f"{len(results.token()) + 2} characters",
    ),
    "claims that are a list": ("two JSON objects and a signature of 64 bytes", "something else"),
    "none": ("ES256", "none"),
    "another type": ("a header of alg, kid and typ eat+jwt", "alg, kid, typ"),
    "no key id": ("a header of alg, kid and typ eat+jwt", "alg, typ"),
    "an unknown key": (KID, results.thumbprint(results.OTHER.public_key())),
    "another key's signature": (f"a signature by {KID}", "another one"),
    "another issuer": ("muster.test", "other.test"),
    "another audience": ("rp.example", "rp.example.evil"),
    "another nonce": (results.NONCE, "6eXvQ0zQ0bN"),
    "no nonce": (results.NONCE, "none"),
    "to come": (f"issued by {NOW}", "2026-11-22T04:01:01+00:00"),
    "over": (f"good at {NOW}", "2026-11-22T04:00:00+00:00"),
    "no end": ("exp: whole seconds", "object"),
    "an end that is true": ("exp: whole seconds", "bool"),
    "an end beyond time": ("exp: a moment", str(2**62)),
    "no beginning": ("iat: whole seconds", "object"),
    "another profile": (f"eat_profile {results.PROFILE}", "tag:github.com,2023:veraison/ear"),
    "no device": ("sub and cnf.jkt", "not both"),
    "no key": ("sub and cnf.jkt", "not both"),
    "no verdict": ("submods", "none"),
    "no submodule": ("submods", "none"),
}
CLASSES = {
    ResultAlgorithmRefused: ["none"],
    ResultKeyUnknown: ["an unknown key"],
    ResultSignatureWrong: ["another key's signature"],
    ResultIssuerDiffers: ["another issuer"],
    ResultForAnother: ["another audience"],
    ResultNonceDiffers: ["another nonce", "no nonce"],
    ResultFromTheFuture: ["to come"],
    ResultExpired: ["over"],
}


@pytest.mark.parametrize("what", SAID)
def test_a_refused_result_says_both_sides(what):
    refusal = next((refusal for refusal, names in CLASSES.items() if what in names), ResultMalformed)
    assert both_sides(refusal, results.verified, results.REFUSED[what][0]) == SAID[what]


def test_a_result_that_is_not_good_enough_says_what_would_be():
    found = results.verified(results.token(ear_status="warning", submods={"a": {"ear_status": "warning"}}))
    assert both_sides(ResultNotGoodEnough, appraise_result, found, Tier.AFFIRMING) == ("affirming or better", "warning")


def test_without_keys_any_key_is_unknown_and_nobody_asked_for_a_nonce_says_none():
    assert both_sides(ResultKeyUnknown, results.verified, results.token(), {}) == ("a key", KID)
    keys = [results.KEY.public_key(), results.OTHER.public_key()]
    known = parse_key_set(json.dumps(key_set(keys)).encode())
    stranger = {**results.HEADER, "kid": "x"}
    told = both_sides(ResultKeyUnknown, results.verified, results.token(header=stranger), known)
    assert told == (", ".join(sorted(map(results.thumbprint, keys))), "x")
    asked = Asked(None, "rp.example", None)
    assert both_sides(ResultNonceDiffers, results.verified, results.token(), results.KEYS, asked) == (
        "none",
        results.NONCE,
    )


def test_the_longest_result_and_the_last_second():
    long = results.token(more="x" * 11000)
    assert len(long) < 16384
    assert results.verified(long).claims["more"]
    assert results.verified(results.token(), now=results.NOW + timedelta(seconds=3599, microseconds=999999))
    early = results.NOW - timedelta(seconds=60, microseconds=1)
    with pytest.raises(ResultFromTheFuture):
        results.verified(results.token(), now=early)


def test_keys_are_listed_as_keys_for_signatures():
    (listed,) = key_set([results.KEY.public_key()])["keys"]
    assert listed.keys() == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    assert (listed["use"], listed["alg"], listed["kid"], listed["kty"]) == ("sig", "ES256", KID, "EC")
    assert results.HEADER["typ"] == TYPE == "eat+jwt"


@pytest.mark.parametrize(
    ("keys", "expected", "actual"),
    [
        ([1], "keys: a list of at most 32 objects", "something else"),
        ([results.JWK] * 33, "keys: a list of at most 32 objects", "something else"),
        ([{**results.JWK, "kid": "mine"}], f"the kid {KID}", "mine"),
        ([{**results.JWK, "d": "AAAA"}], "public keys", "a private one: it is not secret any more"),
        ([{**results.JWK, "x": "AAAA"}], "coordinates of 32 bytes", "3, 32"),
        ([{"kty": "EC", "crv": "P-256"}], "a point on P-256", "KeyError"),
        ([{**results.JWK, "x": results.JWK["y"]}], "a point on P-256", "ValueError"),
    ],
    ids=["no objects", "too many", "another kid", "a private key", "a short coordinate", "no coordinates", "no point"],
)
def test_a_refused_key_set_says_both_sides(keys, expected, actual):
    data = json.dumps({"keys": keys}).encode()
    assert both_sides(ResultKeysMalformed, parse_key_set, data) == (expected, actual)


def test_a_full_key_set_is_read():
    assert parse_key_set(json.dumps({"keys": [results.JWK] * 32}).encode()).keys() == {KID}
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    bare = {name: value for name, value in key_set([other])["keys"][0].items() if name in {"kty", "crv", "x", "y"}}
    mixed = [{"kty": "oct"}, {**results.JWK, "crv": "P-384"}, bare]
    assert parse_key_set(json.dumps({"keys": mixed}).encode()).keys() == {results.thumbprint(other)}


def test_what_is_no_audience_or_nonce_is_shown_cut():
    assert (parse_audience("a"), parse_audience("a" * 256)) == ("a", "a" * 256)
    assert both_sides(RequestMalformed, parse_audience, "a" * 257)[1] == "a" * 256
    assert both_sides(RequestMalformed, parse_audience, "a b")[1] == "a b"
    assert (parse_nonce("n" * 8), parse_nonce("n" * 88)) == ("n" * 8, "n" * 88)
    assert both_sides(RequestMalformed, parse_nonce, "n" * 89)[1] == "n" * 88
    assert both_sides(RequestMalformed, parse_nonce, "n" * 7)[1] == "n" * 7


def test_a_key_for_another_algorithm_is_passed_over_and_what_is_no_set_is_named():
    assert parse_key_set(json.dumps({"keys": [{**results.JWK, "alg": "ES384"}]}).encode()) == {}
    expected, actual = both_sides(ResultKeysMalformed, parse_key_set, b"{")
    assert expected == "a JWK Set"
    assert actual.startswith("message: ")
