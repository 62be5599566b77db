"""The agent's HTTP and TLS against servers that misbehave: who they are, how much they say, how slowly."""

import contextlib
import socket
import ssl
import threading
import time
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from device_agent import http
from device_agent.http import (
    AnswerMalformed,
    ApprovalPending,
    NotFound,
    ServiceClient,
    ServiceNotAuthentic,
    ServiceRefused,
    ServiceUnreachable,
)
from device_agent.tls import ServiceContext
from tests.unit.device_agent.builders import NOW, SERVICE, Authority, der, new_key
from wire.messages import MqttAddress
from wire.problems import Problem, Reaction

CA = Authority()
DAY = timedelta(days=1)


def answer(body=b"", status=200, kind="application/json", **headers):
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", f"Content-Type: {kind}"]
    lines += [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def server_context(folder, certificate, key, chain):
    pem = b"".join(one.public_bytes(Encoding.PEM) for one in (certificate, *chain))
    (folder / "server.pem").write_bytes(pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


@contextlib.contextmanager
def serving(reply, context=None):
    """A server that answers each request of each connection by `reply(connection, request)`."""
    listener = socket.create_server(("127.0.0.1", 0))
    requests = []

    def serve(connection):
        with contextlib.suppress(OSError), connection:
            wrapped = context.wrap_socket(connection, server_side=True) if context else connection
            with wrapped:
                while request := wrapped.recv(65536):
                    requests.append(request)
                    if reply(wrapped, request) is False:
                        return

    def accept():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], requests
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@contextlib.contextmanager
def plain(reply):
    with serving(reply) as (port, requests):
        client = ServiceClient(f"http://127.0.0.1:{port}/base", None)
        client.requests = requests
        yield client
        client.close()


def says(content):
    return lambda connection, _: connection.sendall(content)


# --- who answers -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def secure(folder, *, roots=(CA,), now=NOW, authority=CA, tune=None, **server):
    key = new_key()
    certificate = authority.server(key, **server)
    context = server_context(folder, certificate, key, (authority.issuing,))
    if tune:
        tune(context)
    with serving(says(answer(b"{}")), context) as (port, requests):
        trusted = ServiceContext.to(SERVICE, [der(one.root) for one in roots], lambda: now)
        client = ServiceClient(f"https://127.0.0.1:{port}", trusted)
        client.requests = requests
        yield client
        client.close()


def test_the_service_is_known_by_its_name_although_an_address_is_dialled(tmp_path):
    with secure(tmp_path) as client:
        assert client.get("/", 100) == b"{}"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"authority": Authority(name="Other")}, "unable to get local issuer certificate"),
        ({"authority": Authority()}, "certificate signature failure|unable to get local issuer|self-signed"),
        ({"names": ("other.example",)}, f"not valid for '{SERVICE}'|ostname mismatch"),
        ({"names": ("127.0.0.1",)}, f"not valid for '{SERVICE}'|ostname mismatch"),
        ({"now": NOW - 365 * DAY}, "valid from"),
        ({"now": NOW + 365 * DAY}, "ended at"),
        ({"end": NOW - timedelta(minutes=1)}, "ended at"),
        ({"start": NOW + timedelta(minutes=1)}, "valid from"),
    ],
    ids=["another CA", "its namesake", "another name", "only the address", "before", "after", "ended", "not yet"],
)
def test_anybody_else_is_refused_before_a_byte_is_sent(tmp_path, wrong, reason):
    with secure(tmp_path, **wrong) as client:
        with pytest.raises(ServiceNotAuthentic, match=f"is not the service of the anchor: .*({reason})"):
            client.post("/v1/enrollments", b"secret", MqttAddress)
        assert client.requests == []


def test_a_device_at_1970_that_knows_the_time_is_served(tmp_path):
    """The system's clock plays no part: trusted time alone decides."""
    with secure(tmp_path, start=NOW - DAY, end=NOW + DAY) as client:
        assert client.get("/", 100) == b"{}"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_versions_of_tls_are_not_spoken(tmp_path, version):
    def tune(context):
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = version
        context.maximum_version = version

    with secure(tmp_path, tune=tune) as client, pytest.raises(ServiceUnreachable, match="TLS with"):
        client.get("/", 100)


def test_suites_without_authenticated_encryption_are_not_spoken(tmp_path):
    def tune(context):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA")

    with secure(tmp_path, tune=tune) as client, pytest.raises(ServiceUnreachable, match="TLS with"):
        client.get("/", 100)


def test_tls_without_trust_is_not_possible():
    with pytest.raises(ServiceNotAuthentic, match="trust bundle"):
        ServiceClient("https://127.0.0.1:1", None).get("/", 10)


# --- what is answered ------------------------------------------------------------------------------------------------


def test_a_message_is_taken_and_unknown_fields_are_for_newer_agents():
    with plain(says(answer(b'{"host":"h","port":1,"colour":"red","crit":[]}'))) as client:
        assert client.post("/x", b"{}", MqttAddress) == MqttAddress("h", 1)
        assert client.requests[0].startswith(b"POST /base/x HTTP/1.1\r\n")


@pytest.mark.parametrize("crit", ['["colour"]', '"host"', "[1]", "{}"])
def test_a_field_that_is_critical_and_unknown_is_refused(crit):
    body = f'{{"host":"h","port":1,"colour":"red","crit":{crit}}}'.encode()
    with plain(says(answer(body))) as client, pytest.raises(AnswerMalformed, match="critical"):
        client.post("/x", b"{}", MqttAddress)


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b'{"host":"h"}', b'{"host":"h","port":"1"}', b"[" * 4000])
def test_an_answer_that_is_not_the_protocols_is_refused(body):
    with plain(says(answer(body))) as client, pytest.raises(AnswerMalformed, match="is not a MqttAddress"):
        client.post("/x", b"{}", MqttAddress)


def problem(name, status, **more):
    kind = "application/problem+json"
    body = f'{{"type":"{name}","title":"T","status":{status},"code":"MUSTER-X-1","instance":"r-1"}}'.encode()
    return answer(body, status, more.pop("kind", kind), **more)


def test_a_problem_document_is_a_named_refusal():
    with plain(says(problem(Problem.TOO_MANY_REQUESTS.uri, 429, Retry_After="7"))) as client:
        with pytest.raises(ServiceRefused, match=r"T \(MUSTER-X-1\)") as caught:
            client.post("/x", b"{}", MqttAddress)
        refusal = caught.value
        assert (refusal.problem, refusal.instance, refusal.retry_after) == (Problem.TOO_MANY_REQUESTS, "r-1", 7.0)
        assert refusal.reaction is Reaction.RETRY


@pytest.mark.parametrize("retry_after", ["-1", "soon", "9" * 30, "1e9"])
def test_an_absurd_retry_after_cannot_silence_a_device(retry_after):
    with plain(says(problem(Problem.UNAVAILABLE.uri, 503, Retry_After=retry_after))) as client:
        with pytest.raises(ServiceRefused) as caught:
            client.get("/x", 10)
        assert 0 <= caught.value.retry_after <= http.RETRY_AFTER_MOST


def test_a_refusal_without_a_document_is_judged_by_its_status():
    with plain(says(answer(b"<html>", 502, "text/html"))) as client, pytest.raises(ServiceRefused) as caught:
        client.get("/x", 10)
    assert (caught.value.problem, caught.value.reaction) == (None, Reaction.RETRY)


def test_404_is_named():
    with plain(says(answer(b"", 404))) as client, pytest.raises(NotFound):
        client.get("/x", 10)


def test_a_pending_approval_is_not_an_answer():
    with plain(says(answer(b"", 202, Retry_After="30"))) as client, pytest.raises(ApprovalPending) as caught:
        client.post("/x", b"{}", MqttAddress)
    assert caught.value.retry_after == 30


def test_a_redirect_is_not_followed():
    with plain(says(answer(b"", 302, Location="http://127.0.0.1:1/elsewhere"))) as client:
        with pytest.raises(ServiceRefused, match="302"):
            client.get("/x", 10)
        assert len(client.requests) == 1


# --- how much, how slowly --------------------------------------------------------------------------------------------


def test_an_announced_size_over_the_cap_is_not_read():
    with plain(says(answer(b"x" * 11))) as client, pytest.raises(AnswerMalformed, match="11 bytes, more than 10"):
        client.get("/x", 10)


def test_an_endless_answer_ends_at_the_cap():
    def endless(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: x/y\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b"x" * 65536)

    with plain(endless) as client, pytest.raises(AnswerMalformed, match="more than 100000"):
        client.get("/x", 100_000)


def test_an_answer_that_breaks_off_is_no_answer():
    def half(connection, _):
        connection.sendall(answer(b"x" * 10)[:-5])
        return False

    with plain(half) as client, pytest.raises(ServiceUnreachable):
        client.get("/x", 100)


def test_a_server_that_drips_is_cut_off(monkeypatch):
    monkeypatch.setattr(http, "DEADLINE_SECONDS", 0.5)

    def drip(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(200):
                connection.sendall(b"x")
                time.sleep(0.05)

    with plain(drip) as client, pytest.raises(ServiceUnreachable):
        client.get("/x", 1000)


def test_a_server_that_says_nothing_is_left(monkeypatch):
    monkeypatch.setattr(http, "READ_SECONDS", 0.3)
    with plain(lambda *_: None) as client, pytest.raises(ServiceUnreachable, match="timed out"):
        client.get("/x", 100)


def test_nobody_there_is_said_with_the_address():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ServiceUnreachable, match=rf"127\.0\.0\.1:{port}: .*refused"):
        ServiceClient(f"http://127.0.0.1:{port}", None).get("/x", 10)


def test_a_kept_connection_that_was_closed_is_dialled_again():
    def once(connection, _):
        connection.sendall(answer(b"{}"))
        return False

    with plain(once) as client:
        assert [client.get("/x", 10) for _ in range(3)] == [b"{}"] * 3


def test_a_download_goes_on_where_it_stopped():
    def ranged(connection, request):
        part = b"Range: bytes=4-" in request
        connection.sendall(answer(b"4567" if part else b"01234567", 206 if part else 200))

    with plain(ranged) as client:
        start, pieces = client.stream("/x", 4)
        assert (start, b"".join(pieces)) == (4, b"4567")
        start, pieces = client.stream("/x", 0)
        assert (start, b"".join(pieces)) == (0, b"01234567")


def test_a_server_without_ranges_starts_from_the_beginning():
    with plain(says(answer(b"01234567"))) as client:
        start, pieces = client.stream("/x", 4)
        assert (start, b"".join(pieces)) == (0, b"01234567")
