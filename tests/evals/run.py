#!/usr/bin/env python3
"""The skill's exam: put an agent into a situation, and judge what the sandbox saw.

    python3 tests/evals/run.py                             list the situations
    python3 tests/evals/run.py empty --exec AGENT ARG...   run an agent; its output is the answer
    python3 tests/evals/run.py all --exec AGENT ARG...     every situation, as a table
    python3 tests/evals/run.py empty --folder DIR          prepare DIR, wait for DIR/answer.md

The agent gets the user's request as its last argument, or in place of `{}`, and on standard
input. Its folder has a copy of the skill (`--skill DIR` takes another version of it), the
request (PROMPT.md) and the variables (env.sh). A situation may put the skill into an
installer's place (`skill`), and the agent into another folder (`work`). Judged are the
requests that arrived, the account afterwards, and the words for the user. The verdict is one
JSON object on standard output, also in verdict.json; the exit code is 0 if it is a pass.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from sandbox import OPS, Sandbox  # noqa: E402

Json = dict[str, Any]
SITUATIONS: dict[str, Json] = {
    item["id"]: item for item in json.loads((HERE / "evals.json").read_text("utf-8"))["evals"]
}
OWN_KEY = "key_1"


class Unusable(Exception):
    """The exam cannot be held like this; the reason is one line."""


def open_sandbox(situation: Json) -> Sandbox:
    """A sandbox for a situation, not yet started."""
    return Sandbox(**situation["sandbox"])


def variables(situation: Json, box: Sandbox, folder: Path) -> dict[str, str]:
    """The variables that the agent needs, beyond its own.

    Not OPENAI_BASE_URL and its like: the agent itself may talk to its model by them.
    """
    env = {name: value for name, value in box.env.items() if name.startswith("CACHEFORGE_")}
    if str(situation.get("skill", "")).startswith("home/"):
        env["HOME"] = str(folder / "home")
    return {**env, **situation.get("env", {})}


def skill_folder(situation: Json, folder: Path) -> Path:
    """Where the skill is: in an installer's place, or in `skills`."""
    return folder / str(situation.get("skill", "skills")) / OPS.parent.name


def work_folder(situation: Json, folder: Path) -> Path:
    """The agent's working directory."""
    return folder / str(situation.get("work", "."))


def prepare(situation: Json, box: Sandbox, folder: Path, skill: Path = OPS.parent) -> None:
    """Fill the agent's folder. Raises Unusable."""
    if not (skill / "SKILL.md").is_file():
        raise Unusable(f"{skill} is no skill: it has no SKILL.md")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise Unusable(f"{folder} is not empty: give a new --folder")
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(skill, skill_folder(situation, folder), ignore=ignored)
    work = work_folder(situation, folder)
    work.mkdir(parents=True, exist_ok=True)
    (work / "PROMPT.md").write_text(situation["prompt"] + "\n", "utf-8")
    lines = (f"export {n}='{v}'\n" for n, v in variables(situation, box, folder).items())
    (folder / "env.sh").write_text("".join(lines), "utf-8")


class Evidence:
    """What is judged: the sandbox as it was before and is now, the folder, the answer."""

    def __init__(self, situation: Json, box: Sandbox, folder: Path, answer: str) -> None:
        account = box.account
        self.situation = situation
        self.box = box
        self.folder = folder
        self.answer = answer
        self.calls = box.calls()
        self.writes = [call for call in self.calls if not call.startswith("GET")]
        self.account_writes = [call for call in self.writes if "/v1/account/" in call]
        self.links = [x for token, x in account.links.items() if not token.startswith("unpaid")]
        self.new_keys = account.keys[1 + len(situation["sandbox"].get("keys", ())) :]

    def secrets(self) -> list[str]:
        """What must not be in the answer."""
        given = variables(self.situation, self.box, self.folder)
        values = [value.strip("'\"") for name, value in given.items() if name.endswith("_KEY")]
        pasted = self.situation.get("secrets", [])
        return [*values, *pasted, *(key.secret for key in self.box.account.keys)]

    def facts(self) -> Json:
        """Every fact that a check can ask about, by the check's name."""
        account = self.box.account
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        texts = [path.read_text("utf-8", "replace") for path in files]
        return {
            "writes": len(self.account_writes),
            "requests": len(self.calls),
            "links": len(self.links),
            "amount_usd": self.links[0].amount_usd if self.links else None,
            "method": self.links[0].method if self.links else None,
            "link_said": any(f"{self.box.url}/pay/{x.token}" in self.answer for x in self.links),
            "chat_ok": any(why == "call" for why, _ in account.ledger),
            "reads_billing": "GET /v1/account/billing" in self.calls,
            "reads_info": "GET /v1/account/info" in self.calls,
            "reads_keys": "GET /v1/account/keys" in self.calls,
            "reads_upstream": "GET /v1/account/upstream" in self.calls,
            "auto_topup": account.auto_topup,
            "upstream": account.upstream,
            "keys_made": len(self.new_keys),
            "revoked": [key.id for key in account.keys if key.revoked_at],
            "first_write": self.account_writes[0] if self.account_writes else None,
            "key_file": any(key.secret in text for key in self.new_keys for text in texts),
        }


def fits(found: object, expected: Any) -> bool:
    """Whether a fact is the expected one, in a range of numbers, or one of some objects."""
    if isinstance(expected, list) and type(found) is int:
        return bool(expected[0] <= found <= expected[1])
    return found == expected or (isinstance(found, dict) and found in [expected, *expected])


def judge(evidence: Evidence) -> Iterator[str]:
    """What is wrong, a sentence each; nothing if the agent passed."""
    checks = dict(evidence.situation["checks"])
    for pattern in checks.pop("said", ()):
        if not re.search(pattern, evidence.answer, re.IGNORECASE):
            yield f"the answer says nothing like {pattern}"
    facts = evidence.facts()
    for name, expected in checks.items():
        if not fits(facts[name], expected):
            yield f"{name} is {facts[name]!r}, not {expected!r}"
    if any(secret in evidence.answer for secret in evidence.secrets()):
        yield "the answer gives a secret away"
    if OWN_KEY in facts["revoked"] and OWN_KEY not in checks.get("revoked", ()):
        yield "the account's own key was revoked"


def verdict(evidence: Evidence) -> Json:
    """The judgement, and what led to it."""
    wrong = list(judge(evidence))
    return {
        "id": evidence.situation["id"],
        "passed": not wrong,
        "wrong": wrong,
        "calls": evidence.calls,
        "answer": evidence.answer,
    }


def wait_for_answer(places: Sequence[Path], limit_s: float) -> str:
    """The text of `answer.md` once it is there and has stopped growing."""
    tick = threading.Event()
    before = ""
    for _ in range(int(limit_s)):
        texts = [(place / "answer.md") for place in places if (place / "answer.md").exists()]
        text = texts[0].read_text("utf-8") if texts else ""
        if text and text == before:
            return text
        before = text
        tick.wait(1)
    return before


def run_agent(command: Sequence[str], situation: Json, env: dict[str, str], work: Path,
              limit_s: float) -> str:  # fmt: skip
    """What the agent prints within its time. Raises Unusable."""
    prompt = situation["prompt"]
    argv = [word.replace("{}", prompt) for word in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as typed:
        typed.write(prompt.encode())
        typed.seek(0)
        try:
            child = subprocess.Popen(
                argv if "{}" in "".join(command) else [*argv, prompt],
                cwd=work,
                env={**os.environ, **env},
                stdin=typed,
                stdout=out,
                start_new_session=True,
            )
        except OSError as error:
            raise Unusable(f"cannot run {command[0]}: {error.strerror}") from None
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(limit_s)
        if child.poll() is None:
            print(f"ended after {limit_s:g} s", file=sys.stderr)
            if hasattr(os, "killpg"):
                os.killpg(child.pid, signal.SIGKILL)  # with all that it has started
            child.kill()
            child.wait()
        out.seek(0)
        return out.read().decode("utf-8", "replace")


def examine(situation: Json, folder: Path, options: argparse.Namespace) -> Json:
    """Hold the exam in one situation. Raises Unusable."""
    with open_sandbox(situation) as box:
        prepare(situation, box, folder, options.skill)
        work = work_folder(situation, folder)
        page = skill_folder(situation, folder) / "SKILL.md"
        print(f"ready: {folder}\nwork in: {work}\nskill: {page}", file=sys.stderr, flush=True)
        if options.exec:
            env = variables(situation, box, folder)
            answer = run_agent(options.exec, situation, env, work, options.limit)
        else:
            answer = wait_for_answer([folder, work], options.limit)
        result = verdict(Evidence(situation, box, folder, answer))
    (folder / "verdict.json").write_text(json.dumps(result, indent=1), "utf-8")
    return result


def examine_all(options: argparse.Namespace, folder: Path) -> int:
    """Hold the exam in every situation, and print a table; the exit code."""
    passed = 0
    for name, situation in SITUATIONS.items():
        began = time.monotonic()
        result = examine(situation, folder / name, options)
        passed += result["passed"]
        word, took_s = "passed" if result["passed"] else "FAILED", time.monotonic() - began
        print(
            f"{name:16} {word} {took_s:5.0f} s  {'; '.join(result['wrong'])}".rstrip(), flush=True
        )
    print(f"{passed} of {len(SITUATIONS)} passed; the answers are in {folder}")
    return 0 if passed == len(SITUATIONS) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Put an agent into a situation and judge it.")
    parser.add_argument("id", nargs="?", choices=[*SITUATIONS, "all"], help="the situation, or all")
    parser.add_argument("--folder", type=Path, help="where the agent works (new, or empty)")
    parser.add_argument(
        "--skill", type=Path, default=OPS.parent, help="another version of the skill"
    )
    parser.add_argument("--limit", type=float, default=900, help="seconds for a situation (900)")
    parser.add_argument("--exec", nargs=argparse.REMAINDER, help="the agent and its arguments")
    options = parser.parse_args(argv)
    if options.id is None:
        for name, item in SITUATIONS.items():
            print(f"{name:16} {item['expected_output'][:80]}")
        return 0
    folder = (options.folder or Path(tempfile.mkdtemp(prefix=f"eval-{options.id}-"))).resolve()
    try:
        if options.id == "all":
            return examine_all(options, folder)
        result = examine(SITUATIONS[options.id], folder, options)
    except Unusable as reason:
        print(f"run.py: {reason}", file=sys.stderr)
        return 2
    print(json.dumps(result, indent=1))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
