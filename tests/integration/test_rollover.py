"""The steps of a change, one by one, with real keys and a real database: what each refuses, and how each goes on."""

import asyncio
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm.kinds import KeyKind
from ota.bundle import published_bundle
from provisioning import crls, service_tls
from provisioning.app import trusting
from provisioning.app.compose import load_authorities
from provisioning.app.places import open_token
from provisioning.authorities import State
from provisioning.config import load_config
from provisioning.db import authorities, commands, devices, enrollments
from provisioning.issuance.profile import IssuingCa, build
from provisioning.refusals import (
    ChangeNotReached,
    DeviceKeyReused,
    NotFound,
    OutsideCertificateRefused,
    RequestMalformed,
    SigningUnavailable,
    StillInUse,
    ToBeSignedRefused,
    WrongStep,
)
from provisioning.rollover import bundles, change, prepare, status
from provisioning.rollover.upkeep import Upkeep
from tests.support import fleet
from tests.support.ceremonies import installed
from tests.support.service import make_installation, running_service

BY = "test"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """One installation; each test works on a copy of its own."""
    return make_installation(tmp_path_factory.mktemp("rollover") / "D")


@pytest.fixture
def installation(template, tmp_path):
    subprocess.run(["cp", "-a", template.root, tmp_path / "D"], check=True)
    directory = type(template)(tmp_path / "D")
    with running_service(directory) as service:
        asyncio.run(bundles.note_first_keys(service))
        asyncio.run(bundles.note_published(service, BY))
        yield Installation(directory, load_config(directory), service, tmp_path)


class Installation:
    def __init__(self, directory, config, service, folder):
        self.directory, self.config, self.service, self.folder = directory, config, service, folder

    def new_key(self, name, kind=KeyKind.P256, token=None):
        """What `muster ca prepare` does where the token is."""
        place = self.config.hsm.token if token is None else token
        if place == self.config.hsm.token:
            served = next(iter(self.service.keys._tokens.values()))
            return served.opened().generate_key(name, kind)
        with open_token(self.directory, self.config, place) as opened:
            return opened.generate_key(name, kind)

    async def prepared(self, kind="issuing", **options):
        """A prepared CA or key, with its certificate."""
        row = await prepare.prepare(self.service, kind, by=BY)
        if kind == "root":
            key = self.new_key(row.name, token="root", **options)
            place = f"pkcs11:token=root;object={row.name}"
            await prepare.note_key(self.service, row.name, place, spki(key), by=BY)
        else:
            self.new_key(row.name, **options)
            await prepare.note_key(self.service, row.name, row.name, None, by=BY)
        await self.sign(row.name)
        return row.name

    async def sign(self, name):
        while todo := await prepare.tasks(self.service, name):
            for task in todo:
                signature = await self.service.keys.sign(task.signer_key, task.tbs)
                await prepare.take_signature(self.service, task.serial, signature)

    async def publish(self):
        await asyncio.to_thread(trusting._publish_next, self.directory, self.config, self.service)
        return published_bundle(self.directory.trust).version

    async def crls(self):
        for one in crls.signed_online(self.service):
            await crls.sign_due(self.service, one)

    async def ready(self, kind="issuing", **options):
        name = await self.prepared(kind, **options)
        await self.publish()
        await self.crls()
        return name

    async def member(self, name, trust_version=0):
        member = await fleet.device(self.service, self.folder, name)
        await self.holds(name, trust_version)
        return member

    async def holds(self, name, version):
        await self.service.ledger.write(lambda tx: devices.change(tx, name, trust_version=version))

    def row(self, name):
        return self.service.store.read_now(lambda tx: authorities.named(tx, name))

    def certificate(self, serial):
        return self.service.store.read_now(lambda tx: enrollments.certificate_by_serial(tx, serial))

    def states(self):
        return {row.name: row.state for row in self.service.store.read_now(authorities.every)}


def spki(key):
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


# --- prepare ----------------------------------------------------------------------------------------------------------


async def test_the_same_command_goes_on_from_wherever_it_stopped(installation):
    service = installation.service
    first = await prepare.prepare(service, "issuing", by=BY)
    assert (first.name, first.state, first.public_key) == ("issuing-2", "prepared", b"")
    assert (await prepare.prepare(service, "issuing", by=BY)).name == "issuing-2"
    assert await prepare.tasks(service, "issuing-2") == []  # no key, nothing to sign
    installation.new_key("issuing-2")
    for _ in range(2):
        noted = await prepare.note_key(service, "issuing-2", "issuing-2", None, by=BY)
    (task,) = await prepare.tasks(service, "issuing-2")
    assert await prepare.tasks(service, "issuing-2") == [task]  # reserved once, whoever asks again
    assert installation.certificate(task.serial).state == "reserved"
    signature = await service.keys.sign(task.signer_key, task.tbs)
    for _ in range(2):
        await prepare.take_signature(service, task.serial, signature)
    assert await prepare.tasks(service, "issuing-2") == []
    one = service.authorities.named("issuing-2")
    assert one.spki == noted.public_key
    one.certificate.verify_directly_issued_by(service.authorities.named("root").certificate)
    assert one.chain[-1] == service.authorities.named("root").der
    assert (await prepare.prepare(service, "issuing", by=BY)).name == "issuing-2"


async def test_a_key_is_noted_once_and_no_key_serves_two_ends(installation):
    service = installation.service
    await prepare.prepare(service, "issuing", by=BY)
    with pytest.raises(WrongStep):
        await prepare.note_key(service, "issuing-2", "command", None, by=BY)
    with pytest.raises(SigningUnavailable):
        await prepare.note_key(service, "issuing-2", "no-such-key", None, by=BY)
    installation.new_key("issuing-2")
    installation.new_key("another")
    await prepare.note_key(service, "issuing-2", "issuing-2", None, by=BY)
    with pytest.raises(WrongStep):
        await prepare.note_key(service, "issuing-2", "another", None, by=BY)
    with pytest.raises(WrongStep):
        await prepare.note_key(service, "issuing", "another", None, by=BY)


@pytest.mark.parametrize("kind", ["", "issuing-2", "ROOT", "ldevid"])
async def test_only_what_rolls_over_is_prepared(installation, kind):
    with pytest.raises(RequestMalformed):
        await prepare.prepare(installation.service, kind, by=BY)


async def test_a_root_needs_its_public_key_said_and_a_good_one(installation):
    await prepare.prepare(installation.service, "root", by=BY)
    for public_key, refusal in (
        (None, RequestMalformed),
        (b"", RequestMalformed),
        (b"\x30\x03\x02\x01\x00", RequestMalformed),
        (spki(ec.generate_private_key(ec.SECP521R1())), ToBeSignedRefused),
    ):
        with pytest.raises(refusal):
            await prepare.note_key(installation.service, "root-2", "pkcs11:object=x", public_key, by=BY)


@pytest.mark.parametrize("forged", [b"", b"\x00" * 70, "another key", "another message"])
async def test_a_signature_that_is_not_the_roots_over_these_bytes_is_refused(installation, forged):
    service = installation.service
    await prepare.prepare(service, "issuing", by=BY)
    installation.new_key("issuing-2")
    await prepare.note_key(service, "issuing-2", "issuing-2", None, by=BY)
    (task,) = await prepare.tasks(service, "issuing-2")
    if forged == "another key":
        forged = await service.keys.sign("issuing", task.tbs)
    elif forged == "another message":
        forged = await service.keys.sign(task.signer_key, task.tbs + b"\x00")
    with pytest.raises(ToBeSignedRefused):
        await prepare.take_signature(service, task.serial, forged)
    assert installation.certificate(task.serial).signature is None
    assert installation.row("issuing-2").certificate == b""


async def test_only_a_ca_that_waits_takes_a_signature(installation):
    member = await installation.member("gw-1")
    for serial in (member.serial, "1", ""):
        with pytest.raises(NotFound):
            await prepare.take_signature(installation.service, serial, b"x")


async def test_a_key_of_somebody_else_gets_no_roots_signature(installation):
    """A service that was taken over asks for a CA over a key of its own: the owner's command looks."""
    service = installation.service
    await installation.prepared()
    stranger = ec.generate_private_key(ec.SECP256R1())
    await service.ledger.write(
        lambda tx: authorities.change(tx, "issuing-2", certificate=b"", public_key=spki(stranger))
    )
    await service.ledger.write(_forget_requests)
    (task,) = await prepare.tasks(service, "issuing-2")
    with pytest.raises(ToBeSignedRefused):
        await asyncio.to_thread(trusting.sign_ca, service, task.subject, task.signer, task.tbs, lambda _: None)


async def test_a_ca_of_the_service_gets_no_signature_that_lets_it_make_further_cas(installation):
    """The same service, over its own token's key: path length 0 or nothing, whatever its records call that CA."""
    service = installation.service
    await installation.prepared()
    root, key = service.authorities.named("root"), service.authorities.named("issuing-2").spki
    now = datetime.now(UTC)
    tbs = build(IssuingCa("Any CA", key), root.issuer, serial=2**100, not_before=now, not_after=now + timedelta(1))
    free = tbs.der.replace(bytes.fromhex("30060101ff020100"), bytes.fromhex("30060101ff020101"))
    said = []
    for kind in ("issuing", "root"):
        await service.ledger.write(lambda tx, kind=kind: authorities.change(tx, "issuing-2", kind=kind))
        with pytest.raises(ToBeSignedRefused) as refused:
            await asyncio.to_thread(trusting.sign_ca, service, "issuing-2", "root", free, said.append)
        assert "path length 0" in str(refused.value.expected)
    await asyncio.to_thread(trusting.sign_ca, service, "issuing-2", "root", tbs.der, said.append)
    assert said == [f"root signs CN=Any CA, until {now + timedelta(1):%Y-%m-%d}, names: any"]


async def test_the_owner_is_told_what_a_ca_may_name(constrained):
    said = []
    name = await constrained.prepared()
    (row,) = [one for one in constrained.service.store.read_now(authorities.every) if one.name == name]
    tbs = x509.load_der_x509_certificate(row.certificate).tbs_certificate_bytes
    await asyncio.to_thread(trusting.sign_ca, constrained.service, name, "root", tbs, said.append)
    assert said[0].endswith("names: only muster.test, localhost, gw.example, muster.test, 127.0.0.1/32, 192.0.2.0/24")


def _forget_requests(tx):
    tx.exec_driver_sql("update certificate set enrollment_id = null where enrollment_id like 'ca:%'")


async def test_the_owner_signs_cas_and_nothing_else(installation):
    member = await installation.member("gw-1")
    tbs = installation.certificate(member.serial).tbs
    for asked in (("issuing", "root", tbs), ("issuing", "root", b"\x30\x00"), ("no-such", "root", tbs)):
        with pytest.raises(ToBeSignedRefused):
            await asyncio.to_thread(trusting.sign_ca, installation.service, *asked, lambda _: None)


# --- activate ---------------------------------------------------------------------------------------------------------


async def test_what_is_not_ready_is_not_activated_not_even_by_force(installation):
    service = installation.service
    await prepare.prepare(service, "issuing", by=BY)
    with pytest.raises(WrongStep):  # no key
        await change.activate(service, "issuing-2", force=True, by=BY)
    installation.new_key("issuing-2")
    await prepare.note_key(service, "issuing-2", "issuing-2", None, by=BY)
    with pytest.raises(WrongStep):  # no certificate
        await change.activate(service, "issuing-2", force=True, by=BY)
    await installation.sign("issuing-2")
    with pytest.raises(WrongStep) as refused:  # the broker would refuse everybody whose CA has no CRL
        await change.activate(service, "issuing-2", force=True, by=BY)
    assert "CRL" in refused.value.expected
    await installation.crls()
    await change.activate(service, "issuing-2", force=True, by=BY)
    assert service.authorities.active.name == "issuing-2"
    with pytest.raises(NotFound):
        await change.activate(service, "issuing-9", force=True, by=BY)


async def test_devices_that_do_not_know_it_are_named_and_force_goes_on(installation):
    service = installation.service
    await installation.member("gw-1", trust_version=1)
    await installation.member("gw-2", trust_version=0)
    name = await installation.prepared()
    await installation.crls()
    with pytest.raises(ChangeNotReached) as refused:  # no bundle names it
        await change.activate(service, name, force=False, by=BY)
    assert refused.value.findings == ()
    version = await installation.publish()
    with pytest.raises(ChangeNotReached) as refused:
        await change.activate(service, name, force=False, by=BY)
    assert [finding.what for finding in refused.value.findings] == ["gw-1", "gw-2"]
    await installation.holds("gw-1", version)
    with pytest.raises(ChangeNotReached) as refused:
        await change.activate(service, name, force=False, by=BY)
    assert [finding.what for finding in refused.value.findings] == ["gw-2"]
    page = await status.dependents(service, name, "", "", 500)
    assert [one["device"] for one in page["without_bundle"]] == ["gw-2"]
    assert "wait: 1 devices" in page["authority"]["next"]
    await change.activate(service, name, force=True, by=BY)
    assert installation.states()["issuing"] == "retiring"


async def test_no_process_issues_under_the_one_before_once_another_is_active(installation):
    service = installation.service
    before = await installation.member("gw-1", trust_version=2)
    assert installation.certificate(before.serial).issuer == "issuing"
    name = await installation.ready(kind="issuing")
    stale = load_authorities(service.store, installation.config)
    await change.activate(service, name, force=False, by=BY)
    assert stale.active.name == "issuing"  # another process, which has not heard of it
    after = await fleet.device(replace(service, authorities=stale), installation.folder, "gw-2")
    assert installation.certificate(after.serial).issuer == name
    leaf = x509.load_pem_x509_certificates(after.certificate_file.read_bytes())[0]
    leaf.verify_directly_issued_by(service.authorities.named(name).certificate)


async def test_a_reservation_that_a_crash_left_is_given_up_where_its_ca_signs_no_more(installation):
    from provisioning.issuance.profile import Ldevid
    from provisioning.issuing import Order, issue

    service = installation.service
    await installation.member("gw-1", trust_version=2)
    key = ec.generate_private_key(ec.SECP256R1())
    order = Order(Ldevid("gw-1", "sn-gw-1", "muster.test", spki(key)), "gw-1", 30, "gw-1", "enrollment-1")

    class Dead:
        def __getattr__(self, name):
            return getattr(service.keys, name)

        async def sign(self, *_):
            raise SigningUnavailable

    with pytest.raises(SigningUnavailable):
        await issue(replace(service, keys=Dead()), order, lambda _tx, _c: None)
    left = service.store.read_now(lambda tx: enrollments.certificate_of_enrollment(tx, "enrollment-1"))
    assert (left.state, left.issuer) == ("reserved", "issuing")
    await change.activate(service, await installation.ready(), force=False, by=BY)
    issued = await issue(service, order, lambda _tx, _c: None)
    assert issued.issuer == "issuing-2"
    kept = installation.certificate(left.serial)
    assert (kept.signature, kept.enrollment_id) == (None, None)  # known, and never signed
    again = await issue(service, order, lambda _tx, _c: None)
    assert again.serial == issued.serial
    with pytest.raises(DeviceKeyReused):
        await issue(service, replace(order, enrollment_id="enrollment-2"), lambda _tx, _c: None)


async def test_until_it_is_retired_the_one_before_can_sign_again(installation):
    service = installation.service
    name = await installation.ready()
    await change.activate(service, name, force=False, by=BY)
    await change.activate(service, "issuing", force=False, by=BY)
    assert installation.states()[name] == "retiring"
    assert service.authorities.active.name == "issuing"


# --- retire -----------------------------------------------------------------------------------------------------------


async def test_what_is_in_use_is_not_retired_and_force_names_whom_it_breaks(installation):
    service = installation.service
    member = await installation.member("gw-1")
    name = await installation.ready()
    version = published_bundle(installation.directory.trust).version
    await installation.holds("gw-1", version)
    with pytest.raises(WrongStep):
        await change.retire(service, "issuing", force=True, by=BY)  # it signs
    await change.activate(service, name, force=False, by=BY)
    with pytest.raises(StillInUse) as refused:
        await change.retire(service, "issuing", force=False, by=BY)
    assert [(one.what, one.actual) for one in refused.value.findings] == [("gw-1", member.serial)]
    assert await change.rotate(service, "issuing", 10, by=BY) == 1
    pending = service.store.read_now(lambda tx: commands.pending_of(tx, "gw-1", "rotate"))
    assert pending is not None
    after = await installation.member("gw-1", trust_version=version)
    await service.ledger.write(lambda tx: enrollments.supersede(tx, "gw-1", but=after.serial, revoke_at=2**40))
    assert await change.rotate(service, "issuing", 10, by=BY) == 0
    await installation.holds("gw-1", 1)  # an old bundle: it would not accept what the new one signs
    with pytest.raises(StillInUse) as refused:
        await change.retire(service, "issuing", force=False, by=BY)
    assert [one.what for one in refused.value.findings] == ["gw-1"]
    await change.retire(service, "issuing", force=True, by=BY)
    assert installation.states()["issuing"] == "retired"
    with pytest.raises(WrongStep):
        await change.activate(service, "issuing", force=True, by=BY)
    assert "issuing" not in [one.name for one in crls.signed_online(service)]
    await installation.publish()
    assert service.authorities.named("issuing").spki not in published_bundle(installation.directory.trust).issuing_keys


async def test_sessions_by_a_ca_that_was_retired_end(installation):
    """Somebody may have its key, and be connected by a certificate that nobody here ever issued."""
    service, ended = installation.service, []

    async def end_session(device):
        ended.append(device)

    upkeep = Upkeep(service, end_session)
    for name in ("gw-1", "gw-2"):
        member = await installation.member(name, trust_version=2)
        said = {"session": "s", "session_number": 1, "up_sequence": 1, "down_sequence": 0, "trust_version": 2, "at": 0}
        said["certificate_serial"] = member.serial
        await service.ledger.write(lambda tx, name=name, said=said: commands.put_session(tx, name, said))
        if name == "gw-1":
            await change.activate(service, await installation.ready(), force=True, by=BY)
    await upkeep.look_after()
    assert ended == []
    await change.retire(service, "issuing", force=True, by=BY)
    for _ in range(2):
        await upkeep.look_after()
    assert ended == ["gw-1"]


async def test_what_was_prepared_in_vain_is_given_up(installation):
    service = installation.service
    await prepare.prepare(service, "issuing", by=BY)
    await change.retire(service, "issuing-2", force=False, by=BY)
    assert (await prepare.prepare(service, "issuing", by=BY)).name == "issuing-3"


@pytest.fixture
def constrained(tmp_path):
    body = '[issuing]\nconstrained = true\npermitted_dns = ["gw.example"]\npermitted_ip = ["192.0.2.0/24"]\n'
    directory, _ = installed(tmp_path / "C", body)
    with running_service(directory) as service:
        yield Installation(directory, load_config(directory), service, tmp_path)


async def test_the_next_issuing_ca_may_name_no_more_than_the_one_before(constrained):
    name = await constrained.prepared()
    before, after = (
        constrained.service.authorities.named(each).certificate.extensions.get_extension_for_class(x509.NameConstraints)
        for each in ("issuing", name)
    )
    assert before == after
    assert x509.DNSName("gw.example") in after.value.permitted_subtrees


# --- roots ------------------------------------------------------------------------------------------------------------


async def test_a_new_root_is_cross_signed_both_ways_and_the_issuing_ca_goes_by_it(installation):
    service = installation.service
    member = await installation.member("gw-1", trust_version=2)
    key = service.authorities.active.spki
    name = await installation.ready("root")
    old, new = service.authorities.named("root"), service.authorities.named(name)
    (by_old,), (by_new,) = new.others, old.others
    x509.load_der_x509_certificate(by_old).verify_directly_issued_by(old.certificate)
    x509.load_der_x509_certificate(by_new).verify_directly_issued_by(new.certificate)
    assert service.authorities.active.chain[-1] == old.der  # nothing has changed yet
    await change.activate(service, name, force=False, by=BY)
    active = service.authorities.active
    assert active.spki == key
    assert active.chain == (active.der, new.der)
    active.certificate.verify_directly_issued_by(new.certificate)
    for trusted, between in ((old, [active.der, by_old]), (new, [active.der])):
        verified_by_openssl(installation.folder, member.certificate_file, trusted.der, between)
    await service_tls.look_after(service)
    shown = x509.load_pem_x509_certificates((installation.directory.tls / "service.pem").read_bytes())
    assert [one.issuer.rfc4514_string() for one in shown[1:]] == ["CN=muster.test root 2 CA", "CN=muster.test root CA"]


def verified_by_openssl(folder, leaf, root, between):
    """A relying party that knows one root alone."""
    (folder / "root.crt").write_bytes(x509.load_der_x509_certificate(root).public_bytes(Encoding.PEM))
    pems = [x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in between]
    (folder / "between.crt").write_bytes(b"".join(pems))
    own = folder / "leaf.crt"
    own.write_bytes(x509.load_pem_x509_certificates(leaf.read_bytes())[0].public_bytes(Encoding.PEM))
    command = ["openssl", "verify", "-CAfile", folder / "root.crt", "-untrusted", folder / "between.crt", own]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_an_issuing_ca_that_the_new_root_has_not_signed_holds_it_back(installation):
    service = installation.service
    name = await installation.ready("root")
    late = await installation.ready("issuing")  # by the old root, after the new one was prepared
    await change.activate(service, late, force=False, by=BY)
    with pytest.raises(WrongStep) as refused:
        await change.activate(service, name, force=True, by=BY)
    assert late in refused.value.expected
    await installation.sign(name)  # `muster ca prepare root` again
    await change.activate(service, name, force=False, by=BY)
    assert service.authorities.active.chain[-1] == service.authorities.named(name).der


# --- an outside CA ----------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    """Somebody else's CA, by openssl: signs a request."""

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=tmp_path)

    openssl("req", "-x509", "-newkey", "rsa:3072", "-nodes", "-keyout", "k.pem", "-out", "r.pem", "-days", "4000",
            "-subj", "/O=Somebody Else/CN=Their Root", "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip

    def sign(request, path_length=0):
        (tmp_path / "request.der").write_bytes(request)
        (tmp_path / "ext").write_text(
            f"basicConstraints=critical,CA:TRUE,pathlen:{path_length}\nkeyUsage=critical,keyCertSign,cRLSign\n"
            "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        openssl("req", "-verify", "-noout", "-inform", "DER", "-in", "request.der")
        openssl("x509", "-req", "-inform", "DER", "-in", "request.der", "-CA", "r.pem", "-CAkey", "k.pem",
                "-CAcreateserial", "-days", "3000", "-extfile", "ext", "-out", "i.pem")  # fmt: skip
        made = [x509.load_pem_x509_certificate((tmp_path / name).read_bytes()) for name in ("i.pem", "r.pem")]
        return [one.public_bytes(Encoding.DER) for one in made]

    return sign


@pytest.mark.parametrize("kind", [KeyKind.P256, KeyKind.P384, KeyKind.RSA3072, KeyKind.ED25519])
async def test_an_outside_ca_signs_the_issuing_ca_and_its_root_comes_with_it(installation, outside, kind):
    service = installation.service
    await prepare.prepare(service, "issuing", by=BY)
    with pytest.raises(WrongStep):
        await prepare.request_of(service, "issuing-2")
    installation.new_key("issuing-2", kind)
    await prepare.note_key(service, "issuing-2", "issuing-2", None, by=BY)
    chain = outside(await prepare.request_of(service, "issuing-2"))
    await prepare.take_outside(service, "issuing-2", chain, by=BY)
    assert installation.states()["root-2"] == "prepared"
    await installation.publish()
    await installation.crls()
    assert chain[-1] in published_bundle(installation.directory.trust).ca_roots
    await change.activate(service, "issuing-2", force=False, by=BY)
    states = installation.states()
    assert (states["root-2"], states["root"]) == ("active", "retiring")
    member = await installation.member("gw-1")
    assert installation.certificate(member.serial).issuer == "issuing-2"
    verified_by_openssl(installation.folder, member.certificate_file, chain[1], [chain[0]])
    with pytest.raises(WrongStep) as refused:  # our old issuing CA still goes by our old root
        await change.retire(service, "root", force=True, by=BY)
    assert refused.value.actual == "issuing"
    await change.retire(service, "issuing", force=True, by=BY)
    await change.retire(service, "root", force=True, by=BY)


async def test_what_makes_no_issuing_ca_for_our_key_is_refused(installation, outside):
    service = installation.service
    await prepare.prepare(service, "issuing", by=BY)
    installation.new_key("issuing-2")
    await prepare.note_key(service, "issuing-2", "issuing-2", None, by=BY)
    good = outside(await prepare.request_of(service, "issuing-2"))
    deep = outside(await prepare.request_of(service, "issuing-2"), path_length=1)
    ours = [service.authorities.named("issuing").der, service.authorities.named("root").der]
    for chain in (deep, ours, good[:1], [good[1], good[0]], [b"", good[1]], [b"\x00" * 9000, good[1]]):
        with pytest.raises(OutsideCertificateRefused):
            await prepare.take_outside(service, "issuing-2", chain, by=BY)
    await prepare.take_outside(service, "issuing-2", good, by=BY)
    await prepare.take_outside(service, "issuing-2", good, by=BY)  # said again
    with pytest.raises(WrongStep):
        await prepare.request_of(service, "root")
    with pytest.raises(OutsideCertificateRefused):
        await prepare.take_outside(service, "issuing", good, by=BY)


# --- what follows by itself -------------------------------------------------------------------------------------------


async def test_a_bundle_that_a_crash_kept_off_the_record_is_noted_and_told(installation):
    service = installation.service
    await installation.member("gw-1", trust_version=1)
    await service.ledger.write(lambda tx: devices.change(tx, "gw-1", state="active"))
    await installation.prepared()
    before = published_bundle(installation.directory.trust)
    rows = service.store.read_now(authorities.every)
    with trusting.offline_signers(installation.directory, installation.config, ["trust"]) as signers:
        from ota.bundle import publish_bundle

        keys = [*signers, service.keys.key("trust-online")]
        publish_bundle(installation.directory.trust, bundles.wanted_bundle(before, rows), keys, service.clock())
    assert service.authorities.bundle_version == before.version  # and here the power went
    upkeep = Upkeep(service, None)
    await upkeep.look_after()
    assert service.authorities.bundle_version == before.version + 1
    assert service.store.read_now(lambda tx: commands.pending_of(tx, "gw-1", "refresh-trust")) is not None
    assert service.store.read_now(_trust_leaves) == 2
    await upkeep.look_after()
    await Upkeep(service, None).look_after()  # another process takes over
    assert service.store.read_now(_trust_leaves) == 2


def _trust_leaves(tx):
    return tx.exec_driver_sql("select count(*) from leaf where kind = 'trust'").scalar()


async def test_the_services_certificate_follows_the_ca_and_is_renewed_in_time(installation):
    service, folder = installation.service, installation.directory.tls

    def shown():
        return x509.load_pem_x509_certificate((folder / "service.pem").read_bytes())

    assert await service_tls.look_after(service) is False
    first = shown()
    await change.activate(service, await installation.ready(kind="issuing"), force=False, by=BY)
    assert await service_tls.look_after(service) is True
    assert shown().issuer == service.authorities.active.certificate.subject
    assert installation.certificate(format(first.serial_number, "x")).state == "superseded"
    assert await service_tls.look_after(service) is False
    life = shown().not_valid_after_utc - shown().not_valid_before_utc
    near = shown().not_valid_after_utc - life / 3 + timedelta(hours=1)
    assert service_tls.is_current(shown(), shown().issuer.public_bytes(), near - timedelta(hours=2))
    assert not service_tls.is_current(shown(), shown().issuer.public_bytes(), near)
    before = shown().serial_number
    assert await service_tls.look_after(replace(service, clock=lambda: near)) is True
    assert shown().serial_number != before


@pytest.mark.parametrize("crash", ["before anything", "after the key", "after both"])
async def test_a_crash_between_key_and_certificate_leaves_a_pair_that_fits(installation, crash):
    folder = installation.directory.tls
    old_key, old_chain = ((folder / name).read_bytes() for name in ("service.key", "service.pem"))
    await service_tls.renew_service_certificate(installation.service)
    new_key, new_chain = ((folder / name).read_bytes() for name in ("service.key", "service.pem"))
    (folder / "service.key.before").write_bytes(old_key)
    (folder / "service.key").write_bytes(old_key if crash == "before anything" else new_key)
    (folder / "service.pem").write_bytes(new_chain if crash == "after both" else old_chain)
    assert service_tls.settle(folder) is (crash == "after the key")
    expected = new_key if crash == "after both" else old_key
    assert (folder / "service.key").read_bytes() == expected
    assert service_tls.settle(folder) is False
    await service_tls.look_after(installation.service)  # and the service goes on from there


async def test_everything_shows_in_the_status(installation):
    service = installation.service
    await installation.member("gw-1", trust_version=1)
    at = int(datetime.now(UTC).timestamp()) - 3 * 86400
    await service.ledger.write(lambda tx: devices.change(tx, "gw-1", last_seen_at=at))
    name = await installation.prepared()
    said = await status.show(service)
    by_name = {one["name"]: one for one in said["authorities"]}
    assert by_name["issuing"]["certificates_in_use"] == 1
    assert by_name[name]["state"] == State.PREPARED
    assert "publish" in by_name[name]["next"]
    assert said["bundle"]["held_by"] == {"1": 1}
    assert len(said["bundle"]["to_publish"]["adds"]) == 1
    assert [one["device"] for one in said["away"]] == ["gw-1"]
    with pytest.raises(NotFound):
        await status.dependents(service, "nobody", "", "", 10)
