"""Attestation results: what they say, and which of them a relying party takes. PyJWT has the second opinion."""

import base64
import contextlib
import hmac
import json
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioning.attestation.jwk import NoJwk, jwk_of, thumbprint
from provisioning.attestation.policy import parse_policy
from provisioning.attestation.relying import (
    KEYS_MOST,
    RESULT_MOST,
    SKEW_SECONDS,
    Asked,
    appraise_result,
    parse_key_set,
    verify_result,
)
from provisioning.attestation.results import (
    ALGORITHM,
    PROFILE,
    SUBMODULE,
    TYPE,
    Appraised,
    Frame,
    Tier,
    assembled,
    claims_of,
    key_set,
    parse_audience,
    parse_nonce,
    signing_input,
    tier_of,
    trust_vector,
)
from provisioning.refusals import (
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
)

NOW = datetime(2026, 11, 22, 4, 0, tzinfo=UTC)
KEY, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
KEYS = parse_key_set(json.dumps(key_set([KEY.public_key()])).encode())
NONCE = "6eXvQ0zQ0bM"
ASKED = Asked("muster.test", "rp.example", NONCE)
FRAME = Frame(
    issuer="muster.test",
    subject="spiffe://muster.test/device/d-1",
    audience="rp.example",
    nonce=NONCE,
    jkt=thumbprint(OTHER.public_key()),
    issued_at=NOW,
    expires_at=NOW + timedelta(hours=1),
    build="muster 0",
)


def policy(*pcrs, software="false", banks=("sha256",)):
    values = "\n".join(
        f"[pcrs.{bank}]\n" + "\n".join(f'"{n}" = ["{"00" * size}"]' for n in pcrs)
        for bank, size in (("sha256", 32), ("sha384", 48))
        if bank in banks
    )
    return parse_policy(f'model = "m"\nek_trust = "key"\nsoftware_tpm = {software}\nbanks = {list(banks)}\n{values}\n')


BOOT = policy(0, 1, 2, 4, 7)


def appraised(**given):
    said = {
        "health": "healthy",
        "ek_trust": "certificate",
        "flow": "enroll",
        "attested_at": NOW - timedelta(hours=1),
        "policy": BOOT,
        "policy_version": 3,
        "policy_sha256": "ab" * 32,
        "in_force": True,
        "compared": True,
        "deviates": False,
    }
    return Appraised(**{**said, **given})


def token(claims=None, header=None, key=KEY, digest=SHA256, **changed):
    """A result; claims and header may be changed, None takes one out."""
    whole = {**(claims_of(FRAME, appraised()) if claims is None else claims), **changed}
    whole = {name: value for name, value in whole.items() if value is not None}
    if header is None:
        signed = signing_input(whole, KEY.public_key())
    else:
        signed = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, whole))
    return assembled(signed, key.sign(signed, ec.ECDSA(digest())))


HEADER = {"alg": ALGORITHM, "kid": thumbprint(KEY.public_key()), "typ": TYPE}


def verified(made, keys=KEYS, asked=ASKED, now=NOW):
    return verify_result(made, keys, asked, now)


# --- what a result says -----------------------------------------------------------------------------------------------


def test_a_result_has_the_claims_of_eat_and_ear():
    assert claims_of(FRAME, appraised()) == {
        "eat_profile": PROFILE,
        "iss": "muster.test",
        "sub": "spiffe://muster.test/device/d-1",
        "aud": "rp.example",
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 3600,
        "eat_nonce": NONCE,
        "cnf": {"jkt": FRAME.jkt},
        "ear_verifier_id": {"developer": "muster", "build": "muster 0"},
        "ear_status": "affirming",
        "submods": {
            SUBMODULE: {
                "ear_status": "affirming",
                "ear_trustworthiness_vector": {"instance-identity": 2, "hardware": 2, "executables": 3},
                "ear_appraisal_policy_ids": ["urn:muster:policy:m:3"],
                "ear_verifier_claims": {
                    "urn:muster:health": "healthy",
                    "urn:muster:attested": int(NOW.timestamp()) - 3600,
                    "urn:muster:flow": "enroll",
                    "urn:muster:policy": {"model": "m", "version": 3, "sha256": "ab" * 32, "in_force": True},
                },
            }
        },
    }


@pytest.mark.parametrize(
    ("given", "tier", "vector"),
    [
        ({}, Tier.AFFIRMING, {"instance-identity": 2, "hardware": 2, "executables": 3}),
        ({"health": "unknown"}, Tier.WARNING, {"instance-identity": 2, "hardware": 2, "executables": 3}),
        ({"health": "silent"}, Tier.WARNING, {"instance-identity": 2, "hardware": 2, "executables": 3}),
        ({"health": "failing"}, Tier.CONTRAINDICATED, {"instance-identity": 96, "hardware": 2}),
        ({"health": "quarantined"}, Tier.CONTRAINDICATED, {"instance-identity": 96, "hardware": 2}),
        ({"health": "of-a-later-version"}, Tier.CONTRAINDICATED, {"instance-identity": 96, "hardware": 2}),
        ({"deviates": True}, Tier.WARNING, {"instance-identity": 2, "hardware": 2, "executables": 33}),
        ({"compared": False}, Tier.WARNING, {"instance-identity": 2, "hardware": 2}),
        ({"ek_trust": "key"}, Tier.AFFIRMING, {"instance-identity": 2, "executables": 3}),
        ({"policy": policy(0, 2, 4, software="true")}, Tier.AFFIRMING, {"instance-identity": 2, "executables": 3}),
        ({"policy": policy(0, 2, 7)}, Tier.AFFIRMING, {"instance-identity": 2, "hardware": 2}),
    ],
)
def test_a_verdict_says_what_the_records_bear_out(given, tier, vector):
    assert tier_of(appraised(**given)) is tier
    assert trust_vector(appraised(**given)) == vector


def test_no_verdict_is_better_than_its_worst_claim():
    worst = {2: Tier.AFFIRMING, 3: Tier.AFFIRMING, 33: Tier.WARNING, 96: Tier.CONTRAINDICATED}
    for health in ("healthy", "unknown", "failing"):
        for deviates in (True, False):
            said = appraised(health=health, deviates=deviates)
            tiers = [worst[value] for value in trust_vector(said).values()]
            assert list(Tier).index(tier_of(said)) >= max(map(list(Tier).index, tiers))


def test_without_a_nonce_none_is_said():
    assert "eat_nonce" not in claims_of(
        Frame(**{**{f: getattr(FRAME, f) for f in FRAME.__slots__}, "nonce": None}), appraised()
    )


@pytest.mark.parametrize("text", ["rp", "https://rp.example/x", "urn:x:y", "a" * 256])
def test_an_audience_is_a_name_or_a_uri(text):
    assert parse_audience(text) == text


@pytest.mark.parametrize("text", ["", "a b", "a\n", "ä", "a" * 257, ":x", "1:x", "x:", "a\x00"])
def test_what_is_no_audience_is_refused(text):
    with pytest.raises(RequestMalformed, match="not a message") as caught:
        parse_audience(text)
    assert caught.value.expected.startswith("aud:")


@pytest.mark.parametrize("text", ["12345678", "A" * 88, "a-_=+/.~"])
def test_a_nonce_comes_back_as_it_is(text):
    assert parse_nonce(text) == text


@pytest.mark.parametrize("text", ["", "1234567", "A" * 89, "1234567 ", "1234567\n", "1234567ä"])
def test_what_is_no_nonce_is_refused(text):
    with pytest.raises(RequestMalformed) as caught:
        parse_nonce(text)
    assert caught.value.expected.startswith("nonce:")


# --- keys -------------------------------------------------------------------------------------------------------------


def test_the_thumbprint_is_that_of_rfc_7638():
    modulus = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjh"
        "Mstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvR"
        "L5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    number = int.from_bytes(base64.urlsafe_b64decode(modulus + "=="), "big")
    key = rsa.RSAPublicNumbers(65537, number).public_key()
    assert jwk_of(key) == {"kty": "RSA", "n": modulus, "e": "AQAB"}
    assert thumbprint(key) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def test_a_key_on_p384_is_written_whole_and_others_are_none():
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    assert (jwk_of(key)["crv"], len(jwk_of(key)["x"])) == ("P-384", 64)
    for other in (
        ed25519.Ed25519PrivateKey.generate().public_key(),
        ec.derive_private_key(1, ec.SECP521R1()).public_key(),
    ):
        with pytest.raises(NoJwk):
            jwk_of(other)


def test_a_coordinate_that_begins_with_zero_keeps_its_length():
    keys = (ec.derive_private_key(number, ec.SECP256R1()).public_key() for number in range(1, 600))
    short = next(key for key in keys if key.public_numbers().x >> 248 == 0)
    assert len(jwk_of(short)["x"]) == 43
    assert parse_key_set(json.dumps(key_set([short])).encode()) == {thumbprint(short): short}


def test_pyjwt_has_the_same_thumbprint_and_key():
    (told,) = key_set([KEY.public_key()])["keys"]
    assert jwt.PyJWK(told).key.public_numbers() == KEY.public_key().public_numbers()
    assert told["kid"] == thumbprint(KEY.public_key())


def test_keys_of_other_kinds_are_passed_over():
    (mine,) = key_set([KEY.public_key()])["keys"]
    others = [{"kty": "oct", "k": "AAAA"}, {"kty": "RSA"}, {"kty": "EC", "crv": "P-384"}, {**mine, "alg": "ES384"}, {}]
    assert parse_key_set(json.dumps({"keys": [*others, mine], "more": 1}).encode()).keys() == {mine["kid"]}


JWK = key_set([KEY.public_key()])["keys"][0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": [1]}',
        b"\xff",
        b"{" * 100,
        json.dumps({"keys": [JWK] * (KEYS_MOST + 1)}).encode(),
        json.dumps({"keys": [{**JWK, "kid": "mine"}]}).encode(),
        json.dumps({"keys": [{**JWK, "kid": 7}]}).encode(),
        json.dumps({"keys": [{**JWK, "d": "AAAA"}]}).encode(),
        json.dumps({"keys": [{**JWK, "x": JWK["y"]}]}).encode(),
        json.dumps({"keys": [{**JWK, "x": "AAAA"}]}).encode(),
        json.dumps({"keys": [{**JWK, "x": 5}]}).encode(),
        json.dumps({"keys": [{**JWK, "x": "ä"}]}).encode(),
        json.dumps({"keys": [{"kty": "EC", "crv": "P-256"}]}).encode(),
        b'{"keys": [], "keys": []}',
        b" " * (64 * 1024 + 1),
    ],
)
def test_a_key_set_that_is_none_is_refused(data):
    with pytest.raises(ResultKeysMalformed):
        parse_key_set(data)


# --- what a relying party takes ---------------------------------------------------------------------------------------


def test_a_result_passes_and_tells_device_key_and_verdict():
    found = verified(token())
    assert (found.device, found.status, found.jkt) == (FRAME.subject, Tier.AFFIRMING, FRAME.jkt)
    assert (found.issued_at, found.expires_at, found.key_id) == (NOW, NOW + timedelta(hours=1), HEADER["kid"])
    assert appraise_result(found, Tier.AFFIRMING) is found


def test_pyjwt_takes_what_we_made():
    told = jwt.decode(
        token(),
        jwt.PyJWK(JWK),
        algorithms=["ES256"],
        audience="rp.example",
        issuer="muster.test",
        options={"verify_exp": False, "verify_iat": False},
    )
    assert told["eat_nonce"] == NONCE
    assert jwt.get_unverified_header(token()) == HEADER


def test_we_take_what_pyjwt_made():
    made = jwt.encode(claims_of(FRAME, appraised()), KEY, algorithm="ES256", headers=HEADER)
    assert verified(made).device == FRAME.subject


def test_whoever_names_no_issuer_goes_by_the_keys():
    assert verified(token(), asked=Asked(None, "rp.example", NONCE)).device == FRAME.subject


def _hmac(secret):
    """The classic: an HMAC whose secret is the public key, of just the length of our signature."""
    parts = ({**HEADER, "alg": "HS512"}, claims_of(FRAME, appraised()))
    signed = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    mac = hmac.digest(secret, signed, "sha512")
    return (signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


REFUSED = {
    "no text": ("", ResultMalformed),
    "two parts": ("a.b", ResultMalformed),
    "four parts": (token() + ".x", ResultMalformed),
    "a blank": (token() + "\n", ResultMalformed),
    "padding": (token() + "==", ResultMalformed),
    "other letters": ("ä.b.c", ResultMalformed),
    "too long": ("a" * RESULT_MOST + ".b.c", ResultMalformed),
    "claims that are a list": (token(header=HEADER).split(".")[0] + ".W10." + token().split(".")[2], ResultMalformed),
    "a short signature": (token()[:-4], ResultMalformed),
    "none": (token(header={**HEADER, "alg": "none"}), ResultAlgorithmRefused),
    "no algorithm": (token(header={"kid": HEADER["kid"], "typ": TYPE}), ResultAlgorithmRefused),
    "another algorithm": (token(header={**HEADER, "alg": "ES384"}, digest=SHA384), ResultAlgorithmRefused),
    "a list of algorithms": (token(header={**HEADER, "alg": ["ES256"]}), ResultAlgorithmRefused),
    "HMAC with the public key": (_hmac(json.dumps(JWK).encode()), ResultAlgorithmRefused),
    "a key in the header": (token(header={**HEADER, "jwk": JWK}), ResultMalformed),
    "a place for a key": (token(header={**HEADER, "jku": "https://evil.example/jwks.json"}), ResultMalformed),
    "a certificate in the header": (token(header={**HEADER, "x5c": ["AAAA"]}), ResultMalformed),
    "critical extensions": (token(header={**HEADER, "crit": ["exp"]}), ResultMalformed),
    "another type": (token(header={**HEADER, "typ": "JWT"}), ResultMalformed),
    "no key id": (token(header={"alg": ALGORITHM, "typ": TYPE}), ResultMalformed),
    "a key id that is no text": (token(header={**HEADER, "kid": 7}), ResultMalformed),
    "an unknown key": (token(header={**HEADER, "kid": thumbprint(OTHER.public_key())}, key=OTHER), ResultKeyUnknown),
    "another key's signature": (token(key=OTHER), ResultSignatureWrong),
    "another hash": (token(digest=SHA384), ResultSignatureWrong),
    "a signature of zeros": (".".join([*token().split(".")[:2], "A" * 86]), ResultSignatureWrong),
    "other claims": (
        ".".join(
            [token().split(".")[0], token(sub="spiffe://muster.test/device/d-2").split(".")[1], token().split(".")[2]]
        ),
        ResultSignatureWrong,
    ),
    "another issuer": (token(iss="other.test"), ResultIssuerDiffers),
    "no issuer": (token(iss=None), ResultIssuerDiffers),
    "another audience": (token(aud="rp.example.evil"), ResultForAnother),
    "several audiences": (token(aud=["rp.example", "x"]), ResultForAnother),
    "no audience": (token(aud=None), ResultForAnother),
    "another nonce": (token(eat_nonce="6eXvQ0zQ0bN"), ResultNonceDiffers),
    "several nonces": (token(eat_nonce=[NONCE, "x" * 8]), ResultNonceDiffers),
    "no nonce": (token(eat_nonce=None), ResultNonceDiffers),
    "to come": (token(iat=int(NOW.timestamp()) + SKEW_SECONDS + 1), ResultFromTheFuture),
    "over": (token(exp=int(NOW.timestamp())), ResultExpired),
    "no end": (token(exp=None), ResultMalformed),
    "an end in a text": (token(exp="9999999999"), ResultMalformed),
    "an end that is true": (token(exp=True), ResultMalformed),
    "an end with a fraction": (token(exp=9999999999.5), ResultMalformed),
    "an end beyond time": (token(exp=2**62), ResultMalformed),
    "no beginning": (token(iat=None), ResultMalformed),
    "another profile": (token(eat_profile="tag:github.com,2023:veraison/ear"), ResultMalformed),
    "no device": (token(sub=None), ResultMalformed),
    "no key": (token(cnf=None), ResultMalformed),
    "a key that is a list": (token(cnf=["jkt"]), ResultMalformed),
    "no verdict": (token(submods=None), ResultMalformed),
    "no submodule": (token(submods={}), ResultMalformed),
    "a submodule without verdict": (token(submods={"a": {"ear_status": "affirming"}, "b": {}}), ResultMalformed),
    "a submodule that is none": (token(submods={"a": 1}), ResultMalformed),
    "a verdict of another kind": (token(submods={"a": {"ear_status": 2}}), ResultMalformed),
    "a verdict over all that is none": (token(ear_status=["affirming"]), ResultMalformed),
}


@pytest.mark.parametrize("what", REFUSED)
def test_any_other_result_is_refused_by_name(what):
    made, refusal = REFUSED[what]
    with pytest.raises(Refusal) as caught:
        verified(made)
    assert type(caught.value) is refusal


def test_whoever_sent_no_nonce_takes_none():
    asked = Asked("muster.test", "rp.example", None)
    with pytest.raises(ResultNonceDiffers):
        verified(token(), asked=asked)
    assert verified(token(eat_nonce=None), asked=asked).device == FRAME.subject


def test_a_clock_may_be_a_little_behind():
    assert verified(token(), now=NOW - timedelta(seconds=SKEW_SECONDS)).device == FRAME.subject


def test_a_result_is_good_until_its_last_second():
    assert verified(token(), now=NOW + timedelta(seconds=3599)).device == FRAME.subject


@pytest.mark.parametrize(
    ("overall", "parts", "worst"),
    [
        ("affirming", ["affirming", "contraindicated"], Tier.CONTRAINDICATED),
        ("contraindicated", ["affirming"], Tier.CONTRAINDICATED),
        ("affirming", ["warning", "affirming"], Tier.WARNING),
        ("affirming", ["none", "contraindicated"], Tier.NONE),
        (None, ["affirming"], Tier.AFFIRMING),
    ],
)
def test_the_worst_verdict_counts(overall, parts, worst):
    submodules = {str(number): {"ear_status": part} for number, part in enumerate(parts)}
    assert verified(token(ear_status=overall, submods=submodules)).status is worst


@pytest.mark.parametrize(
    ("status", "least", "passes"),
    [
        ("affirming", Tier.AFFIRMING, True),
        ("warning", Tier.AFFIRMING, False),
        ("warning", Tier.WARNING, True),
        ("contraindicated", Tier.WARNING, False),
        ("contraindicated", Tier.CONTRAINDICATED, True),
        ("none", Tier.CONTRAINDICATED, False),
        ("affirming", Tier.NONE, False),
    ],
)
def test_only_a_good_enough_verdict_is_taken(status, least, passes):
    found = verified(token(ear_status=status, submods={"a": {"ear_status": status}}))
    if passes:
        assert appraise_result(found, least) is found
    else:
        with pytest.raises(ResultNotGoodEnough):
            appraise_result(found, least)


GOOD = token()


@settings(max_examples=300)
@given(st.integers(0, len(GOOD) - 1), st.sampled_from("ABCDwxyz0189-_.=~"))
def test_no_changed_character_passes(place, letter):
    changed = GOOD[:place] + letter + GOOD[place + 1 :]
    if changed == GOOD:
        return
    with pytest.raises(Refusal):
        verified(changed)


@given(
    st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: base64.urlsafe_b64encode(raw).decode() + ".e30.AA")
)
def test_any_text_is_refused_by_name(text):
    with pytest.raises(Refusal):
        verified(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    ),
    st.sampled_from(["cnf", "submods", "sub", "iat", "exp", "aud", "eat_nonce", "iss", "ear_status", "eat_profile"]),
)
def test_any_value_of_a_claim_is_taken_or_refused_by_name(value, name):
    made = token(**{name: value})
    with contextlib.suppress(Refusal):
        assert verified(made).device
