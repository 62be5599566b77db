"""A device's identity in a stranger's hand: publish one message on topics of one's choice, as that device.

    python -m lab.publish devices/gw-001 muster/v1/OTHER/up

The private key stays where it is, in the device's TPM: only who has the TPM can do this at all. MQTT 5, because 3.1.1
has no way to say that a publish was refused. Exit status: 0 the broker took every message, 1 it refused one, or the
connection.
"""

import argparse
import os
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from device_agent.config import ConfigMistake, load_config
from device_agent.environment import openssl_settings

if TYPE_CHECKING:
    import ssl

    from device_agent.config import AgentConfig

ANSWER_SECONDS = 10.0
_FIRST_REFUSAL = 0x80  # MQTT 5, section 2.4: reason codes from here on are failures


def main(arguments: Sequence[str] | None = None) -> int:
    """One connection, one message a topic."""
    parser = argparse.ArgumentParser(prog="python -m lab.publish", description="Publish as a device, anywhere.")
    parser.add_argument("device", type=Path, help="a virtual device's folder")
    parser.add_argument("topics", nargs="+", metavar="TOPIC")
    parser.add_argument("--pair", type=Path, help="folder with key.pem and chain.pem (default: the device's current)")
    chosen = parser.parse_args(arguments)
    try:
        config = load_config(chosen.device / "agent")
    except ConfigMistake as mistake:
        print(f"lab.publish: {mistake}", file=sys.stderr)
        return 2
    # Before `ssl` is imported: libcrypto reads its configuration once.
    os.environ.update(openssl_settings(config, os.environ))
    return _publish(config, chosen.pair, chosen.topics)


def _publish(config: "AgentConfig", pair: Path | None, topics: Sequence[str]) -> int:
    import ssl  # noqa: PLC0415  see main

    from device_agent.identity import IdentityStore  # noqa: PLC0415  the same
    from device_agent.trust import load_anchor  # noqa: PLC0415  the same

    current = IdentityStore(config.state_dir / "identity").current()
    if current is None:
        print("lab.publish: the device has no identity yet", file=sys.stderr)
        return 1
    anchor = load_anchor(config.anchor)
    context = ssl.create_default_context()
    folder = current.chain_file.parent if pair is None else pair
    context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    context.check_hostname = False  # the broker is reached by address; its chain must still lead to the fleet's root
    context.load_verify_locations(cadata=_roots(current.details.chain))
    print(f"as {current.details.device_id}, certificate {_serial(folder / 'chain.pem')}, to {anchor.service_name}")
    address = current.details.mqtt
    return _Probe(current.details.device_id, context).run(address.host, address.port, topics)


def _roots(chain: Sequence[bytes]) -> str:
    import ssl  # noqa: PLC0415  see main

    return "".join(ssl.DER_cert_to_PEM_cert(der) for der in chain)


def _serial(chain: Path) -> str:
    from cryptography import x509  # noqa: PLC0415  after OPENSSL_CONF

    return format(x509.load_pem_x509_certificate(chain.read_bytes()).serial_number, "x")


def _alert(context: "ssl.SSLContext", host: str, port: int) -> str:
    """What the broker's TLS says about the certificate; paho does not tell. Empty where it says nothing.

    TLS 1.3: a client hears only after its own handshake that the server does not take its certificate.
    """
    import ssl  # noqa: PLC0415  see main

    try:
        with socket.create_connection((host, port), ANSWER_SECONDS) as plain, context.wrap_socket(plain) as tls:
            tls.recv(1)
    except ssl.SSLError as error:
        return (error.reason or "").lower().replace("_", " ")
    except OSError:
        return ""
    return ""


class _Probe:
    """paho's callbacks, and what came of them."""

    def __init__(self, device_id: str, context: "ssl.SSLContext") -> None:
        import paho.mqtt.client as paho  # noqa: PLC0415  it imports ssl
        from paho.mqtt.enums import CallbackAPIVersion  # noqa: PLC0415  the same

        self._context = context
        self._connected = threading.Event()
        self._refusal = ""
        self._reasons: dict[int, object] = {}
        self._answered = threading.Condition()
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=device_id, protocol=paho.MQTTv5)
        client.tls_set_context(context)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        self._client = client

    def run(self, host: str, port: int, topics: Sequence[str]) -> int:
        status = self._publish(host, port, topics)
        if self._refusal:
            print(f"connection refused: {_alert(self._context, host, port) or self._refusal}")
        return status

    def _publish(self, host: str, port: int, topics: Sequence[str]) -> int:
        try:
            self._client.connect(host, port, keepalive=10)
        except OSError as error:  # ssl.SSLError is one
            self._refusal = str(error)
            return 1
        self._client.loop_start()
        try:
            if not self._connected.wait(ANSWER_SECONDS) or self._refusal:
                self._refusal = self._refusal or "no answer"
                return 1
            return max([self._one(topic) for topic in topics])
        finally:
            self._client.on_disconnect = None
            self._client.disconnect()
            self._client.loop_stop()

    def _one(self, topic: str) -> int:
        sent = self._client.publish(topic, b"{}", qos=1)
        with self._answered:
            self._answered.wait_for(lambda: sent.mid in self._reasons or bool(self._refusal), ANSWER_SECONDS)
            reason = self._reasons.get(sent.mid, self._refusal or "no answer")
        refused = getattr(reason, "value", _FIRST_REFUSAL) >= _FIRST_REFUSAL
        print(f"{topic}: {'refused' if refused else 'taken'} ({reason})")
        return 1 if refused else 0

    def _on_connect(self, _client: object, _data: object, _flags: object, reason: object, _properties: object) -> None:
        if getattr(reason, "is_failure", False):
            self._refusal = str(reason)
        self._connected.set()

    def _on_connect_fail(self, _client: object, _data: object) -> None:
        self._refusal = "the TLS handshake failed"
        self._connected.set()

    def _on_disconnect(self, *arguments: object) -> None:
        with self._answered:
            self._refusal = self._refusal or f"the broker closed the connection ({arguments[3]})"
            self._answered.notify_all()
        self._connected.set()

    def _on_publish(self, _client: object, _data: object, mid: int, reason: object, _properties: object) -> None:
        with self._answered:
            self._reasons[mid] = reason
            self._answered.notify_all()


if __name__ == "__main__":
    sys.exit(main())
