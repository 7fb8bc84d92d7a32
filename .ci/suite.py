"""Run the test suite, say how it went, and limit the CPU time that the whole may take.

    python3 .ci/suite.py whole COMMAND...     the command, as it stands
    python3 .ci/suite.py modules COMMAND...   the command with `-p test_x.py`, once for each
                                              module, as many at a time as there are cores

The last line is `N passed, N failed, N skipped`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
CPU_LIMIT_S = 200  # three times what the whole takes, because a busy machine counts more
MUST_RUN = "test_properties.py"  # skipped without Hypothesis, which the modules are run with


class Run:
    """One process of tests that has ended."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        began = time.monotonic()
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        self.name = name
        self.took_s = time.monotonic() - began
        self.said = done.stderr
        self.failed = self._count("failures") + self._count("errors")
        self.failed += self._count("unexpected successes")
        self.skipped = self._count("skipped")
        self.passed = max(0, self._count(r"^Ran") - self.failed - self.skipped)
        if done.returncode and not self.failed:
            self.failed = 1  # it did not come to an end
        if name == MUST_RUN and (self.skipped or self.passed < 1):
            self.said += f"{name} was skipped\n"
            self.failed += 1

    def _count(self, what: str) -> int:
        """A number of the closing lines: `Ran 5 tests in 1.000s`, `OK (skipped=1)`."""
        pattern = (
            rf"{what} (\d+)" if what.startswith("^") else rf"^(?:OK|FAILED|NO).*\b{what}=(\d+)"
        )
        return sum(map(int, re.findall(pattern, self.said, re.MULTILINE)))


def by_module(command: Sequence[str]) -> Iterator[Run]:
    """The modules, the longest first."""
    paths = sorted(TESTS.glob("test_*.py"), key=lambda path: -path.stat().st_size)
    paths.sort(key=lambda path: path.name != "test_transcripts.py")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda path: Run(path.name, [*command, "-p", path.name]), paths)


def cpu_s() -> float:
    """The seconds of CPU that all ended children took."""
    spent = os.times()
    return spent.children_user + spent.children_system


def main(how: str, *command: str) -> int:
    """Run it; the exit code."""
    began, runs = time.monotonic(), []
    for run in by_module(command) if how == "modules" else [Run("", command)]:
        runs.append(run)
        if how == "whole" or run.failed:
            print(run.said, end="")
        if how == "modules":
            print(f"{run.name}: {run.passed} passed, {run.failed} failed, {run.took_s:.0f} s")
    failed = sum(run.failed for run in runs)
    if how == "whole" and cpu_s() > CPU_LIMIT_S:
        print(f"It took {cpu_s():.0f} s of CPU; the limit is {CPU_LIMIT_S} s")
        failed += 1
    print(f"It took {time.monotonic() - began:.0f} s, and {cpu_s():.0f} s of CPU")
    counts = sum(run.passed for run in runs), failed, sum(run.skipped for run in runs)
    print("{} passed, {} failed, {} skipped".format(*counts))
    return 1 if failed or not counts[0] else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
