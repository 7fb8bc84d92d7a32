#!/usr/bin/env python3
"""What a start costs, how much an agent has to read, and what a fleet does to the service.

    python3 tests/bench.py                          the table, on the Python that runs it
    python3 tests/bench.py --quick                  fewer runs
    python3 tests/bench.py --against "python3 old/ops.py"    another client beside it
    python3 tests/bench.py --fleet 10000            many agents at once, on a virtual clock
    python3 tests/bench.py --json                   the figures for a machine

Standard library only. Commands are run in turn, A B A B, as whole processes; figures are
medians with their range, and ratios are taken pair by pair, so that a machine whose speed
drifts does not decide. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from sandbox import OPS, Key, Sandbox

sys.path.insert(0, str(OPS.parent))

import ops

FLOOR = """\
import argparse, json, os, urllib.request
parser = argparse.ArgumentParser()
parser.add_argument("command")
args = parser.parse_args()
request = urllib.request.Request(
    os.environ["CACHEFORGE_BASE_URL"] + "/v1/account/billing",
    headers={"Authorization": "Bearer " + os.environ["CACHEFORGE_API_KEY"]})
with urllib.request.urlopen(request) as response:
    billing = json.load(response)["billing"]
print(args.command, billing["creditBalanceMicrousd"] / 1_000_000)
"""
# on Python 3.9, 3.11 and 3.13
BALANCE_GOAL = "1.24 / 1.14 / 0.87"
HELP_GOAL = "1.95 / 1.42 / 1.90"
LOADS = "import json, sys; json.loads(open(sys.argv[1], 'rb').read())"
# A child inherits its parent's peak at the fork: memory is taken from under a small one.
PEAK = """\
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ,
                       file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])
print(os.wait4(child, 0)[2].ru_maxrss)
"""


class Run(NamedTuple):
    """One finished process."""

    cpu_ms: float
    wall_ms: float
    out_bytes: int


class Figure(NamedTuple):
    """A measured thing beside its floor and its goal."""

    name: str
    ours: str
    floor: str
    ratio: float | None
    goal: str


def run(command: Sequence[str], env: dict[str, str]) -> Run:
    """Run a command as a whole process, its output into a file, as into a pipe."""
    with tempfile.TemporaryFile() as out, open(os.devnull, "wb") as nowhere:
        began = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=nowhere, env=env)
        if hasattr(os, "wait4"):
            _, _, used = os.wait4(child.pid, 0)
            child.returncode = 0
            cpu_ms = (used.ru_utime + used.ru_stime) * 1000
        else:
            child.wait()
            cpu_ms = float("nan")
        wall_ms = (time.perf_counter() - began) * 1000
        return Run(cpu_ms, wall_ms, out.seek(0, os.SEEK_END))


def peak_mib(command: Sequence[str], env: dict[str, str]) -> float:
    """The most memory that a command held at once; NaN where nobody counts it."""
    if not hasattr(os, "wait4"):
        return float("nan")
    argv = [sys.executable, "-I", "-S", "-c", PEAK, *command]
    found = subprocess.run(argv, env=env, capture_output=True, check=True)
    return int(found.stdout) / (1024 * 1024 if sys.platform == "darwin" else 1024)


def compare_memory(
    name: str, commands: Sequence[Sequence[str]], env: dict[str, str], goal: str
) -> Figure:
    """The first command's peak memory beside the second's."""
    ours, floor = ([peak_mib(command, env) for _ in range(3)] for command in commands)
    ratio = median(ours) / median(floor)
    return Figure(name, spread(ours, "MiB"), spread(floor, "MiB"), ratio, goal)


def in_turn(commands: Sequence[Sequence[str]], env: dict[str, str], rounds: int) -> list[list[Run]]:
    """The commands run in turn, after a warm-up each; a list of runs for each."""
    for command in commands:
        run(command, env)
    runs: list[list[Run]] = [[] for _ in commands]
    for _ in range(rounds):
        for command, results in zip(commands, runs):
            results.append(run(command, env))
    return runs


def spread(values: Sequence[float], unit: str) -> str:
    """A median with its range."""
    return f"{median(values):.1f} ({min(values):.1f}-{max(values):.1f}) {unit}"


def compare(name: str, runs: Sequence[list[Run]], field: str, unit: str, goal: str) -> Figure:
    """The first command's figure beside the second's."""
    ours, floor = ([getattr(one, field) for one in results] for results in runs[:2])
    ratio = median(a / b for a, b in zip(ours, floor))
    return Figure(name, spread(ours, unit), spread(floor, unit), ratio, goal)


def starts(env: dict[str, str], ours: Sequence[str], rounds: int) -> Iterator[Figure]:
    """What each kind of start costs, beside the least that Python could do."""
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder:
        floor = Path(folder) / "floor.py"
        floor.write_text(FLOOR, "utf-8")
        commands = [[*ours, "balance"], [python, str(floor), "balance"]]
        runs = in_turn(commands, env, rounds)
        memory = compare_memory("`balance`, peak memory", commands, env, "1.05")
    yield compare("`balance`, CPU", runs, "cpu_ms", "ms", BALANCE_GOAL)
    yield compare("`balance`, wall", runs, "wall_ms", "ms", BALANCE_GOAL)
    yield memory
    nobody = {name: value for name, value in env.items() if name != "CACHEFORGE_API_KEY"}
    bare = [python, "-c", "import argparse"]
    for name, argv, its_env, goal in (
        ("`--help`", ["--help"], env, HELP_GOAL),
        ("a usage error", ["topup", "--amount", "ten"], env, HELP_GOAL),
        ("a missing key", ["balance"], nobody, HELP_GOAL),
    ):
        runs = in_turn([[*ours, *argv], bare], its_env, rounds)
        yield compare(f"{name}, CPU", runs, "cpu_ms", "ms", goal)


def sizes(env: dict[str, str], ours: Sequence[str]) -> Iterator[Figure]:
    """How many bytes the commands print into a pipe, as text and as JSON."""
    for argv, goal in (("balance", 60), ("topup", 230), ("keys", 320), ("info", 170)):
        text = run([*ours, argv], env).out_bytes
        data = run([*ours, argv, "--json"], env).out_bytes
        name = "`keys` (2)" if argv == "keys" else f"`{argv}`"
        yield Figure(f"{name}, text", f"{text} bytes", "-", None, f"{goal} bytes")
        yield Figure(f"{name}, JSON", f"{data} bytes", "-", None, "-")


def reading(ours: Sequence[str]) -> Figure:
    """All that an agent reads to settle a 402: the skill, and what its three steps print."""
    total = len((OPS.parent / "SKILL.md").read_bytes())
    with Sandbox("0", pay_after_s=0) as box:
        env = {**os.environ, **box.env}
        for argv in (["balance"], ["topup", "--amount", "10"], ["balance", "--wait"]):
            total += run([*ours, *argv], env).out_bytes
    return Figure("settling a 402, all that is read", f"{total} bytes", "-", None, "6400 bytes")


def many_keys(ours: Sequence[str], rounds: int) -> Iterator[Figure]:
    """`keys` on lists of three sizes, beside json.loads of the same reply."""
    for count in (10, 1_000, 10_000):
        limits = ("3", "2") if count == 10_000 else ("-", "-")
        with Sandbox() as box, tempfile.TemporaryDirectory() as folder:
            box.account.keys += [
                Key(f"key_{n}", f"cf_{n:032}", "ci", "2026-01-02T03:04:05Z")
                for n in range(count - 1)
            ]
            reply = Path(folder) / "keys.json"
            reply.write_text(json.dumps(box.service.keys(None)), "utf-8")
            env = {**os.environ, **box.env}
            floor = [sys.executable, "-c", LOADS, str(reply)]
            commands = [[*ours, "keys"], floor]
            runs = in_turn(commands, env, max(3, rounds // 4))
            memory = compare_memory(f"`keys` ({count:,}), memory", commands, env, limits[1])
        yield compare(f"`keys` ({count:,}), CPU", runs, "cpu_ms", "ms", limits[0])
        yield memory


def looks(wait_s: float) -> list[float]:
    """The seconds at which one wait looks at the balance, by the tool's own schedule."""
    at, times = 0.0, [0.0]
    last = wait_s - min(1.0, wait_s / 10)
    while at < last:
        at = min(last, at + ops.poll_gap_s(at))
        times.append(at)
    return times


def waits(count: int) -> Iterator[Figure]:
    """Looks per minute, and how long after a payment a wait ends."""
    early, late, lags = [], [], []
    for _ in range(count):
        times = looks(600)
        early.append(sum(t <= 60 for t in times))
        late.append(sum(60 < t <= 600 for t in times) / 9)
        paid = random.uniform(0, 100)
        lags.append(next(t for t in times if t >= paid) - paid)
    yield Figure("looks in a wait's first minute", spread(early, ""), "-", None, "12")
    yield Figure("looks per minute after that", spread(late, ""), "-", None, "6")
    yield Figure("from payment to exit", spread(lags, "s"), "-", None, "5 s (median)")


def fleet(agents: int, wait_s: float = 100, outage_s: float = 60) -> dict[str, Counter[int]]:
    """Requests in each second after the first look, of agents who begin in the same one."""
    waiting: Counter[int] = Counter()
    failing: Counter[int] = Counter()
    for _ in range(agents):
        waiting.update(int(at) for at in looks(wait_s)[1:])
        times = looks(10 * outage_s)[1:]
        success = next(at for at in times if at >= outage_s)  # credit is there by then
        failing.update(int(at) for at in times if at <= success)
    return {
        f"waits of {wait_s:g} s that begin together": waiting,
        f"waits through an outage of {outage_s:g} s": failing,
        "single reads into an outage, three tries each": retried_reads(agents),
    }


def retried_reads(agents: int) -> Counter[int]:
    """The second and third tries of reads that failed at the same moment."""
    tries: Counter[int] = Counter()
    for _ in range(agents):
        at = 0.0
        for attempt in range(1, ops.READ_ATTEMPTS):
            at += ops.retry_delay_s(attempt, None)
            tries[int(at)] += 1
    return tries


def show_fleet(agents: int) -> None:
    """Print the requests per second over time, and how uneven they are."""
    for name, seconds in fleet(agents).items():
        print(f"\n{agents:,} agents, {name}: requests in each second")
        most = max(seconds.values())
        for second in range(min(seconds), max(seconds) + 1):
            print(f"{second:4} {seconds[second]:7,} {'#' * round(60 * seconds[second] / most)}")
        mean = sum(seconds.values()) / (max(seconds) + 1 - min(seconds))
        print(f"mean {mean:,.0f}/s, most {most:,}/s: {most / mean:.2f} times the mean")


def table(figures: Sequence[Figure], others: dict[str, str]) -> str:
    """The figures as a Markdown table."""
    heads = ["figure", "ours", "floor", "ratio", "goal"] + (["other"] if others else [])
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for figure in figures:
        ratio = "-" if figure.ratio is None else f"{figure.ratio:.2f}"
        cells = [figure.name, figure.ours, figure.floor, ratio, figure.goal]
        if others:
            cells.append(others.get(figure.name, "-"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(ours: Sequence[str], rounds: int, whole: bool) -> list[Figure]:
    """All figures; without `whole` only those that any client of the service has."""
    with Sandbox() as box:
        box.service.create_key({})
        env = {**os.environ, **box.env}
        figures = [*starts(env, ours, rounds), *sizes(env, ours)]
    figures += many_keys(ours, rounds)
    if whole:
        figures += [reading(ours), *waits(2000)]
    return figures


def machine() -> str:
    """The machine and the Python that were measured."""
    model = ""
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        model = f", {found[1]}" if found else ""
    version = ".".join(map(str, sys.version_info[:3]))
    return f"Python {version}, {sys.platform}{model}, {os.cpu_count()} CPUs"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Measure ops.py; judge nothing.")
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--against", metavar="COMMAND", help="another client, put beside it")
    parser.add_argument("--fleet", type=int, metavar="N", help="simulate N agents, no network")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")
    options = parser.parse_args(argv)
    if options.fleet:
        show_fleet(options.fleet)
        return 0
    rounds = 5 if options.quick else 25
    figures = measure([sys.executable, str(OPS)], rounds, whole=True)
    others: dict[str, str] = {}
    if options.against:
        for figure in measure(shlex.split(options.against), rounds, whole=False):
            ratio = "" if figure.ratio is None else f", ratio {figure.ratio:.2f}"
            others[figure.name] = figure.ours + ratio
    if options.json:
        rows: list[Any] = [figure._asdict() for figure in figures]
        print(json.dumps({"machine": machine(), "figures": rows, "against": others}))
    else:
        print(f"{machine()}; medians of {rounds} runs in turn\n\n{table(figures, others)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
