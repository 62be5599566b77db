"""Sessions on one token: log in once, a pool for many threads, and recovery without restart.

Laws. A session is used by one thread at a time. Nobody is inside the module while it is reloaded. Whatever was made
before a reload (sessions, handles) is never used after it. A PIN that was refused once is never tried again.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import pkcs11

from hsm import watch
from hsm.errors import HsmError, KeyNotFound, PinUnreadable, TokenRefused, TokenUnavailable, WrongPin
from hsm.module import Module, ModuleSettings, TokenName, serial_of

T = TypeVar("T")

SHORTEST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 2.0
FRESH_LOGIN_SECONDS = 1.0  # so long "no such key" is believed at once

# What a token says that was pulled out, reset, or closed behind our back. NoSuchKey: while logged out, private keys are
# invisible. GeneralError, DeviceError, FunctionFailed: SoftHSM whose files went away. OperationActive: a session that
# an earlier error left in the middle of something.
LOST = (
    pkcs11.SessionHandleInvalid,
    pkcs11.SessionClosed,
    pkcs11.ObjectHandleInvalid,
    pkcs11.KeyHandleInvalid,
    pkcs11.UserNotLoggedIn,
    pkcs11.DeviceRemoved,
    pkcs11.TokenNotPresent,
    pkcs11.TokenNotRecognised,
    pkcs11.SlotIDInvalid,
    pkcs11.NoSuchKey,
    pkcs11.GeneralError,
    pkcs11.DeviceError,
    pkcs11.FunctionFailed,
    pkcs11.OperationActive,
)
PIN_REFUSED = (
    pkcs11.PinIncorrect,
    pkcs11.PinInvalid,
    pkcs11.PinLenRange,
    pkcs11.PinExpired,
    pkcs11.PinLocked,
    pkcs11.UserPinNotInitialized,
)


@dataclass(slots=True)
class Seat:
    """A session, the private keys bound to it, and how many signatures it made since it was taken."""

    session: pkcs11.Session
    module: Module
    generation: int
    keys: dict[tuple[str, bytes], Any] = field(default_factory=dict)
    signatures: int = 0

    def require_login(self) -> None:
        """Raise UserNotLoggedIn unless this session sees private keys: a search would just find none."""
        if not self.module.is_logged_in(self.session):
            raise pkcs11.UserNotLoggedIn


class Sessions:
    """The logged-in sessions of one token; see `Token` for what the arguments mean. Thread-safe."""

    def __init__(
        self,
        settings: ModuleSettings,
        name: TokenName,
        read_pin: Callable[[], str],
        *,
        count: int,
        wait_seconds: float,
    ) -> None:
        self.label = name.label if name.label is not None else f"serial {name.serial}"
        self.settings = settings
        self._read_pin = read_pin
        self._count = count
        self._wait_seconds = wait_seconds
        self._name = name
        self._share = self.label if name.label is None or name.serial is None else f"{name.label} {name.serial}"
        self._opening = threading.Lock()
        self._module: Module | None = None
        # Read under the module's `changed`; written under it, or while alone in the module:
        self._login: pkcs11.Session | None = None  # closing the session that logged in logs the whole token out
        self._seats: list[Seat] = []
        self._generation = 0
        self._serving = False
        self._signatures = 0
        self._wrong_pin: str | None = None
        self._failure = ""
        self._pause_seconds = 0.0
        self._pause_until = 0.0
        self._login_is_fresh_until = 0.0

    def open(self) -> None:
        """Load the module if needed and log in. Opening twice is opening once.

        Raises:
            WrongPin: now or at an earlier call; the token was asked at most once. PinUnreadable: it was not asked.
            TokenNotFound, TokenAmbiguous, TokenUnavailable, ModuleUnusable; TokenExists: open here already.
        """
        with self._opening:
            self._refuse_wrong_pin()
            if self._module is not None:
                return
            module = Module.acquire(self.settings, self._share)
            try:
                with module.alone(self._wait_seconds):
                    self._log_in(module)
            except BaseException:
                module.release(self._share)
                raise
            self._module = module

    def close(self) -> None:
        """Log out, close the sessions, and give the module back. A closed token may be opened again.

        Raises:
            TokenUnavailable: a call hangs in the module. The token stays open; close it again later.
        """
        if not self._opening.acquire(timeout=self._wait_seconds):
            raise TokenUnavailable(f"token {self.label!r} is still being opened after {self._wait_seconds} s")
        try:
            module = self._module
            if module is None:
                return
            with module.alone(self._wait_seconds):
                self._log_out(module)
                self._module = None
            module.release(self._share)
        finally:
            self._opening.release()

    @property
    def signatures(self) -> int:
        """How many signatures were made for callers (the probe that proves a key pair is not counted)."""
        return self._signatures

    # --- one call: take a session, work, give it back; recover and repeat once if the token was lost ------------------

    def run(self, work: Callable[[Seat], T]) -> T:
        """Do this work with a session of one's own; twice, if the token was lost and came back.

        Raises:
            KeyNotFound: the work raised NoSuchKey with a fresh login too. TokenRefused: the token said no.
            TokenUnavailable, WrongPin, PinUnreadable, TokenAmbiguous, ModuleUnusable: no session.
        """
        seat = self._take()
        try:
            return self._work(seat, work)
        except LOST as error:
            if isinstance(error, pkcs11.NoSuchKey) and time.monotonic() < self._login_is_fresh_until:
                raise KeyNotFound(f"token {self.label!r}: {error}") from error
            self._recover(seat.generation)
        return self._again(work)

    def _again(self, work: Callable[[Seat], T]) -> T:
        try:
            return self._work(self._take(), work)
        except pkcs11.NoSuchKey as error:
            raise KeyNotFound(f"token {self.label!r}: {error}") from error
        except LOST as error:
            # The token lets us in and fails all the same, on this key perhaps: do not reload for each call.
            self._pause(f"token {self.label!r} was lost again: {type(error).__name__}")
            raise TokenUnavailable(self._failure) from error

    def _work(self, seat: Seat, work: Callable[[Seat], T]) -> T:
        watch.enter()
        try:
            return work(seat)
        except LOST:
            raise
        except pkcs11.PKCS11Error as error:
            if "not initialized" in str(error):  # CKR_CRYPTOKI_NOT_INITIALIZED has no class of its own
                raise pkcs11.SessionHandleInvalid from error
            raise TokenRefused(f"token {self.label!r}: {type(error).__name__} {error}".rstrip()) from error
        finally:
            watch.leave()
            self._give_back(seat)

    def _take(self) -> Seat:
        while True:
            module = self._opened_module()
            module.refuse_after_fork()
            with module.changed:
                if not module.changed.wait_for(partial(self._is_decided, module), self._wait_seconds):
                    raise TokenUnavailable(f"token {self.label!r}: no session became free in {self._wait_seconds} s")
                stale = self._generation
                if self._serves(module):
                    module.busy += 1
                    return self._seats.pop()
            self._recover(stale)

    def _opened_module(self) -> Module:
        module = self._module
        if module is None:
            raise TokenUnavailable(f"token {self.label!r} is not open")
        return module

    def _serves(self, module: Module) -> bool:
        return self._serving and self._generation == module.generation

    def _is_decided(self, module: Module) -> bool:
        """Can a waiting thread go on, with a session or into a recovery?"""
        if module.is_alone:
            return False
        return not self._serves(module) or (bool(self._seats) and module.busy < module.limit)

    def _give_back(self, seat: Seat) -> None:
        with seat.module.changed:
            seat.module.busy -= 1
            self._signatures += seat.signatures
            seat.signatures = 0
            if seat.generation == self._generation:
                self._seats.append(seat)
            seat.module.changed.notify_all()

    # --- recovery: one at a time, alone in the module ---------------------------------------------------------------

    def _recover(self, seen: int) -> None:
        """Renew sessions that were made in generation `seen`; if another thread did it meanwhile, that is enough."""
        self._refuse_early()
        module = self._opened_module()
        with module.alone(self._wait_seconds):
            if self._opened_module() is not module or (self._serves(module) and self._generation != seen):
                return
            self._refuse_early()
            self._serving = False
            try:
                # Another token's recovery may have reloaded the module already.
                if not module.initialized or self._generation == module.generation:
                    module.reload()
                self._log_in(module)
            except HsmError as error:
                self._pause(str(error))
                raise

    def _log_in(self, module: Module) -> None:
        self._generation = module.generation
        try:
            token = module.find_token(self._name)
            try:
                self._login = self._logged_in_session(token)
                self._seats = [Seat(token.open(), module, module.generation) for _ in range(self._count)]
            except BaseException:
                module.close_sessions(token)  # python-pkcs11 forgets the session whose login failed
                raise
        except pkcs11.PKCS11Error as error:
            reason = f"{type(error).__name__} {error}".rstrip()
            raise TokenUnavailable(f"token {self.label!r} does not log in: {reason}") from error
        self._name = replace(self._name, serial=serial_of(token))  # from now on only this very token will do
        self._serving = True
        self._pause_seconds = self._pause_until = 0.0
        self._login_is_fresh_until = time.monotonic() + FRESH_LOGIN_SECONDS

    def _logged_in_session(self, token: pkcs11.Token) -> pkcs11.Session:
        if token.flags & pkcs11.TokenFlag.USER_PIN_FINAL_TRY:
            # A service that is started again and again must not be what locks the token.
            raise WrongPin(f"token {self.label!r} locks at the next wrong PIN: log in once by another tool to reset it")
        # The PIN is in no local variable, and the errors below are raised outside `except`: no traceback and no
        # exception context leads to it (a UnicodeError, of reading or of writing it, carries the whole text).
        try:
            return token.open(user_pin=self._fresh_pin())
        except PIN_REFUSED as error:
            refused = type(error).__name__
        except UnicodeError:
            refused = ""
        if not refused:
            raise PinUnreadable(f"the PIN of token {self.label!r} is not UTF-8 text")
        self._wrong_pin = f"token {self.label!r} refused the PIN ({refused}); it is not tried again by this process"
        raise WrongPin(self._wrong_pin)

    def _fresh_pin(self) -> str:
        try:
            with watch.outside():
                pin = self._read_pin()
        except OSError as error:
            raise PinUnreadable(f"the PIN of token {self.label!r} cannot be read: {error}") from error
        if not pin:
            raise PinUnreadable(f"the PIN of token {self.label!r} is empty")
        return pin

    def _refuse_wrong_pin(self) -> None:
        if self._wrong_pin is not None:
            raise WrongPin(self._wrong_pin)

    def _refuse_early(self) -> None:
        self._refuse_wrong_pin()
        if time.monotonic() < self._pause_until:
            raise TokenUnavailable(self._failure)

    def _pause(self, failure: str) -> None:
        self._failure = failure
        self._pause_seconds = min(max(2 * self._pause_seconds, SHORTEST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        self._pause_until = time.monotonic() + self._pause_seconds

    def _log_out(self, module: Module) -> None:
        self._serving = False
        sessions = [seat.session for seat in self._seats]
        self._seats.clear()
        # After another token's reload there is nothing to close.
        if self._login is not None and self._generation == module.generation:
            module.close_sessions(self._login.token, (self._login, *sessions))
