"""The route tables as data: what is listed, for whom, and which paths a pattern takes."""

import itertools

import pytest

from provisioning.access import GRANTS, Operator, Role, may
from provisioning.access.rates import Rate, RateTable
from provisioning.http import device, operator, public
from provisioning.http.exchange import Dispatcher, Route
from provisioning.refusals import MethodNotAllowed, NotFound

EVERY_ROUTE = [*device.routes(device.InFlight(1)), *operator.routes(), *public.routes(None)]


def dispatcher(*routes):
    return Dispatcher("test", None, routes, RateTable(Rate(1, 1)))


async def _nothing(call):
    raise NotImplementedError


def find(path, *patterns, method="GET"):
    route, parameters = dispatcher(*(Route("GET", pattern, _nothing) for pattern in patterns))._find(method, path)
    return route.path, dict(parameters)


def test_no_route_is_listed_twice():
    for table in (device.routes(device.InFlight(1)), operator.routes(), public.routes(None)):
        listed = [(route.method, route.path) for route in table]
        assert len(listed) == len(set(listed))


def test_no_two_patterns_of_a_table_take_the_same_path():
    for table in (device.routes(device.InFlight(1)), operator.routes(), public.routes(None)):
        paths = {route.path for route in table}
        for one, other in itertools.permutations(paths, 2):
            example = (
                other.replace("{name...}", "x1").replace("{name}", "x1").replace("{id}", "x1").replace("{sha256}", "x1")
            )
            if "{" in other:
                with pytest.raises(NotFound):
                    find(example, one)


@pytest.mark.parametrize("name", ["a", "A-1", "_x", "-x", "0" * 128, "a.b~c"])
def test_a_variable_part_takes_a_plain_name(name):
    assert find(f"/v/{name}", "/v/{name}") == ("/v/{name}", {"name": name})


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "a/b",
        "a%2fb",
        "%2e%2e",
        "a\\b",
        "a b",
        "a\n",
        "ä",
        "0" * 129,
        "a;b",
        "a?b",
        "a+b",
        "~a",
    ],
)
def test_a_variable_part_takes_nothing_else(name):
    with pytest.raises(NotFound):
        find(f"/v/{name}", "/v/{name}")


@pytest.mark.parametrize("name", ["metadata/1.root.json", "targets/a/b/c", "x"])
def test_a_tail_takes_up_to_four_plain_parts(name):
    assert find(f"/t/{name}", "/t/{name...}")[1] == {"name": name}


@pytest.mark.parametrize("name", ["a/b/c/d/e", "a//b", "a/../b", "/a", "a/", "../a", "a/.b", ""])
def test_a_tail_takes_nothing_that_climbs_or_hides(name):
    with pytest.raises(NotFound):
        find(f"/t/{name}", "/t/{name...}")


@pytest.mark.parametrize(
    "path", ["/", "", "*", "/nope", "/v1", "/v1/enrollments/", "//v1/enrollments", "/V1/enrollments"]
)
def test_a_path_that_is_not_listed_is_not_there(path):
    with pytest.raises(NotFound):
        dispatcher(*EVERY_ROUTE)._find("GET", path)


def test_another_method_is_refused_and_the_right_ones_are_named():
    with pytest.raises(MethodNotAllowed) as caught:
        dispatcher(*EVERY_ROUTE)._find("DELETE", "/api/v1/policies")
    assert caught.value.expected == "GET, PUT"


def test_head_is_answered_where_get_is():
    assert find("/v/a", "/v/{name}", method="HEAD")[0] == "/v/{name}"


def test_a_hostile_method_is_not_repeated_at_length():
    with pytest.raises(MethodNotAllowed) as caught:
        dispatcher(*EVERY_ROUTE)._find("X" * 5000, "/api/v1/policies")
    assert len(caught.value.actual) <= 16


def test_every_operator_route_asks_for_a_role():
    assert all(row.role in Role for row in operator.TABLE)


def test_every_route_that_changes_something_asks_for_more_than_reading():
    assert all(row.role is not Role.VIEWER for row in operator.TABLE if row.method != "GET")


def test_only_operators_and_stations_read_details():
    detailed = {route.path for route in device.routes(device.InFlight(1)) + public.routes(None) if route.detailed}
    assert detailed == {"/v1/factory/devices", "/v1/factory/idevids"}


@pytest.mark.parametrize("needed", Role)
@pytest.mark.parametrize("role", ["", "root", "Admin", "viewer ", "owner"])
def test_a_role_that_is_not_listed_may_nothing(role, needed):
    assert not may(Operator("x", role), needed)


def test_what_each_role_may():
    assert {(role, needed) for role in Role for needed in Role if may(Operator("x", role.value), needed)} == {
        (Role.VIEWER, Role.VIEWER),
        (Role.OPERATOR, Role.VIEWER),
        (Role.OPERATOR, Role.OPERATOR),
        (Role.PUBLISHER, Role.VIEWER),
        (Role.PUBLISHER, Role.PUBLISHER),
        *((role, Role.RELYING_PARTY) for role in Role),
        *((Role.ADMIN, needed) for needed in Role),
    }
    assert set(GRANTS) == set(Role)
