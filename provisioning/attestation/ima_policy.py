"""What may run: the policy's part about IMA, its types. Judged by `ima_policy_judge`, over covered entries only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from provisioning.attestation.keys import PublicKey


class FileDigest(NamedTuple):
    """A file's digest as IMA measures it. `kind`: `ima` (the file's bytes) or `verity` (its fs-verity digest)."""

    kind: str
    algorithm: str
    value: bytes


@dataclass(frozen=True, slots=True, eq=False)
class ImaKey:
    """A key whose signatures of files count. `ids`: the key ids that a signature may name it by; they prove nothing.

    Compared by identity.
    """

    key: PublicKey
    ids: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class ImaPolicy:
    """What each entry of an IMA log must be: a listed file, one signed by a key, or of an excluded path.

    `files`: by digest, the paths that it may have; None for any path. `excludes`: whole paths with at most one `*`,
    which stands for any characters, slashes too. An exclude is a hole: a path says where a file was seen, and who
    mounts file systems decides that.

    `boot_aggregate` "check": the log's first entry is the hash of the quoted PCRs 0 to 9 (0 to 7 before Linux 5.8).
    `violations`: entries of zeros, of which nothing is measured. `sha1_template`: what old kernels extend, SHA-1 and
    zeros.
    """

    files: Mapping[FileDigest, frozenset[str] | None]
    keys: tuple[ImaKey, ...] = ()
    excludes: tuple[str, ...] = ()
    boot_aggregate: Literal["check", "accept"] = "check"
    violations: Literal["refuse", "accept"] = "refuse"
    sha1_template: Literal["refuse", "accept"] = "refuse"
