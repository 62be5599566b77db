"""The broker's configuration as text: what each line must say, and what cannot be put into it."""

from dataclasses import replace
from pathlib import Path

import pytest

from provisioning.app import broker
from provisioning.app.broker import BrokerPlan, configuration
from provisioning.config import ConfigurationRefused
from provisioning.messaging import SERVICE_USER
from wire.envelope import MAX_ENVELOPE
from wire.topics import is_device_id

PLAN = BrokerPlan(
    Path("/d/run/broker"), "127.0.0.1", 8883, Path("/d/tls/service.pem"), Path("/d/tls/service.key"), "muster"
)


def listener(name):
    """The lines of one listener."""
    parts = configuration(PLAN).split("\nlistener ")
    return next(part for part in parts[1:] if part.startswith(name)).splitlines()


def test_settings_are_per_listener_and_that_is_said_first():
    assert configuration(PLAN).splitlines()[0] == "per_listener_settings true"


def test_devices_come_by_certificate_only_and_are_named_by_it():
    lines = listener("8883 127.0.0.1")
    for line in (
        "allow_anonymous false",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "crlfile crl.pem",
        "acl_file device.acl",
        "tls_version tlsv1.2",
    ):
        assert line in lines


def test_ciphers_are_forward_secret_aeads():
    (line,) = [line for line in listener("8883") if line.startswith("ciphers ")]
    for name in line.removeprefix("ciphers ").split(":"):
        assert name.startswith("ECDHE-")
        assert "GCM" in name or "POLY1305" in name


def test_a_device_writes_its_own_up_and_reads_its_own_down_and_nothing_else():
    assert broker.DEVICE_ACL.splitlines() == ["pattern write muster/v1/%u/up", "pattern read muster/v1/%u/down"]


def test_on_the_services_socket_only_the_bridge_has_rights():
    assert broker.SERVICE_ACL.splitlines()[0] == f"user {SERVICE_USER}"
    assert not any(line.startswith("pattern") for line in broker.SERVICE_ACL.splitlines())


def test_no_device_can_have_the_bridges_name():
    assert not is_device_id(SERVICE_USER)


def test_the_largest_envelope_fits_and_hardly_more():
    (line,) = [line for line in configuration(PLAN).splitlines() if line.startswith("max_packet_size ")]
    assert MAX_ENVELOPE + 100 < int(line.split()[1]) <= MAX_ENVELOPE + 2048


def test_retained_messages_and_statistics_are_off():
    lines = configuration(PLAN).splitlines()
    assert "retain_available false" in lines
    assert "sys_interval 0" in lines


@pytest.mark.parametrize("hostile", ["/d/a\nallow_anonymous true", "/d/a\rb", "/d/a\0b"])
def test_a_path_cannot_smuggle_a_line_in(hostile):
    with pytest.raises(ConfigurationRefused, match="line break"):
        configuration(replace(PLAN, certificate=Path(hostile)))


def test_a_crl_becomes_pem_of_the_same_bytes():
    pem = broker.crl_pem(bytes(range(256)))
    lines = pem.decode().splitlines()
    assert (lines[0], lines[-1]) == ("-----BEGIN X509 CRL-----", "-----END X509 CRL-----")
    assert all(len(line) <= 76 for line in lines)
