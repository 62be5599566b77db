"""`python -m benchmarks [NAME…] [--json]`: measured figures, each beside what the primitives alone reach in that run.

Ratios are worth more than figures: on a noisy machine both sides of a ratio suffer alike.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Iterator

SUITES = (
    ("benchmarks.evidence", "figures", ("evidence_verification", "make_credential_rsa")),
    ("benchmarks.logs", "figures", ("boot_log_50k", "ima_log")),
    ("benchmarks.issuance", "figures", ("ldevid_build", "ldevid_check")),
    ("benchmarks.hsm", "figures", ("hsm_sign", "hsm_sign_8_threads")),
    ("benchmarks.agent", "import_time", ("agent_import",)),
    ("benchmarks.enrollment", "keep_alive", ("attested_enrollment",)),
    ("benchmarks.enrollment", "new_tls", ("attested_enrollment_new_tls",)),
    ("benchmarks.agent", "resident", ("agent_resident",)),
    ("benchmarks.reattestation", "figures", ("reattest_10k",)),
    ("benchmarks.revocation", "answers", ("ocsp", "ocsp_cpu")),
    ("benchmarks.revocation", "long_crl", ("crl_100k", "crl_100k_cpu", "crl_100k_memory")),
    (
        "benchmarks.revocation",
        "time_to_dead",
        (
            *("dead_mqtt_session", "dead_mqtt_connection", "dead_http", "dead_est", "dead_ocsp", "dead_crl"),
            "time_to_dead",
        ),
    ),
    ("benchmarks.est", "rate", ("csr_issue", "csr_issue_cpu")),
    ("benchmarks.est", "memory", ("issue_memory", "issue_bytes")),
)
"""Module, function, and the figures that it yields, in its order."""


def main() -> int:
    names = [name for _, _, yielded in SUITES for name in yielded]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; without: all")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.names) - set(names)):
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(names)}")
    failed = 0
    for module, function, offered in SUITES:
        wanted = [name for name in offered if not chosen.names or name in chosen.names]
        if not wanted:
            continue
        try:
            for figure in _figures(module, function, wanted):
                print(json.dumps(figure, ensure_ascii=False) if chosen.json else _line(figure), flush=True)
        except Exception as failure:  # noqa: BLE001  the outer edge: the other benchmarks still count
            print(f"{', '.join(wanted)}: {type(failure).__name__}: {failure}", file=sys.stderr)
            failed = 1
    return failed


def _figures(module: str, function: str, wanted: list[str]) -> Iterator[dict[str, str | float]]:
    for figure in getattr(importlib.import_module(module), function)():
        if figure["name"] in wanted:
            yield figure
        if figure["name"] == wanted[-1]:  # what comes behind it costs time and is not asked for
            return


def _line(figure: dict[str, str | float]) -> str:
    measured = f"{figure['value']:>10} {figure['unit']}"
    return f"{figure['name']:<30} {measured:<26} limit {figure['limit']:>8}  ratio {figure['ratio']}"


if __name__ == "__main__":
    sys.exit(main())
