"""How a PKCS#11 module is initialised: for threads by our own call, or by python-pkcs11's C_Initialize(NULL).

python-pkcs11 calls C_Initialize(NULL), by which the application promises to use one thread (PKCS#11 2.40, section
5.4), and then releases the GIL in C_Sign: on SoftHSM two threads end in SIGSEGV. So `ForThreads` calls it with
CKF_OS_LOCKING_OK. Some modules take the NULL form only, and give each caller of C_GetFunctionList a state of its own
(p11-kit-client): `NullForm` leaves everything to python-pkcs11, and `hsm.module` lets one thread in at a time.
"""

import ctypes
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

import pkcs11
from pkcs11._pkcs11 import lib as pkcs11_library

from hsm.errors import ModuleUnusable, TokenRefused, TokenUnavailable

if TYPE_CHECKING:
    from hsm.module import ModuleSettings

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


class _InitializeArguments(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS: four mutex callbacks, unused because the module may take the system's own locks.

    NSS calls the last field LibraryParameters and reads one more pointer after it, which has to be NULL (pkcs11t.h).
    """

    _fields_: ClassVar = [
        ("callbacks", ctypes.c_void_p * 4),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_char_p),
        ("null", ctypes.c_void_p),
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
    """python-pkcs11's library over a module that `ForThreads` has already initialised."""

    def initialize(self) -> None:
        """Nothing: see `ForThreads`. As `initialized` stays False, python-pkcs11 never finalises either."""


class ForThreads:
    """A module that may take the system's own locks, called through ctypes beside python-pkcs11."""

    def __init__(self, settings: "ModuleSettings") -> None:
        self._settings = settings
        self.initialized = False
        self.library: pkcs11_library | None = None
        _set_environment(settings)
        try:
            get_function_list = ctypes.CDLL(str(settings.path)).C_GetFunctionList
        except (OSError, AttributeError) as error:
            raise ModuleUnusable(f"{settings.path} is not a PKCS#11 module that can be loaded: {error}") from error
        functions = ctypes.POINTER(_FunctionList)()
        if get_function_list(ctypes.byref(functions)) != CKR_OK:
            raise ModuleUnusable(f"{settings.path} gives no list of functions")
        self.functions = functions.contents.functions

    def initialize(self) -> None:
        """C_Initialize. Raises: ModuleUnusable, TokenUnavailable."""
        _set_environment(self._settings)
        arguments = _InitializeArguments(flags=CKF_OS_LOCKING_OK)
        if self._settings.reserved:
            arguments.reserved = self._settings.reserved.encode()
        status = self.call(_INITIALIZE, ctypes.byref(arguments))
        if status == CKR_CRYPTOKI_ALREADY_INITIALIZED:
            raise ModuleUnusable(f"{self._settings.path}: somebody else in this process has initialised it")
        if status != CKR_OK:
            raise TokenUnavailable(
                f"{self._settings.path}: C_Initialize failed with {status:#x}; check its configuration"
            )
        self.initialized = True
        if self.library is None:
            self.library = _Library(str(self._settings.path))

    def finalize(self) -> None:
        """C_Finalize. Raises: TokenUnavailable."""
        status = self.call(_FINALIZE, None)
        if status not in (CKR_OK, CKR_CRYPTOKI_NOT_INITIALIZED):
            raise TokenUnavailable(f"{self._settings.path}: C_Finalize failed with {status:#x}")
        self.initialized = False

    def is_logged_in(self, session: pkcs11.Session) -> bool:
        """C_GetSessionInfo: is the user logged in?"""
        info = _SessionInfo()
        handle = ctypes.c_ulong(session.handle)  # type: ignore[attr-defined]  # missing in the stub only
        status = self.call(_GET_SESSION_INFO, handle, ctypes.byref(info))
        return status == CKR_OK and info.state in CKS_LOGGED_IN

    def close_sessions(self, token: pkcs11.Token, known: Sequence[pkcs11.Session]) -> None:  # noqa: ARG002 (the other form needs them)
        """C_CloseAllSessions. Raises: TokenRefused."""
        status = self.call(_CLOSE_ALL_SESSIONS, ctypes.c_ulong(token.slot.slot_id))
        if status not in _CLOSED:
            raise TokenRefused(f"the sessions of token {token.label!r} do not close: {status:#x}")

    def init_token(self, token: pkcs11.Token, label: str, so_pin: bytes) -> None:
        """C_InitToken. Raises: TokenRefused."""
        padded, slot = label.encode().ljust(LABEL_BYTES), ctypes.c_ulong(token.slot.slot_id)
        status = self.call(_INIT_TOKEN, slot, so_pin, ctypes.c_ulong(len(so_pin)), padded)
        if status != CKR_OK:
            raise TokenRefused(f"C_InitToken of {label!r} failed with {status:#x}")

    def call(self, position: int, *arguments: object) -> int:
        """The function at this position; its CK_RV."""
        # CFUNCTYPE releases the GIL; each argument is already of its C type, None is NULL.
        function = ctypes.cast(self.functions[position], ctypes.CFUNCTYPE(ctypes.c_ulong))
        return int(function(*arguments))


class NullForm:
    """A module that accepts C_Initialize(NULL) only. What python-pkcs11 does not offer is done without."""

    def __init__(self, settings: "ModuleSettings") -> None:
        self._settings = settings
        self.library: pkcs11_library | None = None
        if settings.reserved:
            raise ModuleUnusable(f"{settings.path}: a module that is initialised with NULL takes no configuration text")

    @property
    def initialized(self) -> bool:
        """Between C_Initialize and C_Finalize?"""
        return self.library is not None and bool(self.library.initialized)

    def initialize(self) -> None:
        """C_Initialize(NULL). Raises: ModuleUnusable, TokenUnavailable."""
        _set_environment(self._settings)
        try:
            if self.library is None:
                self.library = pkcs11_library(str(self._settings.path))
            else:
                self.library.initialize()
        except pkcs11.PKCS11Error as error:
            if type(error) is pkcs11.PKCS11Error:  # the base class: the file itself cannot be loaded
                raise ModuleUnusable(f"{self._settings.path} is not a PKCS#11 module that can be loaded") from error
            reason = type(error).__name__
            raise TokenUnavailable(f"{self._settings.path}: C_Initialize failed with {reason}") from error

    def finalize(self) -> None:
        """C_Finalize. Raises: TokenUnavailable."""
        if self.library is None:
            return
        try:
            self.library.finalize()  # it counts as finalised, whatever the module says
        except pkcs11.PKCS11Error as error:
            if self.library.initialized:
                raise TokenUnavailable(f"{self._settings.path}: C_Finalize failed: {type(error).__name__}") from error

    def is_logged_in(self, session: pkcs11.Session) -> bool:  # noqa: ARG002 (the other form asks it)
        """Not to be told. A search that finds no key is repeated after a fresh login before it is believed."""
        return True

    def close_sessions(self, token: pkcs11.Token, known: Sequence[pkcs11.Session]) -> None:  # noqa: ARG002 (as above)
        """Close those that we know of; another one ends with C_Finalize."""
        for session in known:
            with suppress(pkcs11.PKCS11Error):  # one that is lost needs no closing
                session.close()

    def init_token(self, token: pkcs11.Token, label: str, so_pin: bytes) -> None:  # noqa: ARG002 (as above)
        """Refused. Raises: TokenRefused."""
        raise TokenRefused(f"{self._settings.path} makes no tokens: make token {label!r} where it lies")


def _set_environment(settings: "ModuleSettings") -> None:
    for name, value in settings.environment.items():
        os.environ[name] = value  # noqa: TID251 (modules take their configuration from nowhere else)
