"""The broker as it is configured: what a device with a true certificate can, and what it cannot, do to others."""

import asyncio
import queue
import socket
import ssl
import subprocess

import pytest

from provisioning.app.broker import Broker, broker_socket
from provisioning.config import ConfigurationRefused, load_config
from provisioning.messaging import SERVICE_USER, end_session
from provisioning.service_tls import renew_service_certificate
from tests.support import fleet
from tests.support.crls import publish_crl
from tests.support.mqtt import Peer, eventually, peer, running_broker
from tests.support.service import free_ports, make_installation, running_service
from wire.envelope import MAX_ENVELOPE

ANA, BEN = "d-ana", "d-ben"
CUT, FREE = "d-cut", "d-free"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("broker") / ("deep" * 20) / "D")


@pytest.fixture(scope="module")
def service(directory):
    with running_service(directory) as made:
        yield made


@pytest.fixture(scope="module")
def port():
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def broker(directory, port):
    with running_broker(directory, port) as made:
        yield made


@pytest.fixture
def member(service, tmp_path):
    return lambda name: asyncio.run(fleet.device(service, tmp_path, name))


@pytest.fixture
def joined(broker, directory, port, member):
    """Connect as a device; everything is closed at the end."""
    peers = []

    def join(name, *, identity=None, client_id="whatever", clean=False):
        context = (identity or member(name)).context(directory.ca / "root.pem")
        made = Peer(host="127.0.0.1", port=port, context=context, client_id=client_id, clean=clean)
        peers.append(made)
        made.wait_connected()
        return made

    yield join
    for made in peers:
        made.close()


@pytest.fixture
def inside(broker, directory, monkeypatch):
    """The service's own client."""
    monkeypatch.chdir(broker_socket(directory).parent)
    with peer(host="broker.sock", transport="unix", client_id=SERVICE_USER, user=SERVICE_USER, clean=True) as made:
        made.wait_connected()
        yield made


def test_a_device_speaks_to_the_service_and_hears_it(joined, inside):
    inside.subscribe("muster/v1/+/up")
    ana = joined(ANA)
    ana.subscribe(f"muster/v1/{ANA}/down")
    ana.publish(f"muster/v1/{ANA}/up", b"from ana")
    assert inside.received() == (f"muster/v1/{ANA}/up", b"from ana")
    inside.publish(f"muster/v1/{ANA}/down", b"to ana")
    assert ana.received() == (f"muster/v1/{ANA}/down", b"to ana")


@pytest.mark.parametrize(
    "topic",
    [
        f"muster/v1/{ANA}/up", f"muster/v1/{ANA}/down", f"muster/v1/{BEN}/down", "muster/v1/x/up",
        f"muster/v1/{BEN}/up/x", "other", f"/muster/v1/{BEN}/up", f"muster/v1/{BEN}/UP", "muster/v1//up", "$SYS/broker",
    ],
)  # fmt: skip
def test_a_device_writes_to_no_topic_but_its_own(joined, inside, topic):
    inside.subscribe("#")
    inside.subscribe("muster/v1/+/up")
    ben = joined(BEN)
    ben.publish(topic, b"forged")
    ben.publish(f"muster/v1/{BEN}/up", b"the marker behind it")
    assert inside.received() == (f"muster/v1/{BEN}/up", b"the marker behind it")


@pytest.mark.parametrize(
    "wish", ["#", "+/#", "muster/v1/+/down", "muster/v1/+/up", f"muster/v1/{ANA}/down", f"muster/v1/{ANA}/up", "$SYS/#"]
)
def test_a_device_reads_nothing_but_its_own_whatever_it_subscribes_to(joined, inside, wish):
    ana, ben = joined(ANA), joined(BEN)
    ben.subscribe(wish)
    ben.subscribe(f"muster/v1/{BEN}/down")
    ana.publish(f"muster/v1/{ANA}/up", b"private")
    inside.publish(f"muster/v1/{ANA}/down", b"private")
    inside.publish(f"muster/v1/{BEN}/down", b"the marker behind it")
    assert ben.received()[1] == b"the marker behind it"


def test_a_claimed_client_id_takes_nobodys_session_over(joined, inside):
    ana = joined(ANA)
    ana.subscribe(f"muster/v1/{ANA}/down")
    joined(BEN, client_id=ANA)
    inside.publish(f"muster/v1/{ANA}/down", b"still there")
    assert ana.received()[1] == b"still there"
    assert ana.lost.empty()


def test_a_claimed_client_id_reads_nobodys_queue(joined, inside):
    ana = joined(ANA)
    ana.subscribe(f"muster/v1/{ANA}/down")
    ana.close()
    inside.publish(f"muster/v1/{ANA}/down", b"waits for ana")
    ben = joined(BEN, client_id=ANA)
    ben.subscribe(f"muster/v1/{BEN}/down")
    inside.publish(f"muster/v1/{BEN}/down", b"the marker behind it")
    assert ben.received()[1] == b"the marker behind it"
    assert joined(ANA).received()[1] == b"waits for ana"


def test_the_bridges_name_cannot_be_claimed(joined, inside):
    inside.subscribe("muster/v1/+/up")
    joined(BEN, client_id=SERVICE_USER)
    assert inside.lost.empty()
    joined(BEN).publish(f"muster/v1/{BEN}/up", b"x")
    assert inside.received()[1] == b"x"


def test_a_stations_certificate_reaches_no_device(service, joined, inside, tmp_path):
    station = asyncio.run(fleet.station(service, tmp_path, "line-1"))
    ana, line = joined(ANA), joined("", identity=station)
    ana.subscribe(f"muster/v1/{ANA}/down")
    line.publish(f"muster/v1/{ANA}/down", b"forged")
    line.publish(f"muster/v1/{ANA}/up", b"forged")
    inside.publish(f"muster/v1/{ANA}/down", b"the marker behind it")
    assert ana.received()[1] == b"the marker behind it"


def test_a_retained_message_is_not_kept(joined, inside):
    inside.subscribe("muster/v1/+/up")
    ben = joined(BEN, clean=True)
    ben.client.publish(f"muster/v1/{BEN}/up", b"retained", qos=1, retain=True)
    assert ben.lost.get(timeout=20)
    joined(BEN, clean=True).publish(f"muster/v1/{BEN}/up", b"the marker behind it")
    assert inside.received()[1] == b"the marker behind it"


def test_the_largest_envelope_passes_and_an_oversized_packet_ends_the_connection(joined, inside):
    inside.subscribe("muster/v1/+/up")
    ben = joined(BEN, clean=True)
    ben.publish(f"muster/v1/{BEN}/up", b"x" * MAX_ENVELOPE)
    assert len(inside.received()[1]) == MAX_ENVELOPE
    ben.client.publish(f"muster/v1/{BEN}/up", b"x" * (MAX_ENVELOPE * 2), qos=1)
    assert ben.lost.get(timeout=20)


@pytest.mark.parametrize("user", [None, "d-ana", "admin", "service"])
def test_on_the_services_socket_another_name_has_no_rights(broker, directory, inside, monkeypatch, user):
    inside.subscribe("muster/v1/+/up")
    with peer(host="broker.sock", transport="unix", client_id="y", user=user, clean=True) as other:
        other.wait_connected()
        other.subscribe("#")
        other.publish("muster/v1/d-ana/up", b"forged")
        other.publish("muster/v1/d-ana/down", b"forged")
        inside.publish("muster/v1/d-ana/down", b"secret")
        with pytest.raises(queue.Empty):
            other.messages.get(timeout=0.3)
    with pytest.raises(queue.Empty):
        inside.messages.get(timeout=0.1)


def test_only_the_services_user_can_enter_the_socket(broker, directory):
    assert broker_socket(directory).parent.stat().st_mode & 0o777 == 0o700


# --- TLS and revocation -------------------------------------------------------------------------------------------


def test_without_a_certificate_nobody_comes_in(broker, port):
    assert b"certificate required" in _s_client(port)


def test_the_services_own_certificate_is_no_devices(broker, directory, port):
    options = ["-cert", directory.tls / "service.pem", "-key", directory.tls / "service.key"]
    assert b"alert" in _s_client(port, *options)


@pytest.mark.parametrize(
    "options", [["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], ["-tls1_2", "-cipher", "AES128-GCM-SHA256"]]
)
def test_old_tls_is_not_spoken(broker, port, options):
    assert b"Cipher is (NONE)" in _s_client(port, *options)


def _s_client(port, *options):
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-ign_eof", *options]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    return done.stdout + done.stderr


def _connects(member, directory, port):
    context = member.context(directory.ca / "root.pem")
    try:
        with peer(host="127.0.0.1", port=port, context=context, clean=True) as made:
            made.connected.get(timeout=1)
            return True
    except (OSError, queue.Empty):
        return False


def test_what_the_crl_lists_comes_in_no_more_and_the_others_do(broker, directory, service, port, member):
    revoked, honest = member("d-revoked"), member("d-honest")
    assert _connects(revoked, directory, port)
    _revoke(service, broker, directory, revoked)
    eventually(lambda: not _connects(revoked, directory, port))
    assert _connects(honest, directory, port)


def _revoke(service, broker, directory, member):
    asyncio.run(fleet.set_state(service, member, "revoked"))
    asyncio.run(publish_crl(service))
    assert broker.reload_if_changed()
    assert not broker.reload_if_changed()


def test_a_device_that_no_crl_lists_yet_has_no_rights_and_gets_them_back(broker, directory, joined, inside):
    """What narrows its rights at once, and while the HSM is away: on a live session, and on the next one."""
    inside.subscribe("muster/v1/+/up")
    free, cut = joined(FREE), joined(CUT)
    for device, name in ((free, FREE), (cut, CUT)):
        device.subscribe(f"muster/v1/{name}/down")
    directory.denied.write_text(f"{CUT}\n# no device\ntopic readwrite #\n")
    assert broker.reload_if_changed()
    wait_for_rights(cut, inside, has=False)
    again = joined(CUT, identity=None)
    again.subscribe(f"muster/v1/{CUT}/down")
    inside.publish(f"muster/v1/{CUT}/down", b"private")
    again.publish(f"muster/v1/{CUT}/up", b"forged")
    free.publish(f"muster/v1/{FREE}/up", b"the marker behind it")
    assert inside.received() == (f"muster/v1/{FREE}/up", b"the marker behind it")
    inside.publish(f"muster/v1/{FREE}/down", b"others are not disturbed")
    assert free.received()[1] == b"others are not disturbed"
    assert again.messages.empty()
    directory.denied.write_text("")
    assert broker.reload_if_changed()
    wait_for_rights(again, inside, has=True)


def test_in_quarantine_a_device_has_the_topics_of_quarantine_and_no_other(broker, directory, joined, inside):
    inside.subscribe("muster/v1/+/up")
    inside.subscribe("muster/v1/+/remedy/up")
    free, cut = joined(FREE), joined(CUT)
    free.publish(f"muster/v1/{FREE}/remedy/up", b"nobody else has these topics")
    free.publish(f"muster/v1/{FREE}/up", b"the marker behind it")
    assert inside.received()[1] == b"the marker behind it"
    directory.denied.write_text(f"{CUT} remedy\n{FREE} readwrite\n")
    assert broker.reload_if_changed()
    wait_for_rights(cut, inside, has=False)
    again = joined(CUT)
    for topic in ("down", "remedy/down", "#"):
        again.subscribe(f"muster/v1/{CUT}/{topic}")
    for topic in (f"{CUT}/up", f"{CUT}/down", f"{FREE}/remedy/up", f"{CUT}/remedy/down"):
        again.publish(f"muster/v1/{topic}", b"forged")
    again.publish(f"muster/v1/{CUT}/remedy/up", b"help")
    assert inside.received() == (f"muster/v1/{CUT}/remedy/up", b"help")
    inside.publish(f"muster/v1/{CUT}/down", b"private")
    inside.publish(f"muster/v1/{CUT}/remedy/down", b"this way")
    assert again.received() == (f"muster/v1/{CUT}/remedy/down", b"this way")
    free.publish(f"muster/v1/{FREE}/up", b"others are not disturbed")
    assert inside.received()[1] == b"others are not disturbed"
    directory.denied.write_text("")
    assert broker.reload_if_changed()
    wait_for_rights(again, inside, has=True)


def wait_for_rights(device, inside, *, has):
    """Until the broker has read its files again, which it says to nobody."""

    def heard():
        device.publish(f"muster/v1/{CUT}/up", b"may I?")
        try:
            return inside.messages.get(timeout=0.2) is not None
        except queue.Empty:
            return False

    eventually(lambda: heard() is has)


def test_a_live_session_is_ended_and_its_device_comes_in_no_more(broker, directory, service, port, joined, member):
    identity = member("d-live")
    device = joined("d-live", identity=identity)
    _revoke(service, broker, directory, identity)
    eventually(lambda: not _connects(identity, directory, port) or device.lost.qsize())
    asyncio.run(end_session(broker_socket(directory), "d-live"))
    assert device.lost.get(timeout=20)
    eventually(lambda: not _connects(identity, directory, port))


def test_an_ended_session_gains_no_rights_by_it(broker, directory, joined, inside):
    """The session was on the service's socket for a moment, where a `#` of its own must not begin to match."""
    ben = joined(BEN)
    ben.subscribe("#")
    ben.subscribe(f"muster/v1/{BEN}/down")
    asyncio.run(end_session(broker_socket(directory), BEN))
    assert ben.lost.get(timeout=20)
    inside.publish(f"muster/v1/{ANA}/down", b"private")
    again = joined(BEN)
    again.subscribe(f"muster/v1/{BEN}/down")
    inside.publish(f"muster/v1/{BEN}/down", b"the marker behind it")
    assert again.received()[1] == b"the marker behind it"


def test_ending_a_session_without_a_broker_is_an_error_with_a_name(tmp_path):
    with pytest.raises(OSError):  # noqa: PT011  whatever connect(2) says
        asyncio.run(end_session(tmp_path / "none.sock", ANA))


def test_a_broker_that_dies_is_started_again_with_the_newest_crl(directory, service, member):
    port = free_ports(1)[0]
    with running_broker(directory, port) as broker:
        identity = member("d-again")
        assert _connects(identity, directory, port)
        broker.kill()
        asyncio.run(fleet.set_state(service, identity, "revoked"))
        asyncio.run(publish_crl(service))
        broker.start()
        broker.wait_ready()
        assert not _connects(identity, directory, port)


def test_a_renewed_certificate_is_served_without_a_restart(broker, directory, service, port):
    before = ssl.get_server_certificate(("127.0.0.1", port))
    asyncio.run(renew_service_certificate(service))
    assert broker.reload_if_changed()
    eventually(lambda: ssl.get_server_certificate(("127.0.0.1", port)) != before)


def test_a_broker_that_cannot_start_says_why(directory):
    with socket.create_server(("127.0.0.1", 0)) as held:
        broker = Broker(directory, load_config(directory), held.getsockname()[1])
        broker.start()
        with pytest.raises(ConfigurationRefused, match="does not start"):
            broker.wait_ready()
