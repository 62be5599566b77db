"""Which TPMs count, end to end: roots out of the store, an EK that is known by its key, one whose certificate came
with the factory's file; the real agent on software TPMs, two workers, the operator's own commands."""

import base64
import hashlib
import json

import pytest

pytest.importorskip("tpm2_pytss")

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG
from tpm2_pytss.types import TPML_PCR_SELECTION, TPMS_PCR_SELECTION

from device_agent.tpm import TpmAccess
from lab.swtpm import EK_CERTIFICATE_INDICES, fresh_tpm
from ota.firmware import measure
from provisioning import challenges, endorsing
from provisioning.db import enrollments
from tests.integration.agent_stack import agent, running_stack, wait_for
from tests.support.cli import Person
from tests.support.service import make_installation


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with running_stack(tmp_path_factory.mktemp("endorsements"), make=with_two_workers) as service:
        yield service


def with_two_workers(root, settings):
    directory = make_installation(root, settings)
    directory.config.write_text("workers = 2\n" + directory.config.read_text())
    return directory


@pytest.fixture
def person(stack, capsys):
    return Person(stack.directory.root, capsys)


@pytest.fixture
def boot(stack):
    """Makes a device that nobody registered, and boots its firmware."""
    made = []

    def make(name, *, certified=True):
        device = stack.make_device(name, register=False)
        device.boot_firmware()
        if not certified:
            without_certificates(device)
        made.append(device)
        return device

    yield make
    for device in made:
        device.power_off()


def without_certificates(device):
    """What a TPM is like that left its factory without: the platform takes the NV indices away."""
    with device.tpm.esapi() as esapi:
        for index in EK_CERTIFICATE_INDICES.values():
            esapi.nv_undefine_space(esapi.tr_from_tpmpublic(index), auth_handle=ESYS_TR.PLATFORM)


def policy(stack, model, *lines):
    pcrs = measure(stack.image).pcrs
    values = "\n".join(f'"{number}" = ["{value.hex()}"]' for number, value in sorted(pcrs.items()))
    file = stack.root / f"{model}.toml"
    text = [f'model = "{model}"', "software_tpm = true", "release_pcrs = [8, 9]", *lines, "[pcrs.sha256]", values]
    file.write_text("\n".join(text))
    return file


def certificate_of(device):
    return x509.load_pem_x509_certificate((device.directory / "ek-rsa2048.pem").read_bytes())


def register(stack, person, column, serial, model, value):
    file = stack.root / f"{serial}.csv"
    file.write_text(f"serial,model,{column}\n{serial},{model},{value}\n")
    if not person.asks("factory", "station", "list")["stations"]:
        person.types("factory", "station", "add", "line-1", "--budget", "100")
    return person.asks("factory", "register", file, "--station", "line-1")


def refused_with(device, person):
    status, _, errors = agent(device, "enroll", "--again")
    assert status == 1, errors
    return person.asks("explain", device.directory.name)


def test_a_device_of_an_imported_ca_enrolls_by_a_policy_that_names_it_and_no_more_once_it_is_removed(
    stack, person, boot
):
    store = policy(stack, "stored", "[[ek_roots]]", 'store = "Lab"', 'manufacturers = ["id:00001014"]')
    person.types("policy", "set", store, status=1)
    assert "line 5: ek_roots[0].store" in person.err
    assert "has no root" in person.err
    folder = stack.root / "manufacturer"
    folder.mkdir()
    (folder / "root.pem").write_bytes(stack.ek_ca.root_pem.read_bytes())
    (folder / "notes.txt").write_text("not a certificate")
    shown = person.asks("ek-roots", "import", folder, "--manufacturer", "Lab", "--dry-run")
    assert person.asks("ek-roots", "list")["roots"] == []
    done = person.asks("ek-roots", "import", folder, "--manufacturer", "Lab")
    assert done == shown
    assert set(done) == {"used", "refused"}
    assert done["refused"] == [{"source": "manufacturer/notes.txt", "reason": "holds no certificate"}]
    (used,) = done["used"]
    assert (used["manufacturer"], used["role"], used["new"]) == ("Lab", "self-signed", True)
    root = x509.load_pem_x509_certificate(stack.ek_ca.root_pem.read_bytes()).public_bytes(Encoding.DER)
    assert used["fingerprint"] == hashlib.sha256(root).hexdigest()
    assert [one["new"] for one in person.asks("ek-roots", "import", folder)["used"]] == [False]

    person.types("policy", "set", store)
    device = boot("stored-1")
    der = certificate_of(device).public_bytes(Encoding.DER)
    register(stack, person, "ek_certificate", "stored-1", "stored", base64.b64encode(der).decode())
    assert agent(device, "enroll")[0] == 0
    assert person.asks("ek-roots", "show", used["fingerprint"])["policies"] == ["stored"]

    assert person.asks("ek-roots", "remove", used["fingerprint"])["policies"] == ["stored"]
    wait_for(lambda: agent(device, "enroll", "--again")[0] == 1)  # the last worker has it too, a second later
    told = [refused_with(device, person) for _ in range(4)]
    assert {one["name"] for one in told} == {"EkChainRefused"}
    kinds = [json.loads(row.record)["removed"] for row in leaves_of(stack) if b'"removed"' in row.record]
    assert kinds == [used["fingerprint"]]
    person.types("ek-roots", "import", folder, "--manufacturer", "Lab")
    wait_for(lambda: agent(device, "enroll", "--again")[0] == 0)


def leaves_of(stack):
    from sqlalchemy import select

    from provisioning.db.columns import table_of
    from provisioning.db.tables import Leaf

    leaf = table_of(Leaf)
    return stack.read(lambda tx: list(tx.execute(select(leaf).where(leaf.c.kind == "ek-roots"))))


@pytest.mark.parametrize("way", ["ek_sha256", "ek_public"])
def test_a_tpm_without_ek_certificate_enrolls_by_its_registered_key_where_the_policy_says_so(stack, person, boot, way):
    model = way.replace("_", "-")
    lines = (
        "[[ek_roots]]",
        f'certificate = """{stack.ek_ca.root_pem.read_text()}"""',
        'manufacturers = ["id:00001014"]',
    )
    person.types("policy", "set", policy(stack, model, *lines))
    device = boot(model, certified=False)
    key = certificate_of(device).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    value = hashlib.sha256(key).hexdigest()
    if way == "ek_public":
        with device.tpm.esapi() as esapi:
            value = base64.b64encode(bare_key(esapi)).decode()
    register(stack, person, way, model, model, value)
    assert stack.record(model).ek_trust == "key"
    assert refused_with(device, person)["name"] == "EkTrustTooLow"

    person.types("policy", "set", policy(stack, model, 'ek_trust = "key"'))
    status, _, errors = agent(device, "enroll", "--again")
    assert status == 0, errors
    record = stack.record(model)
    assert (record.state, record.ek_certificate) == ("active", None)
    assert record.ek_public is not None
    # A rotation is judged by the same key: its challenge is made without any certificate.
    in_force = stack.read(lambda tx: challenges.policy_for(tx, stack.service, record.model, record.group))
    again = endorsing.request_of(record, in_force.rules.banks)
    assert (again.ek_certificate, again.ek_public) == (None, record.ek_public)
    endorsed = endorsing.endorse(stack.service, record, again, in_force.rules, stack.service.clock())
    assert endorsed.ek.trust == "registered-key"
    assert person.asks("devices", "show", model)["ek_trust"] == "key"


def bare_key(esapi):
    from tpm2_pytss.utils import NVReadEK, create_ek_template

    _, template = create_ek_template("EK-RSA2048", NVReadEK(esapi))
    handle, public, *_ = esapi.create_primary(None, template, ESYS_TR.ENDORSEMENT)
    esapi.flush_context(handle)
    return public.marshal()


def test_a_tpm_whose_ek_certificate_came_with_the_factorys_file_enrolls_by_it(stack, person, boot):
    lines = (
        "[[ek_roots]]",
        f'certificate = """{stack.ek_ca.root_pem.read_text()}"""',
        'manufacturers = ["id:00001014"]',
    )
    person.types("policy", "set", policy(stack, "delivered", *lines))
    device = boot("delivered-1", certified=False)
    der = certificate_of(device).public_bytes(Encoding.DER)
    register(stack, person, "ek_certificate", "delivered-1", "delivered", base64.b64encode(der).decode())
    status, _, errors = agent(device, "enroll")
    assert status == 0, errors
    assert stack.record("delivered-1").ek_trust == "certificate"
    issued = stack.read(lambda tx: enrollments.certificates_of(tx, stack_id(tx)))
    assert len(issued) == 1


def stack_id(tx):
    from provisioning.db import devices

    return devices.by_serial(tx, "delivered-1").id


def bank(algorithm, pcrs):
    selection = TPMS_PCR_SELECTION(hash=algorithm)
    selection.sizeofSelect, selection.pcrSelect = len(pcrs), pcrs
    return selection


def test_a_machine_with_sha1_banks_only_says_so():
    """The agent names the bank, so that the refusal can; SHA-1 is still never quoted."""
    with fresh_tpm() as tpm:
        with tpm.esapi() as esapi:
            banks = [bank(TPM2_ALG.SHA1, b"\xff\xff\xff"), bank(TPM2_ALG.SHA256, bytes(3))]
            esapi.pcr_allocate(TPML_PCR_SELECTION(banks), ESYS_TR.PLATFORM)
        tpm.reset()
        with TpmAccess(tpm.tcti).open() as opened:
            assert opened.pcr_banks() == ("sha1",)


def test_the_records_of_all_that_hold(person):
    person.types("fsck")


def test_a_bare_key_that_nobody_registered_is_refused(boot):
    status, _, errors = agent(boot("unknown", certified=False), "enroll")
    assert status == 1
    assert "MUSTER-ATT-001" in errors
