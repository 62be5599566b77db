"""The load generator against the service that does nothing: every device is served, every loss is counted."""

import json
import ssl

import pytest

from lab.light_cli import main
from lab.light_fleet import load_fleet, make_fleet
from lab.light_load import LoadFailed, Plan, Report, run_load, run_plan, verify_identities
from lab.light_null import null_service

DEVICES = 12


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_fleet(tmp_path_factory.mktemp("load") / "fleet", DEVICES).directory


@pytest.mark.parametrize("new_tls", [False, True])
def test_every_device_is_served_from_several_processes(directory, new_tls):
    with null_service(load_fleet(directory)) as target:
        report = run_plan(Plan(directory, 0, DEVICES, target, connections=4, processes=2, new_tls=new_tls))
    assert len(report.latencies) == DEVICES
    assert not report.lost
    assert report.per_second > 0
    assert 0 < report.percentile_ms(50) <= report.percentile_ms(99)


def test_a_device_that_the_service_does_not_answer_is_lost_and_counted(directory):
    known, stranger = load_fleet(directory, 0, 3), load_fleet(directory, 3, 1)
    with null_service(known) as target:
        report = run_load([*known, *stranger], target, connections=2)
    assert len(report.latencies) == 3
    assert report.lost == {"404 ": 1}


def test_a_server_that_the_root_does_not_vouch_for_gets_nothing(directory):
    devices = load_fleet(directory, 0, 2)
    with null_service(devices) as target, null_service(devices) as other:
        hostile = type(target)(other.host, other.port, target.ca_pem)
        report = run_load(devices, hostile, connections=1)
    assert not report.latencies
    assert all(reason.startswith(ssl.SSLCertVerificationError.__name__) for reason in report.lost)
    assert sum(report.lost.values()) == 2


def test_two_devices_with_one_identity_fail_the_run():
    with pytest.raises(LoadFailed, match="2 answers, 2 serials, 1 identities"):
        verify_identities(Report(identities=[(1, "a"), (2, "a")]))


def test_the_command_makes_a_fleet_and_says_where_it_lies(tmp_path, capsys):
    assert main(["make", str(tmp_path / "f"), "--devices", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["registrations"] == [str(tmp_path / "f" / "devices-00000.csv")]
    assert main(["make", str(tmp_path / "f"), "--devices", "2"]) == 1
    assert "fleet.jsonl" in capsys.readouterr().err


def test_a_service_that_is_not_there_is_one_line(directory, tmp_path, capsys):
    pem = tmp_path / "root.pem"
    pem.write_bytes((directory / "ek-root.pem").read_bytes())
    status = main(["load", str(directory), "--url", "https://127.0.0.1:9", "--ca", str(pem), "--processes", "1"])
    assert status == 1
    assert "127.0.0.1:9" in capsys.readouterr().err
