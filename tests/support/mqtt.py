"""MQTT for tests: an installation's broker, and a device that speaks to it by mutual TLS."""

import queue
import time
from contextlib import contextmanager

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from provisioning.app.broker import Broker
from provisioning.config import load_config

PATIENCE_SECONDS = 20


@contextmanager
def running_broker(directory, port):
    """The broker of a data directory, without the rest of the service."""
    broker = Broker(directory, load_config(directory), port)
    broker.start()
    broker.wait_ready()
    try:
        yield broker
    finally:
        broker.stop()


class Peer:
    """One MQTT client; what it got is in queues, so that a test can wait for it."""

    def __init__(self, *, host, port=None, context=None, client_id="x", clean=False, transport="tcp", user=None):
        self.connected, self.lost = queue.Queue(), queue.Queue()
        self.messages, self.acknowledged, self.subscribed = queue.Queue(), queue.Queue(), queue.Queue()
        self.client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=clean,
            protocol=MQTTProtocolVersion.MQTTv311,
            transport=transport,
            reconnect_on_failure=False,
        )
        if context is not None:
            self.client.tls_set_context(context)
        if user is not None:
            self.client.username_pw_set(user)
        self.client.on_connect = lambda _c, _u, flags, reason, _p: self.connected.put((reason, flags))
        self.client.on_disconnect = lambda *arguments: self.lost.put(arguments[3])
        self.client.on_message = lambda _c, _u, message: self.messages.put((message.topic, message.payload))
        self.client.on_publish = lambda _c, _u, mid, _r, _p: self.acknowledged.put(mid)
        self.client.on_subscribe = lambda _c, _u, mid, reasons, _p: self.subscribed.put(reasons)
        self.client.connect(host, port or 1883, keepalive=30)
        self.client.loop_start()

    def wait_connected(self):
        """The broker's answer. Raises: queue.Empty."""
        reason, flags = self.connected.get(timeout=PATIENCE_SECONDS)
        assert not reason.is_failure, reason
        return flags

    def subscribe(self, topic):
        self.client.subscribe(topic, qos=1)
        return self.subscribed.get(timeout=PATIENCE_SECONDS)

    def publish(self, topic, payload, **options):
        """Publish with QoS 1 and wait for the broker's receipt (which it gives for a refused topic too)."""
        mid = self.client.publish(topic, payload, qos=1, **options).mid
        while self.acknowledged.get(timeout=PATIENCE_SECONDS) != mid:
            pass

    def received(self):
        """The next message. Raises: queue.Empty."""
        return self.messages.get(timeout=PATIENCE_SECONDS)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@contextmanager
def peer(**options):
    made = Peer(**options)
    try:
        yield made
    finally:
        made.close()


def eventually(condition):
    """Wait until something is so. Raises: AssertionError."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, condition
        time.sleep(0.02)
