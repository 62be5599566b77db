"""One software TPM as a thing with a power cord: start, reset, power cut, clear. Several clients at once."""

import contextlib
import hashlib
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_CAP, TPM2_SU, TPMA_OBJECT
from tpm2_pytss.types import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPML_PCR_SELECTION, TPMT_PUBLIC

from lab import LabFailure
from lab.tpmrm import SOCKET_PATH_MAX, ResourceManager, TpmGone
from provisioning.app.children import kill_child, start_child, stop_child

if TYPE_CHECKING:
    from lab.ekca import EkCa

SRK_HANDLE = 0x81000001
EK_CERTIFICATE_INDICES = {"rsa2048": 0x01C00002, "ecc384": 0x01C00016}
STOP_TIMEOUT_SECONDS = 10
_NV_PIECE_BYTES = 512

# TCG TPM v2.0 Provisioning Guidance: the storage root key, here on P-256.
_SRK_TEMPLATE = "ecc256:null:aes128cfb"
_SRK_ATTRIBUTES = (
    TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.NODA
    | TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.DECRYPT
)


class VirtualTpmFailure(LabFailure):
    """A software TPM cannot be started or used; the message is one line."""


@dataclass(frozen=True, slots=True)
class TpmClock:
    """TPMS_TIME_INFO's part that a reset, a power cut and a clear leave different traces in."""

    clock_milliseconds: int
    reset_count: int
    restart_count: int
    safe: bool


class VirtualTpm:
    """A software TPM whose state lives in `state` (made by `EkCa.make_tpm`).

    Any number of clients connect to `tcti` at the same time. As a context manager it starts, and stops in order. It
    ends with this process, even by SIGKILL. Start it from the main thread.
    """

    def __init__(self, state: Path, socket_path: Path | None = None) -> None:
        self.state = state
        self.socket_path = short_socket_path(state) if socket_path is None else socket_path
        self._process: subprocess.Popen[bytes] | None = None
        self._manager: ResourceManager | None = None
        self._control: socket.socket | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def tcti(self) -> str:
        """The TCTI string for ESAPI, tpm2-tools (`-T`) and TPM2OPENSSL_TCTI."""
        return f"swtpm:path={self.socket_path}"

    @property
    def running(self) -> bool:
        """Has it power, and does the software behind it live?"""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Give it power: TPM2_Startup(CLEAR) is done when this returns. Raises: VirtualTpmFailure."""
        if self._process is not None:
            raise VirtualTpmFailure("the TPM is running already")
        if not (self.state / "tpm2-00.permall").is_file():
            raise VirtualTpmFailure(f"{self.state} holds no TPM state")
        ours, its_data = socket.socketpair()
        control, its_control = socket.socketpair()
        log = self.state / "swtpm.log"
        argv = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.state.resolve()},mode=0600"]
        argv += ["--fd", str(its_data.fileno()), "--ctrl", f"type=unixio,clientfd={its_control.fileno()}"]
        argv += ["--flags", "not-need-init,startup-clear", "--log", f"file={log.resolve()},level=1"]
        with its_data, its_control, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            undo.callback(self._ended)
            self._control = control  # swtpm ends when it loses either connection
            try:
                self._process = start_child(argv, pass_fds=(its_data.fileno(), its_control.fileno()))
            except OSError as failure:
                raise VirtualTpmFailure(f"swtpm cannot be started: {failure}") from failure
            its_data.close()
            try:
                self._manager = ResourceManager(ours, self.socket_path)
            except (TpmGone, OSError) as failure:
                raise VirtualTpmFailure(f"swtpm does not serve ({failure}); see {log}") from failure
            undo.pop_all()

    def stop(self) -> None:
        """Shut down in order (TPM2_Shutdown(CLEAR)), then take the power away. Nothing happens if it is off."""
        if self._manager is None or self._process is None:
            return
        try:
            if self.running:
                with self.esapi() as tpm:
                    tpm.shutdown(TPM2_SU.CLEAR)
        finally:
            self._manager.close()
            stop_child(self._process, STOP_TIMEOUT_SECONDS)
            self._ended()

    def power_cut(self) -> None:
        """Take the power away at once: no TPM2_Shutdown, whatever was not written is lost."""
        if self._process is None:
            return
        kill_child(self._process)
        if self._manager is not None:
            self._manager.close()
        self._ended()

    def reset(self) -> None:
        """An orderly reboot: PCRs start anew, resetCount rises. Clients lose their connections."""
        self.stop()
        self.start()

    def clear(self) -> None:
        """TPM2_Clear by the lockout hierarchy: a new owner. The SRK goes; the EKs and their certificates stay."""
        with self.esapi() as tpm:
            tpm.clear(ESYS_TR.LOCKOUT)

    @contextlib.contextmanager
    def esapi(self) -> Iterator[ESAPI]:
        """A connection of its own, closed at the end. Raises: VirtualTpmFailure if the TPM is off."""
        if not self.running:
            raise VirtualTpmFailure("the TPM is not running")
        with ESAPI(self.tcti) as tpm:
            yield tpm

    def provision_srk(self) -> None:
        """Make the storage root key and keep it at 0x81000001; a key that is there already is left alone."""
        with self.esapi() as tpm:
            _, found = tpm.get_capability(TPM2_CAP.HANDLES, SRK_HANDLE, 1)
            if SRK_HANDLE in list(found.data.handles):
                return
            public = TPM2B_PUBLIC(TPMT_PUBLIC.parse(_SRK_TEMPLATE, objectAttributes=_SRK_ATTRIBUTES))
            primary, *_ = tpm.create_primary(TPM2B_SENSITIVE_CREATE(), public, ESYS_TR.OWNER)
            persistent = tpm.evict_control(ESYS_TR.OWNER, primary, SRK_HANDLE)
            tpm.flush_context(primary)
            tpm.tr_close(persistent)

    def ek_certificates(self) -> dict[str, bytes]:
        """The DER of the EK certificates in NV, by kind (`rsa2048`, `ecc384`)."""
        with self.esapi() as tpm:
            return {kind: _read_nv(tpm, index) for kind, index in EK_CERTIFICATE_INDICES.items()}

    def pcrs(self) -> dict[int, bytes]:
        """The SHA-256 values of PCRs 0-23 as they are now."""
        with self.esapi() as tpm:
            values: dict[int, bytes] = {}
            for first in (0, 8, 16):  # TPM2_PCR_Read answers at most eight
                wanted = range(first, first + 8)
                selection = "sha256:" + ",".join(str(pcr) for pcr in wanted)
                _, _, digests = tpm.pcr_read(TPML_PCR_SELECTION.parse(selection))
                values.update(zip(wanted, (bytes(digest) for digest in digests), strict=True))
            return values

    def clock(self) -> TpmClock:
        """The counters that tell a reset, a power cut and a clear apart."""
        with self.esapi() as tpm:
            info = tpm.read_clock().clockInfo
            return TpmClock(int(info.clock), int(info.resetCount), int(info.restartCount), bool(info.safe))

    def _ended(self) -> None:
        if self._process is not None:
            kill_child(self._process)
        if self._control is not None:
            self._control.close()
        self._process = None
        self._control = None
        self._manager = None


@contextlib.contextmanager
def fresh_tpm(ek_ca: "EkCa | None" = None, serial: str = "fresh") -> Iterator[VirtualTpm]:
    """A new software TPM with SRK and EK certificates, running, in a temporary folder that goes when the block ends.

    Without `ek_ca` it is of a manufacturer of its own, whose root is `tpm.state.parent / "ek-ca" / "root.pem"`.
    """
    from lab.ekca import create_ek_ca  # noqa: PLC0415  a TPM that is only started needs no certificate authority

    folder = Path(tempfile.mkdtemp(prefix="muster-"))
    try:
        manufacturer = create_ek_ca(folder / "ek-ca") if ek_ca is None else ek_ca
        manufacturer.make_tpm(folder / "tpm", serial)
        with VirtualTpm(folder / "tpm") as tpm:
            tpm.provision_srk()
            yield tpm
    finally:
        shutil.rmtree(folder)


def short_socket_path(state: Path) -> Path:
    """Where the TPM with that state is to be reached: beside the state, or, where that path is too long, in /tmp.

    The same state gives the same path. Raises: VirtualTpmFailure (the folder in /tmp is not ours alone).
    """
    beside = state.resolve() / "tpm.sock"
    if len(os.fsencode(beside)) <= SOCKET_PATH_MAX:
        return beside
    folder = Path(tempfile.gettempdir()) / f"muster-tpm-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    # The name can be guessed, so another user may have been there first.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise VirtualTpmFailure(f"{folder} is not a folder of mode 0700 of this user; remove it")
    return folder / hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:24]


def _read_nv(tpm: ESAPI, index: int) -> bytes:
    try:
        handle = tpm.tr_from_tpmpublic(index)
    except TSS2_Exception as absent:
        raise VirtualTpmFailure(f"the TPM has no NV index 0x{index:08x}") from absent
    public, _ = tpm.nv_read_public(handle)
    size = int(public.nvPublic.dataSize)
    content = bytearray()
    while len(content) < size:
        piece = tpm.nv_read(handle, min(size - len(content), _NV_PIECE_BYTES), len(content), auth_handle=handle)
        content += bytes(piece)
    tpm.tr_close(handle)
    return bytes(content)
