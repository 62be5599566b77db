"""`python -m lab.light make|load`: a fleet of light devices, and the load that it makes."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from lab.light_fleet import load_fleet, make_fleet
from lab.light_load import LoadFailed, Plan, Report, Target, run_plan, verify_identities
from lab.light_null import null_service

CEILING_FACTOR = 2
"""The generator must be able to do so many times what the service did: else the figure is the generator's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 it failed (one line on stderr), 2 usage."""
    chosen = _parser().parse_args(arguments)
    try:
        return _make(chosen) if chosen.command == "make" else _load(chosen)
    except (LoadFailed, OSError, ValueError) as failure:
        print(f"light {chosen.command}: {failure}", file=sys.stderr)
        return 1


def _make(chosen: argparse.Namespace) -> int:
    files = make_fleet(chosen.directory, chosen.devices, model=chosen.model)
    registrations = [str(path) for path in files.registrations]
    print(json.dumps({"policy": str(files.policy), "registrations": registrations}))
    return 0


def _load(chosen: argparse.Namespace) -> int:
    url = urlsplit(chosen.url)
    if url.scheme != "https" or url.hostname is None or url.port is None:
        raise ValueError(f"{chosen.url!r} is not https://HOST:PORT")
    target = Target(url.hostname, url.port, chosen.ca.read_text(encoding="ascii"))
    devices = load_fleet(chosen.directory, chosen.first, chosen.devices)
    if not devices:
        raise ValueError(f"{chosen.directory} holds no such devices")
    plan = Plan(
        chosen.directory,
        chosen.first,
        len(devices),
        target,
        connections=chosen.connections,
        processes=chosen.processes,
        new_tls=chosen.new_tls,
    )
    report = run_plan(plan)
    verify_identities(report)
    sample = devices[: chosen.ceiling_devices]
    with null_service(sample) as null:
        ceiling = run_plan(replace(plan, target=null, devices=len(sample)))
    print(json.dumps(_summary(report, ceiling)))
    if report.lost or ceiling.lost:
        raise LoadFailed(f"devices were lost: {dict(report.lost or ceiling.lost)}")
    if ceiling.per_second < CEILING_FACTOR * report.per_second:
        raise LoadFailed(
            f"the generator's ceiling, {ceiling.per_second:.0f} a second, is below {CEILING_FACTOR} x the result"
        )
    return 0


def _summary(report: Report, ceiling: Report) -> dict[str, object]:
    return {
        "enrollments": len(report.latencies),
        "lost": sum(report.lost.values()),
        "seconds": round(report.ended - report.began, 3),
        "enrollments_per_second": round(report.per_second, 1),
        "p50_ms": round(report.percentile_ms(50), 1),
        "p99_ms": round(report.percentile_ms(99), 1),
        "ceiling_per_second": round(ceiling.per_second, 1),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab.light", description="Light devices: software keys, for load.")
    commands = parser.add_subparsers(dest="command", required=True)

    make = commands.add_parser("make", help="make a fleet: keys, EK certificates, policy, CSV files to register")
    make.add_argument("directory", type=Path)
    make.add_argument("--devices", type=int, default=1000)
    make.add_argument("--model", default="light")

    load = commands.add_parser("load", help="enroll a registered fleet, as fast as the service can")
    load.add_argument("directory", type=Path)
    load.add_argument("--url", required=True, help="the device listener: https://HOST:PORT")
    load.add_argument("--ca", required=True, type=Path, help="the service's root certificate, PEM")
    load.add_argument("--devices", type=int, default=3000, help="at most so many")
    load.add_argument("--first", type=int, default=0, help="leave out so many")
    load.add_argument("--connections", type=int, default=32)
    load.add_argument("--processes", type=int, default=2)
    load.add_argument("--new-tls", action="store_true", help="a new TLS connection for each device")
    load.add_argument("--ceiling-devices", type=int, default=500, help="devices for the generator's own ceiling")
    return parser
