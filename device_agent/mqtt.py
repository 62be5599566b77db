"""The line to the broker: MQTT 3.1.1, QoS 1, persistent session, mutual TLS with the key in the TPM.

paho's thread does nothing but put events into a bounded queue; the agent's loop takes them out. What the queue cannot
hold is dropped and counted: the service's outbox sends it again.
"""

import queue
from dataclasses import dataclass

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from device_agent.tls import ServiceContext
from wire import topics
from wire.envelope import MAX_ENVELOPE
from wire.messages import MqttAddress

QUEUE_MOST = 64
KEEPALIVE_SECONDS = 30
CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker let this device in, and its topic is subscribed."""

    line: "Line"


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection ended, or the broker refused it."""

    line: "Line"
    reason: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """Bytes from the broker; nothing about them is known."""

    payload: bytes


Event = Connected | Lost | Arrived


class Line:
    """One connection of one identity. After it was lost, a new one is made: it may have a new certificate."""

    def __init__(
        self, device_id: str, context: ServiceContext, events: "queue.SimpleQueue[Event]", *, remedial: bool = False
    ) -> None:
        self.dropped = 0
        self._up, self._down = topics.up(device_id), topics.down(device_id)
        if remedial:  # in quarantine there are topics of its own
            self._up, self._down = topics.remedy_up(device_id), topics.remedy_down(device_id)
        self._events = events
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=device_id,
            clean_session=False,
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_SECONDS
        client.tls_set_context(context)
        client.max_queued_messages_set(QUEUE_MOST)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        self._client = client

    def dial(self, address: MqttAddress) -> None:
        """Connects with TLS; `Connected` or `Lost` follows. Raises: OSError (ssl.SSLError is one)."""
        self._client.connect(address.host, address.port, KEEPALIVE_SECONDS)
        self._client.loop_start()

    def send(self, envelope: bytes) -> None:
        """Hands an envelope to the broker. That the service has it, only its answer tells."""
        self._client.publish(self._up, envelope, qos=1)

    def close(self) -> None:
        """Ends the connection and paho's thread."""
        self._client.on_disconnect = None
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(
        self, client: paho.Client, _data: object, _flags: paho.ConnectFlags, reason: ReasonCode, _properties: object
    ) -> None:
        if reason.is_failure:
            self._events.put(Lost(self, f"the broker refuses: {reason}"))
        else:
            client.subscribe(self._down, qos=1)

    def _on_subscribe(
        self, _client: paho.Client, _data: object, _mid: int, reasons: list[ReasonCode], _properties: object
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            self._events.put(Lost(self, "the broker refuses the subscription"))
        else:
            self._events.put(Connected(self))

    def _on_disconnect(
        self, _client: paho.Client, _data: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        self._events.put(Lost(self, str(reason)))

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        if message.topic != self._down or len(message.payload) > MAX_ENVELOPE or self._events.qsize() >= QUEUE_MOST:
            self.dropped += 1
            return
        self._events.put(Arrived(bytes(message.payload)))
