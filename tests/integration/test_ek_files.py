"""What an operator hands over as roots: directories and cabinets, hostile ones too, by the real cabextract."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provisioning.cli import cabinet as cabinets
from provisioning.cli import ek_files
from provisioning.cli.cabinet import escapes, members_of
from provisioning.cli.ek_files import collect
from provisioning.cli.failures import Failed
from tests.support.cabinets import cabinet
from tests.support.ek_certificates import pem, root

ONE, TWO = root("One").der, root("Two").der


def made(tmp_path, name, data):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def refused_for(path):
    with pytest.raises(Failed) as failed:
        collect([path])
    return str(failed.value)


# --- directories ------------------------------------------------------------------------------------------------------


def test_a_directory_is_read_to_its_leaves_and_all_that_is_none_is_named(tmp_path):
    folder = tmp_path / "roots"
    made(folder, "b/Intel/RootCA/one.cer", ONE)
    made(folder, "a.pem", pem(ONE, TWO).encode())
    made(folder, "read.me", b"text")
    (folder / "link.pem").symlink_to(made(tmp_path, "outside.pem", pem(TWO).encode()))
    (folder / "out").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    found = collect([folder])
    assert found.found == [("roots/a.pem[1]", ONE), ("roots/a.pem[2]", TWO), ("roots/b/Intel/RootCA/one.cer", ONE)]
    assert {one["source"]: one["reason"] for one in found.refused} == {
        "roots/link.pem": "is a symbolic link",
        "roots/out": "is a symbolic link",
        "roots/pipe": "is no regular file",
        "roots/read.me": "holds no certificate",
    }


def test_depth_number_and_size_are_bounded(tmp_path, monkeypatch):
    deep = tmp_path / "deep" / "/".join("d" * (ek_files.DEPTH_MOST + 2))
    made(deep, "one.der", ONE)
    (one,) = collect([tmp_path / "deep"]).refused
    assert one["reason"] == f"lies more than {ek_files.DEPTH_MOST} folders deep"
    many = tmp_path / "many"
    for number in range(4):
        made(many, f"{number}.der", ONE)
    monkeypatch.setattr(ek_files, "ENTRIES_MOST", 3)
    assert "more than 3 files" in refused_for(many)
    monkeypatch.setattr(ek_files, "ENTRIES_MOST", 10)
    monkeypatch.setattr(ek_files, "CERTIFICATES_MOST", 3)
    assert "more than 3 certificates" in refused_for(many)
    monkeypatch.setattr(ek_files, "CERTIFICATES_MOST", 10)
    monkeypatch.setattr(ek_files, "TOTAL_MOST", 2 * len(ONE))
    assert "are to be read" in refused_for(many)


def test_what_is_too_large_for_a_certificate_is_refused_by_itself(tmp_path):
    large = b"\x30\x82\x30\x00" + bytes(0x3000)
    found = collect([made(tmp_path, "x.pem", pem(ONE).encode()), made(tmp_path, "y.der", large)])
    assert [source for source, _ in found.found] == ["x.pem"]
    assert found.refused == [{"source": "y.der", "reason": "is larger than 8 KiB"}]


def test_control_characters_of_a_name_reach_nobody(tmp_path):
    found = collect([made(tmp_path / "d", "a\x1b[31m\n.pem", pem(ONE).encode()).parent])
    assert found.found[0][0] == "d/a\\x1b[31m\\n.pem"


# --- cabinets ---------------------------------------------------------------------------------------------------------


def test_a_cabinet_is_unpacked_and_its_folders_are_the_source(tmp_path):
    data = cabinet([(b"Intel\\RootCA\\one.cer", ONE), (b"STMicro\\two.crt", TWO), (b"setup.cmd", b"echo")])
    found = collect([made(tmp_path, "T.cab", data)])
    assert found.found == [("T.cab/Intel/RootCA/one.cer", ONE), ("T.cab/STMicro/two.crt", TWO)]
    assert found.refused == [{"source": "T.cab/setup.cmd", "reason": "holds no certificate"}]


@pytest.mark.parametrize(
    "name", [b"../../escaped.cer", b"..\\escaped.cer", b"/tmp/muster-escaped.cer", b"a//b.cer", b"C:\\x"]
)
def test_names_that_lead_out_of_a_cabinet_are_refused_and_lead_nowhere(tmp_path, name):
    inside = tmp_path / "inside"
    found = collect([made(inside, "T.cab", cabinet([(name, ONE), (b"good.cer", TWO)]))])
    assert found.found == [("T.cab/good.cer", TWO)]
    (refused,) = found.refused
    assert refused["reason"] == "has a name that leads out of its cabinet"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["T.cab"]
    assert not os.path.exists("/tmp/muster-escaped.cer")  # noqa: PTH110  the very path


def test_what_is_unpacked_under_another_name_is_not_passed_over_in_silence(tmp_path):
    """With both kinds of separators cabextract takes one of them for a letter."""
    found = collect([made(tmp_path, "T.cab", cabinet([(b"../x.cer", ONE), (b"c/d.cer", ONE), (b"a\\b.cer", TWO)]))])
    told = {one["source"]: one["reason"] for one in found.refused}
    assert len(found.found) + len(found.refused) == 3
    assert told.get("T.cab/a/b.cer", "was not unpacked under its name") == "was not unpacked under its name"


def test_only_names_below_are_no_escapes():
    assert not escapes("Intel/RootCA/one.cer")
    for name in ("", ".", "..", "a/../b", "/a", "a/", "./a", "a\nb", "C:x", "a/./b"):
        assert escapes(name), name


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"MSCF", "is no cabinet"),
        (b"MSCF" + bytes(40), "is cut or broken"),
        (cabinet([(b"a", ONE)])[:-1], "is cut or broken"),
        (cabinet([(b"a", ONE)], length=20), "is cut or broken"),
        (cabinet([(b"a", ONE)], flags=1), "several cabinets"),
        (cabinet([(b"a", ONE)], flags=2), "several cabinets"),
        (cabinet([(b"a", ONE)])[:50], "is cut or broken"),
        (cabinet([(b"a", b""), (b"b", b"")], sizes=[2**31, 2**31]), "holds more than 64 MiB"),
        (cabinet([(b"a" * 300, b"")]), "cabextract refused it"),
        (cabinet([(b"a", ONE)], sizes=[len(ONE) + 5000]), "cabextract refused it"),
    ],
    ids=["head", "empty", "cut", "length", "previous", "next", "directory", "bomb", "long name", "lying size"],
)
def test_a_cabinet_that_is_none_or_too_much_is_refused_as_a_whole(tmp_path, data, why):
    assert why in refused_for(made(tmp_path, "T.cab", data))


def test_more_files_than_the_directory_may_have(monkeypatch, tmp_path):
    monkeypatch.setattr(cabinets, "MEMBERS_MOST", 1)
    assert "more than 1 files" in refused_for(made(tmp_path, "T.cab", cabinet([(b"a", ONE), (b"b", TWO)])))


def test_a_second_cabinet_behind_the_first_is_not_unpacked(tmp_path):
    hidden = cabinet([(b"hidden.cer", TWO)])
    found = collect([made(tmp_path, "T.cab", cabinet([(b"a.cer", ONE)], extra=hidden))])
    assert found.found == [("T.cab/a.cer", ONE)]


def test_a_cabinet_in_a_cabinet_stays_closed(tmp_path):
    found = collect([made(tmp_path, "T.cab", cabinet([(b"in.cab", cabinet([(b"a.cer", ONE)]))]))])
    assert found.found == []
    assert found.refused == [{"source": "T.cab/in.cab", "reason": "is a cabinet in a cabinet"}]


def test_without_the_program_its_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install cabextract" in refused_for(made(tmp_path, "T.cab", cabinet([(b"a", ONE)])))


def test_a_program_that_never_ends_is_ended(tmp_path, monkeypatch):
    slow = made(tmp_path, "bin/cabextract", b"#!/bin/sh\nsleep 60\n")
    slow.chmod(0o700)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(cabinets, "SECONDS", 1)
    assert "was not unpacked within 1 s" in refused_for(made(tmp_path, "T.cab", cabinet([(b"a", ONE)])))


@given(st.binary(max_size=200))
def test_any_directory_of_a_cabinet_is_read_or_refused(data):
    for octets in (b"MSCF" + data, cabinet([(b"a", ONE)])[:30] + data, data):
        try:
            length, members = members_of(octets)
        except ValueError as error:
            assert str(error)  # noqa: PT017  each has its reason
        else:
            assert length <= len(octets)
            assert all(member.size >= 0 for member in members)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 120), st.integers(1, 255))
def test_a_changed_octet_in_a_cabinet_gives_certificates_or_a_reason(tmp_path, at, change):
    data = cabinet([(b"x/a.cer", ONE), (b"../b.cer", TWO)])
    changed = data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]
    try:
        found = collect([made(tmp_path, "T.cab", changed)])
    except Failed as failed:
        assert str(failed)  # noqa: PT017  each has its reason
    else:
        assert found.found or found.refused
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["T.cab"]
