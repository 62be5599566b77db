"""The end of a certificate as everybody sees it: all tools agree, each path is dead soon, nothing comes back."""

import asyncio
import json
import shutil
import sqlite3
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning import crls, duties, ocsp, revoking
from provisioning.app.crls import published, sign_now
from provisioning.authorities import Authority
from provisioning.config import DataDirectory, load_config
from provisioning.db import devices, enrollments, revocations
from provisioning.issuance.revocation import REASONS
from provisioning.refusals import NotFound, NotOnHold, RequestMalformed, SigningUnavailable, StateConflict
from tests.integration.agent_stack import running_stack
from tests.support import fleet
from tests.support.crls import listed, publish_crl
from tests.support.dead import PATHS, time_to_dead
from tests.support.listeners import service_with_operators, serving
from tests.support.service import Clock, make_installation, running_service

FINAL = sorted(set(REASONS) - {"certificate-hold"})


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("revocation") / "D")


@pytest.fixture
def directory(template, tmp_path):
    return DataDirectory(Path(shutil.copytree(template.root, tmp_path / "D")))


@pytest.fixture
def service(directory):
    with service_with_operators(directory) as made:
        yield made


def states(service, name):
    """A device's state, whether it is on hold, and the states of its certificates."""

    def read(tx):
        device = devices.by_id(tx, name)
        certificates = [(row.state, row.reason) for row in enrollments.certificates_of(tx, name)]
        return device.state, device.held_from, certificates

    return service.store.read_now(read)


# --- reasons, holds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", FINAL)
async def test_every_reason_but_a_hold_is_final(service, tmp_path, reason):
    member = await fleet.device(service, tmp_path, "d-1")
    await revoking.revoke_device(service, "d-1", reason, by="test")
    assert states(service, "d-1") == ("revoked", None, [("revoked", reason)])
    with pytest.raises(NotOnHold):
        await revoking.release_device(service, "d-1", by="test")
    with pytest.raises(NotOnHold):
        await revoking.release_device(service, "sn-d-1", by="test")
    for again in (reason, "certificate-hold"):
        with pytest.raises(StateConflict):
            await revoking.revoke_device(service, "d-1", again, by="test")
    with pytest.raises(StateConflict):  # its device is out of service, whatever the certificate's own reason is
        await revoking.release_certificate(service, member.serial, by="test")


async def test_a_hold_is_released_to_what_was_before(service, tmp_path):
    old, new = await fleet.device(service, tmp_path, "d-1"), await fleet.device(service, tmp_path, "d-1")
    await service.ledger.write(lambda tx: enrollments.supersede(tx, "d-1", but=new.serial, revoke_at=2**40))
    before = states(service, "d-1")
    await revoking.revoke_device(service, "d-1", "certificate-hold", by="test")
    assert states(service, "d-1") == ("revoked", "active", [("revoked", "certificate-hold")] * 2)
    with pytest.raises(StateConflict):
        await revoking.revoke_device(service, "d-1", "certificate-hold", by="test")
    await revoking.release_device(service, "d-1", by="test")
    assert states(service, "d-1") == before
    with pytest.raises(NotOnHold):
        await revoking.release_device(service, "d-1", by="test")
    assert service.store.read_now(lambda tx: enrollments.certificate_by_serial(tx, old.serial)).state == "superseded"


async def test_a_hold_can_become_final_and_keeps_its_date(service, tmp_path):
    clock = Clock(service.clock().replace(microsecond=0))
    service = replace(service, clock=clock)
    member = await fleet.device(service, tmp_path, "d-1")
    held = clock.now
    await revoking.revoke_device(service, "d-1", "certificate-hold", by="test")
    clock.now += timedelta(hours=1)
    await revoking.revoke_device(service, "d-1", "key-compromise", by="test")
    assert states(service, "d-1") == ("revoked", None, [("revoked", "key-compromise")])
    der = await publish_crl(service)
    entry = x509.load_der_x509_crl(der).get_revoked_certificate_by_serial_number(int(member.serial, 16))
    assert entry.revocation_date_utc == held
    with pytest.raises(NotOnHold):
        await revoking.release_device(service, "d-1", by="test")


async def test_one_certificate_ends_and_its_device_stays(service, tmp_path):
    old, new = await fleet.device(service, tmp_path, "d-1"), await fleet.device(service, tmp_path, "d-1")
    await revoking.revoke_certificate(service, old.serial.upper(), "key-compromise", by="test")
    assert sorted(states(service, "d-1")[2], key=str) == [("issued", None), ("revoked", "key-compromise")]
    assert states(service, "d-1")[:2] == ("active", None)
    with pytest.raises(StateConflict):
        await revoking.revoke_certificate(service, old.serial, "superseded", by="test")
    with pytest.raises(NotOnHold):
        await revoking.release_certificate(service, old.serial, by="test")
    with pytest.raises(NotOnHold):
        await revoking.release_certificate(service, new.serial, by="test")
    await revoking.revoke_certificate(service, new.serial, "certificate-hold", by="test")
    await revoking.release_certificate(service, new.serial, by="test")
    assert sorted(states(service, "d-1")[2], key=str) == [("issued", None), ("revoked", "key-compromise")]


async def test_a_certificate_that_is_revoked_before_its_signature_comes_stays_revoked(service, tmp_path):
    async def sign(key, message):
        await revoking.revoke_device(service, "d-1", "key-compromise", by="test")
        return await service.keys.sign(key, message)

    await fleet.device(service, tmp_path, "d-1")
    slow = replace(service, keys=SimpleNamespace(sign=sign))
    await fleet.device(slow, tmp_path, "d-1")
    assert states(service, "d-1") == ("revoked", None, [("revoked", "key-compromise")] * 2)


async def test_what_is_no_reason_and_what_is_not_there_is_refused(service, tmp_path):
    member = await fleet.device(service, tmp_path, "d-1")
    for flow, name in ((revoking.revoke_device, "d-1"), (revoking.revoke_certificate, member.serial)):
        with pytest.raises(RequestMalformed):
            await flow(service, name, "remove-from-crl", by="test")
    for flow in (revoking.revoke_device, revoking.revoke_certificate):
        with pytest.raises(NotFound):
            await flow(service, "nobody", "superseded", by="test")
    for release in (revoking.release_device, revoking.release_certificate):
        with pytest.raises(NotFound):
            await release(service, "nobody", by="test")


def test_a_ca_ends_where_the_roots_key_is_and_nowhere_else(directory):
    with running_service(directory) as service:
        rows = service.store.read_now(lambda tx: enrollments.certificates_after(tx, "", 10))
        serials, root = {row.profile: row.serial for row in rows}, service.authorities.named("root").certificate
        for profile in ("root-ca", "issuing-ca"):
            with pytest.raises(StateConflict):
                asyncio.run(revoking.revoke_certificate(service, serials[profile], "ca-compromise", by="test"))
    config = load_config(directory)
    for wrong, reason in (
        ("root-ca", "ca-compromise"),
        ("service-tls", "unspecified"),
        ("issuing-ca", "certificate-hold"),
    ):
        with pytest.raises(StateConflict):
            asyncio.run(sign_now(directory, config, "root", serials[wrong], reason))
    before = crls.published_number(crls.crl_file(directory, "root"))
    done = asyncio.run(sign_now(directory, config, "root", serials["issuing-ca"], "ca-compromise"))
    assert listed(directory, "root") == {serials["issuing-ca"]}
    assert done["number"] > before
    crl = x509.load_der_x509_crl((directory.ca / "root.crl").read_bytes())
    assert crl.is_signature_valid(root.public_key())
    assert [row["entries"] for row in published(directory)] == [0, 1]


async def test_operators_hold_release_and_revoke_over_http(service, tmp_path):
    member = await fleet.device(service, tmp_path, "d-1")
    async with serving(service) as client:

        async def order(path, body=None):
            options = {} if body is None else {"json": body}
            status, _, answer = await client.call("operator", "POST", f"/api/v1/{path}", role="operator", **options)
            said = json.loads(answer) if isinstance(answer, bytes) else answer
            return status, said.get("code", said.get("state"))

        async def state():
            return (await client.call("operator", "GET", "/api/v1/devices/d-1", role="viewer"))[2]

        assert await order("devices/d-1/revoke", {"reason": "certificate-hold"}) == (200, "on-hold")
        assert json.loads(await state())["state"] == "on-hold"
        assert await order("devices/d-1/release") == (200, "active")
        assert await order("devices/d-1/release") == (409, "MUSTER-REV-001")
        one = f"certificates/{member.serial}"
        assert (await order(f"{one}/revoke", {"reason": "certificate-hold"}))[0] == 200
        assert (await order(f"{one}/release"))[0] == 200
        assert (await order(f"{one}/revoke", {"reason": "superseded"}))[0] == 200
        assert await order(f"{one}/release") == (409, "MUSTER-REV-001")
        _, _, found = await client.call("operator", "GET", "/api/v1/certificates?state=revoked", role="viewer")
        assert [row["serial"] for row in json.loads(found)["certificates"]] == [member.serial]


# --- CRLs ---------------------------------------------------------------------------------------------------------


def test_the_number_rises_above_what_was_published_where_an_old_backup_is_restored(directory, tmp_path):
    """Not even what was issued after the backup comes back, and the clock plays no part."""
    backup = tmp_path / "backup.db"

    async def live(service):
        member = await fleet.device(service, tmp_path, "d-known")
        await publish_crl_after_a_change(service, tmp_path, "d-0")
        with sqlite3.connect(directory.root / "muster.db") as source, sqlite3.connect(backup) as target:
            source.backup(target)
        later = await fleet.device(service, tmp_path, "d-later")
        for one in (member, later):
            await revoking.revoke_certificate(service, one.serial, "key-compromise", by="test")
        await publish_crl(service)
        return {member.serial, later.serial}, later.serial

    async def live_again(service):
        behind = replace(service, clock=Clock(service.clock() - timedelta(days=3650)))
        await duties.Revoked(behind, SimpleNamespace()).sign()
        return await behind.store.read(lambda tx: revocations.standing(tx, "issuing", later))

    with running_service(directory) as service:
        revoked, later = asyncio.run(live(service))
    highest = crls.published_number(crls.crl_file(directory, "issuing"))
    for name in ("muster.db", "muster.db-wal", "muster.db-shm"):
        (directory.root / name).unlink(missing_ok=True)
    shutil.copy(backup, directory.root / "muster.db")
    with running_service(directory) as service:
        found = asyncio.run(live_again(service))
        assert states(service, "d-known")[2] == [("revoked", "key-compromise")]
    assert (found.state, found.reason) == ("revoked", "key-compromise")
    assert crls.published_number(crls.crl_file(directory, "issuing")) > highest
    assert revoked <= listed(directory)


async def publish_crl_after_a_change(service, folder, name):
    member = await fleet.device(service, folder, name)
    await fleet.set_state(service, member, "revoked")
    return await publish_crl(service)


async def test_two_crls_are_never_of_one_second_and_their_numbers_rise(service, directory, tmp_path):
    seen = []
    for number in range(3):
        der = await publish_crl_after_a_change(service, tmp_path, f"d-{number}")
        crl = x509.load_der_x509_crl(der)
        seen.append((crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number, crl.last_update_utc))
    assert seen == sorted(set(seen))
    assert len({moment for _, moment in seen}) == 3


async def test_two_that_sign_at_once_publish_one(service, tmp_path):
    authority = service.authorities.active
    member = await fleet.device(service, tmp_path, "d-1")
    await fleet.set_state(service, member, "revoked")
    head = service.store.read_now(lambda tx: revocations.crl_head(tx, "issuing"))
    later = replace(service, clock=Clock(service.clock() + timedelta(seconds=60)))
    signed = await asyncio.gather(*(crls.sign_due(later, authority) for _ in range(4)))
    assert sum(der is not None for der in signed) == 1
    assert service.store.read_now(lambda tx: revocations.crl_head(tx, "issuing")).number > head.number


@pytest.mark.parametrize("content", [b"", b"no CRL", b"0\x03\x02\x01\x01"])
async def test_a_file_that_is_no_crl_is_replaced(service, directory, content):
    (directory.ca / "issuing.crl").write_bytes(content)
    await duties.Revoked(service, SimpleNamespace()).sign()
    assert listed(directory) == set()


async def test_another_cas_crl_in_its_place_teaches_nothing(service, directory, tmp_path):
    member = await fleet.device(service, tmp_path, "d-1")
    now, stranger = service.clock(), ec.generate_private_key(ec.SECP256R1())
    entry = x509.RevokedCertificateBuilder(int(member.serial, 16), now).build()
    forged = (
        x509.CertificateRevocationListBuilder(service.authorities.active.certificate.subject, now, now + timedelta(1))
        .add_extension(x509.CRLNumber(2**40), critical=False)
        .add_revoked_certificate(entry)
        .sign(stranger, hashes.SHA256())
    )
    (directory.ca / "issuing.crl").write_bytes(forged.public_bytes(Encoding.DER))
    await duties.Revoked(service, SimpleNamespace()).sign()
    assert states(service, "d-1")[2] == [("issued", None)]
    assert listed(directory) == set()


async def test_one_authority_whose_key_is_away_holds_up_no_other(service, directory, monkeypatch):
    good = service.authorities.active
    bad = Authority(**{name: getattr(good, name) for name in Authority.__slots__} | {"name": "away", "key": "away"})
    monkeypatch.setattr(service.authorities, "_all", (bad, *service.authorities.all))
    (directory.ca / "issuing.crl").unlink()
    with pytest.raises(SigningUnavailable):
        await duties.Revoked(service, SimpleNamespace()).sign()
    assert listed(directory) == set()


# --- what relying parties' tools say ------------------------------------------------------------------------------


async def test_all_tools_agree_on_good_held_released_revoked_and_unknown(service, directory, tmp_path):
    await ocsp.renew_responder(service)
    good, member = await fleet.device(service, tmp_path, "d-good"), await fleet.device(service, tmp_path, "d-1")
    async with serving(service) as client:

        async def tools(one):
            return await asyncio.to_thread(opinions, client, directory, one, tmp_path)

        async def changed(change):
            await change
            await publish_crl(service)
            await asyncio.sleep(ocsp.FOLLOW_SECONDS)

        assert await tools(good) == {"good"}
        assert await tools(member) == {"good"}
        await changed(revoking.revoke_device(service, "d-1", "certificate-hold", by="test"))
        assert await tools(member) == {"revoked"}
        assert await tools(good) == {"good"}
        await changed(revoking.release_device(service, "d-1", by="test"))
        assert await tools(member) == {"good"}
        await changed(revoking.revoke_device(service, "d-1", "key-compromise", by="test"))
        assert await tools(member) == {"revoked"}
        assert await asyncio.to_thread(by_ocsp, client, directory, 0x1234) == "unknown"


def run(*command, data=None):
    done = subprocess.run([str(part) for part in command], check=False, capture_output=True, timeout=30, input=data)
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def opinions(client, directory, member, folder):
    """What each tool says about a certificate; they agree where there is one."""
    issuing, root = directory.ca / "issuing.pem", directory.ca / "root.pem"
    crl, root_crl = folder / "issuing.crl.pem", folder / "root.crl.pem"
    for name, file in (("issuing", crl), ("root", root_crl)):
        assert run("curl", "-sSf", "-o", folder / "der", client.url("public", f"/crl/{name}.crl"))[0] == 0
        assert run("openssl", "crl", "-inform", "DER", "-in", folder / "der", "-out", file)[0] == 0
    both = folder / "crls.pem"
    both.write_bytes(crl.read_bytes() + root_crl.read_bytes())
    chain = folder / "chain.pem"
    leaf = member.certificate_file.read_text().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    chain.write_text(leaf + issuing.read_text())
    said = set()
    for options in (["-crl_check"], ["-crl_check_all"]):
        command = ["openssl", "verify", *options, "-CAfile", root, "-untrusted", issuing, "-CRLfile", both]
        code, words = run(*command, member.certificate_file)
        said.add("revoked" if "certificate revoked" in words else "good" if code == 0 else words)
    command = ["certtool", "--verify", "--load-ca-certificate", root, "--load-crl", both, "--infile", chain]
    code, words = run(*command)
    said.add("revoked" if "revoked" in words.lower() else "good" if code == 0 else words)
    command = ["openssl", "crl", "-in", crl, "-CAfile", issuing, "-noout"]
    assert "verify OK" in run(*command)[1]
    said.add("revoked" if member.serial in listed(directory) else "good")
    said.add(by_ocsp(client, directory, int(member.serial, 16)))
    said.add(by_ocsptool(client, directory, member, folder))
    return said


def by_ocsp(client, directory, serial):
    ca = directory.ca
    command = ["openssl", "ocsp", "-issuer", ca / "issuing.pem", "-serial", f"0x{serial:x}"]
    command += ["-url", client.url("public", "/ocsp"), "-CAfile", ca / "root.pem", "-verify_other", ca / "issuing.pem"]
    _, words = run(*command)
    assert "Response verify OK" in words, words
    return words.split(f"0x{serial:x}: ")[1].split("\n")[0]


def by_ocsptool(client, directory, member, folder):
    """GnuTLS: it asks over HTTP by itself."""
    issuing = directory.ca / "issuing.pem"
    command = ["ocsptool", f"--ask={client.url('public', '/ocsp')}", "--load-cert", member.certificate_file]
    command += ["--load-issuer", issuing, "--load-signer", issuing, "--outfile", folder / "answer", "--no-nonce"]
    _, words = run(*command)
    assert "Success" in words or "verified" in words.lower(), words
    found = [line for line in words.splitlines() if "Certificate Status" in line]
    return found[0].split(": ")[1].strip()


# --- time to dead -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with running_stack(tmp_path_factory.mktemp("dead")) as made:
        yield made


def test_a_revoked_device_is_dead_on_every_path_and_no_other_is_disturbed(stack, tmp_path, record_property):
    """How long each path takes is written down, not judged: `time_to_dead` among the benchmarks prints it."""
    paths, disturbed = time_to_dead(stack.service, stack.endpoints, tmp_path)
    for path, seconds in paths.items():
        record_property(f"time to dead, {path}", round(seconds, 3))
    assert set(paths) == set(PATHS)
    assert not disturbed
