"""One PKCS#11 module loaded once a process: reloaded while nobody is inside, finalised last.

How it is initialised stands in `hsm.cryptoki`.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pkcs11

from hsm import watch
from hsm.cryptoki import ForThreads, NullForm
from hsm.errors import ModuleUnusable, TokenAmbiguous, TokenExists, TokenNotFound, TokenUnavailable


@dataclass(frozen=True, slots=True)
class ModuleSettings:
    """How to load a PKCS#11 module.

    `environment` is put into the process's environment before C_Initialize (SOFTHSM2_CONF). `session_copies`: sign with
    a copy of the key in a session object; still sensitive and non-extractable, on SoftHSM about a third faster. Such a
    copy signs until its session ends, even if the key's file is deleted meanwhile. A module that cannot copy keys needs
    False. `locking`: "null" for a module that accepts C_Initialize(NULL) only, such as p11-kit-client. `reserved`: the
    text that the module takes in CK_C_INITIALIZE_ARGS.pReserved (NSS softokn: where its database lies).
    """

    path: Path
    locking: Literal["os", "null"] = "os"
    environment: Mapping[str, str] = field(default_factory=dict)
    session_copies: bool = True
    reserved: str = ""

    @property
    def identity(self) -> tuple[object, ...]:
        """Two tokens may share one loaded module only where all of this is equal."""
        return self.locking, dict(self.environment), self.reserved


@dataclass(frozen=True, slots=True)
class TokenName:
    """Which token: everything that is given has to fit (RFC 7512, section 2.3). At least label or serial is given."""

    label: str | None
    serial: str | None = None
    manufacturer: str | None = None
    model: str | None = None

    def __str__(self) -> str:
        return repr(self.label) if self.label is not None else f"with serial {self.serial}"

    def fits(self, token: pkcs11.Token) -> bool:
        """Is it this one? PKCS#11 pads what the token says with blanks; so may what is wanted be."""
        said = {
            "label": token.label,
            "serial": serial_of(token),
            "manufacturer": token.manufacturer_id,
            "model": token.model,
        }
        wanted = {name: getattr(self, name) for name in said}
        return all(text is None or text.rstrip() == said[name].rstrip() for name, text in wanted.items())


def serial_of(token: pkcs11.Token) -> str:
    """The token's serial number as text: PKCS#11 makes it 16 ASCII characters padded with blanks."""
    return token.serial.decode("latin-1")


class Module:
    """The shared state of one loaded module. `changed` guards every attribute, and those of the module's tokens."""

    _loaded: ClassVar[dict[Path, "Module"]] = {}
    _turns: ClassVar[dict[Path, threading.Lock]] = {}
    _loading: ClassVar[threading.Lock] = threading.Lock()  # guards `_turns`; `_turns` guard `_loaded` by path

    def __init__(self, settings: ModuleSettings) -> None:
        self.settings = settings
        self.changed = threading.Condition()
        self.generation = 0  # rises with each reload: sessions and handles of an older one are dead
        self.busy = 0  # threads inside the module
        self.limit = 1 if settings.locking == "null" else 1 << 30
        self._labels: set[str] = set()  # of the tokens that hold a share; guarded by the path's `_turns`
        self._process = os.getpid()
        self._alone = False
        self.form = NullForm(settings) if settings.locking == "null" else ForThreads(settings)

    @classmethod
    def acquire(cls, settings: ModuleSettings, label: str) -> "Module":
        """Take a token's share in the process's one instance of this module; load it if nobody did.

        Raises:
            ModuleUnusable: not loadable, loaded before a fork, or in use here with other settings.
            TokenExists: the share of this label is taken.
        """
        key = settings.path.resolve()
        with cls._turn(key):
            module = cls._loaded.get(key)
            if module is None:
                module = cls(settings)
                with watch.inside():
                    module.reload()
                cls._loaded[key] = module
            module.refuse_after_fork()
            if module.settings.identity != settings.identity:
                raise ModuleUnusable(f"{settings.path} is in use in this process with other settings")
            if label in module._labels:
                raise TokenExists(f"token {label!r} is already open in this process")
            module._labels.add(label)
            return module

    def release(self, label: str) -> None:
        """Give the share back. The last one finalises the module."""
        key = self.settings.path.resolve()
        with self._turn(key):
            self._labels.discard(label)
            if not self._labels:
                del self._loaded[key]
                if self.form.initialized:
                    with watch.inside():
                        self.form.finalize()

    @classmethod
    def _turn(cls, key: Path) -> threading.Lock:
        """Who loads or leaves this module waits for the others; a module that hangs in it keeps up no other module."""
        with cls._loading:
            return cls._turns.setdefault(key, threading.Lock())

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
            with watch.inside():
                yield
        finally:
            with self.changed:
                self._alone = False
                self.changed.notify_all()

    def reload(self) -> None:
        """C_Finalize, then C_Initialize: the only way to see a token again that was lost. Call it while `alone`."""
        self.generation += 1
        if self.form.initialized:
            self.form.finalize()
        self.form.initialize()

    @property
    def initialized(self) -> bool:
        """Between C_Initialize and C_Finalize?"""
        return self.form.initialized

    def find_token(self, name: TokenName) -> pkcs11.Token:
        """The one token of this name.

        Raises:
            TokenNotFound: there is none. TokenAmbiguous: there are several.
        """
        found = [token for token in self._tokens() if name.fits(token)]
        if not found:
            raise TokenNotFound(f"no token {name} in {self.settings.path}")
        if len(found) > 1:
            raise TokenAmbiguous(f"{len(found)} tokens are called {name} in {self.settings.path}")
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
        self.form.init_token(empty[0], label, so_pin)
        return self.find_token(TokenName(label))

    def close_sessions(self, token: pkcs11.Token, known: Sequence[pkcs11.Session] = ()) -> None:
        """Close every session of this process on the token, which logs out. Call it while `alone`.

        `known`: the sessions, for a module that cannot close all of them by itself; first the one that logged in.
        """
        self.form.close_sessions(token, known)

    def is_logged_in(self, session: pkcs11.Session) -> bool:
        """Is the user logged in, as this session sees it? While not, private objects are invisible, not gone."""
        return self.form.is_logged_in(session)

    def _tokens(self) -> Iterator[pkcs11.Token]:
        library = self.form.library
        if library is None or not self.form.initialized:
            raise TokenUnavailable(f"{self.settings.path} is not initialised")
        for slot in library.get_slots(token_present=True):
            try:
                yield slot.get_token()
            except (pkcs11.TokenNotPresent, pkcs11.TokenNotRecognised, pkcs11.GeneralError):
                continue  # pulled out; SoftHSM's GeneralError: its files are gone, and only a reload forgets it
