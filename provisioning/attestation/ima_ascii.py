"""The kernel's `ascii_runtime_measurements`, as the same log: the template data is put together again.

It replays like the binary list, so nothing of it has to be believed. One line an entry: PCR, template hash, template,
then each field behind a space (security/integrity/ima/ima_fs.c, ima_template_lib.c).
"""

import re

from provisioning.attestation.algorithms import MAX_PCR
from provisioning.attestation.ima import MAX_ENTRIES, ImaEntry, ImaLog
from provisioning.attestation.ima_fields import TEMPLATES
from provisioning.refusals import ImaLogMalformed
from wire.messages import IMA_LOG_MOST

_LINE = re.compile(rb" ?([0-9]{1,2}) ((?:[0-9a-f]{2}){20,64}) ([a-z0-9][a-z0-9|-]{0,127}) (.*)", re.DOTALL)
_DIGEST = re.compile(rb"((?:[a-z0-9-]+:)?[a-z0-9_-]+):((?:[0-9a-f]{2})*)")
_DIGESTS, _NAMES = frozenset({"d-ng", "d-ngv2", "d-modsig"}), frozenset({"n", "n-ng"})
_BYTES = frozenset({"sig", "buf", "modsig", "evmsig"})


def is_ima_ascii(data: bytes) -> bool:
    """Does this look like the list as text, from its first line?"""
    return _LINE.fullmatch(data[:4096].partition(b"\n")[0]) is not None


def parse_ima_ascii(data: bytes) -> ImaLog:
    """A whole list of lines. Raises: ImaLogMalformed."""
    if len(data) > 2 * IMA_LOG_MOST:
        raise ImaLogMalformed(expected=f"at most {2 * IMA_LOG_MOST} bytes", actual=f"{len(data)} bytes")
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    if len(lines) > MAX_ENTRIES:
        raise ImaLogMalformed(expected=f"at most {MAX_ENTRIES} entries", actual=f"{len(lines)}")
    entries = tuple(_entry(number, line) for number, line in enumerate(lines))
    sizes = {len(entry.template_hash) for entry in entries} or {20}
    if len(sizes) != 1:
        raise ImaLogMalformed(expected="hashes of one size", actual=f"{sorted(sizes)} bytes")
    return ImaLog(sizes.pop(), entries)


def _entry(number: int, line: bytes) -> ImaEntry:
    found = _LINE.fullmatch(line)
    if found is None or int(found[1]) > MAX_PCR or len(found[2]) not in {40, 64, 96, 128}:
        raise ImaLogMalformed(
            expected=f"line {number + 1}: PCR, hash, template, fields", actual=line[:80].decode("latin1")
        )
    template = found[3].decode("ascii")
    names = TEMPLATES.get(template, template).split("|")
    values = found[4].split(b" ")
    if len(values) > len(names):
        raise ImaLogMalformed(expected=f"line {number + 1}: {len(names)} fields", actual=f"{len(values)}")
    values += [b""] * (len(names) - len(values))
    fields = [_field(number, name, value) for name, value in zip(names, values, strict=True)]
    if template == "ima":
        data = fields[0] + len(values[1]).to_bytes(4, "little") + values[1]
    else:
        data = b"".join(len(field).to_bytes(4, "little") + field for field in fields)
    return ImaEntry(number, int(found[1]), bytes.fromhex(found[2].decode("ascii")), template, data)


def _field(number: int, name: str, value: bytes) -> bytes:
    """The field's bytes out of its text; an empty one has no text."""
    if name in _NAMES:
        return value + b"\0"
    if name in _DIGESTS:
        digest = _DIGEST.fullmatch(value)
        if digest is not None:
            return digest[1] + b":\0" + bytes.fromhex(digest[2].decode("ascii"))
    elif name == "d" or name in _BYTES:
        text = value.decode("latin1")
        if re.fullmatch("(?:[0-9a-f]{2})*", text) and (name != "d" or len(text) == 40):  # noqa: PLR2004  SHA-1, in hex
            return bytes.fromhex(text)
    actual = f"{name} {value[:80].decode('latin1')}"
    raise ImaLogMalformed(expected=f"line {number + 1}: a field that can be put together again", actual=actual)
