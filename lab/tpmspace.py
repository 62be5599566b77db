"""Several clients on one TPM: each sees its own objects and sessions, and as many as it likes.

A TPM has room for three loaded objects and three sessions. As /dev/tpmrm0 does, this gives every client handles of its
own and moves objects out of the TPM (ContextSave) and back (ContextLoad); unlike it, only when the TPM says that it is
full, so that a client alone pays nothing. Names of structures are those of the TPM 2.0 Library, Parts 2 and 3.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

Transmit = Callable[[bytes], bytes]

CLIENT_OBJECTS_MAX = 64
_FIRST_VIRTUAL = 0x80FF0000

_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002  # TPM_ST
_HEADER = struct.Struct(">HII")
_U32 = struct.Struct(">I")

_CC_CONTEXT_LOAD, _CC_CONTEXT_SAVE, _CC_FLUSH_CONTEXT, _CC_GET_CAPABILITY = 0x161, 0x162, 0x165, 0x17A
_CAP_HANDLES, _CAP_COMMANDS = 1, 2
_HT_HMAC_SESSION, _HT_POLICY_SESSION, _HT_TRANSIENT = 0x02, 0x03, 0x80

_RC_SUCCESS = 0
_RC_COMMAND_SIZE = 0x142
_RC_AUTHSIZE = 0x144
_RC_VALUE_P1 = 0x1C4
_RC_OBJECT_MEMORY = 0x902
_RC_SESSION_MEMORY = 0x903
_RC_OBJECT_HANDLES = 0x906
_RC_REFERENCE_H0 = 0x910
_RC_REFERENCE_S0 = 0x918


class TpmRefusal(Exception):
    """A command is answered with this TPM_RC, without reaching the TPM."""

    def __init__(self, code: int) -> None:
        super().__init__(f"TPM_RC 0x{code:03x}")
        self.code = code


@dataclass(slots=True, eq=False)
class _Entry:
    """An object or session of one client: loaded under `handle`, or moved out into `context`, or gone (neither)."""

    handle: int | None
    context: bytes | None = None
    used: int = 0


@dataclass(slots=True, eq=False)
class Space:
    """What one client owns. Objects by the handle that the client knows, sessions by the TPM's own."""

    objects: dict[int, _Entry] = field(default_factory=dict)
    sessions: dict[int, _Entry] = field(default_factory=dict)
    next_virtual: int = _FIRST_VIRTUAL


@dataclass(frozen=True, slots=True)
class _Shape:
    """TPMA_CC: how many handles a command carries, whether its answer carries one, whether it flushes its own."""

    handles: int
    answers_handle: bool
    flushes: bool


class SharedTpm:
    """One TPM, driven by one thread, shared by `Space`s. `transmit` sends one command and returns its answer."""

    def __init__(self, transmit: Transmit) -> None:
        self._transmit = transmit
        self._spaces: list[Space] = []
        self._clock = 0
        self._shapes = _read_shapes(transmit)

    def open(self) -> Space:
        """A new client with nothing loaded."""
        space = Space()
        self._spaces.append(space)
        return space

    def close(self, space: Space) -> None:
        """Flush everything that the client left behind."""
        self._spaces.remove(space)
        for entry in space.objects.values():
            if entry.handle is not None:
                self._flush(entry.handle)
        for handle in space.sessions:
            self._flush(handle)

    def execute(self, space: Space, command: bytes) -> bytes:
        """Answer one command of one client."""
        try:
            return self._execute(space, command)
        except TpmRefusal as refusal:
            return _answer(refusal.code)

    def _execute(self, space: Space, command: bytes) -> bytes:
        if len(command) < _HEADER.size or _HEADER.unpack_from(command)[1] != len(command):
            raise TpmRefusal(_RC_COMMAND_SIZE)
        tag, _, code = _HEADER.unpack_from(command)
        if code == _CC_FLUSH_CONTEXT:
            return self._flush_context(space, command)
        if code == _CC_GET_CAPABILITY and command[10:14] == _U32.pack(_CAP_HANDLES) and command[14:15] == b"\x80":
            return _own_handles(space, command)
        shape = self._shapes.get(code, _Shape(0, answers_handle=False, flushes=False))
        if shape.answers_handle and len(space.objects) >= CLIENT_OBJECTS_MAX:
            raise TpmRefusal(_RC_OBJECT_HANDLES)
        handles = _handle_area(command, shape.handles)
        needed = self._needed(space, handles, _auth_handles(command, shape.handles) if tag == _SESSIONS else [])
        answer = self._run(lambda: _with_handles(command, space, handles), needed)
        if _code(answer) != _RC_SUCCESS:
            return answer
        if shape.flushes:
            for handle in handles:
                space.objects.pop(handle, None)
        if code == _CC_CONTEXT_SAVE and handles[0] in space.sessions:
            space.sessions[handles[0]].handle = None  # the client holds its context now; it stays the owner
        return self._adopt(space, answer) if shape.answers_handle else answer

    def _needed(self, space: Space, handles: Iterable[int], auth_handles: Iterable[int]) -> list[_Entry]:
        """The client's own objects and sessions that a command names, made ready to be loaded."""
        needed: list[_Entry] = []
        for position, handle in enumerate(handles):
            if _kind(handle) == _HT_TRANSIENT:
                needed.append(_owned(space.objects, handle, _RC_REFERENCE_H0 + position))
            elif _is_session(handle):
                needed.append(_owned(space.sessions, handle, _RC_REFERENCE_H0 + position))
        for position, handle in enumerate(auth_handles):
            if _is_session(handle):
                needed.append(_owned(space.sessions, handle, _RC_REFERENCE_S0 + position))
        self._clock += 1
        for entry in needed:
            entry.used = self._clock
        return needed

    def _run(self, command: Callable[[], bytes], needed: list[_Entry]) -> bytes:
        """Load what is needed and send; whenever the TPM is full, move something else out and go on."""
        for entry in needed:
            if entry.handle is None and entry.context is not None:
                self._load(entry, needed)
        return self._send(command, needed)

    def _send(self, command: Callable[[], bytes], needed: list[_Entry]) -> bytes:
        while True:
            answer = self._transmit(command())
            # Both are warnings: the TPM did nothing and the same command may be sent again.
            if _code(answer) == _RC_OBJECT_MEMORY and self._move_out("objects", needed):
                continue
            if _code(answer) == _RC_SESSION_MEMORY and self._move_out("sessions", needed):
                continue
            return answer

    def _load(self, entry: _Entry, needed: list[_Entry]) -> None:
        context = entry.context or b""
        answer = self._send(lambda: _command(_CC_CONTEXT_LOAD, context), needed)
        if _code(answer) != _RC_SUCCESS:
            raise TpmRefusal(_code(answer))
        entry.handle = _U32.unpack_from(answer, _HEADER.size)[0]
        entry.context = None
        self._disown(entry.handle, except_entry=entry)

    def _move_out(self, kind: str, needed: list[_Entry]) -> bool:
        """Move the least recently used object or session that is not needed out of the TPM. False: there is none."""
        tables = (space.objects if kind == "objects" else space.sessions for space in self._spaces)
        loaded = [
            entry
            for table in tables
            for entry in table.values()
            if entry.handle is not None and not any(entry is other for other in needed)
        ]
        if not loaded:
            return False
        entry = min(loaded, key=lambda candidate: candidate.used)
        handle = entry.handle or 0
        answer = self._transmit(_command(_CC_CONTEXT_SAVE, _U32.pack(handle)))
        entry.handle = None
        if _code(answer) == _RC_SUCCESS:
            entry.context = answer[_HEADER.size :]
            if kind == "objects":  # a session leaves by being saved, an object stays until flushed
                self._flush(handle)
        return True  # where saving failed the TPM had dropped it already (TPM2_Clear, an ended session)

    def _adopt(self, space: Space, answer: bytes) -> bytes:
        """Note whose the new object or session is; give the client a handle of its own for an object."""
        handle = _U32.unpack_from(answer, _HEADER.size)[0]
        if _is_session(handle):
            self._disown(handle, except_entry=None)
            for other in self._spaces:
                other.sessions.pop(handle, None)
            space.sessions[handle] = _Entry(handle, used=self._clock)
            return answer
        if _kind(handle) != _HT_TRANSIENT:
            return answer
        self._disown(handle, except_entry=None)
        virtual = space.next_virtual
        space.next_virtual += 1
        space.objects[virtual] = _Entry(handle, used=self._clock)
        return answer[: _HEADER.size] + _U32.pack(virtual) + answer[_HEADER.size + 4 :]

    def _disown(self, handle: int, except_entry: _Entry | None) -> None:
        """The TPM gave this handle out anew, so whatever had it before is gone: nobody may reach the new one by it."""
        for space in self._spaces:
            for entry in (*space.objects.values(), *space.sessions.values()):
                if entry is not except_entry and entry.handle == handle:
                    entry.handle = None

    def _flush_context(self, space: Space, command: bytes) -> bytes:
        if len(command) != _HEADER.size + 4:
            raise TpmRefusal(_RC_COMMAND_SIZE)
        handle = _U32.unpack_from(command, _HEADER.size)[0]
        if handle in space.sessions:
            del space.sessions[handle]
            return self._transmit(command)
        entry = space.objects.pop(handle, None)
        if entry is None:
            raise TpmRefusal(_RC_VALUE_P1)
        return _answer(_RC_SUCCESS) if entry.handle is None else self._flush(entry.handle)

    def _flush(self, handle: int) -> bytes:
        return self._transmit(_command(_CC_FLUSH_CONTEXT, _U32.pack(handle)))


def _read_shapes(transmit: Transmit) -> dict[int, _Shape]:
    """Ask the TPM which commands it has and how they look (TPM2_GetCapability, TPM_CAP_COMMANDS)."""
    answer = transmit(_command(_CC_GET_CAPABILITY, struct.pack(">III", _CAP_COMMANDS, 0, 0x7FFF)))
    if _code(answer) != _RC_SUCCESS:
        raise TpmRefusal(_code(answer))
    count = _U32.unpack_from(answer, _HEADER.size + 5)[0]
    shapes: dict[int, _Shape] = {}
    for (attributes,) in _U32.iter_unpack(answer[_HEADER.size + 9 : _HEADER.size + 9 + 4 * count]):
        code = attributes & 0x2000FFFF  # bit 29: a vendor's command
        shapes[code] = _Shape(
            handles=attributes >> 25 & 7, answers_handle=bool(attributes >> 28 & 1), flushes=bool(attributes >> 24 & 1)
        )
    return shapes


def _handle_area(command: bytes, count: int) -> list[int]:
    area = command[_HEADER.size : _HEADER.size + 4 * count]
    if len(area) != 4 * count:
        raise TpmRefusal(_RC_COMMAND_SIZE)
    return [handle for (handle,) in _U32.iter_unpack(area)]


def _auth_handles(command: bytes, handle_count: int) -> Iterator[int]:
    """The session handles of the authorization area: TPMS_AUTH_COMMAND, one after another."""
    at = _HEADER.size + 4 * handle_count
    try:
        end = at + 4 + _U32.unpack_from(command, at)[0]
        at += 4
        while at < end:
            handle, nonce_size = struct.unpack_from(">IH", command, at)
            at += 6 + nonce_size + 1
            (hmac_size,) = struct.unpack_from(">H", command, at)
            at += 2 + hmac_size
            yield handle
    except struct.error as short:
        raise TpmRefusal(_RC_AUTHSIZE) from short
    if at != end:
        raise TpmRefusal(_RC_AUTHSIZE)


def _with_handles(command: bytes, space: Space, handles: list[int]) -> bytes:
    """The command with the TPM's handles in place of the client's."""
    area = b"".join(_U32.pack(_real(space, handle)) for handle in handles)
    return command[: _HEADER.size] + area + command[_HEADER.size + len(area) :]


def _real(space: Space, handle: int) -> int:
    entry = space.objects.get(handle)
    return handle if entry is None or entry.handle is None else entry.handle


def _owned(table: dict[int, _Entry], handle: int, refusal: int) -> _Entry:
    entry = table.get(handle)
    if entry is None or (entry.handle is None and entry.context is None):
        raise TpmRefusal(refusal)
    return entry


def _own_handles(space: Space, command: bytes) -> bytes:
    """TPM2_GetCapability for transient handles: the client's, and nobody else's."""
    if len(command) != _HEADER.size + 12:
        raise TpmRefusal(_RC_COMMAND_SIZE)
    first, most = struct.unpack_from(">II", command, _HEADER.size + 4)
    handles = [handle for handle in sorted(space.objects) if handle >= first]
    shown = handles[:most]
    body = struct.pack(">BII", len(handles) > len(shown), _CAP_HANDLES, len(shown))
    return _answer(_RC_SUCCESS, body + b"".join(_U32.pack(handle) for handle in shown))


def _kind(handle: int) -> int:
    return handle >> 24


def _is_session(handle: int) -> bool:
    return _kind(handle) in (_HT_HMAC_SESSION, _HT_POLICY_SESSION)


def _code(answer: bytes) -> int:
    code: int = _HEADER.unpack_from(answer)[2]
    return code


def _command(code: int, parameters: bytes) -> bytes:
    return _HEADER.pack(_NO_SESSIONS, _HEADER.size + len(parameters), code) + parameters


def _answer(code: int, parameters: bytes = b"") -> bytes:
    return _HEADER.pack(_NO_SESSIONS, _HEADER.size + len(parameters), code) + parameters
