"""The MQTT bridge: what comes up goes to the flows, what the outbox holds goes down. It decides nothing.

paho runs on a thread of its own; everything else happens on the event loop. A message is acknowledged to the broker
when its flow is through, so that the broker holds back what we cannot carry, and sends again what a crash left.
Nothing here is a store of record: a command is sent again until the outbox says that it is done.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import structlog
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from prometheus_client import Counter

from provisioning.access.rates import Rate, RateTable
from provisioning.refusals import Refusal
from wire.envelope import MAX_ENVELOPE
from wire.topics import EVERY_REMEDY_UP, EVERY_UP, device_of

SERVICE_USER = "service:bridge"
"""The bridge's user name and client id at the broker. A device id has no colon."""
QUEUED_MOST = 1000
"""Messages that wait for their flow; the broker keeps the others."""
DEVICE_RATE = Rate(per_second=10, burst=200)
"""How often one device may say something: a rotation takes three messages, an update ten."""
COMPLAINTS = Rate(per_second=1, burst=20)
"""How often the log says that messages of one device were refused or dropped; the counters count all of them."""
LANES = 64
"""Messages of one device keep their order (their sequence rises); those of `LANES` devices run at once, and what they
write at once is one commit."""
LANE_MOST = 62
"""Of `QUEUED_MOST`: no device takes the room of all others."""
LONGEST_PAUSE_SECONDS = 8
KEEPALIVE_SECONDS = 15
END_SESSION_SECONDS = 2.0
_UNIX_PATH_MOST = 100

MESSAGES = Counter("muster_mqtt_messages", "MQTT messages by outcome", ["direction", "outcome"])

_log = structlog.get_logger()

Receive = Callable[[str, bytes], Awaitable[None]]
"""`(device, envelope)`. Raises: Refusal."""


@dataclass(frozen=True, slots=True)
class _Arrived:
    device: str
    envelope: bytes
    mid: int
    qos: int


class Bridge:
    """One connection to the broker's own socket. From the event loop only; `_on_…` run on paho's thread."""

    def __init__(self, socket: Path, receive: Receive) -> None:
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._lanes: list[asyncio.Queue[_Arrived]] = [asyncio.Queue(LANE_MOST) for _ in range(LANES)]
        self._queued = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._rates, self._complaints = RateTable(DEVICE_RATE), RateTable(COMPLAINTS)
        self._socket = socket
        self._address = UnixAddress(socket)
        self._client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=SERVICE_USER,
            clean_session=False,
            protocol=MQTTProtocolVersion.MQTTv311,
            transport="unix",
            manual_ack=True,
        )
        self._client.username_pw_set(SERVICE_USER)
        self._client.max_inflight_messages_set(64)
        self._client.max_queued_messages_set(QUEUED_MOST)
        self._client.reconnect_delay_set(1, LONGEST_PAUSE_SECONDS)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message

    def start(self) -> None:
        """Connect, now or as soon as the broker answers."""
        self._tasks = [self._loop.create_task(self._carry(lane)) for lane in self._lanes]
        self._client.connect_async(self._address.path, keepalive=KEEPALIVE_SECONDS)
        self._client.loop_start()

    async def stop(self) -> None:
        """Say goodbye; what was not carried through is sent again by the broker."""
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._address.close()

    @property
    def connected(self) -> bool:
        """Is there a broker at the other end?"""
        return self._client.is_connected()

    def publish(self, topic: str, envelope: bytes) -> bool:
        """Hand an envelope to the broker, QoS 1. False: it was not taken, and is due again later."""
        taken = self._client.publish(topic, envelope, qos=1).rc == MQTTErrorCode.MQTT_ERR_SUCCESS
        MESSAGES.labels("down", "sent" if taken else "not-sent").inc()
        return taken

    async def end_session(self, device: str) -> None:
        """See `end_session`."""
        await end_session(self._socket, device)

    async def _carry(self, lane: "asyncio.Queue[_Arrived]") -> None:
        while True:
            arrived = await lane.get()
            self._queued -= 1
            outcome = "carried"
            try:
                await self._receive(arrived.device, arrived.envelope)
            except Refusal as refusal:
                outcome = "refused"
                if self._may_complain(arrived.device):
                    _log.info("mqtt.refused", device=arrived.device, code=refusal.code, instance=refusal.instance)
            except Exception:  # noqa: BLE001  the outer edge of MQTT: one message must not end the bridge
                outcome = "defect"
                _log.exception("mqtt.defect", device=arrived.device)
            MESSAGES.labels("up", outcome).inc()
            self._client.ack(arrived.mid, arrived.qos)

    def _offer(self, arrived: _Arrived) -> None:
        if self._rates.wait_seconds(arrived.device, monotonic()) > 0:
            self._drop("too-often", arrived.device)
            self._client.ack(arrived.mid, arrived.qos)
            return
        lane = self._lanes[hash(arrived.device) % LANES]
        if lane.full() or self._queued >= QUEUED_MOST:
            # Not acknowledged: the broker sends it again after the next reconnect, the device after its own time-out.
            self._drop("full", arrived.device)
            return
        self._queued += 1
        lane.put_nowait(arrived)

    def _drop(self, why: str, device: str) -> None:
        MESSAGES.labels("up", why).inc()
        if self._may_complain(device):
            _log.warning("mqtt.dropped", why=why, device=device)

    def _may_complain(self, device: str) -> bool:
        return self._complaints.wait_seconds(device, monotonic()) == 0

    def _on_message(self, client: Client, _userdata: object, message: MQTTMessage) -> None:
        payload = bytes(message.payload)
        if len(payload) > MAX_ENVELOPE:
            self._drop("too-large", "")
        elif message.retain or (device := device_of(message.topic)) is None:
            self._drop("not-a-device", "")
        else:
            with suppress(RuntimeError):  # the loop has just ended; the broker keeps the message
                self._loop.call_soon_threadsafe(self._offer, _Arrived(device, payload, message.mid, message.qos))
            return
        client.ack(message.mid, message.qos)

    def _on_connect(
        self, client: Client, _userdata: object, _flags: ConnectFlags, reason: ReasonCode, _more: Properties | None
    ) -> None:
        if reason.is_failure:
            _log.error("mqtt.not_connected", reason=str(reason))
            return
        client.subscribe([(EVERY_UP, 1), (EVERY_REMEDY_UP, 1)])
        _log.info("mqtt.connected")

    def _on_disconnect(
        self,
        _client: Client,
        _userdata: object,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _more: Properties | None,
    ) -> None:
        if reason.is_failure:
            _log.warning("mqtt.disconnected", reason=str(reason))


class UnixAddress:
    """A path for `connect(2)` however deep the directory lies: a Unix address holds 108 bytes (unix(7))."""

    def __init__(self, socket: Path) -> None:
        self._descriptor: int | None = None
        self.path = str(socket)
        if len(os.fsencode(socket)) > _UNIX_PATH_MOST:
            self._descriptor = os.open(socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self.path = f"/proc/self/fd/{self._descriptor}/{socket.name}"

    def close(self) -> None:
        """Free the directory; `path` is then of no use."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


async def end_session(socket: Path, device: str) -> None:
    """Throw a device off the broker: who connects with its client id takes its session over, and ends it.

    It may connect again at once, where its certificate still counts. With it goes what it had subscribed to and what
    was queued for it: the outbox sends again.

    Raises: OSError, TimeoutError where the broker does not answer.
    """
    address = UnixAddress(socket)
    try:
        async with asyncio.timeout(END_SESSION_SECONDS):
            reader, writer = await asyncio.open_unix_connection(address.path)
            try:
                writer.write(_connect_packet(device))
                answer = await reader.readexactly(4)
                if answer[0] != 0x20 or answer[3] != 0:  # noqa: PLR2004  CONNACK, MQTT 3.1.1 section 3.2
                    raise ConnectionRefusedError(f"the broker answers {answer.hex()}")
                writer.write(b"\xe0\x00")  # DISCONNECT, section 3.14: no will is published
                await writer.drain()
            finally:
                writer.close()
    finally:
        address.close()


def _connect_packet(client_id: str) -> bytes:
    """CONNECT with a clean session and no user (MQTT 3.1.1 section 3.1). A device id has at most 63 characters."""
    name = client_id.encode()
    body = b"\x00\x04MQTT\x04\x02" + KEEPALIVE_SECONDS.to_bytes(2, "big") + len(name).to_bytes(2, "big") + name
    return bytes([0x10, len(body)]) + body
