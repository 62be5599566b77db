"""Several clients on one software TPM: none sees another's objects, none is refused for lack of room."""

import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP, TPM2_RH, TPM2_SE, TPM2_ST, TPMA_OBJECT, TPMA_SESSION
from tpm2_pytss.types import (
    TPM2B_DIGEST,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMS_SCHEME_HASH,
    TPMT_PUBLIC,
    TPMT_SIG_SCHEME,
    TPMT_SYM_DEF,
    TPMT_TK_HASHCHECK,
    TPMU_SIG_SCHEME,
)

from lab.swtpm import SRK_HANDLE, fresh_tpm
from lab.tpmrm import COMMAND_MAX_BYTES

REPOSITORY = Path(__file__).resolve().parents[2]
PROVIDER = REPOSITORY / ".tools" / "ossl-modules" / "tpm2.so"

SIGNING = (
    TPMA_OBJECT.SIGN_ENCRYPT
    | TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.NODA
)


@pytest.fixture
def tpm():
    with fresh_tpm() as fresh:
        yield fresh


def _load_keys(esapi: ESAPI, count: int) -> list[tuple[ESYS_TR, bytes]]:
    """New signing keys, loaded, with the public key that each must turn out to be."""
    parent = esapi.tr_from_tpmpublic(SRK_HANDLE)
    keys = []
    for _ in range(count):
        template = TPM2B_PUBLIC(TPMT_PUBLIC.parse("ecc256:null", objectAttributes=SIGNING))
        private, public, *_ = esapi.create(parent, TPM2B_SENSITIVE_CREATE(), template)
        keys.append((esapi.load(parent, private, public), public.to_der()))
    return keys


def _sign(esapi: ESAPI, handle: ESYS_TR) -> None:
    scheme = TPMT_SIG_SCHEME(
        scheme=TPM2_ALG.ECDSA, details=TPMU_SIG_SCHEME(ecdsa=TPMS_SCHEME_HASH(hashAlg=TPM2_ALG.SHA256))
    )
    ticket = TPMT_TK_HASHCHECK(tag=TPM2_ST.HASHCHECK, hierarchy=TPM2_RH.NULL)
    esapi.sign(handle, TPM2B_DIGEST(bytes(32)), scheme, ticket)


def _transient(esapi: ESAPI) -> list[int]:
    _, found = esapi.get_capability(TPM2_CAP.HANDLES, 0x80000000, 100)
    return [int(handle) for handle in found.data.handles]


def _policy_session(esapi: ESAPI) -> ESYS_TR:
    return esapi.start_auth_session(
        ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, TPMT_SYM_DEF(TPM2_ALG.NULL), TPM2_ALG.SHA256
    )


def test_two_connections_with_three_loaded_keys_each_work_in_turn(tpm):
    with tpm.esapi() as one, tpm.esapi() as two:
        keys = [(one, *key) for key in _load_keys(one, 3)] + [(two, *key) for key in _load_keys(two, 3)]
        for _ in range(3):
            for esapi, handle, der in keys:
                assert esapi.read_public(handle)[0].to_der() == der
                _sign(esapi, handle)


def test_one_client_may_hold_more_keys_than_the_tpm_has_room_for(tpm):
    with tpm.esapi() as esapi:
        for handle, der in _load_keys(esapi, 8):
            assert esapi.read_public(handle)[0].to_der() == der
        assert len(_transient(esapi)) == 8


def test_one_client_may_hold_more_sessions_than_the_tpm_has_room_for(tpm):
    with tpm.esapi() as esapi:
        sessions = [_policy_session(esapi) for _ in range(6)]
        for session in sessions:
            esapi.policy_command_code(session, 0x15D)
        digests = {bytes(esapi.policy_get_digest(session)) for session in sessions}
        assert len(digests) == 1
        assert digests != {bytes(32)}
        for session in sessions:
            esapi.flush_context(session)


def test_keys_and_sessions_are_used_together_when_the_tpm_is_full(tpm):
    with tpm.esapi() as esapi:
        keys = _load_keys(esapi, 4)
        spare = [_policy_session(esapi) for _ in range(4)]
        session = esapi.start_auth_session(
            ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.HMAC, TPMT_SYM_DEF(TPM2_ALG.NULL), TPM2_ALG.SHA256
        )
        esapi.trsess_set_attributes(session, TPMA_SESSION.CONTINUESESSION)
        scheme = TPMT_SIG_SCHEME(
            scheme=TPM2_ALG.ECDSA, details=TPMU_SIG_SCHEME(ecdsa=TPMS_SCHEME_HASH(hashAlg=TPM2_ALG.SHA256))
        )
        ticket = TPMT_TK_HASHCHECK(tag=TPM2_ST.HASHCHECK, hierarchy=TPM2_RH.NULL)
        for handle, _ in keys * 2:
            esapi.sign(handle, TPM2B_DIGEST(bytes(32)), scheme, ticket, session1=session)
            esapi.policy_get_digest(spare[0])
        for opened in (*spare, session):
            esapi.flush_context(opened)


def test_saved_contexts_and_hash_sequences_pass_through(tpm):
    with tpm.esapi() as esapi:
        [(handle, der)] = _load_keys(esapi, 1)
        context = esapi.context_save(handle)
        esapi.flush_context(handle)
        again = esapi.context_load(context)
        assert esapi.read_public(again)[0].to_der() == der
        sequence = esapi.hash_sequence_start(None, TPM2_ALG.SHA256)
        _load_keys(esapi, 3)  # the sequence is moved out meanwhile
        esapi.sequence_update(sequence, b"muster")
        digest, _ = esapi.sequence_complete(sequence, b"")
        assert bytes(digest) == hashlib.sha256(b"muster").digest()
        assert len(_transient(esapi)) == 4


def test_a_flushed_key_is_gone_for_good(tpm):
    with tpm.esapi() as esapi:
        keys = _load_keys(esapi, 5)
        virtual = _transient(esapi)
        for handle, _ in keys:
            esapi.flush_context(handle)
        assert _transient(esapi) == []
        for handle in virtual:
            assert _ask(tpm, struct.pack(">HIII", 0x8001, 14, 0x165, handle)) == 0x1C4
            assert _ask(tpm, struct.pack(">HIII", 0x8001, 14, 0x173, handle)) == 0x910


# A process that loads keys, tells the handles that it sees, and waits for its end or signs when told to.
CLIENT = """
import json, sys
sys.path[:0] = [{repository!r}, {tests!r}]
from tpm2_pytss import ESAPI
from test_virtual_tpmrm import _load_keys, _policy_session, _sign, _transient
with ESAPI({tcti!r}) as esapi:
    keys = _load_keys(esapi, 3)
    _policy_session(esapi)
    print(json.dumps(_transient(esapi)), flush=True)
    for line in sys.stdin:
        for handle, der in keys:
            assert esapi.read_public(handle)[0].to_der() == der
            _sign(esapi, handle)
        print("ok", flush=True)
"""


def _client(tcti: str) -> subprocess.Popen:
    script = CLIENT.format(repository=str(REPOSITORY), tests=str(Path(__file__).parent), tcti=tcti)
    return subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _end(client: subprocess.Popen) -> None:
    client.kill()
    client.wait()
    client.stdin.close()
    client.stdout.close()


def _ask(tpm, command: bytes) -> int:
    """The response code of one raw command of this process."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(tpm.socket_path))
        connection.sendall(command)
        return struct.unpack_from(">I", connection.recv(COMMAND_MAX_BYTES), 6)[0]


def test_processes_do_not_see_each_others_objects_and_leave_nothing_behind(tpm):
    clients = [_client(tpm.tcti) for _ in range(2)]
    try:
        seen = [json.loads(client.stdout.readline()) for client in clients]
        assert [len(handles) for handles in seen] == [3, 3]
        with tpm.esapi() as esapi:
            assert _transient(esapi) == []
        for handle in seen[0]:  # ReadPublic and FlushContext of a handle that is another's
            assert _ask(tpm, struct.pack(">HIII", 0x8001, 14, 0x173, handle)) == 0x910
            assert _ask(tpm, struct.pack(">HIII", 0x8001, 14, 0x165, handle)) == 0x1C4
        assert _ask(tpm, struct.pack(">HIII", 0x8001, 14, 0x165, 0x03000000)) == 0x1C4
        for _ in range(3):
            for client in clients:
                client.stdin.write("sign\n")
                client.stdin.flush()
                assert client.stdout.readline() == "ok\n"
        manager = tpm._manager
        assert len(manager._processes) == 3
    finally:
        for client in clients:
            _end(client)
    deadline = time.monotonic() + 20
    while len(manager._processes) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    # The manager's thread flushes after it forgot the process: a command of ours waits its turn behind that.
    assert _ask(tpm, struct.pack(">HIIH", 0x8001, 12, 0x17B, 8)) == 0
    loaded = manager._tpm._transmit(struct.pack(">HIIIII", 0x8001, 22, 0x17A, 1, 0x80000000, 100))
    assert struct.unpack_from(">I", loaded, 15)[0] == 0  # the TPM itself holds no object
    loaded = manager._tpm._transmit(struct.pack(">HIIIII", 0x8001, 22, 0x17A, 1, 0x02000000, 100))
    assert struct.unpack_from(">I", loaded, 15)[0] == 0  # and no session


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (struct.pack(">HIII", 0x8001, 14, 0x173, 0x80000000), 0x910),  # ReadPublic by the TPM's own handle
        (struct.pack(">HII", 0x8001, 10, 0x173), 0x142),  # a handle is missing
        (struct.pack(">HIIII", 0x8001, 18, 0x165, 0x80000000, 0), 0x142),
        (struct.pack(">HII", 0x8001, 10, 0x20009999), 0x143),  # an unknown command: the TPM's answer
        (struct.pack(">HIIIIIHB", 0x8002, 25, 0x131, 0x40000001, 1000, 0x40000009, 0, 0), 0x144),
        (struct.pack(">HIIII", 0x8002, 18, 0x131, 0x40000001, 4), 0x144),
        (struct.pack(">HIIIIIHBH", 0x8002, 27, 0x131, 0x40000001, 9, 0x02000000, 0, 0, 0), 0x918),  # no such session
    ],
)
def test_malformed_and_foreign_commands_are_answered_with_their_code(tpm, command, code):
    assert _ask(tpm, command) == code
    with tpm.esapi() as esapi:
        assert len(bytes(esapi.get_random(8))) == 8


@pytest.mark.parametrize("garbage", [b"\0" * 10, b"\x80\x01\xff\xff\xff\xff\0\0\0\0", b"\x80\x01\0\0\0\x05\0\0\0\0"])
def test_a_client_that_speaks_nonsense_loses_its_connection_and_no_other_does(tpm, garbage):
    with tpm.esapi() as esapi, socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(tpm.socket_path))
        connection.sendall(garbage)
        assert connection.recv(10) == b""
        assert len(bytes(esapi.get_random(8))) == 8


def test_a_command_may_come_in_pieces_and_two_at_once(tpm):
    command = struct.pack(">HIIH", 0x8001, 12, 0x17B, 8)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(tpm.socket_path))
        for byte in command:
            connection.sendall(bytes([byte]))
            time.sleep(0.002)
        assert len(connection.recv(100)) == 20
        connection.sendall(command + command)
        received = b""
        while len(received) < 40:
            received += connection.recv(100)
        assert len(received) == 40


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (struct.pack(">IB", 5, 0), 0),  # locality 0
        (struct.pack(">IB", 5, 3), 0x3D),
        (struct.pack(">II", 2, 0), 0x0A),  # CMD_INIT would reset the TPM
        (struct.pack(">I", 3), 0x0A),  # CMD_SHUTDOWN would end it
    ],
)
def test_control_commands_that_would_reset_or_end_the_tpm_are_refused(tpm, command, answer):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(f"{tpm.socket_path}.ctrl")
        connection.sendall(command)
        assert struct.unpack(">I", connection.recv(10)) == (answer,)
    with tpm.esapi() as esapi:
        assert len(bytes(esapi.get_random(8))) == 8


def test_a_client_of_a_tpm_that_loses_power_gets_an_error_and_not_a_hang(tpm):
    with tpm.esapi() as esapi:
        tpm.power_cut()
        with pytest.raises(TSS2_Exception):
            esapi.get_random(8)


def test_a_key_does_not_survive_a_clear_and_its_handle_reaches_nothing_else(tpm):
    with tpm.esapi() as esapi:
        _load_keys(esapi, 1)
        [stale] = _transient(esapi)
        tpm.clear()
        tpm.provision_srk()
    with tpm.esapi() as esapi:  # anew: the old connection remembers the old SRK's name
        keys = _load_keys(esapi, 1)
        assert _ask(tpm, struct.pack(">HIII", 0x8001, 14, 0x173, stale)) & 0xFFF in (0x910, 0x18B)
        _sign(esapi, keys[0][0])


def test_tpm2_tools_share_the_tpm_with_an_open_connection(tpm, tmp_path):
    with tpm.esapi() as esapi:
        keys = _load_keys(esapi, 3)
        for command in (["tpm2_createprimary", "-C", "o"], ["tpm2_readpublic"]):
            argv = [*command, "-T", tpm.tcti, "-c", "primary.ctx"]
            subprocess.run(argv, check=True, capture_output=True, cwd=tmp_path)
        for handle, _ in keys:
            _sign(esapi, handle)


TLS_CLIENT = Path(__file__).with_name("virtual_tls_client.py")


@pytest.mark.skipif(not PROVIDER.exists(), reason="the tpm2 OpenSSL provider is not in .tools/ossl-modules")
def test_a_tls_handshake_with_a_key_in_the_tpm_beside_an_open_connection(tpm, tmp_path):
    configuration = tmp_path / "openssl.cnf"
    configuration.write_text(
        "openssl_conf = init\n[init]\nproviders = both\n[both]\ndefault = first\ntpm2 = second\n"
        f"[first]\nactivate = 1\n[second]\nmodule = {PROVIDER}\nactivate = 1\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "OPENSSL_CONF": str(configuration), "TPM2OPENSSL_TCTI": tpm.tcti}
    done = subprocess.run(
        [sys.executable, TLS_CLIENT, tpm.tcti, tmp_path], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["TLSv1.3 device"] * 3 + ["still loaded"]
