"""The plan of a ceremony: what the answers make, and everything that makes none, with its line."""

from dataclasses import replace

import pytest

from provisioning.app.ceremony_answers import (
    Answers,
    AnswersRefused,
    IssuingAnswers,
    Person,
    RootAnswers,
    TokenAnswers,
    line_of,
    parse_answers,
)
from provisioning.app.ceremony_plan import TOKEN_ROLES, fingerprint, plan
from provisioning.app.ceremony_transcript import plan_text

SERVICE = Answers("muster.test")
URI = "pkcs11:token=their-root?module-path=/usr/lib/their.so"


def refused(answers, text=""):
    with pytest.raises(AnswersRefused) as caught:
        plan(answers, text=text)
    return caught.value.lines


# --- what there will be -----------------------------------------------------------------------------------------------


def test_the_default_answers_make_five_tokens_with_eleven_keys_on_p256():
    ceremony = plan(SERVICE)
    assert [token.role for token in ceremony.tokens] == list(TOKEN_ROLES)
    assert {key.kind for key in ceremony.keys} == {"P-256"}
    assert [(key.token, key.label) for key in ceremony.keys] == [
        ("root", "root"),
        *(("service", label) for label in ("issuing", "ocsp", "command", "log", "results")),
        *(("service", label) for label in ("trust-online", "director-online")),
        *((f"trust-{number}", "trust") for number in (1, 2, 3)),
    ]


def test_the_root_signs_itself_and_the_issuing_ca_has_path_length_0():
    root, issuing = plan(SERVICE).certificates
    assert (root.issuer, root.path_length) == ("root", None)
    assert (issuing.issuer, issuing.path_length) == ("root", 0)


def test_only_the_service_token_stays():
    assert [token.role for token in plan(SERVICE).tokens if not token.offline] == ["service"]


@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA-3072", "Ed25519"])
def test_root_issuing_and_responder_take_every_kind_and_the_protocols_own_keys_stay(kind):
    body = f'service_name = "a.b"\n[root]\nkey = "{kind}"\n[issuing]\nkey = "{kind}"\n[ocsp]\nkey = "{kind}"\n'
    kinds = {(key.token, key.label): key.kind for key in plan(parse_answers(body, "f")).keys}
    asked = {("root", "root"), ("service", "issuing"), ("service", "ocsp")}
    assert {name: each for name, each in kinds.items() if name in asked} == dict.fromkeys(asked, kind)
    assert {each for name, each in kinds.items() if name not in asked} == {"P-256"}


def test_an_outside_ca_leaves_no_root_here():
    ceremony = plan(replace(SERVICE, root=RootAnswers(outside=True)))
    assert "root" not in [token.role for token in ceremony.tokens]
    assert [(each.name, each.issuer) for each in ceremony.certificates] == [("issuing", "outside")]
    assert ceremony.root_crl_days is None


def test_constraints_leave_room_for_the_services_own_names():
    answers = replace(SERVICE, advertised_host="192.0.2.7", issuing=IssuingAnswers(permitted_dns=(".example.com",)))
    issuing = plan(answers).certificate("issuing")
    assert issuing.permitted_dns == ("muster.test", "localhost", ".example.com")
    assert issuing.permitted_uri == ("muster.test",)
    assert issuing.permitted_ip == ("127.0.0.1/32", "192.0.2.7/32")


def test_without_being_asked_nothing_is_constrained():
    issuing = plan(SERVICE).certificate("issuing")
    assert issuing.permitted_dns == issuing.permitted_uri == issuing.permitted_ip == ()


def test_a_token_by_uri_is_not_made():
    token = plan(replace(SERVICE, tokens={"root": TokenAnswers(uri=URI, pin="prompt")})).token("root")
    assert (token.label, token.is_made, token.pin) == ("their-root", False, "prompt")


def test_the_fingerprint_is_of_the_plan():
    assert fingerprint(plan(SERVICE)) == fingerprint(plan(Answers("muster.test")))
    assert fingerprint(plan(SERVICE)) != fingerprint(plan(replace(SERVICE, people=(Person("Ada", "witness"),))))


@pytest.mark.parametrize(
    ("changes", "address"),
    [
        ({}, "http://127.0.0.1:8080:"),
        ({"advertised_host": "ca.example", "ports": (1, 2, 3, 4)}, "http://ca.example:3:"),
        ({"public_url": "http://pki.example/muster"}, "http://pki.example/muster:"),
    ],
)
def test_the_plan_says_the_address_that_certificates_will_hold(changes, address):
    assert f"is asked at {address}" in plan_text(plan(replace(SERVICE, **changes)), "")


def test_the_plan_for_the_room_names_everything():
    answers = replace(SERVICE, people=(Person("Ada", "witness"),), tokens={"root": TokenAnswers(uri=URI, pin="prompt")})
    ceremony = plan(answers)
    text = plan_text(ceremony, fingerprint(ceremony))
    for said in (
        *("Ada", "witness", URI, "asked on the terminal", "offline afterwards", "secrets/muster.pin"),
        *(f"{key.token}/{key.label}" for key in ceremony.keys),
        *("path length 0", "7300 days", "3650 days", "good for 365 days", "2 of 3", fingerprint(ceremony)),
    ):
        assert said in text, said


# --- what makes none --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('service_name = "Muster"', "line 1: service_name"),
        ('service_name = "a.b"\nhost = "a b"', "line 2: host"),
        ('service_name = "a.b"\nhost = "0.0.0.0"', "advertised_host: say what devices are told"),
        ('service_name = "a.b"\nports = [1, 2, 3]', "line 2: ports"),
        ('service_name = "a.b"\nports = [1, 2, 2, 3]', "line 2: ports"),
        ('service_name = "a.b"\nports = [1, 2, 3, 65536]', "line 2: ports"),
        ('service_name = "a.b"\n[root]\nkey = "P-521"', "line 3: root.key: 'P-521' is none of"),
        ('service_name = "a.b"\n[issuing]\nkey = "RSA-2048"', "line 3: issuing.key"),
        ('service_name = "a.b"\n[ocsp]\nkey = "DSA"', "line 3: ocsp.key"),
        ('service_name = "a.b"\n[root]\ndays = 0', "line 3: root.days"),
        ('service_name = "a.b"\n[root]\ncrl_days = 40000', "line 3: root.crl_days"),
        (
            'service_name = "a.b"\n[root]\ndays = 100\n[issuing]\ndays = 101',
            "line 5: issuing.days: the issuing CA cannot",
        ),
        ('service_name = "a.b"\n[root]\ncommon_name = " x"', "line 3: root.common_name"),
        (
            'service_name = "a.b"\n[root]\ncommon_name = "x"\n[issuing]\ncommon_name = "x"',
            "line 5: issuing.common_name: differs from the root's",
        ),
        ('service_name = "a.b"\n[issuing]\npermitted_dns = ["*.x"]', "line 3: issuing.permitted_dns"),
        ('service_name = "a.b"\n[issuing]\npermitted_ip = ["10.0.0.1/8"]', "line 3: issuing.permitted_ip"),
        ('service_name = "a.b"\n[tokens.spare]\nlabel = "x"', "line 2: tokens.spare: is none of service, root"),
        (
            'service_name = "a.b"\n[root]\noutside = true\n[tokens.root]\nlabel = "x"',
            "line 4: tokens.root: there is no",
        ),
        ('service_name = "a.b"\n[tokens.root]\nlabel = "muster"', "tokens.root: is called 'muster', as service is"),
        ('service_name = "a.b"\n[tokens.root]\nlabel = "a/b"', "line 3: tokens.root.label"),
        ('service_name = "a.b"\n[tokens.root]\nuri = "http://x"', "line 3: tokens.root.uri: does not start with"),
        (f'service_name = "a.b"\n[tokens.root]\nuri = "{URI}"', "tokens.root.pin: say where its PIN is read from"),
        (
            'service_name = "a.b"\n[tokens.root]\nuri = "pkcs11:token=x"\npin = "prompt"',
            "line 3: tokens.root.uri: names neither module-path nor module-name",
        ),
        (
            'service_name = "a.b"\n[tokens.root]\nuri = "pkcs11:token=x?module-name=box"\npin = "prompt"',
            "line 3: tokens.root.uri: there is no [modules.box]",
        ),
        (
            'service_name = "a.b"\n[tokens.root]\nuri = "pkcs11:token=x;object=y?module-path=/x"\npin = "prompt"',
            "line 3: tokens.root.uri: names a key",
        ),
        ('service_name = "a.b"\n[[people]]\nname = "Ada"\nrole = " "', "line 4: people[0].role"),
    ],
)
def test_what_makes_no_ceremony_is_named_with_its_line(body, says):
    answers = parse_answers(body, "answers.toml")
    assert any(says in line for line in refused(answers, body)), refused(answers, body)


def test_everything_that_is_wrong_is_said_at_once():
    lines = refused(Answers("A", host="a b", root=RootAnswers(key="x"), issuing=IssuingAnswers(days=0)))
    assert len(lines) == 4


@pytest.mark.parametrize("pin", ["1234", "pin:1234", "file:relative", "env:A B", "credential:../x", "prompt:"])
def test_a_pin_in_the_answers_is_refused_and_not_repeated(pin):
    lines = refused(replace(SERVICE, tokens={"root": TokenAnswers(pin=pin)}))
    assert ["is no source" in line for line in lines] == [True]
    assert "1234" not in "".join(lines)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('service_name = "a.b"\nport = [1]\n', "line 2: port"),
        ('service_name = "a.b"\n[root]\nlifetime = 3\n', "line 3: root.lifetime"),
        ('service_name = "a.b"\n[root]\ndays = "3"\n', "line 3: root.days"),
        ("host = 1\n", "answers.toml"),
        ("service_name = \n", "is not TOML"),
        (
            'service_name = "a.b"\n[[people]]\nname = "x"\nrole = "y"\n[[people]]\nname = "z"\nrole = "y"\nage = 3\n',
            "line 8: people[1].age",
        ),
    ],
)
def test_unknown_keys_and_other_types_are_refused_with_their_line(text, says):
    with pytest.raises(AnswersRefused, match=r"answers\.toml") as caught:
        parse_answers(text, "answers.toml")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("service_name", 1),
        ("ports[1]", 2),
        ("people[0].role", 6),
        ("people[1].name", 9),
        ("people[1].role", 8),
        ("tokens.root.uri", 11),
        ("tokens.trust-1.pin", 13),
        ("nowhere", 1),
    ],
)
def test_lines_are_those_of_the_key_or_of_its_table(where, line):
    text = (
        'service_name = "a.b"\nports = [1,\n 2]\n[[people]]\nname = "x"\nrole = "y"\n\n[[people]]\nname = "z"\n'
        '[tokens.root]\nuri = "u"\n[tokens."trust-1"]\npin = "x"\n'
    )
    assert line_of(text, where) == line
