# ruff: noqa: S608  the statements are this file's own; nothing of them comes from outside
"""`muster fsck` and `muster audit verify`: clean after an honest history, and each tampering is found by its own check.

Tampering is done with SQL behind the service's back, on a copy.
"""

import hashlib
import json
import sqlite3
from base64 import b64decode, b64encode
from contextlib import closing
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from provisioning import cli
from provisioning.app.audit import log_keys, verify_log
from provisioning.app.compose import clock, load_authorities
from provisioning.app.fsck import check_installation
from provisioning.app.fsck_lint import lint_installation
from provisioning.config import load_config
from provisioning.db.store import Store, open_sqlite
from provisioning.transparency import leaf_bytes, leaf_hash, leaf_of
from tests.support.enrolled import ENROLLED, copy_of, make_history

LEAF = "every leaf is the hash of its record"
ORDER = "no leaf is missing"
ROOT = "every tree head is the root of its leaves"
SIGNED = "every tree head is signed by the log"
SAME = "every certificate is what was reserved, and signed by its CA"
ATTESTED = "every LDevID has its attestation"
LOGGED = "every certificate stands in the log, and nothing else does"
CRL = "every CRL is its CA's, and the numbers rise"
LISTED = "the CRLs list exactly what is revoked"
EVIDENCE = "every attestation stands in the log"
BOOT_LOG = "every log is the one that its name says"
DEVICE = "every device is the one that was registered"
SINGLE = "at most one identity an EK"
LDEVID = "(select serial from certificate where profile = 'ldevid' and state = 'issued' order by serial limit 1)"


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    return make_history(tmp_path_factory.mktemp("history"))


@pytest.fixture
def directory(history, tmp_path):
    return copy_of(history, tmp_path / "D")


def tamper(directory, *statements):
    """Each statement must change something, else the test would prove nothing."""
    with closing(sqlite3.connect(directory.root / "muster.db")) as database, database:
        for statement in statements:
            sql, *values = statement if isinstance(statement, tuple) else (statement,)
            assert database.execute(sql, values).rowcount > 0, sql


def read(directory, sql):
    with closing(sqlite3.connect(directory.root / "muster.db")) as database:
        return database.execute(sql).fetchall()


def failed(directory, kept=None):
    """The checks that do not hold, by name, with their faults: fsck's, and the log's alone."""
    config = load_config(directory)
    keys = log_keys(directory, config)
    store = Store(open_sqlite(directory.database(config), read_only=True))
    try:
        authorities = load_authorities(store, config)
        whole = store.read_now(lambda tx: check_installation(tx, authorities, keys, clock()))
        log = store.read_now(lambda tx: verify_log(tx, keys, kept))
    finally:
        store.close()
    return (
        {check.name: check.faults for check in whole.checks if not check.holds},
        {check.name: check.faults for check in log.checks if not check.holds},
    )


def examined(directory):
    """What `muster fsck` finds."""
    config = load_config(directory)
    keys = log_keys(directory, config)
    store = Store(open_sqlite(directory.database(config), read_only=True))
    try:
        authorities = load_authorities(store, config)
        return store.read_now(lambda tx: check_installation(tx, authorities, keys, clock()))
    finally:
        store.close()


def checkpoint(directory, offset=0):
    return read(directory, f"select note from checkpoint order by size desc limit 1 offset {offset}")[0][0].encode()


def test_an_honest_history_is_clean_and_everything_was_looked_at(directory):
    report = examined(directory)
    assert report.holds, [check for check in report.checks if not check.holds]
    looked_at = {check.name: check.looked_at for check in report.checks}
    assert min(looked_at.values()) > 0
    assert looked_at[ATTESTED] == looked_at[EVIDENCE] == looked_at[DEVICE] == ENROLLED
    assert looked_at[LISTED] == 1
    assert looked_at[ROOT] == ENROLLED + 1


@pytest.mark.parametrize(
    "statement",
    [
        "update leaf set record = cast(replace(record, 'line-1', 'line-2') as blob) where kind = 'registration'",
        "update leaf set salt = zeroblob(32) where number = 3",
        "update leaf set salt = x'00' where number = 3",
        "update leaf set at = at + 1 where number = 0",
        "update leaf set kind = 'revocation' where number = 2",
        "update leaf set hash = zeroblob(32) where number = 1",
    ],
)
def test_an_edited_leaf_is_found(directory, statement):
    tamper(directory, statement)
    whole, log = failed(directory)
    assert LEAF in log
    assert LEAF in whole


def test_a_leaf_rewritten_with_a_fitting_hash_is_found_by_the_tree_heads(directory):
    row = read(directory, "select number, kind, at, salt, record from leaf where number = 2")[0]
    number, kind, at, salt, record = row
    other = record[:-1] + b',"x":1}'
    forged = leaf_hash(leaf_bytes(leaf_of(kind, datetime.fromtimestamp(at, UTC), salt, other)))
    tamper(directory, ("update leaf set record = ?, hash = ? where number = ?", other, forged, number))
    _, log = failed(directory)
    assert set(log) == {ROOT}
    assert any("is not the root of its leaves" in fault for fault in log[ROOT])


def test_a_deleted_leaf_is_found(directory):
    tamper(directory, "delete from leaf where number = 4")
    _, log = failed(directory)
    assert log[ORDER] == ["leaf 4 is missing: the next one is 5"]
    assert ROOT in log


def test_the_last_leaf_deleted_is_found(directory):
    tamper(directory, "delete from leaf where number = (select max(number) from leaf)")
    _, log = failed(directory)
    assert "there are fewer leaves than it covers" in log[ROOT][0]


def test_two_leaves_that_changed_places_are_found(directory):
    tamper(
        directory,
        "update leaf set number = -1 where number = 1",
        "update leaf set number = 1 where number = 2",
        "update leaf set number = 2 where number = -1",
    )
    _, log = failed(directory)
    assert set(log) == {ROOT}
    assert "two changed places" in log[ROOT][-1]


def test_a_tree_head_that_another_key_signed_is_found(directory):
    note = checkpoint(directory).decode()
    text, _, line = note.rpartition("\n\n")
    octets = b64decode(line.split()[2])
    forged = octets[:4] + ec.generate_private_key(ec.SECP256R1()).sign((text + "\n").encode(), ec.ECDSA(SHA256()))
    other = note.replace(line.split()[2], b64encode(forged).decode())
    tamper(directory, ("update checkpoint set note = ? where note = ?", other, note))
    _, log = failed(directory)
    assert set(log) == {SIGNED}
    assert "signature is wrong" in log[SIGNED][0]


def test_a_tree_head_with_the_signature_of_another_is_found(directory):
    tamper(
        directory,
        (
            "update checkpoint set note = ? where note = ?",
            checkpoint(directory, 1).decode(),
            checkpoint(directory).decode(),
        ),
    )
    _, log = failed(directory)
    assert set(log) == {SIGNED}
    assert "over another tree" in log[SIGNED][0]


def test_a_forged_frontier_is_found(directory):
    tamper(
        directory,
        "update checkpoint set frontier = zeroblob(length(frontier)) where size = (select max(size) from checkpoint)",
    )
    _, log = failed(directory)
    assert set(log) == {ROOT}


def test_leaves_that_no_tree_head_covers_are_found(directory):
    tamper(directory, "delete from checkpoint where size = (select max(size) from checkpoint)")
    _, log = failed(directory)
    assert "no tree head covers them" in log[ROOT][0]


def test_a_log_cut_off_with_its_tree_heads_is_found_by_who_kept_a_checkpoint(directory):
    kept = checkpoint(directory)
    size = int(checkpoint(directory, 1).split(b"\n")[1])
    tamper(
        directory,
        ("delete from checkpoint where size > ?", size),
        ("delete from leaf where number >= ?", size),
    )
    _, log = failed(directory, kept)
    assert set(log) == {"the log continues the kept checkpoint"}
    _, log = failed(directory)
    assert not log


def test_a_kept_checkpoint_that_the_log_continues_is_confirmed(directory):
    _, log = failed(directory, checkpoint(directory, 1))
    assert not log
    _, log = failed(directory, b"no checkpoint")
    assert set(log) == {"the log continues the kept checkpoint"}


def test_an_erased_record_is_no_fault_of_the_log(directory):
    tamper(directory, "update leaf set salt = null, record = null where kind = 'policy'")
    whole, log = failed(directory)
    assert not log
    assert not whole


@pytest.mark.parametrize(
    ("statement", "check", "said"),
    [
        (
            f"update certificate set tbs = cast(substr(tbs, 1, 300) || x'00' as blob) where serial = {LDEVID}",
            SAME,
            "is not a certificate",
        ),
        (
            f"update certificate set signature = x'3006020101020101' where serial = {LDEVID}",
            SAME,
            "its signature is not",
        ),
        (f"update certificate set signature = x'00' where serial = {LDEVID}", SAME, ""),
        (f"update certificate set not_after = not_after + 86400 where serial = {LDEVID}", SAME, "its end"),
        (f"update certificate set not_before = 0 where serial = {LDEVID}", SAME, "its start"),
        (f"update certificate set subject = 'd-0' where serial = {LDEVID}", SAME, "its name"),
        (f"update certificate set key_id = x'00' where serial = {LDEVID}", SAME, "its key"),
        (f"update certificate set state = 'blessed' where serial = {LDEVID}", SAME, "its state"),
        (f"update certificate set signature = null where serial = {LDEVID}", SAME, "has no signature"),
        (f"delete from certificate where serial = {LDEVID}", LOGGED, "stands in the log and not in the database"),
        ("update certificate set serial = 'ff' where profile = 'station'", SAME, "its serial"),
        ("update certificate set serial = 'ff' where profile = 'station'", LOGGED, "has no leaf in the log"),
        (f"update certificate set enrollment_id = null where serial = {LDEVID}", ATTESTED, "no attestation answers"),
        (
            f"delete from attestation where id = (select enrollment_id from certificate where serial = {LDEVID})",
            ATTESTED,
            "",
        ),
        ("update attestation set evidence = cast(evidence || ' ' as blob)", EVIDENCE, "no leaf for this evidence"),
        ("update attestation set device_id = 'd-0'", ATTESTED, "no attestation answers"),
        ("update log_content set content = cast(x'00' || content as blob)", BOOT_LOG, "is not what its name says"),
        ("update bootlog set size = size - 1", BOOT_LOG, "is not what its name says"),
        ("delete from log_content", BOOT_LOG, "is not what its name says"),
        ("delete from bootlog", BOOT_LOG, "it is gone"),
        (
            "update device set serial = 'other' where id = (select min(id) from device)",
            DEVICE,
            "is not what the log says",
        ),
        (
            "update device set ek_id = '00' where id = (select min(id) from device)",
            DEVICE,
            "another key than its record",
        ),
        (
            "update certificate set state = 'issued', revoked_at = null where state = 'revoked'",
            LISTED,
            "lists it, and it is not revoked",
        ),
        (
            f"update certificate set state = 'revoked', revoked_at = 1 where serial = {LDEVID}",
            LISTED,
            "does not list it",
        ),
        ("update certificate set revoked_at = revoked_at - 1 where state = 'revoked'", LISTED, "another time"),
        ("update crl set number = number + 5", CRL, "calls itself"),
        ("update crl set der = cast(substr(der, 1, length(der) - 1) || x'00' as blob)", CRL, ""),
        ("delete from crl", LISTED, "no CRL at all"),
    ],
)
def test_each_tampering_is_found_by_its_check(directory, statement, check, said):
    tamper(directory, statement)
    whole, _ = failed(directory)
    assert check in whole
    assert any(said in fault for fault in whole[check])


def test_two_devices_with_one_ek_are_found(directory):
    with closing(sqlite3.connect(directory.root / "muster.db")) as database, database:
        # The database itself would refuse that; somebody who can edit it can drop the rule.
        names = [row[1] for row in database.execute("pragma table_info(device)")]
        columns = ", ".join(f'"{name}"' for name in names)
        database.execute("alter table device rename to device_before")
        database.execute(f"create table device as select {columns} from device_before")
        database.execute("update device set ek_id = (select min(ek_id) from device), state = 'active'")
    whole, _ = failed(directory)
    assert SINGLE in whole


def test_a_certificate_that_a_crash_left_reserved_is_told_and_is_no_fault(directory):
    names = [row[1] for row in read(directory, "pragma table_info(certificate)")]
    new = {"serial": "'ff'", "enrollment_id": "null", "signature": "null", "state": "'reserved'", "reserved_at": "0"}
    columns = ", ".join(new.get(name, name) for name in names)
    tamper(directory, f"insert into certificate select {columns} from certificate where serial = {LDEVID}")
    report = examined(directory)
    assert report.holds
    assert any("certificate ff" in note and "was reserved and never issued" in note for note in report.notes)


def test_an_issued_certificate_that_lost_its_signature_is_found(directory):
    tamper(directory, "update certificate set signature = null, state = 'reserved' where profile = 'station'")
    whole, _ = failed(directory)
    assert "its signature is gone" in whole[LOGGED][0]


def test_the_commands_say_it_and_end_with_1(directory, capsys):
    place = ["--data-dir", str(directory.root)]
    assert cli.main(["audit", "verify", *place]) == 0
    assert cli.main(["fsck", *place]) == 0
    assert "FAIL" not in capsys.readouterr().out
    tamper(directory, "update leaf set at = at + 1 where number = 0")
    assert cli.main(["audit", "verify", *place, "-o", "json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert [check["check"] for check in answer["checks"] if not check["ok"]] == [LEAF]
    assert cli.main(["fsck", *place]) == 1
    captured = capsys.readouterr()
    assert f"FAIL  {LEAF}" in captured.out
    assert "restore the database" in captured.err


def test_a_kept_checkpoint_file_is_read(directory, tmp_path, capsys):
    (tmp_path / "kept").write_bytes(checkpoint(directory))
    command = ["audit", "verify", "--data-dir", str(directory.root), "--checkpoint"]
    assert cli.main([*command, str(tmp_path / "kept")]) == 0
    assert "the log continues the kept checkpoint" in capsys.readouterr().out
    assert cli.main([*command, str(tmp_path / "nowhere")]) == 2
    assert f"'{tmp_path / 'nowhere'}' does not exist" in capsys.readouterr().err


def test_a_column_of_another_type_ends_in_a_line(directory, capsys):
    tamper(directory, "update attestation set evidence = 'no bytes'")
    assert cli.main(["fsck", "--data-dir", str(directory.root)]) == 1
    said = capsys.readouterr().err
    assert "expected evidence as bytes; actual str" in said
    assert len(said.splitlines()) == 1


def test_a_database_of_another_program_or_version_is_named(directory, capsys):
    place = ["--data-dir", str(directory.root)]
    tamper(directory, "update alembic_version set version_num = '9999'")
    assert cli.main(["fsck", *place]) == 1
    assert "has schema 9999" in (said := capsys.readouterr().err)
    assert "update this program" in said
    (directory.root / "muster.db").write_bytes(b"something else entirely" * 100)
    assert cli.main(["audit", "verify", *place]) == 1
    assert "is no Muster database" in capsys.readouterr().err
    (directory.root / "muster.db").unlink()
    assert cli.main(["fsck", *place]) == 1
    assert "muster.db: No such file" in capsys.readouterr().err
    assert not (directory.root / "muster.db").exists()


def test_the_tree_is_hashed_as_rfc_6962_says(directory):
    """The whole of it once more, by a few lines of our own."""

    def mth(hashes):
        if len(hashes) == 1:
            return hashes[0]
        k = 1 << (len(hashes) - 1).bit_length() - 1
        return hashlib.sha256(b"\x01" + mth(hashes[:k]) + mth(hashes[k:])).digest()

    rows = [row[0] for row in read(directory, "select hash from leaf where number is not null order by number")]
    size, root = read(directory, "select size, root from checkpoint order by size desc limit 1")[0]
    assert (size, root) == (len(rows), mth(rows))


# --- every certificate again, against its profile and by pkilint ------------------------------------------------------

SAYS, CLEAN = "every certificate says what its record and profile say", "pkilint finds nothing in any certificate"


def linted(directory):
    config = load_config(directory)
    store = Store(open_sqlite(directory.database(config), read_only=True))
    try:
        report = lint_installation(store.read_now, load_authorities(store, config), config.service_name)
    finally:
        store.close()
    return {check.name: check for check in report.checks}


def test_every_certificate_of_an_honest_history_is_clean(directory):
    checks = linted(directory)
    (count,) = read(directory, "select count(*) from certificate where signature is not null")[0]
    assert (checks[SAYS].faults, checks[CLEAN].faults) == ([], [])
    assert checks[SAYS].looked_at == checks[CLEAN].looked_at == count
    assert count >= ENROLLED + 4  # the CAs, the service, a station


ANY = "(select serial from certificate where profile = 'ldevid' order by serial limit 1)"
PROFILE = "insert into profile (name, version, text, created_at, created_by) values ('short', 1, ?, 0, 'x')"
SHORT = 'name = "short"\nkind = "ldevid"\nkeys = ["P-256"]\nlifetime_hours = 1\n'


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        ((f"update certificate set profile = 'quarantine' where serial = {ANY}",), "extensions"),
        ((f"update certificate set profile = 'station' where serial = {ANY}",), "extensions"),
        ((f"update certificate set issuer = 'root' where serial = {ANY}",), "its issuer"),
        ((f"update certificate set issuer = 'nobody' where serial = {ANY}",), "no authority that is known"),
        ((f"update certificate set device_id = 'nobody' where serial = {ANY}",), "is not registered"),
        ((f"update certificate set not_after = not_after - 1 where serial = {ANY}",), "not after"),
        ((f"update certificate set tbs = x'3000' where serial = {ANY}",), "no signature algorithm"),
        ((f"update certificate set profile = 'what' where serial = {ANY}",), "of no kind"),
        (("update device set serial = 'another-' || serial",), "subject"),
        (((PROFILE, SHORT), f"update certificate set profile_id = 1 where serial = {ANY}"), "lifetime"),
        (((PROFILE, "no TOML"), f"update certificate set profile_id = 1 where serial = {ANY}"), "cannot be read"),
        (
            ((PROFILE, SHORT.replace('"ldevid"', '"quarantine"')),
             f"update certificate set profile_id = 1 where serial = {ANY}"),
            "is one for the kind",
        ),
    ],
)  # fmt: skip
def test_a_certificate_that_is_not_what_its_record_says_is_reported(directory, statements, said):
    tamper(directory, *statements)
    faults = linted(directory)[SAYS].faults
    assert faults
    assert all(fault.startswith("certificate ") for fault in faults)
    assert any(said in fault for fault in faults), faults


def test_a_certificate_that_no_linter_takes_is_reported(directory):
    """A subject alternative name that is no URI, in a certificate that somebody put in."""
    ((serial, tbs),) = read(directory, f"select serial, tbs from certificate where serial = {ANY}")
    assert tbs.count(b"spiffe://") == 1
    tamper(directory, ("update certificate set tbs = ? where serial = ?", tbs.replace(b"fe://", b"fe:!!"), serial))
    checks = linted(directory)
    assert "invalid_uri_syntax" in "".join(checks[CLEAN].faults)
    assert "extensions" in "".join(checks[SAYS].faults)


def test_fsck_lints_where_it_is_asked_to(directory, capsys):
    place = ["--data-dir", str(directory.root)]
    assert cli.main(["fsck", "--lint", *place]) == 0
    assert SAYS in capsys.readouterr().out
    tamper(directory, "update device set serial = 'another-' || serial")
    assert cli.main(["fsck", "--lint", *place]) == 1
