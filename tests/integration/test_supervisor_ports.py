"""Ports: reserved or refused in one line; and what clients are told."""

import socket
from dataclasses import replace

import pytest

from provisioning.app.endpoints import Ports, bind_shared, endpoints_of, reserve
from provisioning.config import Config, ConfigurationRefused, DataDirectory, Listen

FREE = Config("muster.test", listen=Listen(device_port=0, operator_port=0, public_port=0, mqtt_port=0))


@pytest.fixture
def directory(tmp_path):
    return DataDirectory(tmp_path)


def listening(config, **changes):
    return replace(config, listen=replace(config.listen, **changes))


def test_zero_takes_four_free_ports_and_three_are_held(directory):
    ports, held = reserve(FREE, directory)
    numbers = [getattr(ports, name) for name in ports.__slots__]
    assert len(set(numbers)) == 4
    for number in numbers[:3]:
        with pytest.raises(OSError, match="in use"), socket.socket() as other:
            other.bind(("127.0.0.1", number))
        bind_shared("127.0.0.1", number).close()
    for bound in held:
        bound.close()


@pytest.mark.parametrize("holder", [bind_shared, lambda host, port: socket.create_server((host, port))])
def test_a_held_port_is_refused_even_where_its_holder_shares(directory, holder):
    with holder("127.0.0.1", 0) as held:
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(ConfigurationRefused, match=f"port {port} on 127.0.0.1 is held .* listen.public_port"):
            reserve(listening(FREE, public_port=port), directory)


def test_an_address_of_somebody_else_is_named(directory):
    with pytest.raises(ConfigurationRefused, match=r"listen\.host"):
        reserve(listening(FREE, host="192.0.2.1"), directory)


@pytest.mark.parametrize(("host", "shown"), [("muster.example", "muster.example"), ("2001:db8::1", "[2001:db8::1]")])
def test_clients_are_told_the_advertised_host(host, shown):
    endpoints = endpoints_of(listening(FREE, advertised_host=host), Ports(1, 2, 3, 4))
    assert endpoints.device == f"https://{shown}:1"
    assert endpoints.operator == f"https://{shown}:2"
    assert endpoints.public == f"http://{shown}:3"
    assert endpoints.mqtt == f"mqtts://{shown}:4"
