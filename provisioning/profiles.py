"""The certificate profiles in force, as the database says; where it says nothing, the built-in ones.

Each process holds what it read last: a worker reads again every second, and at once when it changed something itself.
A version that is a second old issues nothing that was not in force a second ago; which one it was, the certificate's
row and leaf say.
"""

from collections.abc import Mapping
from types import MappingProxyType

from sqlalchemy import Connection

from provisioning.db import profiles
from provisioning.db.devices import Record
from provisioning.db.store import Store
from provisioning.issuance.profiles import DEVICE_KINDS, CertificateProfile, builtin, numbered, parse_profile
from provisioning.issuance.tbs import Profile
from provisioning.refusals import ProfileUnknown


def profile_of(tx: Connection, kind: str, row_id: int | None) -> CertificateProfile:
    """The profile under which a certificate of that kind was reserved. Raises: ProfileMalformed."""
    row = None if row_id is None else profiles.by_id(tx, row_id)
    if row is None:
        return builtin(Profile(kind))
    return profile_in(row)


def profile_in(row: Record) -> CertificateProfile:
    """The profile that a row of the table is. Raises: ProfileMalformed, if this version of the program takes it not."""
    return numbered(parse_profile(row.text, f"profile {row.name}, version {row.version}"), row.version, row.id)


class Profiles:
    """All of them by name. Reading is free of locks: what is held is one mapping, replaced whole."""

    def __init__(self) -> None:
        """The built-in profiles alone."""
        self._newest = 0
        self._by_name: Mapping[str, CertificateProfile] = MappingProxyType({kind: builtin(kind) for kind in Profile})

    @property
    def all(self) -> Mapping[str, CertificateProfile]:
        """By name: the version in force of each."""
        return self._by_name

    def of_kind(self, kind: Profile) -> CertificateProfile:
        """The profile that bears its kind's name: there always is one."""
        return self._by_name[kind]

    def of_device(self, name: str) -> CertificateProfile:
        """The profile that a device's record names. Raises: ProfileUnknown."""
        found = self._by_name.get(name)
        if found is None or found.kind not in DEVICE_KINDS or found.kind is Profile.IDEVID:
            raise ProfileUnknown(expected="a profile for devices in service", actual=name)
        return found

    def load(self, tx: Connection) -> bool:
        """Read the table, where it has a new row. Has it? Raises: ProfileMalformed."""
        newest = profiles.newest_id(tx)
        if newest == self._newest:
            return False
        found = {kind.value: builtin(kind) for kind in Profile}
        for row in profiles.in_force(tx):
            found[row.name] = profile_in(row)
        self._by_name, self._newest = MappingProxyType(found), newest
        return True

    async def refresh(self, store: Store) -> bool:
        """The same, from a running loop. Raises: StorageUnavailable, ProfileMalformed."""
        return await store.read(self.load)
