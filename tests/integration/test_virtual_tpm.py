"""The virtual TPM: its certificates, its measured boot, and what reset, power cut and clear leave behind."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import ObjectIdentifier
from tpm2_pytss.constants import TPM2_CAP, TPM2_PT, TPMA_OBJECT

from lab.ekca import EkCaFailure, create_ek_ca, open_ek_ca
from lab.firmware import boot_measured, flip_byte, make_image
from lab.swtpm import SRK_HANDLE, VirtualTpm, VirtualTpmFailure, fresh_tpm, short_socket_path
from ota.firmware import measure

EK_USAGE = ObjectIdentifier("2.23.133.8.1")


@pytest.fixture
def tpm():
    with fresh_tpm() as fresh:
        yield fresh


def _static(pcrs: dict[int, bytes]) -> dict[int, bytes]:
    return {pcr: value for pcr, value in pcrs.items() if pcr < 16}


def _persistent(tpm: VirtualTpm) -> list[int]:
    with tpm.esapi() as esapi:
        # Kept in a variable: tpm2-pytss's views do not keep the structure alive that they look into.
        _, found = esapi.get_capability(TPM2_CAP.HANDLES, 0x81000000, 10)
        return [int(handle) for handle in found.data.handles]


def test_ek_certificates_chain_to_the_ek_ca_and_are_for_eks(tpm):
    root = x509.load_pem_x509_certificate((tpm.state.parent / "ek-ca" / "root.pem").read_bytes())
    certificates = {kind: x509.load_der_x509_certificate(der) for kind, der in tpm.ek_certificates().items()}
    assert set(certificates) == {"rsa2048", "ecc384"}
    for certificate in certificates.values():
        certificate.verify_directly_issued_by(root)
        assert EK_USAGE in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usages = {
        kind: certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        for kind, certificate in certificates.items()
    }
    assert usages["rsa2048"].key_encipherment
    assert usages["ecc384"].key_agreement


def test_the_certified_eks_are_those_of_this_tpm(tpm):
    found = set()
    with tpm.esapi() as esapi:
        for handle in (0x81010001, 0x81010016):  # where swtpm_setup keeps the RSA and the ECC EK
            public, *_ = esapi.read_public(esapi.tr_from_tpmpublic(handle))
            found.add(public.to_der())
    certified = {
        x509.load_der_x509_certificate(der).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for der in tpm.ek_certificates().values()
    }
    assert {load_der_public_key(der).key_size for der in found} == {2048, 384}
    assert found == certified


def test_two_tpms_of_one_manufacturer_have_different_eks(tmp_path):
    ca = create_ek_ca(tmp_path / "ca")
    with fresh_tpm(ca, "one") as one, fresh_tpm(ca, "two") as two:
        assert one.ek_certificates()["rsa2048"] != two.ek_certificates()["rsa2048"]
        serials = {
            x509.load_der_x509_certificate(d).serial_number for t in (one, two) for d in t.ek_certificates().values()
        }
    assert len(serials) == 4


def test_the_srk_is_a_p256_storage_key_at_its_handle(tpm):
    with tpm.esapi() as esapi:
        public, *_ = esapi.read_public(esapi.tr_from_tpmpublic(SRK_HANDLE))
    attributes = public.publicArea.objectAttributes
    for needed in (TPMA_OBJECT.RESTRICTED, TPMA_OBJECT.DECRYPT, TPMA_OBJECT.FIXEDTPM, TPMA_OBJECT.NODA):
        assert attributes & needed
    assert load_der_public_key(public.to_der()).curve.name == "secp256r1"
    tpm.provision_srk()  # once more changes nothing
    assert _persistent(tpm).count(SRK_HANDLE) == 1


def test_a_measured_boot_yields_the_predicted_pcrs(tpm, tmp_path):
    image = make_image()
    with tpm.esapi() as esapi:
        boot_measured(esapi, image, tmp_path / "log")
    assert _static(tpm.pcrs()) == measure(image).pcrs


@pytest.mark.parametrize(("stage", "pcr"), [("firmware", 0), ("bootloader", 4), ("kernel", 8), ("rootfs", 9)])
def test_a_flipped_byte_shows_in_exactly_one_pcr_of_the_tpm(tpm, tmp_path, stage, pcr):
    with tpm.esapi() as esapi:
        boot_measured(esapi, flip_byte(make_image(), stage), tmp_path / "log")
    expected = measure(make_image()).pcrs
    assert {index for index, value in _static(tpm.pcrs()).items() if value != expected[index]} == {pcr}


def test_tpm2_eventlog_reads_the_log_and_replays_it_to_the_pcrs(tpm, tmp_path):
    with tpm.esapi() as esapi:
        boot = boot_measured(esapi, make_image(), tmp_path / "log")
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
    read = subprocess.run(["tpm2_eventlog", tmp_path / "log"], capture_output=True, check=True, text=True).stdout
    replayed = {}
    for line in read.rpartition("  sha256:\n")[2].splitlines():
        pcr, _, value = line.partition(":")
        replayed[int(pcr)] = bytes.fromhex(value.strip().removeprefix("0x"))
    assert replayed == {pcr: value for pcr, value in boot.pcrs.items() if value != bytes(32)}
    assert read.count("- EventNum:") == len(boot.events) + 1
    assert "release gateway 1 1" in read


def test_only_the_sha256_bank_is_active(tpm):
    with tpm.esapi() as esapi:
        _, found = esapi.get_capability(TPM2_CAP.PCRS, 0, 10)
        active = [str(bank.hash) for bank in found.data.assignedPCR if any(bytes(bank.pcrSelect))]
    assert active == ["sha256"]


def test_a_reset_clears_the_pcrs_and_is_counted(tpm):
    with tpm.esapi() as esapi:
        boot_measured(esapi, make_image(), tpm.state / "log")
    before = tpm.clock()
    tpm.reset()
    after = tpm.clock()
    assert _static(tpm.pcrs()) == {pcr: bytes(32) for pcr in range(16)}
    assert after.reset_count == before.reset_count + 1
    assert after.restart_count == 0
    assert after.safe
    assert after.clock_milliseconds >= before.clock_milliseconds


def test_a_power_cut_leaves_an_unsafe_clock(tpm):
    before = tpm.clock()
    tpm.power_cut()
    assert not tpm.running
    assert not tpm.socket_path.exists()
    tpm.start()
    after = tpm.clock()
    assert after.reset_count == before.reset_count + 1
    assert not after.safe


def test_a_cleared_tpm_starts_counting_anew_and_keeps_its_ek(tpm):
    certificates = tpm.ek_certificates()
    tpm.reset()
    assert tpm.clock().reset_count > 0
    tpm.clear()
    after = tpm.clock()
    assert (after.reset_count, after.restart_count, after.safe) == (0, 0, True)
    assert SRK_HANDLE not in _persistent(tpm)
    assert tpm.ek_certificates() == certificates
    tpm.provision_srk()
    assert SRK_HANDLE in _persistent(tpm)


def test_orderly_restarts_do_not_count_towards_lockout(tpm):
    for _ in range(3):
        tpm.reset()
    with tpm.esapi() as esapi:
        _, found = esapi.get_capability(TPM2_CAP.TPM_PROPERTIES, TPM2_PT.LOCKOUT_COUNTER, 1)
        assert [int(entry.value) for entry in found.data.tpmProperties] == [0]


def test_what_persists_survives_a_power_cut(tpm):
    tpm.power_cut()
    tpm.start()
    assert SRK_HANDLE in _persistent(tpm)
    assert len(tpm.ek_certificates()) == 2


def test_use_without_power_and_a_second_start_are_refused(tpm):
    with pytest.raises(VirtualTpmFailure, match="running already"):
        tpm.start()
    with pytest.raises(VirtualTpmFailure, match="does not serve"):
        VirtualTpm(tpm.state, tpm.state / "other.sock").start()
    assert tpm.clock().safe  # the first one is not disturbed
    tpm.stop()
    tpm.stop()
    with pytest.raises(VirtualTpmFailure, match="not running"):
        tpm.pcrs()


def test_a_folder_without_state_is_refused(tmp_path):
    with pytest.raises(VirtualTpmFailure, match="no TPM state"):
        VirtualTpm(tmp_path).start()


def test_a_long_path_gets_a_short_socket_in_a_private_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    deep = tmp_path / ("d" * 100)
    short = short_socket_path(deep)
    assert len(os.fsencode(short)) < len(os.fsencode(deep))
    assert short == short_socket_path(deep)
    assert short != short_socket_path(tmp_path / ("e" * 100))
    assert short.parent.stat().st_mode & 0o777 == 0o700


def test_a_socket_folder_that_others_may_write_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"muster-tpm-{os.geteuid()}").mkdir(mode=0o755)
    with pytest.raises(VirtualTpmFailure, match="mode 0700"):
        short_socket_path(tmp_path / ("d" * 100))


def test_an_ek_ca_is_not_made_over_something_else(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(EkCaFailure, match="not empty"):
        create_ek_ca(tmp_path)
    with pytest.raises(EkCaFailure, match="holds no EK CA"):
        open_ek_ca(tmp_path)


def test_a_manufacturer_that_cannot_sign_makes_no_tpm(tmp_path):
    ca = create_ek_ca(tmp_path / "ca")
    (tmp_path / "ca" / "key.pem").write_text("garbage", encoding="ascii")
    with pytest.raises(EkCaFailure, match="swtpm_setup failed"):
        ca.make_tpm(tmp_path / "tpm", "x")


def test_a_tpm_is_not_manufactured_twice(tpm):
    ca = open_ek_ca(tpm.state.parent / "ek-ca")
    before = (tpm.state / "tpm2-00.permall").stat().st_mtime_ns
    with pytest.raises(EkCaFailure):
        ca.make_tpm(tpm.state, "again")
    assert (tpm.state / "tpm2-00.permall").stat().st_mtime_ns == before


def test_secrets_of_manufacturer_and_tpm_are_private(tpm):
    for folder in (tpm.state, tpm.state.parent / "ek-ca"):
        assert folder.stat().st_mode & 0o077 == 0
    assert (tpm.state.parent / "ek-ca" / "key.pem").stat().st_mode & 0o077 == 0
    assert tpm.socket_path.stat().st_mode & 0o077 == 0


OWNER = """
import sys, time
sys.path.insert(0, {repository!r})
from lab.swtpm import fresh_tpm
with fresh_tpm() as tpm:
    with tpm.esapi() as esapi:
        esapi.get_random(8)
    print(tpm._process.pid, tpm.state, flush=True)
    time.sleep(600)
"""


def _as(user: str | None) -> dict:
    if user is None:
        return {}
    account = pwd.getpwnam(user)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


@pytest.mark.parametrize("user", [None, "nobody"])
def test_the_tpm_works_for_root_and_for_a_user_and_ends_with_its_owner(user):
    if user is not None and os.geteuid() != 0:
        pytest.skip("only root can start programs as other users")
    repository = Path(__file__).resolve().parents[2]
    if user is not None and not _reachable_by_others(Path(sys.executable)):
        pytest.skip("this interpreter is not reachable by other users")
    with subprocess.Popen(
        [sys.executable, "-c", OWNER.format(repository=str(repository))],
        stdout=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
        **_as(user),
    ) as owner:
        pid, state = owner.stdout.readline().split()
        owner.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{int(pid)}/exe").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{int(pid)}/exe").exists()
    shutil.rmtree(Path(state.decode()).parent)


def _reachable_by_others(program: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in program.resolve().parents)
