"""Certificate profiles in TOML: what one may say, and that every fault is named with its line and its cure."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.issuance.defaults import DEFAULTS
from provisioning.issuance.keys import KeyKind
from provisioning.issuance.profiles import PROFILE_MOST, builtin, numbered, parse_profile
from provisioning.issuance.tbs import Profile
from provisioning.refusals import ProfileMalformed

GOOD = """\
# a device of ours
name = "long-ldevid"
kind = "ldevid"
keys = ["P-256", "RSA"]
rsa_bits_least = 3072
lifetime_days = 90
approval = true
"""


def edited(old, new):
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def test_a_profile_is_read():
    profile = parse_profile(GOOD, "long.toml")
    assert (profile.name, profile.kind) == ("long-ldevid", Profile.LDEVID)
    assert profile.keys == {KeyKind.P256, KeyKind.RSA}
    assert (profile.rsa_bits_least, profile.lifetime, profile.approval) == (3072, timedelta(days=90), True)
    assert (profile.version, profile.row) == (0, None)
    assert (numbered(profile, 3, 17).version, numbered(profile, 3, 17).row) == (3, 17)


def test_every_kind_has_a_built_in_profile_of_its_name():
    assert set(DEFAULTS) == set(Profile)
    for kind in Profile:
        profile = builtin(kind)
        assert (profile.name, profile.kind) == (kind, kind)
        assert KeyKind.P256 in profile.keys
    assert [kind for kind in Profile if builtin(kind).lifetime is None] == [Profile.IDEVID]
    assert builtin(Profile.OCSP_RESPONDER).lifetime == timedelta(days=14)


FAULTS = {
    "no TOML": (edited('kind = "ldevid"', "kind = ldevid"), 3, "is not TOML"),
    "cut off": ('name = "a"\nkind = "', 2, "is not TOML"),
    "empty": ("", 1, "name"),
    "unknown field": (edited("approval = true", "aproval = true"), 7, "aproval"),
    "another type": (edited("lifetime_days = 90", 'lifetime_days = "90"'), 6, "lifetime_days"),
    "a table": (GOOD + "[keys.more]\n", 8, "is not TOML"),
    "no kind": (edited('kind = "ldevid"', 'kind = "leaf"'), 3, "is no kind of certificate"),
    "upper case": (edited("long-ldevid", "Long"), 2, "is not 1 to 63 characters"),
    "a path": (edited("long-ldevid", "../a"), 2, "is not 1 to 63 characters"),
    "another kind's name": (edited("long-ldevid", "station"), 2, "is that of the kind station"),
    "no keys": (edited('["P-256", "RSA"]', "[]"), 4, "is empty"),
    "unknown key": (edited('"RSA"', '"P-192"'), 4, "names P-192"),
    "RSA too short": (edited("3072", "1024"), 5, "is 1024"),
    "RSA too long": (edited("3072", "8192"), 5, "is 8192"),
    "no lifetime": (edited("lifetime_days = 90", ""), 1, "is missing"),
    "two lifetimes": (edited("lifetime_days = 90", "lifetime_days = 90\nlifetime_hours = 1"), 7, "stands beside"),
    "a lifetime of zero": (edited("lifetime_days = 90", "lifetime_days = 0"), 6, "is missing"),
    "a negative lifetime": (edited("lifetime_days = 90", "lifetime_days = -1"), 6, "is no lifetime"),
    "a lifetime too long": (edited("lifetime_days = 90", "lifetime_days = 3661"), 6, "is no lifetime"),
    "no end": (edited("lifetime_days = 90", "no_end = true"), 6, "is not for the kind ldevid"),
    "approval of a station": (edited('"ldevid"', '"station"'), 7, "is for certificates that devices ask for"),
    "a domain": (GOOD + 'dns_domain = "a.example"\n', 8, "means nothing"),
    "too large": (GOOD + "#" * PROFILE_MOST, 1, "characters"),
    "a number without end": (GOOD + "n = " + "9" * 5000, 8, "is not TOML"),
}


@pytest.mark.parametrize("case", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_named_with_file_line_and_cure(case):
    text, line, why = case
    with pytest.raises(ProfileMalformed) as caught:
        parse_profile(text, "long.toml")
    refusal = caught.value
    assert refusal.actual.startswith(f"long.toml: line {line}: "), refusal.actual
    assert why in refusal.actual
    (finding,) = refusal.findings
    assert finding.what.startswith(f"long.toml: line {line}: ")
    assert finding.cure


def test_every_fault_is_named_at_once():
    text = edited("3072", "1024").replace("90", "9000").replace("long-ldevid", "station")
    with pytest.raises(ProfileMalformed) as caught:
        parse_profile(text, "p")
    assert [finding.what for finding in caught.value.findings] == [
        "p: line 2: name",
        "p: line 5: rsa_bits_least",
        "p: line 6: lifetime_days",
    ]


SIGNERS = ["root-ca", "issuing-ca", "ocsp-responder"]


@pytest.mark.parametrize("kind", SIGNERS)
def test_a_signer_has_a_key_that_signs_here(kind):
    text = DEFAULTS[kind].replace('["P-256"', '["P-521", "P-256"')
    with pytest.raises(ProfileMalformed) as caught:
        parse_profile(text, "p")
    assert "P-521" in caught.value.actual
    with pytest.raises(ProfileMalformed) as caught:
        parse_profile(DEFAULTS[kind].replace("3072", "2048"), "p")
    assert "is 2048" in caught.value.actual


def test_a_gateway_may_have_a_domain_that_is_one():
    text = DEFAULTS["gateway"] + 'dns_domain = "gateways.example"\n'
    assert parse_profile(text, "p").dns_domain == "gateways.example"
    with pytest.raises(ProfileMalformed) as caught:
        parse_profile(text.replace("gateways.example", "*.example"), "p")
    assert "is no DNS name" in caught.value.actual


@given(st.text(max_size=300))
def test_any_text_is_a_profile_or_refused_by_name(text):
    with pytest.raises(ProfileMalformed):
        parse_profile(text, "p")


@given(
    field=st.sampled_from(["name", "kind", "keys", "rsa_bits_least", "lifetime_days", "no_end", "dns_domain"]),
    value=st.one_of(st.integers(), st.text(max_size=8), st.booleans(), st.lists(st.text(max_size=5), max_size=3)),
)
def test_a_profile_that_is_taken_says_what_stands_in_it(field, value):
    shown = f"{value!r}".replace("'", '"') if not isinstance(value, bool) else str(value).lower()
    lines = [line for line in GOOD.splitlines() if not line.startswith(field)]
    try:
        profile = parse_profile("\n".join([*lines, f"{field} = {shown}"]), "p")
    except ProfileMalformed:
        return
    assert profile.lifetime is not None
    assert timedelta(0) < profile.lifetime <= timedelta(days=3660)
    assert profile.keys
