"""The real agent on a TPM whose maker certified an IAK: enrolled, attested with an IMA log, rotated."""

import asyncio
from datetime import timedelta

import pytest
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPMA_NV
from tpm2_pytss.types import TPM2B_NV_PUBLIC, TPM2B_PUBLIC, TPMS_NV_PUBLIC, TPMT_PUBLIC

from provisioning import policies
from provisioning.app.audit import log_keys
from provisioning.app.compose import clock as system_clock
from provisioning.app.fsck import check_installation
from provisioning.config import load_config
from provisioning.db import commands, enrollments, logs
from tests.integration.agent_stack import policy_text, running_stack, wait_for
from tests.support import makers
from tests.support.attestation import AK_ATTRIBUTES
from tests.support.ek_certificates import root
from wire.factory import Registration

IAK_HANDLE, IAK_INDEX = 0x81080000, 0x01C90000
NOW = system_clock()
SPAN = {"begin": NOW - timedelta(days=1), "end": NOW + timedelta(days=3650)}
MAKER = root("Device Maker", **SPAN)
MIDDLE = MAKER.intermediate("Device Maker CA 7", **SPAN)
NV_ATTRIBUTES = TPMA_NV.OWNERWRITE | TPMA_NV.AUTHREAD | TPMA_NV.OWNERREAD | TPMA_NV.NO_DA


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with running_stack(tmp_path_factory.mktemp("iak-agent")) as made:
        yield made


def made_with_an_iak(tpm):
    """What a maker leaves: a P-384 key of the endorsement hierarchy at a handle, its certificates in NV."""
    template = TPM2B_PUBLIC(TPMT_PUBLIC.parse("ecc384:ecdsa-sha384:null", objectAttributes=AK_ATTRIBUTES))
    key, public, *_ = tpm.create_primary(None, template, ESYS_TR.ENDORSEMENT)
    tpm.tr_close(tpm.evict_control(ESYS_TR.OWNER, key, IAK_HANDLE))
    tpm.flush_context(key)
    certificate = makers.iak(MIDDLE, public.publicArea.marshal(), **SPAN)
    content = certificate + MIDDLE.der
    size = len(content)
    described = TPMS_NV_PUBLIC(nvIndex=IAK_INDEX, nameAlg=TPM2_ALG.SHA256, attributes=NV_ATTRIBUTES, dataSize=size)
    index = tpm.nv_define_space(None, TPM2B_NV_PUBLIC(nvPublic=described))
    for at in range(0, size, 512):
        tpm.nv_write(index, content[at : at + 512], at, auth_handle=ESYS_TR.OWNER)
    tpm.tr_close(index)
    return certificate


def policy(stack):
    head, _, tail = policy_text(stack.ek_ca, stack.image).partition("[pcrs.sha256]")
    return f'ima_log = "required"\n{head}{makers.identity_roots(MAKER)}\n[pcrs.sha256]\n"10" = []{tail}'


async def _set_up(stack, certificate):
    registration = Registration("iak-1", "gateway", iak_certificate=certificate)
    await stack._register(registration)
    await policies.set_policy(stack.service, policy(stack), by="test")


def test_a_device_without_ek_is_enrolled_attested_and_rotated_by_its_makers_key(stack):
    device = stack.make_device("iak-1", register=False, ima=True)
    device.boot_firmware()
    with device.tpm.esapi() as tpm:
        certificate = made_with_an_iak(tpm)
    config = device.directory / "agent" / "agent.toml"
    config.write_text(config.read_text() + f'iak_certificate = "nv:{IAK_INDEX:#x}"\niak_handle = {IAK_HANDLE:#x}\n')
    asyncio.run(_set_up(stack, certificate))
    try:
        device.power_on()
        record = wait_for(lambda: (row := stack.record("iak-1")).state == "active" and row)
        assert (record.ek_id, record.ek_trust, record.iak_certificate) == (None, "iak", certificate)
        wait_for(lambda: stack.read(lambda tx: commands.session_of(tx, record.id)))
        for kind in ("attest", "rotate"):
            device.run_file(f"/usr/bin/before-{kind}", kind.encode())
            stack.order("iak-1", kind)
            wait_for(lambda one=kind: done(stack, record.id, one))
        passed = stack.read(lambda tx: enrollments.attestations_of(tx, record.id, 5))
        assert sorted(row.flow for row in passed) == ["attest", "enroll", "rotate"]
        newest = device.ima_log.read_bytes()
        for row in passed:  # each log is the beginning of what the kernel has measured by now
            kept = stack.read(lambda tx, one=row: logs.content_of(tx, one.ima_log_sha256))
            assert kept
            assert newest.startswith(kept)
        assert stack.read(lambda tx: logs.uploads_of(tx, record.id)) == 0  # all of them are named
        keys = log_keys(stack.directory, load_config(stack.directory))
        report = stack.read(lambda tx: check_installation(tx, stack.service.authorities, keys, system_clock()))
        looked_at = {check.name: check.looked_at for check in report.checks}
        assert looked_at["every log is the one that its name says"] == 4  # one boot log
        assert [check.faults for check in report.checks if check.faults] == []
    finally:
        device.power_off()


def done(stack, device_id, kind):
    rows = stack.read(lambda tx: commands.commands_of(tx, device_id, 20))
    assert not [row.result for row in rows if row.state in ("failed", "refused")]
    return [row for row in rows if row.kind == kind and row.state == "done"]
