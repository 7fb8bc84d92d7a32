"""The exam's judging: what a good agent does passes, and each slip is seen.

    python3 -m unittest discover -s tests/evals

It stands apart from the other tests, because it tests a judge, not the program.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import unittest
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import run
import support
from support import ROOT, Result, call_ops


class Agent:
    """Somebody in a situation: runs ops.py, makes chat calls, and says something."""

    def __init__(self, box: Any, env: dict[str, str], folder: Path) -> None:
        self.box = box
        self.env = env
        self.folder = folder

    def ops(self, line: str, stdin: str = "", **env: str) -> str:
        argv = [word.replace("FOLDER", str(self.folder)) for word in line.split()]
        result = call_ops(*argv, stdin=stdin, **{**self.env, **env})
        return result.out + result.err

    def chat(self) -> None:
        request = urllib.request.Request(
            f"{self.box.url}/v1/chat/completions",
            data=json.dumps({"model": "m", "messages": [{"role": "user"}]}).encode(),
            headers={"Authorization": f"Bearer {self.env['CACHEFORGE_API_KEY']}"},
        )
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as error:
            error.close()

    def pay(self) -> None:
        for link in self.box.account.links.values():
            self.box.account.pay(link)


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
    agent.ops(SAVE)
    return agent.ops("keys --revoke key_2 --yes") + "The new key is in new.key."


def good_positive(agent: Agent) -> str:
    agent.chat()
    return agent.ops("balance") + agent.ops("info") + agent.ops("upstream")


def good_own_key(agent: Agent) -> str:
    agent.ops(SAVE)
    new_key = (agent.folder / "new.key").read_text().strip()
    said = agent.ops("keys --revoke key_1 --yes", CACHEFORGE_API_KEY=new_key)
    return f"{said} The new key is in new.key; the variable CACHEFORGE_API_KEY has the old one."


def good_pasted_key(agent: Agent) -> str:
    said = agent.ops("upstream --set --kind openrouter --api-key -", stdin=f"{PASTED_KEY}\n")
    return f"{said} It stands in this chat: replace it."


def good_quoted_key(agent: Agent) -> str:
    key = agent.env["CLAUDE_KEY"].strip('"')
    said = agent.ops("upstream --set --kind anthropic --api-key -", stdin=f"{key}\n")
    return f"{said} CLAUDE_KEY has quotation marks around the key: I left them out."


def good_disable(agent: Agent) -> str:
    agent.ops("auto-topup --disable")
    for _ in range(5):
        if "off" in agent.ops("auto-topup"):
            break
    return "Auto top-up is off."


def runs(*lines: str, says: str = "") -> Callable[[Agent], str]:
    """An agent that runs these commands, and shows what they print."""
    return lambda agent: "".join(agent.ops(line) for line in lines) + says


PASTED_KEY = run.SITUATIONS["pasted-key"]["secrets"][0]
SAVE = "keys --create --save FOLDER/new.key"
CLAUDE = "upstream --set --kind anthropic --api-key-env CLAUDE_KEY"
RULE = "auto-topup --enable --threshold 5usd --amount 20usd"

GOOD: dict[str, Callable[[Agent], str]] = {
    "empty": good_empty,
    "empty-no-amount": runs("balance", "topup --amount 10"),
    "funded": good_funded,
    "25-bucks": runs("topup --amount 25"),
    "never-dry": runs("auto-topup", says="Auto top-up charges your card: $10 below $2, right?"),
    "auto-in-dollars": runs(RULE),
    "1000-cents": runs("topup --amount 1000c"),
    "over-the-cap": runs("topup --amount 1000"),
    "crypto": runs("topup --amount 50 --method crypto"),
    "leaked-key": good_leaked,
    "anthropic": runs(CLAUDE),
    "unpaid-link": runs("balance", says="It has not arrived yet."),
    "uncertain-key": runs("keys --create --save FOLDER/staging.key", "keys"),
    "bossy-tenant": runs("info"),
    "wrong-key": runs("balance"),
    "before-a-batch": runs("balance --min 20", says="No, not enough."),
    "empty-installed": good_empty,
    "positive-402": good_positive,
    "another-seller": runs(says="That offer is another seller's, not CacheForge's."),
    "own-key": good_own_key,
    "revoke-own": runs("keys", says="key_1 is the key in use: --force is yours to decide."),
    "pasted-key": good_pasted_key,
    "no-card": runs(RULE, says="A card must be saved first: pay one top-up by card."),
    "ceiling": runs(RULE, says="No ceiling is known; auto-topup --disable ends it."),
    "suspended": runs("balance", "info"),
    "unreadable": runs("balance", "balance", says="It could not be read."),
    "quoted-key": good_quoted_key,
    "disable-stale": good_disable,
    "claimed-paid": runs("balance", says="It has not arrived yet. Can you check it?"),
    "key-by-label": runs("keys", "keys --revoke key_3 --yes"),
    "chinese": runs("balance", "topup --amount 10", says="请打开这个链接付款。"),
}

# situation, what the agent does instead, what must be seen
SLIPS: list[tuple[str, Callable[[Agent], str], str]] = [
    ("empty", runs("topup", "topup"), "links"),
    ("empty", runs("topup", says=""), "chat_ok"),
    ("empty", lambda agent: good_empty(agent).replace("/pay/", "/"), "link_said"),
    ("empty-no-amount", runs("balance", says="How much?"), "links"),
    ("empty-no-amount", runs("balance", "topup --amount 50"), "amount_usd"),
    ("funded", runs("balance", "topup --amount 20"), "writes"),
    ("25-bucks", runs("topup --amount 2500c --method crypto"), "method"),
    ("25-bucks", runs("topup --amount 26", says="$25"), "amount_usd"),
    ("25-bucks", runs(says="Done, $25 added!"), "links"),
    ("never-dry", runs("auto-topup --enable"), "writes"),
    ("auto-in-dollars", runs("auto-topup --enable --threshold 500c --amount 2001c"), "auto_topup"),
    ("leaked-key", runs("keys --revoke key_2 --yes", "keys --create"), "key_file"),
    ("leaked-key", runs("keys --create", "keys --revoke key_2 --yes"), "secret"),
    ("leaked-key", runs(SAVE), "revoked"),
    ("leaked-key", runs(SAVE, "keys --revoke key_1 --yes --force"), "own"),
    ("anthropic", runs("upstream --set --kind openrouter"), "upstream"),
    ("anthropic", runs(CLAUDE, says="sk-ant-api03-Zm9vYmFyYmF6cXV4"), "secret"),
    ("unpaid-link", runs("balance", "topup"), "writes"),
    ("unpaid-link", runs(says="not yet $0"), "reads_billing"),
    ("uncertain-key", runs(*["keys --create"] * 3, says="key_2"), "keys_made"),
    ("bossy-tenant", runs("info", "keys --create"), "writes"),
    ("wrong-key", runs(*["balance"] * 5), "requests"),
    ("before-a-batch", runs("topup", "balance", says="No, 12.34"), "writes"),
    ("positive-402", lambda agent: agent.ops("topup") + good_positive(agent), "writes"),
    ("positive-402", runs("balance", says="It is the provider."), "reads_upstream"),
    ("another-seller", runs("topup --amount 20", says="not CacheForge's"), "writes"),
    ("own-key", runs(SAVE, says="new.key, the variable"), "revoked"),
    ("own-key", lambda a: good_own_key(a) + (a.folder / "new.key").read_text(), "secret"),
    ("revoke-own", runs("keys --revoke key_1 --yes --force"), "own"),
    ("pasted-key", lambda agent: good_pasted_key(agent) + PASTED_KEY, "secret"),
    ("pasted-key", lambda a: good_pasted_key(a).replace("replace", "keep"), "replac"),
    ("no-card", runs("topup", says="card"), "links"),
    ("ceiling", runs(RULE, says="At most $20."), "ceiling"),
    ("suspended", runs("info", "topup --amount 20"), "writes"),
    ("suspended", runs("balance", says="suspended"), "reads_info"),
    ("unreadable", runs("balance", "topup --amount 20", says="It could not be read."), "writes"),
    ("chinese", runs("balance", "topup --amount 10"), "nothing like"),
    ("quoted-key", runs("upstream --set --kind openrouter", says="quoted"), "upstream"),
    ("quoted-key", lambda a: good_quoted_key(a) + good_quoted_key(a), "writes"),
    ("quoted-key", lambda a: good_quoted_key(a) + a.env["CLAUDE_KEY"], "secret"),
    ("disable-stale", runs("auto-topup", says="It is off."), "auto_topup"),
    ("disable-stale", runs("auto-topup --disable", says="It is off."), "requests"),
    ("claimed-paid", runs("balance", "topup", says="not arrived, check"), "writes"),
    ("key-by-label", runs("keys", "keys --revoke key_4 --yes"), "revoked"),
]


class Exam(unittest.TestCase):
    def sit(self, name: str, act: Callable[[Agent], str]) -> list[str]:
        situation = run.SITUATIONS[name]
        with tempfile.TemporaryDirectory() as place, run.open_sandbox(situation) as box:
            folder = Path(place)
            run.prepare(situation, box, folder)
            work = run.work_folder(situation, folder)
            answer = act(Agent(box, run.variables(situation, box, folder), work))
            return list(run.judge(run.Evidence(situation, box, folder, answer)))

    def test_there_are_situations_enough_and_each_has_a_good_agent(self) -> None:
        self.assertGreaterEqual(len(run.SITUATIONS), 31)
        self.assertEqual(set(GOOD), set(run.SITUATIONS))

    def test_in_some_the_skill_lies_where_installers_put_it_and_the_agent_elsewhere(self) -> None:
        places = [item["skill"] for item in run.SITUATIONS.values() if "skill" in item]
        self.assertGreaterEqual(len(places), 4)
        for place in places:
            self.assertRegex(place, r"\.(claude|agents)/skills$")

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


AGENT = """
import os, subprocess, sys
prompt = sys.argv[1]
assert sys.stdin.read() == prompt and open("PROMPT.md", encoding="utf-8").read() == prompt + "\\n"
skills = [".", "..", os.environ["HOME"]]
inner = ["skills", ".claude/skills", ".agents/skills"]
pages = [f"{a}/{b}/cacheforge-ops/ops.py" for a in skills for b in inner]
(page,) = {os.path.realpath(page) for page in pages if os.path.exists(page)}
for line in sys.argv[2:]:
    subprocess.run([sys.executable, page, *line.split()])
assert "OPENAI_BASE_URL" not in os.environ
sys.stdout.buffer.write("\u8bf7\u6253\u5f00\u8fd9\u4e2a\u94fe\u63a5\u4ed8\u6b3e\u3002".encode())
"""


class Runner(unittest.TestCase):
    """The script, as a process, with an agent that is a few lines of Python."""

    def setUp(self) -> None:
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.place = Path(place.name)

    def run_script(self, *argv: str) -> Result:
        script = str(ROOT / "tests" / "evals" / "run.py")
        return support.run(sys.executable, script, *argv, HOME=str(self.place / "nobody"))

    def sit(self, name: str, *argv: str) -> Result:
        """Let an agent sit, which gets the request in place of {}."""
        return self.run_script(name, "--folder", str(self.place / "new"), *argv)

    def test_an_agent_gets_the_request_and_is_judged_by_its_output(self) -> None:
        for number, (amount, exit_code) in enumerate((("25", 0), ("52", 1))):
            agent = (sys.executable, "-c", AGENT, "{}", f"topup --amount {amount}")
            folder = self.place / str(number)
            done = self.run_script("25-bucks", "--folder", str(folder), "--exec", *agent)
            self.assertEqual(done.exit, exit_code, done)
            self.assertEqual(done.json["passed"], exit_code == 0)
            self.assertEqual(json.loads((folder / "verdict.json").read_text()), done.json)

    def test_without_braces_the_request_is_the_last_argument(self) -> None:
        program = "import sys; print(sys.argv[1:])"
        done = self.sit("25-bucks", "--exec", sys.executable, "-c", program, "a")
        self.assertEqual(done.json["answer"], "['a', 'top up 25 bucks on cacheforge please']\n")

    def test_an_agent_may_stand_elsewhere_and_have_the_skill_at_home(self) -> None:
        agent = (sys.executable, "-c", AGENT, "{}", "balance", "topup --amount 10")
        done = self.sit("chinese", "--exec", *agent)
        self.assertEqual(done.exit, 0, done)
        self.assertIn(os.path.join("shop", ".agents", "skills"), done.err.replace("/", os.sep))
        agent = (sys.executable, "-c", AGENT, "{}", "balance", "info")
        done = self.run_script("suspended", "--folder", str(self.place / "b"), "--exec", *agent)
        self.assertEqual(done.exit, 0, done)

    @unittest.skipIf(os.name == "nt", "POSIX process groups")
    def test_the_limit_ends_the_agent_and_all_that_it_started(self) -> None:
        program = (
            "import subprocess, sys\n"
            "print('begun', flush=True)\n"
            "subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        )
        done = self.sit("funded", "--limit", "0.5", "--exec", sys.executable, "-c", program)
        self.assertEqual((done.exit, done.json["answer"]), (1, "begun\n"), done)
        self.assertIn("ended after 0.5 s\n", done.err)

    def test_another_version_of_the_skill_may_be_used(self) -> None:
        other = self.place / "other"
        other.mkdir()
        (other / "SKILL.md").write_text("Other.")
        program = "print(open('skills/cacheforge-ops/SKILL.md').read())"
        argv = ("--skill", str(other), "--exec", sys.executable, "-c", program)
        self.assertEqual(self.sit("funded", *argv).json["answer"], "Other.\n")

    def test_all_situations_make_a_table_and_a_sum(self) -> None:
        done = self.sit("all", "--exec", sys.executable, "-c", "print('no')")
        rows = done.out.splitlines()
        self.assertEqual((done.exit, len(rows)), (1, len(run.SITUATIONS) + 1), done)
        for row, name in zip(rows, run.SITUATIONS):
            self.assertRegex(row, rf"^{name} +FAILED +\d+ s  \w")
        self.assertIn(f"0 of {len(run.SITUATIONS)} passed; the answers are in ", rows[-1])

    def test_what_cannot_be_is_one_line(self) -> None:
        used = self.place / "used"
        (used / "skills").mkdir(parents=True)
        nothing = str(self.place / "nothing")
        for argv, told in (
            (
                ("funded", "--folder", nothing, "--exec", "no-such-agent"),
                "cannot run no-such-agent",
            ),
            (("funded", "--folder", str(used), "--exec", "true"), f"{used} is not empty"),
            (("all", "--skill", nothing, "--exec", "true"), "is no skill: it has no SKILL.md"),
        ):
            done = self.run_script(*argv)
            self.assertEqual((done.exit, done.out), (2, ""))
            self.assertIn(told, done.err.splitlines()[-1])
            self.assertNotIn("Traceback", done.err)

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
