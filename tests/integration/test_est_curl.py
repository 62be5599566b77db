"""EST with curl and openssl, as the RFC's examples have it: no client of ours takes part (RFC 7030 appendix A)."""

import asyncio
import base64
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning import est, inventory, tokens
from provisioning.db import devices
from tests.support.certificates import assert_is_ldevid, lint_certificate
from tests.support.listeners import serving
from tests.support.service import NAME, make_installation, running_service

EST = "/.well-known/est"
PKCS10 = "Content-Type: application/pkcs10"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with running_service(make_installation(tmp_path_factory.mktemp("curl") / "D")) as made:
        yield made


class Shell:
    """A person with curl and openssl, in a folder."""

    def __init__(self, client, folder):
        self.client, self.folder = client, folder

    async def run(self, *command, stdin=None):
        done = await asyncio.to_thread(
            subprocess.run,
            [str(part) for part in command],
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    async def curl(self, path, *options, base=EST):
        """Status, headers and body."""
        where = ("--cacert", self.client.root, self.client.url("device", base + path))
        out = await self.run("curl", "--silent", "--show-error", "--include", "--http1.1", *options, *where)
        head, _, body = out.partition(b"\r\n\r\n")
        status, *fields = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        return int(status.split()[1]), headers, body

    async def key(self, name="key.pem"):
        await self.run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", name)

    async def csr(self, *options, key="key.pem", out="req.b64"):
        """A request in base64 with line breaks, as `openssl base64` makes it."""
        await self.run("openssl", "req", "-new", "-key", key, "-outform", "DER", "-out", "req.der", *options)
        await self.run("openssl", "base64", "-in", "req.der", "-out", out)

    async def certificates(self, body):
        """What openssl reads out of the certs-only answer."""
        der = await self.run("openssl", "base64", "-d", stdin=body)
        pem = await self.run("openssl", "pkcs7", "-inform", "DER", "-print_certs", stdin=der)
        return x509.load_pem_x509_certificates(pem), pem


@pytest.fixture
async def shell(service, tmp_path):
    async with serving(service) as client:
        yield Shell(client, tmp_path)


async def made_token(service, name, **more):
    return await tokens.create_token(service, tokens.Wanted(name, **more), by="test")


async def test_the_ca_certificates_are_for_anybody(shell, service):
    status, headers, body = await shell.curl("/cacerts")
    assert (status, headers["content-type"]) == (200, "application/pkcs7-mime; smime-type=certs-only")
    found, _ = await shell.certificates(body)
    assert {one.subject for one in found} == {one.certificate.subject for one in service.authorities.all}
    assert (await shell.curl("/ldevid/cacerts"))[2] == body
    assert (await shell.curl("/nothing/cacerts"))[0] == 404


async def test_a_device_enrolls_with_a_token_and_renews_with_its_certificate(shell, service):
    token = await made_token(service, "sensor-0042")
    user = f"sensor-0042:{token['token']}"
    await shell.key()
    status, headers, body = await shell.curl("/csrattrs", "--user", user)
    assert (status, headers["content-type"]) == (200, "application/csrattrs")
    attributes = await shell.run("openssl", "asn1parse", "-inform", "DER", stdin=base64.b64decode(body))
    assert b"id-ecPublicKey" in attributes
    assert b"prime256v1" in attributes
    assert b"ecdsa-with-SHA256" in attributes

    await shell.csr("-subj", "/CN=whatever the device thinks")
    enroll = ("--data-binary", "@req.b64", "-H", PKCS10, "-H", "Content-Transfer-Encoding: base64")
    status, headers, body = await shell.curl("/simpleenroll", "--user", user, *enroll)
    assert (status, headers["content-type"]) == (200, "application/pkcs7-mime; smime-type=certs-only"), body
    (issued,), pem = await shell.certificates(body)
    names = {"device_id": token["device"], "serial_number": "sensor-0042", "service_name": NAME}
    assert_is_ldevid(issued, **names, issuer=service.authorities.active.certificate)
    assert lint_certificate(issued.public_bytes(Encoding.DER)) == []
    assert (await shell.curl("/simpleenroll", "--user", user, *enroll))[2] == body  # the answer was lost: again

    (shell.folder / "cert.pem").write_bytes(pem)
    for name in ("issuing.pem", "root.pem"):
        (shell.folder / name).write_bytes((service.directory.ca / name).read_bytes())
    await shell.run("openssl", "verify", "-CAfile", "root.pem", "-untrusted", "issuing.pem", "cert.pem")

    await shell.key("next.pem")
    subject = f"/CN={token['device']}/serialNumber=sensor-0042"
    uri = f"subjectAltName=URI:spiffe://{NAME}/device/{token['device']}"
    await shell.csr("-subj", subject, "-addext", uri, key="next.pem")
    mine = ("--cert", "cert.pem", "--key", "key.pem")
    status, _, body = await shell.curl("/simplereenroll", *mine, "--data-binary", "@req.b64", "-H", PKCS10)
    assert status == 200, body
    (renewed,), _ = await shell.certificates(body)
    assert_is_ldevid(renewed, **names, issuer=service.authorities.active.certificate)
    assert renewed.public_key() != issued.public_key()
    shown = await inventory.show_device(service, "sensor-0042")
    assert sorted(one["state"] for one in shown["certificates"]) == ["issued", "superseded"]
    assert (shown["assurance"], shown["state"]) == ("token", "active")


async def test_a_request_made_from_the_certificate_renews_it_with_the_same_key(shell, service):
    token = await made_token(service, "sensor-0043")
    await shell.key()
    await shell.csr("-subj", "/CN=x")
    user = ("--user", f"{token['device']}:{token['token']}")  # the id is a name too
    _, _, body = await shell.curl("/simpleenroll", *user, "--data-binary", "@req.b64", "-H", PKCS10)
    _, pem = await shell.certificates(body)
    (shell.folder / "cert.pem").write_bytes(pem)
    copy = ("openssl", "x509", "-x509toreq", "-copy_extensions", "copyall", "-in", "cert.pem", "-signkey", "key.pem")
    await shell.run(*copy, "-out", "req.pem")
    await shell.run("openssl", "req", "-in", "req.pem", "-outform", "DER", "-out", "req.der")
    await shell.run("openssl", "base64", "-A", "-in", "req.der", "-out", "req.b64")  # one line
    mine = ("--cert", "cert.pem", "--key", "key.pem", "--data-binary", "@req.b64", "-H", PKCS10)
    status, _, body = await shell.curl("/ldevid/simplereenroll", *mine)
    assert status == 200, body
    (renewed,), _ = await shell.certificates(body)
    assert renewed.public_key() == x509.load_pem_x509_certificate(pem).public_key()


async def test_an_approval_is_waited_for_by_202(shell, service):
    token = await made_token(service, "sensor-0044", approval=True)
    await shell.key()
    await shell.csr("-subj", "/CN=x")
    ask = ("--user", f"sensor-0044:{token['token']}", "--data-binary", "@req.b64", "-H", PKCS10)
    for _ in range(2):
        status, headers, _ = await shell.curl("/simpleenroll", *ask)
        assert (status, headers["retry-after"]) == (202, str(est.RETRY_AFTER_SECONDS))
    waiting = (await inventory.show_device(service, "sensor-0044"))["requests"]
    approved = await inventory.approve(service, "sensor-0044", by="test")
    assert [one["key"] for one in waiting] == [approved["key"]]
    status, _, body = await shell.curl("/simpleenroll", *ask)
    assert status == 200, body
    assert (await shell.curl("/simpleenroll", *ask))[2] == body
    assert (await inventory.show_device(service, "sensor-0044"))["requests"] == []


async def test_without_a_credential_basic_is_asked_for(shell):
    await shell.key()
    await shell.csr("-subj", "/CN=x")
    for path in ("/simpleenroll", "/simplereenroll"):
        status, headers, _ = await shell.curl(path, "--data-binary", "@req.b64", "-H", PKCS10)
        assert (status, headers["www-authenticate"]) == (401, f'Basic realm="{NAME}", charset="UTF-8"')
    assert (await shell.curl("/csrattrs"))[0] == 401


async def test_a_record_that_asks_for_attestation_is_not_opened_by_a_token(shell, service):
    row = {
        "id": "d-tpm",
        "serial": "sn-tpm",
        "model": "gateway",
        "ek_id": "00" * 32,
        "ek_certificate": b"",
        "station": "s",
    }
    await service.ledger.write(lambda tx: devices.add(tx, [{**row, "registered_at": 0}]))
    token = await made_token(service, "sn-tpm")
    assert "EST refuses it" in token["warning"]
    await shell.key()
    await shell.csr("-subj", "/CN=x")
    ask = ("--user", f"sn-tpm:{token['token']}", "--data-binary", "@req.b64", "-H", PKCS10)
    status, headers, body = await shell.curl("/simpleenroll", *ask)
    assert (status, headers["content-type"]) == (403, "application/problem+json")
    assert b"urn:muster:problem:attestation-required" in body
