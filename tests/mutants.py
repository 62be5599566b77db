"""Mutation run over provisioning/attestation/: does a test fail for each small change of the code?

Usage: `make mutants`, or .venv/bin/python tests/mutants.py [--children N] [--survivors] [MODULE ...]

mutmut (pyproject.toml, [tool.mutmut]) makes the mutants in a copy under .muster/mutants and finds the tests that reach
each of them. Only how the tests of a mutant are run is ours: mutmut starts pytest anew for each, which takes 0.3 s;
here each mutant is a fork of one process that has collected all tests. Prints killed and survived for each module;
exit status 1 below 85 % in all (of the named modules only, when some are named).

Rules, so that the figure means something:
- Killed: a test failed, or did not end in its time. A mutant that no test reaches counts as survived.
- Only tests/unit/attestation counts, without the fuzzing tests (a mutant must not die by luck: Hypothesis runs from a
  fixed seed) and without the files of ../shared/vectors, which not everybody has.
"""

import argparse
import fnmatch
import mmap
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".muster" / "mutants"
PACKAGE = "provisioning/attestation"
LEAST = 85
KILLED = {"killed", "timeout", "segfault"}


def copy_sources() -> None:
    """A fresh copy of what git knows or would know; mutmut then works in `mutants/` below it."""
    shutil.rmtree(WORK, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        source, target = ROOT / name, WORK / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def collected_runner():
    """mutmut's pytest runner, but a mutant's tests are run from a session that was collected before the fork."""
    import pytest
    from _pytest.config import _prepareconfig
    from mutmut.runners.harness import PytestRunner
    from mutmut.utils.file_utils import change_cwd

    class Failures:
        seen = False

        def pytest_runtest_logreport(self, report):
            self.seen = self.seen or report.failed

    class Collected(PytestRunner):
        session = None

        def run_forced_fail(self):
            """The last that mutmut asks for before it forks: collect here, once."""
            code = super().run_forced_fail()
            self.collect()
            return code

        def collect(self):
            options = ["--rootdir=.", "--tb=no", "-q", "-p", "no:faulthandler", "--capture=no", "--assert=plain"]
            with change_cwd("mutants"):
                selection = [*self._pytest_add_cli_args_test_selection, *self._pytest_add_cli_args]
                config = _prepareconfig([*options, *selection])
                self.failures = Failures()
                config.pluginmanager.register(self.failures)
                config._do_configure()
                config.pluginmanager.unregister(name="terminalreporter")
                self.session = pytest.Session.from_config(config)
                config.hook.pytest_sessionstart(session=self.session)
                self.session.perform_collect()
            self.items = {item.nodeid: item for item in self.session.items}
            self.places = {name: place for place, name in enumerate(self.items)}
            # In memory that the forks share: tests that have killed much are tried first.
            self.kills = memoryview(mmap.mmap(-1, 4 * len(self.items))).cast("I")

        def run_tests(self, *, mutant_name, tests):
            if self.session is None or mutant_name is None:
                return super().run_tests(mutant_name=mutant_name, tests=tests)
            forget()
            with change_cwd("mutants"):
                chosen = [self.items[name] for name in sorted(tests, key=lambda name: -self.kills[self.places[name]])]
                for item, following in zip(chosen, [*chosen[1:], None], strict=True):
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                    if self.failures.seen:
                        self.kills[self.places[item.nodeid]] += 1
                        return 1
            return 0

    return Collected


def forget() -> None:
    """What was remembered before the fork was computed by the code as it is, not by the mutant."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("provisioning.", "wire.")):
            for value in list(vars(module).values()):
                if callable(getattr(value, "cache_clear", None)):
                    value.cache_clear()


def run_mutmut(modules: list[str], children: int) -> dict[str, dict[str, str]]:
    """module -> mutant -> what became of it."""
    os.chdir(WORK)
    from mutmut import __main__ as mutmut
    from mutmut.configuration import config
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.stats import status_by_exit_code
    from mutmut.utils.file_utils import walk_mutatable_files
    from mutmut.workers import isolation

    isolation.PytestRunner = collected_runner()
    if not sys.stdout.isatty():
        mutmut.print_stats = mutmut.print_status = lambda *_, **__: None  # lines that are meant to be overwritten
    if modules:
        config().only_mutate = [f"{PACKAGE}/{name}.py" for name in modules]
    mutmut._run([], children)
    results = {}
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        results[path.stem] = {name: status_by_exit_code[code] for name, code in data.exit_code_by_key.items()}
    return results


def print_results(results: dict[str, dict[str, str]]) -> float:
    """One line a module; the ratio of all."""
    print(f"\n{'module':<24}{'mutants':>9}{'killed':>9}{'survived':>10}{'no test':>9}{'ratio':>9}")
    total = Counter()
    for module, mutants in sorted(results.items()):
        if mutants:
            counted = Counter("killed" if status in KILLED else status for status in mutants.values())
            print_line(module, counted)
            total += counted
    print_line("all", total)
    return 100 * total["killed"] / max(1, total.total())


def print_line(name: str, counted: Counter) -> None:
    every, killed, unreached = counted.total(), counted["killed"], counted["no tests"]
    print(f"{name:<24}{every:>9}{killed:>9}{every - killed - unreached:>10}{unreached:>9}{100 * killed / every:>8.1f}%")


def print_survivors(results: dict[str, dict[str, str]]) -> None:
    """What each survivor changes."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    for module, mutants in sorted(results.items()):
        for name, status in mutants.items():
            if status not in KILLED:
                diff = get_diff_for_mutant(name, path=Path(PACKAGE, f"{module}.py"))
                changed = [line for line in diff.splitlines()[2:] if line[:1] in {"-", "+"}]
                print(f"{name.rpartition('.')[2]}: {status}", *changed, sep="\n    ")


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutation run over provisioning/attestation.")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="only these, e.g. quote (patterns count)")
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1, help="mutants at once")
    parser.add_argument("--survivors", action="store_true", help="print what each survivor changes")
    chosen = parser.parse_args()
    known = [path.stem for path in (ROOT / PACKAGE).glob("*.py")]
    modules = [name for name in known if any(fnmatch.fnmatch(name, pattern) for pattern in chosen.modules)]
    if chosen.modules and not modules:
        parser.error(f"no module of {PACKAGE} is named so")
    copy_sources()
    results = run_mutmut(modules, chosen.children)
    if chosen.survivors:
        print_survivors(results)
    ratio = print_results(results)
    return 0 if ratio >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
