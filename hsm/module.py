"""One PKCS#11 module loaded once a process: initialised for threads, reloaded while nobody is inside, finalised last.

python-pkcs11 calls C_Initialize(NULL), by which the application promises to use one thread (PKCS#11 2.40, section
5.4), and then releases the GIL in C_Sign: on SoftHSM two threads end in SIGSEGV. So C_Initialize is called here, with
CKF_OS_LOCKING_OK. A module that accepts the NULL form only ("null") is entered by one thread at a time.
"""

import ctypes
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pkcs11
from pkcs11._pkcs11 import lib as pkcs11_library

from hsm.errors import ModuleUnusable, TokenAmbiguous, TokenExists, TokenNotFound, TokenRefused, TokenUnavailable

CKR_OK = 0x000
CKR_CRYPTOKI_NOT_INITIALIZED = 0x190
CKR_CRYPTOKI_ALREADY_INITIALIZED = 0x191
CKF_OS_LOCKING_OK = 0x02
# No session is left: CKR_OK; CKR_SLOT_ID_INVALID, DEVICE_ERROR, DEVICE_REMOVED, TOKEN_NOT_PRESENT, not initialised.
_CLOSED = (CKR_OK, 0x003, 0x030, 0x032, 0x0E0, CKR_CRYPTOKI_NOT_INITIALIZED)
CKS_LOGGED_IN = (1, 3)  # CKS_RO_USER_FUNCTIONS, CKS_RW_USER_FUNCTIONS
LABEL_BYTES = 32  # CK_TOKEN_INFO.label, padded with blanks

# Positions in CK_FUNCTION_LIST, counted after its version (PKCS#11 2.40, section 3.6).
_INITIALIZE, _FINALIZE, _INIT_TOKEN, _CLOSE_ALL_SESSIONS, _GET_SESSION_INFO = 0, 1, 9, 14, 15
_FUNCTION_COUNT = 68


@dataclass(frozen=True, slots=True)
class ModuleSettings:
    """How to load a PKCS#11 module.

    `environment` is put into the process's environment before C_Initialize (SOFTHSM2_CONF). `session_copies`: sign with
    a copy of the key in a session object; still sensitive and non-extractable, on SoftHSM about a third faster. Such a
    copy signs until its session ends, even if the key's file is deleted meanwhile. A module that cannot copy keys needs
    False. `locking`: "null" for a module that accepts C_Initialize(NULL) only, such as p11-kit-client.
    """

    path: Path
    locking: Literal["os", "null"] = "os"
    environment: Mapping[str, str] = field(default_factory=dict)
    session_copies: bool = True


class _InitializeArguments(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS: four mutex callbacks, unused because the module may take the system's own locks."""

    _fields_: ClassVar = [
        ("callbacks", ctypes.c_void_p * 4),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    ]


class _SessionInfo(ctypes.Structure):
    _fields_: ClassVar = [
        ("slot", ctypes.c_ulong),
        ("state", ctypes.c_ulong),
        ("flags", ctypes.c_ulong),
        ("device_error", ctypes.c_ulong),
    ]


class _FunctionList(ctypes.Structure):
    _fields_: ClassVar = [("version", ctypes.c_ubyte * 2), ("functions", ctypes.c_void_p * _FUNCTION_COUNT)]


class _Library(pkcs11_library):
    """python-pkcs11's library over a module that `Module` has already initialised."""

    def initialize(self) -> None:
        """Nothing: see `Module.reload`. As `initialized` stays False, python-pkcs11 never finalises either."""


def serial_of(token: pkcs11.Token) -> str:
    """The token's serial number as text: PKCS#11 makes it 16 ASCII characters padded with blanks."""
    return token.serial.decode("latin-1")


class Module:
    """The shared state of one loaded module. `changed` guards every attribute, and those of the module's tokens."""

    _loaded: ClassVar[dict[Path, "Module"]] = {}
    _loading: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, settings: ModuleSettings) -> None:
        self.settings = settings
        self.changed = threading.Condition()
        self.generation = 0  # rises with each reload: sessions and handles of an older one are dead
        self.initialized = False
        self.busy = 0  # threads inside the module
        self.limit = 1 if settings.locking == "null" else 1 << 30
        self._labels: set[str] = set()  # of the tokens that hold a share; guarded by `_loading`
        self._process = os.getpid()
        self._alone = False
        try:
            get_function_list = ctypes.CDLL(str(settings.path)).C_GetFunctionList
        except (OSError, AttributeError) as error:
            raise ModuleUnusable(f"{settings.path} is not a PKCS#11 module that can be loaded: {error}") from error
        functions = ctypes.POINTER(_FunctionList)()
        if get_function_list(ctypes.byref(functions)) != CKR_OK:
            raise ModuleUnusable(f"{settings.path} gives no list of functions")
        self._functions = functions.contents.functions
        self._library: _Library | None = None

    @classmethod
    def acquire(cls, settings: ModuleSettings, label: str) -> "Module":
        """Take a token's share in the process's one instance of this module; load it if nobody did.

        Raises:
            ModuleUnusable: not loadable, loaded before a fork, or in use here with other settings.
            TokenExists: the share of this label is taken.
        """
        with cls._loading:
            key = settings.path.resolve()
            module = cls._loaded.get(key)
            if module is None:
                module = cls(settings)
                module.reload()
                cls._loaded[key] = module
            module.refuse_after_fork()
            if (module.settings.locking, module.settings.environment) != (settings.locking, settings.environment):
                raise ModuleUnusable(f"{settings.path} is in use in this process with other settings")
            if label in module._labels:
                raise TokenExists(f"token {label!r} is already open in this process")
            module._labels.add(label)
            return module

    def release(self, label: str) -> None:
        """Give the share back. The last one finalises the module."""
        with self._loading:
            self._labels.discard(label)
            if not self._labels:
                del self._loaded[self.settings.path.resolve()]
                if self.initialized:
                    self._finalize()

    def refuse_after_fork(self) -> None:
        """Raise in a forked child: the parent's sessions and locks came along and must not be used (spawn instead)."""
        if self._process != os.getpid():
            raise ModuleUnusable(f"{self.settings.path} was loaded before a fork: spawn the child instead")

    @property
    def is_alone(self) -> bool:
        """Does a thread hold or want the module for itself? To be asked while holding `changed`."""
        return self._alone

    @contextmanager
    def alone(self, seconds: float) -> Iterator[None]:
        """Be the only thread inside the module: new ones wait, those inside come out first.

        Raises:
            TokenUnavailable: not within `seconds`; another thread hangs inside.
        """
        self.refuse_after_fork()
        deadline = time.monotonic() + seconds
        with self.changed:
            if not self.changed.wait_for(lambda: not self._alone, seconds):
                raise TokenUnavailable(f"{self.settings.path}: another recovery did not end within {seconds} s")
            self._alone = True
            if not self.changed.wait_for(lambda: self.busy == 0, max(0.0, deadline - time.monotonic())):
                self._alone = False
                self.changed.notify_all()
                raise TokenUnavailable(f"{self.settings.path}: a call has not come back within {seconds} s")
        try:
            # `changed` is free meanwhile: who waits for a session must be able to give up at its deadline.
            yield
        finally:
            with self.changed:
                self._alone = False
                self.changed.notify_all()

    def reload(self) -> None:
        """C_Finalize, then C_Initialize: the only way to see a token again that was lost. Call it while `alone`."""
        self.generation += 1
        if self.initialized:
            self._finalize()
        for name, value in self.settings.environment.items():
            os.environ[name] = value  # noqa: TID251 (SoftHSM takes its configuration from nowhere else)
        arguments = _InitializeArguments(flags=CKF_OS_LOCKING_OK)
        status = self._call(_INITIALIZE, ctypes.byref(arguments) if self.settings.locking == "os" else None)
        if status == CKR_CRYPTOKI_ALREADY_INITIALIZED:
            raise ModuleUnusable(f"{self.settings.path}: somebody else in this process has initialised it")
        if status != CKR_OK:
            raise TokenUnavailable(
                f"{self.settings.path}: C_Initialize failed with {status:#x}; check its configuration"
            )
        self.initialized = True
        if self._library is None:
            self._library = _Library(str(self.settings.path))

    def find_token(self, label: str, serial: str | None = None) -> pkcs11.Token:
        """The one token of this label (and serial number).

        Raises:
            TokenNotFound: there is none. TokenAmbiguous: there are several.
        """
        found = [token for token in self._tokens() if token.label == label and serial in (None, serial_of(token))]
        if not found:
            raise TokenNotFound(f"no token {label!r} in {self.settings.path}")
        if len(found) > 1:
            raise TokenAmbiguous(f"{len(found)} tokens are called {label!r} in {self.settings.path}")
        return found[0]

    def make_token(self, label: str, so_pin: bytes) -> pkcs11.Token:
        """C_InitToken on an empty slot, or on a token of this label that got no user PIN: its making was cut short.

        Call it while `alone`.

        Raises:
            TokenExists: the label is taken. TokenUnavailable: no empty slot. TokenRefused: what the module said.
        """
        tokens = list(self._tokens())
        named = [token for token in tokens if token.label == label]
        if any(token.flags & pkcs11.TokenFlag.USER_PIN_INITIALIZED for token in named):
            raise TokenExists(f"a token {label!r} is already there")
        empty = named or [token for token in tokens if not token.flags & pkcs11.TokenFlag.TOKEN_INITIALIZED]
        if not empty:
            raise TokenUnavailable(f"{self.settings.path} has no empty slot for a new token")
        padded = label.encode().ljust(LABEL_BYTES)
        slot = ctypes.c_ulong(empty[0].slot.slot_id)
        status = self._call(_INIT_TOKEN, slot, so_pin, ctypes.c_ulong(len(so_pin)), padded)
        if status != CKR_OK:
            raise TokenRefused(f"C_InitToken of {label!r} failed with {status:#x}")
        return self.find_token(label)

    def close_sessions(self, token: pkcs11.Token) -> None:
        """Close every session of this process on the token, which logs out. Call it while `alone`."""
        status = self._call(_CLOSE_ALL_SESSIONS, ctypes.c_ulong(token.slot.slot_id))
        if status not in _CLOSED:
            raise TokenRefused(f"the sessions of token {token.label!r} do not close: {status:#x}")

    def is_logged_in(self, session: pkcs11.Session) -> bool:
        """Is the user logged in, as this session sees it? While not, private objects are invisible, not gone."""
        info = _SessionInfo()
        handle = ctypes.c_ulong(session.handle)  # type: ignore[attr-defined]  # missing in the stub only
        status = self._call(_GET_SESSION_INFO, handle, ctypes.byref(info))
        return status == CKR_OK and info.state in CKS_LOGGED_IN

    def _tokens(self) -> Iterator[pkcs11.Token]:
        if self._library is None or not self.initialized:
            raise TokenUnavailable(f"{self.settings.path} is not initialised")
        for slot in self._library.get_slots(token_present=True):
            try:
                yield slot.get_token()
            except (pkcs11.TokenNotPresent, pkcs11.TokenNotRecognised, pkcs11.GeneralError):
                continue  # pulled out; SoftHSM's GeneralError: its files are gone, and only a reload forgets it

    def _finalize(self) -> None:
        status = self._call(_FINALIZE, None)
        if status not in (CKR_OK, CKR_CRYPTOKI_NOT_INITIALIZED):
            raise TokenUnavailable(f"{self.settings.path}: C_Finalize failed with {status:#x}")
        self.initialized = False

    def _call(self, position: int, *arguments: object) -> int:
        # CFUNCTYPE releases the GIL; each argument is already of its C type, None is NULL.
        function = ctypes.cast(self._functions[position], ctypes.CFUNCTYPE(ctypes.c_ulong))
        return int(function(*arguments))
