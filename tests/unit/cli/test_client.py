"""The client's own judgement: names, addresses, tokens, certificates, problem documents."""

import json

import pytest

from provisioning.cli import client, devices
from provisioning.cli.factory import with_lines
from provisioning.cli.failures import Failed, Mistaken, Unreachable
from provisioning.config import DataDirectory
from provisioning.issuance.revocation import REASONS
from wire.codec import encode
from wire.problems import MEDIA_TYPE, ProblemDocument

ENDPOINTS = {
    "device": "https://127.0.0.1:1",
    "operator": "https://127.0.0.1:2",
    "public": "http://127.0.0.1:3",
    "mqtt": "mqtts://127.0.0.1:4",
}
DOCUMENT = ProblemDocument("urn:x", "No", 403, "MUSTER-X-001", "r-1", "expected a; actual b\n\x1b[2J; mend it")


@pytest.fixture
def directory(tmp_path):
    """What an operator's own machine needs, and no more."""
    made = DataDirectory(tmp_path)
    for folder in (made.run, made.secrets, made.ca):
        folder.mkdir()
    made.config.write_text('service_name = "muster.test"\n')
    made.endpoints.write_text(json.dumps(ENDPOINTS))
    made.operator_token.write_text("t" * 43 + "\n")
    made.operator_token.chmod(0o600)
    return made


@pytest.mark.parametrize("name", ["", ".", "a/b", "a b", "%2e", "..", "x" * 129, "a\n", "é"])
def test_what_no_path_can_carry_is_refused_here(name):
    with pytest.raises(Mistaken, match="is no device"):
        client.segment(name, "device")


@pytest.mark.parametrize("name", ["d-1", "GW.7", "_x~", "x" * 128])
def test_ids_and_serials_are_paths(name):
    assert client.segment(name, "device") == name


def test_a_problem_is_one_line_with_its_refusal_id():
    assert client.problem_line(DOCUMENT) == ("No (MUSTER-X-001): expected a; actual b\\n\\x1b[2J; mend it; refusal r-1")


@pytest.mark.parametrize(
    ("data", "kind", "code"),
    [
        (encode(DOCUMENT), MEDIA_TYPE, "MUSTER-X-001"),
        (encode(DOCUMENT), f"{MEDIA_TYPE}; charset=utf-8", "MUSTER-X-001"),
        (encode(DOCUMENT), "text/html", "HTTP-403"),
        (b"<html>", MEDIA_TYPE, "HTTP-403"),
    ],
)
def test_an_answer_that_is_no_problem_document_is_named_by_its_status(data, kind, code):
    assert client._problem(data, kind, 403).code == code


def test_without_a_service_there_is_nobody_to_ask(directory):
    directory.endpoints.unlink()
    with pytest.raises(Unreachable, match="no service runs on it; start it: muster serve"):
        client.endpoints_of(directory)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"device": 1}', "x" * 20_000])
def test_damaged_endpoints_are_refused(directory, text):
    directory.endpoints.write_text(text)
    with pytest.raises(Failed, match=r"endpoints\.json"):
        client.endpoints_of(directory)


def test_a_token_that_others_may_read_is_not_sent(directory):
    directory.operator_token.chmod(0o640)
    with pytest.raises(Failed, match="chmod 600"):
        client._token(directory.operator_token)


@pytest.mark.parametrize("text", ["", "short", "x" * 20 + "\ny", "é" * 20])
def test_a_damaged_token_is_neither_sent_nor_shown(directory, text):
    directory.operator_token.write_text(text)
    with pytest.raises(Failed, match="holds no operator token") as caught:
        client._token(directory.operator_token)
    assert not text or text not in caught.value.lines[0]


def test_without_a_root_nothing_is_trusted(directory):
    with pytest.raises(Failed, match=r"root\.pem: cannot be read as a certificate"):
        client.operator(directory)
    (directory.ca / "root.pem").write_text("no certificate")
    with pytest.raises(Failed, match=r"root\.pem: cannot be read as a certificate"):
        client.operator(directory)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "https://", "ftp://x"])
def test_only_https_addresses_are_called(url):
    with pytest.raises(Failed, match="is no https address"):
        client.Client(url, None, "muster.test", {})


def test_rows_of_the_request_become_lines_of_the_file():
    text = "devices[0]: expected a; devices[12]: b; devices[99]: c"
    assert with_lines(text, {0: 2, 12: 17}) == "line 2: expected a; line 17: b; devices[99]: c"


def test_the_reasons_of_revocation_are_the_services():
    assert [reason.value for reason in devices.Reason] == sorted(REASONS)
