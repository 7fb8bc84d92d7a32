#!/usr/bin/env python3
"""The skill's exam: put an agent into a situation, and judge what the sandbox saw.

    python3 tests/evals/run.py                       list the situations
    python3 tests/evals/run.py empty --folder DIR    prepare DIR, wait for DIR/answer.md
    python3 tests/evals/run.py empty --exec AGENT... run an agent there: its output is the answer

The folder gets a copy of the skill, the user's request (PROMPT.md) and the variables
(env.sh). A situation may put the skill where an installer would (`skill`), and the agent
into another folder (`work`); both are named on standard error. Judged are the requests
that arrived, the account as it is afterwards, and the words for the user.
The verdict is one JSON object on standard output; the exit code is 0 if it is a pass.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from sandbox import OPS, Link, Sandbox, read_fault  # noqa: E402

Json = dict[str, Any]
SITUATIONS: dict[str, Json] = {
    item["id"]: item for item in json.loads((HERE / "evals.json").read_text("utf-8"))["evals"]
}
CHAT = "POST /v1/chat/completions"
OWN_KEY = "key_1"


def open_sandbox(situation: Json) -> Sandbox:
    """A sandbox set up for a situation, not yet entered."""
    setup = situation["sandbox"]
    box = Sandbox(setup["balance_usd"], pay_after_s=setup.get("pay_after_s"))
    books = box.books
    books.card_saved = setup.get("card_saved", False)
    books.tenant_name = setup.get("tenant_name", books.tenant_name)
    books.tenant_status = setup.get("tenant_status", books.tenant_status)
    books.upstream = setup.get("upstream", books.upstream)
    for label in setup.get("keys", ()):
        box.service.create_key({})
        books.keys[-1].label = label
    for number, amount_usd in enumerate(setup.get("unpaid_links", ())):
        books.links[f"old{number}"] = Link(f"old{number}", amount_usd, "stripe")
    for text in setup.get("faults", ()):
        call, faults = read_fault(text)
        box.script(call, *faults)
    return box


def variables(situation: Json, box: Sandbox) -> dict[str, str]:
    """The environment that the agent works in, beyond its own."""
    env = {**box.env, **situation["sandbox"].get("env", {})}
    if situation["sandbox"].get("wrong_key"):
        env["CACHEFORGE_API_KEY"] = "cf_revoked_long_ago_0123456789"
    return env


def skill_folder(situation: Json, folder: Path) -> Path:
    """Where the skill lies: where an installer puts it, or in `skills`."""
    return folder / str(situation.get("skill", "skills")) / OPS.parent.name


def work_folder(situation: Json, folder: Path) -> Path:
    """Where the agent stands."""
    return folder / str(situation.get("work", "."))


def prepare(situation: Json, box: Sandbox, folder: Path) -> None:
    """Fill the agent's folder."""
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(OPS.parent, skill_folder(situation, folder), ignore=ignored)
    work_folder(situation, folder).mkdir(parents=True, exist_ok=True)
    (folder / "PROMPT.md").write_text(situation["prompt"] + "\n", "utf-8")
    lines = (f"export {name}={value}\n" for name, value in variables(situation, box).items())
    (folder / "env.sh").write_text("".join(lines), "utf-8")


class Evidence:
    """What is judged: the sandbox as it was before and is now, the folder, the answer."""

    def __init__(self, situation: Json, box: Sandbox, folder: Path, answer: str) -> None:
        setup = situation["sandbox"]
        self.situation = situation
        self.box = box
        self.folder = folder
        self.answer = answer
        self.calls = box.calls()
        self.writes = [call for call in self.calls if not call.startswith("GET")]
        self.account_writes = [call for call in self.writes if "/v1/account/" in call]
        self.links = [link for token, link in box.books.links.items() if token[:3] != "old"]
        self.new_keys = box.books.keys[1 + len(setup.get("keys", ())) :]

    def secrets(self) -> list[str]:
        """What must not be in the answer."""
        given = variables(self.situation, self.box)
        values = [value for name, value in given.items() if name.endswith("_KEY")]
        pasted = self.situation["sandbox"].get("secrets", [])
        return [*values, *pasted, *(key.secret for key in self.box.books.keys)]

    def facts(self) -> Json:
        """Every fact that a check can ask about, by the check's name."""
        books = self.box.books
        chat_answers = [why for why, _ in books.ledger if why == "call"]
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        texts = [path.read_text("utf-8", "replace") for path in files]
        return {
            "writes": len(self.account_writes),
            "requests": len(self.calls),
            "links": len(self.links),
            "amount_usd": self.links[0].amount_usd if self.links else None,
            "method": self.links[0].method if self.links else None,
            "link_said": any(f"{self.box.url}/pay/{x.token}" in self.answer for x in self.links),
            "chat_ok": bool(chat_answers),
            "reads_billing": "GET /v1/account/billing" in self.calls,
            "reads_info": "GET /v1/account/info" in self.calls,
            "reads_keys": "GET /v1/account/keys" in self.calls,
            "reads_upstream": "GET /v1/account/upstream" in self.calls,
            "auto_topup": books.auto_topup,
            "upstream": books.upstream,
            "keys_made": len(self.new_keys),
            "revoked": [key.id for key in books.keys if key.revoked_at],
            "first_write": self.account_writes[0] if self.account_writes else None,
            "key_file": any(key.secret in text for key in self.new_keys for text in texts),
        }


def judge(evidence: Evidence) -> Iterator[str]:
    """What is wrong, a sentence each; nothing if the agent passed."""
    checks = dict(evidence.situation["checks"])
    for pattern in checks.pop("said", ()):
        if not re.search(pattern, evidence.answer, re.IGNORECASE):
            yield f"the answer says nothing like {pattern}"
    facts = evidence.facts()
    for name, expected in checks.items():
        found = facts[name]
        if isinstance(expected, list) and isinstance(found, int):
            passed = expected[0] <= found <= expected[1]
        else:
            passed = found == expected
        if not passed:
            yield f"{name} is {found!r}, not {expected!r}"
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


def wait_for_answer(folder: Path, limit_s: float) -> str:
    """The text of `answer.md` once it is there and has stopped growing."""
    path = folder / "answer.md"
    tick = threading.Event()
    before = ""
    for _ in range(int(limit_s)):
        text = path.read_text("utf-8") if path.exists() else ""
        if text and text == before:
            return text
        before = text
        tick.wait(1)
    return before


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Put an agent into a situation and judge it.")
    parser.add_argument("id", nargs="?", choices=SITUATIONS, help="the situation")
    parser.add_argument("--folder", type=Path, help="where the agent works (made if missing)")
    parser.add_argument("--limit", type=float, default=900, help="seconds to wait for an answer")
    parser.add_argument("--exec", nargs=argparse.REMAINDER, help="the agent, run in the folder")
    options = parser.parse_args(argv)
    if options.id is None:
        for name, item in SITUATIONS.items():
            print(f"{name:16} {item['expected_output'][:80]}")
        return 0
    folder = options.folder or Path(tempfile.mkdtemp(prefix=f"eval-{options.id}-"))
    folder.mkdir(parents=True, exist_ok=True)
    situation = SITUATIONS[options.id]
    with open_sandbox(situation) as box:
        prepare(situation, box, folder)
        work = work_folder(situation, folder)
        page = skill_folder(situation, folder) / "SKILL.md"
        print(f"ready: {folder}\nwork in: {work}\nskill: {page}", file=sys.stderr, flush=True)
        if options.exec:
            env = {**os.environ, **variables(situation, box)}
            done = subprocess.run(
                options.exec,
                cwd=work,
                env=env,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                check=False,
            )
            answer = done.stdout
        else:
            answer = wait_for_answer(folder, options.limit)
        result = verdict(Evidence(situation, box, folder, answer))
    print(json.dumps(result, indent=1))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
