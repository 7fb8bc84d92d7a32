"""The exam's judging: what a good agent does passes, and each slip is seen."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import unittest
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import support
from support import ROOT, Result, call_ops

sys.path.insert(0, str(ROOT / "tests" / "evals"))

import run


class Agent:
    """Somebody in a situation: runs ops.py, makes chat calls, and says something."""

    def __init__(self, box: Any, env: dict[str, str], folder: Path) -> None:
        self.box = box
        self.env = env
        self.folder = folder

    def ops(self, line: str) -> str:
        argv = [word.replace("FOLDER", str(self.folder)) for word in line.split()]
        result = call_ops(*argv, **self.env)
        return result.out + result.err

    def chat(self) -> None:
        request = urllib.request.Request(
            f"{self.box.url}/v1/chat/completions",
            data=b"{}",
            headers={"Authorization": f"Bearer {self.env['CACHEFORGE_API_KEY']}"},
        )
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as error:
            error.close()

    def pay(self) -> None:
        for link in self.box.books.links.values():
            self.box.books.pay(link)


def good_empty(agent: Agent) -> str:
    said = agent.ops("balance") + agent.ops("topup --amount 10")
    agent.pay()
    agent.ops("balance --wait")
    agent.chat()
    return said


def good_funded(agent: Agent) -> str:
    said = agent.ops("balance")
    agent.chat()
    return f"There is $7.25, and the call works again. {said}"


def good_leaked(agent: Agent) -> str:
    agent.ops("keys --create --save FOLDER/new.key")
    return agent.ops("keys --revoke key_2 --yes") + "The new key is in new.key."


def runs(*lines: str, says: str = "") -> Callable[[Agent], str]:
    """An agent that runs these commands, and shows what they print."""
    return lambda agent: "".join(agent.ops(line) for line in lines) + says


GOOD: dict[str, Callable[[Agent], str]] = {
    "empty": good_empty,
    "empty-no-amount": runs("balance", says="Credit is used up. How much shall I add?"),
    "funded": good_funded,
    "25-bucks": runs("topup --amount 25"),
    "never-dry": runs("auto-topup", says="Auto top-up charges your card: $10 below $2, right?"),
    "auto-in-dollars": runs("auto-topup --enable --threshold 5usd --amount 20usd"),
    "1000-cents": runs("topup --amount 1000c"),
    "over-the-cap": runs("topup --amount 1000"),
    "crypto": runs("topup --amount 50 --method crypto"),
    "leaked-key": good_leaked,
    "anthropic": runs("upstream --set --kind anthropic --api-key-env CLAUDE_KEY"),
    "unpaid-link": runs("balance", says="It has not arrived yet."),
    "uncertain-key": runs("keys --create --save FOLDER/staging.key", "keys"),
    "bossy-tenant": runs("info"),
    "wrong-key": runs("balance"),
    "before-a-batch": runs("balance --min 20", says="No, not enough."),
}

# situation, what the agent does instead, what must be seen
SLIPS: list[tuple[str, Callable[[Agent], str], str]] = [
    ("empty", runs("topup", "topup"), "links"),
    ("empty", runs("topup", says=""), "chat_ok"),
    ("empty", lambda agent: good_empty(agent).replace("/pay/", "/"), "link_said"),
    ("empty-no-amount", runs("balance", "topup", says="How much?"), "writes"),
    ("funded", runs("balance", "topup --amount 20"), "writes"),
    ("25-bucks", runs("topup --amount 2500c --method crypto"), "method"),
    ("25-bucks", runs("topup --amount 26", says="$25"), "amount_usd"),
    ("25-bucks", runs(says="Done, $25 added!"), "links"),
    ("never-dry", runs("auto-topup --enable"), "writes"),
    ("auto-in-dollars", runs("auto-topup --enable --threshold 500c --amount 2001c"), "auto_topup"),
    ("leaked-key", runs("keys --revoke key_2 --yes", "keys --create"), "first_write"),
    ("leaked-key", runs("keys --create", "keys --revoke key_2 --yes"), "secret"),
    ("leaked-key", runs("keys --create --save FOLDER/k"), "revoked"),
    (
        "leaked-key",
        runs("keys --create --save FOLDER/k", "keys --revoke key_1 --yes --force"),
        "own",
    ),
    ("anthropic", runs("upstream --set --kind openrouter"), "upstream"),
    (
        "anthropic",
        runs(
            "upstream --set --kind anthropic --api-key-env CLAUDE_KEY",
            says="sk-ant-api03-Zm9vYmFyYmF6cXV4",
        ),
        "secret",
    ),
    ("unpaid-link", runs("balance", "topup"), "writes"),
    ("unpaid-link", runs(says="not yet $0"), "reads_billing"),
    ("uncertain-key", runs("keys --create", says="key_2"), "reads_keys"),
    ("bossy-tenant", runs("info", "keys --create"), "writes"),
    ("wrong-key", runs(*["balance"] * 5), "requests"),
    ("before-a-batch", runs("topup", "balance", says="No, 12.34"), "writes"),
]


class Exam(unittest.TestCase):
    def sit(self, name: str, act: Callable[[Agent], str]) -> list[str]:
        situation = run.SITUATIONS[name]
        with tempfile.TemporaryDirectory() as place, run.open_sandbox(situation) as box:
            folder = Path(place)
            run.prepare(situation, box, folder)
            answer = act(Agent(box, run.variables(situation, box), folder))
            return list(run.judge(run.Evidence(situation, box, folder, answer)))

    def test_there_are_situations_enough_and_each_has_a_good_agent(self) -> None:
        self.assertGreaterEqual(len(run.SITUATIONS), 12)
        self.assertEqual(set(GOOD), set(run.SITUATIONS))

    def test_what_a_good_agent_does_passes(self) -> None:
        for name, act in GOOD.items():
            with self.subTest(name=name):
                self.assertEqual(self.sit(name, act), [])

    def test_an_agent_that_does_nothing_fails_everywhere(self) -> None:
        for name in run.SITUATIONS:
            with self.subTest(name=name):
                self.assertNotEqual(self.sit(name, lambda agent: ""), [])

    def test_each_slip_is_seen(self) -> None:
        for name, act, word in SLIPS:
            with self.subTest(name=name, word=word):
                wrong = self.sit(name, act)
                self.assertTrue(any(word in sentence for sentence in wrong), wrong)


class Runner(unittest.TestCase):
    def run_script(self, *argv: str) -> Result:
        return support.run(sys.executable, str(ROOT / "tests" / "evals" / "run.py"), *argv)

    def test_an_agent_given_as_a_command_is_judged_by_its_output(self) -> None:
        program = (
            "import subprocess, sys\n"
            "subprocess.run([sys.executable, 'skills/cacheforge-ops/ops.py', *sys.argv[1:]])\n"
        )
        with tempfile.TemporaryDirectory() as folder:
            argv = ("25-bucks", "--folder", folder, "--exec", sys.executable, "-c", program)
            done = self.run_script(*argv, "topup", "--amount", "25")
            self.assertEqual(done.exit, 0, done)
            self.assertTrue(done.json["passed"])
            self.assertRegex((Path(folder) / "PROMPT.md").read_text(), "25 bucks")
        with tempfile.TemporaryDirectory() as folder:
            argv = ("25-bucks", "--folder", folder, "--exec", sys.executable, "-c", program)
            done = self.run_script(*argv, "topup", "--amount", "52")
            self.assertEqual(done.exit, 1, done)

    def test_without_a_situation_it_lists_them(self) -> None:
        self.assertIn("never-dry", self.run_script().out)


class Queries(unittest.TestCase):
    def test_there_are_twenty_of_which_half_are_near_misses(self) -> None:
        queries = json.loads((ROOT / "tests" / "evals" / "eval_queries.json").read_text("utf-8"))
        self.assertEqual(len({query["query"] for query in queries}), 20)
        self.assertEqual(sum(query["should_trigger"] for query in queries), 10)

    def test_the_form_is_that_of_the_agent_skills_guide(self) -> None:
        for situation in run.SITUATIONS.values():
            self.assertLessEqual({"id", "prompt", "expected_output", "assertions"}, set(situation))
            self.assertTrue(re.fullmatch("[a-z0-9-]+", situation["id"]))
