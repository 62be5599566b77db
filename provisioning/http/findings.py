"""The operator listener's routes for findings about devices (`findings`)."""

from typing import TYPE_CHECKING

from prometheus_client import Gauge

from provisioning import findings
from provisioning.http.exchange import query
from provisioning.monitoring import Kind
from provisioning.refusals import RequestMalformed

if TYPE_CHECKING:
    from provisioning.http.operator import Asked

DIGITS_MOST = 15
PAGE_MOST, PAGE = 500, 100

OPEN = Gauge("muster_findings_open", "Findings about devices that nobody closed yet", ["kind"])


async def every(asked: "Asked") -> object:
    """Those that are open, or all, the newest first."""
    fields = query(asked.call.request, "device", "all", "before", "limit")
    if fields.get("all", "false") not in {"true", "false"}:
        raise RequestMalformed(expected="all: true or false", actual=fields["all"])
    limit = number(fields.get("limit", str(PAGE)), "limit")
    if not 1 <= limit <= PAGE_MOST:
        raise RequestMalformed(expected=f"limit: 1 to {PAGE_MOST}", actual=limit)
    found = await findings.list_findings(
        asked.call.service,
        fields.get("device"),
        closed=fields.get("all") == "true",
        before=number(fields["before"], "before") if "before" in fields else None,
        limit=limit,
    )
    return {"findings": found}


async def close(asked: "Asked") -> object:
    """A person looked at one."""
    return await findings.close_finding(asked.call.service, number(asked.name, "id"), by=asked.operator.name)


async def measure(asked: "Asked") -> None:
    """Set the gauge: the database knows, whichever process opened them."""
    counts = await findings.count_open(asked.call.service)
    for kind in Kind:
        OPEN.labels(kind.value).set(counts.get(kind.value, 0))


def number(text: str, what: str) -> int:
    """A number as it stands in a path or a query. Raises: RequestMalformed."""
    if not (text.isascii() and text.isdigit() and len(text) <= DIGITS_MOST):
        raise RequestMalformed(expected=f"{what}: a number", actual=text[:32])
    return int(text)
