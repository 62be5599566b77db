"""The bridge between a real broker and the flows: order, receipts, a broker that dies, what is no message."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from provisioning import messaging
from provisioning.app.broker import broker_socket
from provisioning.messaging import Bridge
from provisioning.refusals import MessageNotAuthentic
from tests.support import fleet
from tests.support.mqtt import Peer, running_broker
from tests.support.service import free_ports, make_installation, running_service
from wire.envelope import MAX_ENVELOPE

PATIENCE_SECONDS = 30


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("bridge") / "D")


@pytest.fixture(scope="module")
def members(directory, tmp_path_factory):
    with running_service(directory) as service:
        folder = tmp_path_factory.mktemp("keys")
        return {name: asyncio.run(fleet.device(service, folder, name)) for name in ("d-1", "d-2")}


@pytest.fixture(scope="module")
def port():
    return free_ports(1)[0]


@pytest.fixture
def broker(directory, port):
    with running_broker(directory, port) as made:
        yield made


@pytest.fixture
def joined(broker, directory, port, members):
    peers = []

    def join(name):
        made = Peer(host="127.0.0.1", port=port, context=members[name].context(directory.ca / "root.pem"), clean=True)
        peers.append(made)
        made.wait_connected()
        return made

    yield join
    for made in peers:
        made.close()


@asynccontextmanager
async def bridged(directory, receive):
    bridge = Bridge(broker_socket(directory), receive)
    bridge.start()
    await until(lambda: bridge.connected)
    await asyncio.sleep(0.2)  # the subscription is on its way
    try:
        yield bridge
    finally:
        await bridge.stop()


async def until(condition):
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110  what is waited for is in other processes
            await asyncio.sleep(0.02)


def collector():
    got = []

    async def receive(device, envelope):
        got.append((device, envelope))

    return got, receive


async def test_what_a_device_says_arrives_under_its_name(directory, joined):
    got, receive = collector()
    async with bridged(directory, receive):
        joined("d-1").publish("muster/v1/d-1/up", b"hello")
        await until(lambda: got)
    assert got == [("d-1", b"hello")]


async def test_messages_of_one_device_keep_their_order_though_the_first_ones_take_longer(directory, joined):
    got = []

    async def receive(device, envelope):
        await asyncio.sleep(0.05 / (1 + int(envelope)))
        got.append((device, int(envelope)))

    async with bridged(directory, receive):
        one, two = joined("d-1"), joined("d-2")
        for number in range(30):
            one.client.publish("muster/v1/d-1/up", str(number), qos=1)
            two.client.publish("muster/v1/d-2/up", str(number), qos=1)
        await until(lambda: len(got) == 60)
    for device in ("d-1", "d-2"):
        assert [number for name, number in got if name == device] == list(range(30))


async def test_what_was_not_carried_through_comes_again(directory, joined):
    begun, got = [], []

    async def hang(_device, envelope):
        begun.append(envelope)
        await asyncio.Event().wait()

    async def receive(_device, envelope):
        got.append(envelope)

    async with bridged(directory, hang):
        joined("d-1").publish("muster/v1/d-1/up", b"in the middle")
        await until(lambda: begun)
    async with bridged(directory, receive):
        await until(lambda: got)
    assert got == [b"in the middle"]


async def test_what_was_carried_through_does_not_come_again(directory, joined):
    got, receive = collector()
    async with bridged(directory, receive):
        joined("d-1").publish("muster/v1/d-1/up", b"once")
        await until(lambda: got)
        await asyncio.sleep(0.2)
    async with bridged(directory, receive):
        joined("d-1").publish("muster/v1/d-1/up", b"behind it")
        await until(lambda: len(got) > 1)
    assert [envelope for _, envelope in got] == [b"once", b"behind it"]


@pytest.mark.parametrize("error", [MessageNotAuthentic(), ZeroDivisionError("a defect")])
async def test_one_bad_message_does_not_stop_the_next(directory, joined, error):
    got = []

    async def receive(_device, envelope):
        if envelope == b"bad":
            raise error
        got.append(envelope)

    async with bridged(directory, receive):
        peer = joined("d-1")
        peer.publish("muster/v1/d-1/up", b"bad")
        peer.publish("muster/v1/d-1/up", b"good")
        await until(lambda: got)
    assert got == [b"good"]


async def test_what_goes_down_arrives(directory, joined):
    _, receive = collector()
    async with bridged(directory, receive) as bridge:
        peer = joined("d-1")
        peer.subscribe("muster/v1/d-1/down")
        assert bridge.publish("muster/v1/d-1/down", b"command")
        assert await asyncio.to_thread(peer.received) == ("muster/v1/d-1/down", b"command")


async def test_a_broker_that_dies_is_met_again(directory, broker, joined):
    got, receive = collector()
    async with bridged(directory, receive) as bridge:
        broker.kill()
        await until(lambda: not bridge.connected)
        assert not bridge.publish("muster/v1/d-1/down", b"nobody there")
        broker.start()
        broker.wait_ready()
        await until(lambda: bridge.connected)
        await asyncio.sleep(0.2)
        joined("d-1").publish("muster/v1/d-1/up", b"after it")
        await until(lambda: got)
    assert got[-1] == ("d-1", b"after it")


async def test_a_bridge_that_starts_before_its_broker_finds_it(directory, port):
    _, receive = collector()
    bridge = Bridge(broker_socket(directory), receive)
    bridge.start()
    await asyncio.sleep(0.3)
    assert not bridge.connected
    with running_broker(directory, port):
        await until(lambda: bridge.connected)
        await bridge.stop()


# --- what a hostile broker could hand over (the broker itself lets none of it pass) -------------------------------


class Message:
    """As paho makes them."""

    def __init__(self, topic, payload=b"x", *, retain=False):
        self.topic, self.payload, self.retain, self.mid, self.qos = topic, payload, retain, 7, 1


class Acknowledging:
    def __init__(self):
        self.acknowledged = []

    def ack(self, mid, qos):
        self.acknowledged.append((mid, qos))


@pytest.mark.parametrize(
    "message",
    [
        Message("muster/v1/d-1/up", b"x" * (MAX_ENVELOPE + 1)),
        Message("muster/v1/d-1/up", retain=True),
        Message("muster/v1/D-1/up"),
        Message("muster/v1/a/b/up"),
        Message("muster/v1/d-1/down"),
        Message("muster/v2/d-1/up"),
        Message("muster/v1//up"),
        Message("muster/v1/+/up"),
        Message("muster/v1/" + "d" * 64 + "/up"),
    ],
    ids=lambda message: f"{message.topic[:30]} {len(message.payload)} {message.retain}",
)
async def test_what_is_no_devices_message_reaches_no_flow_and_is_not_sent_again(tmp_path, message):
    _, receive = collector()
    bridge, client = Bridge(tmp_path / "none.sock", receive), Acknowledging()
    await asyncio.to_thread(bridge._on_message, client, None, message)
    await asyncio.sleep(0)
    assert all(lane.empty() for lane in bridge._lanes)
    assert client.acknowledged == [(7, 1)]


async def test_who_talks_too_much_is_not_heard_and_hinders_nobody(tmp_path):
    _, receive = collector()
    bridge, client = Bridge(tmp_path / "none.sock", receive), Acknowledging()
    bridge._client = client
    for _ in range(messaging.DEVICE_RATE.burst * 3):
        bridge._offer(messaging._Arrived("d-loud", b"x", 1, 1))
        while not bridge._lanes[hash("d-loud") % messaging.LANES].empty():
            bridge._lanes[hash("d-loud") % messaging.LANES].get_nowait()
    assert len(client.acknowledged) > messaging.DEVICE_RATE.burst
    bridge._offer(messaging._Arrived("d-quiet", b"x", 1, 1))
    assert sum(lane.qsize() for lane in bridge._lanes) == 1


async def test_a_flood_is_dropped_and_the_memory_stays(tmp_path):
    _, receive = collector()
    bridge = Bridge(tmp_path / "none.sock", receive)
    for _ in range(messaging.QUEUED_MOST * 2):
        bridge._on_message(Acknowledging(), None, Message("muster/v1/d-1/up"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sum(lane.qsize() for lane in bridge._lanes) == messaging.LANE_MOST
    for number in range(messaging.QUEUED_MOST * 2):
        bridge._on_message(Acknowledging(), None, Message(f"muster/v1/d-{number}/up"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sum(lane.qsize() for lane in bridge._lanes) == messaging.QUEUED_MOST
