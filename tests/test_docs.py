"""The documents: every command line they show is run, so that none goes stale."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import textwrap
import unittest
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import ClassVar

import sandbox
from support import (
    CREATE,
    KEPT,
    OPS,
    ROOT,
    SECTIONS,
    SKILL,
    Result,
    Sandbox,
    SandboxTest,
    call_ops,
    git,
    in_process,
    ops,
    run,
    section_of,
    shown_commands,
)

README = (ROOT / "README.md").read_text("utf-8")
SKILLS = [(SKILL / name).read_text("utf-8") for name in ("SKILL.md", "SKILL.zh-CN.md")]
VARIABLE = re.compile(r"\bCACHEFORGE_[A-Z_]+|\b[A-Z_]+_(?:COLOR|PROXY|FILE)\b")


def help_text(*argv: str) -> str:
    result = call_ops(*argv, "--help")
    assert result.exit == 0, result
    return result.out


COMMANDS = re.findall(r"^    ([a-z][a-z-]*) +\S", help_text().partition("\noptions:")[0], re.M)


def command_lines(text: str) -> Iterator[list[str]]:
    """The arguments of every `ops.py ...` in a page, spelled with a path or without, and
    of every code span that is such arguments; what is the shell's is left off."""
    command = "|".join(COMMANDS)
    spelled = rf"(?m)(?:^|[ `/(])ops\.py ((?:{command})(?: [^`|#;\n]*)?)"
    for line in re.findall(spelled, text) + re.findall(rf"`((?:{command})(?: [^`]*)?)`", text):
        yield list(takewhile(lambda word: not re.search("[<>&()]", word), line.split()))


def options_of(*command: str) -> set[str]:
    """The long options that the help of a command lists, or that of the whole program."""
    listed = help_text(*command).partition("\noptions:\n")[2].partition("\n\n")[0]
    return set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", listed, re.M))


def names_in(value: object) -> set[str]:
    """The names of all fields of a JSON value."""
    if isinstance(value, list):
        return {name for item in value for name in names_in(item)}
    if isinstance(value, dict):
        return {name for item in value.items() for name in (item[0], *names_in(item[1]))}
    return set()


def table(heading: str) -> list[list[str]]:
    """The rows of the table under a heading of the README, or after a sentence that ends so."""
    rest = README.partition(heading)[2].partition("\n| --- ")[2]
    rows = takewhile(lambda line: line.startswith("| "), rest.splitlines()[1:])
    return [re.split(r" (?<!\\)\| ", row.strip("| ")) for row in rows]


class CommandLines(unittest.TestCase):
    STAND_INS: ClassVar = {"KEY_ID": "key_2", '"$id"': "key_2", "sk-or-...": "sk-or-v1-abcdef"}
    UNFINISHED = (["keys", "--revoke"], ["upstream", "--set"])  # the arguments are elsewhere

    def check(self, text: str, at_least: int) -> None:
        """Run the command lines of a page, each on an account of its own."""
        lines = [argv for argv in command_lines(text) if argv not in self.UNFINISHED]
        self.assertGreaterEqual(len(lines), at_least)
        with tempfile.TemporaryDirectory() as folder:
            for number, argv in enumerate(lines):
                words = [self.STAND_INS.get(word, word) for word in argv]
                words = [re.sub(r"^\w+\.key$", rf"{folder}/{number}", word) for word in words]
                with self.subTest(argv=argv), Sandbox() as box:
                    box.apply(card_saved=True, keys=["CI"], pay_after_s=0)
                    result = call_ops(*words, **box.env, OPENROUTER_API_KEY="sk-or-v1-abcdef")
                    expected = 4 if argv == ["balance", "--min", "20"] else 0
                    self.assertEqual(result.exit, expected, result)

    def test_those_of_the_pages_run(self) -> None:
        for text in (README, SKILLS[0]):  # the Chinese page has those of the English one
            self.check(text, 13)

    def test_those_of_the_help_run(self) -> None:
        for command in COMMANDS:
            self.check(help_text(command).partition("examples:")[2], 1)


class Agreement(unittest.TestCase):
    def test_the_chinese_page_has_the_same_commands_variables_and_paths(self) -> None:
        english, chinese = (
            re.findall(r"`([^`]+)`", page.rpartition("\n---\n")[2].replace("SKILL.md", ""))
            for page in SKILLS
        )
        self.assertGreater(len(english), 40)
        self.assertEqual(chinese, english)

    def test_every_command_is_on_every_page(self) -> None:
        self.assertGreaterEqual(len(COMMANDS), 6)
        spans = re.findall(r"`ops\.py ([a-z][a-z-]*)", str(table("\n## Commands\n")))
        self.assertEqual(set(spans), set(COMMANDS))
        wants = re.findall(r"^\| (?!---).* \| (.*) \|$", SKILLS[0], re.MULTILINE)[1:]
        self.assertEqual(set(re.findall(r"`([a-z-]+)", " ".join(wants))), set(COMMANDS))

    def test_every_option_is_in_the_readme(self) -> None:
        offered = options_of().union(*map(options_of, COMMANDS))
        self.assertGreaterEqual(len(offered), 20)
        section = re.split("\n## ", README.partition("\n## Commands\n")[2])[0]
        self.assertEqual(set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", section)), offered)

    def test_every_exit_code_is_on_every_page(self) -> None:
        listed = help_text().partition("\nexit codes:\n")[2].partition("\n\n")[0]
        codes = re.findall(r"^  (\d+) +\S", listed, re.MULTILINE)
        self.assertGreaterEqual(len(codes), 8)
        names = {row[0]: row[1] for row in table("\n## Exit codes\n")}
        self.assertEqual(list(names), codes)
        for page in SKILLS:
            self.assertEqual(re.findall(r"^- (\d+)[:\uff1a]", page, re.MULTILINE), codes)
        shown = list(shown_commands("console"))
        self.assertEqual({str(answer.exit) for answer in shown}, set(codes))
        for answer in shown:
            for line in answer.err:
                if line.startswith('{"error":'):
                    self.assertEqual(json.loads(line)["error"]["code"], names[str(answer.exit)])

    def test_every_variable_that_the_program_reads_is_declared_and_explained(self) -> None:
        nodes = ast.walk(ast.parse(OPS.read_text("utf-8")))
        texts = [str(node.value) for node in nodes if isinstance(node, ast.Constant)]
        read = {text for text in texts if VARIABLE.fullmatch(text)}
        self.assertGreaterEqual(len(read), 5)
        declared = set(re.findall(r"- name: (\w+)", SKILLS[0]))
        self.assertLessEqual(read, declared & set(VARIABLE.findall(README)))
        self.assertEqual(declared, set(VARIABLE.findall(help_text())))

    def test_the_version_is_the_same_everywhere(self) -> None:
        self.assertEqual(call_ops("--version").out, f"cacheforge-ops {ops.__version__}\n")
        self.assertEqual(sandbox.__version__, ops.__version__)
        self.assertIn(f'version: "{ops.__version__}"\n', SKILLS[0])
        changes = (SKILL / "CHANGELOG.md").read_text("utf-8")
        self.assertEqual(re.findall(r"^## \[(.*?)\]", changes, re.M)[0], ops.__version__)
        offer = json.loads((ROOT / ".claude-plugin" / "marketplace.json").read_text("utf-8"))
        (plugin,) = offer["plugins"]
        self.assertEqual(plugin["version"], ops.__version__)
        self.assertEqual((plugin["name"], plugin["source"]), (SKILL.name, "./"))
        self.assertEqual(plugin["skills"], [f"./skills/{SKILL.name}"])

    def test_a_tag_on_this_commit_names_the_version(self) -> None:
        tags = git("tag", "--points-at", "HEAD", "v*").split()
        self.assertLessEqual(set(tags), {f"v{ops.__version__}"})

    def test_every_link_to_a_file_leads_somewhere(self) -> None:
        for page in (ROOT / "README.md", *ROOT.glob(".github/*.md"), *SKILL.glob("*.md")):
            for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text("utf-8")):
                self.assertTrue((page.parent / target).exists(), f"{page.name}: {target}")

    def test_what_the_commands_of_the_readme_leave_behind_is_ignored_by_git(self) -> None:
        left = {"new.key", *re.findall(r"> ?([a-z]+\.[a-z]+)", README)}
        self.assertEqual(set(git("check-ignore", *left).split()), left)


class JsonFields(SandboxTest):
    # rows of the README's table whose fields it takes these commands to show
    SHOWN: ClassVar[dict[str, tuple[str, ...]]] = {
        "balance": ("balance", "balance --min 5", "balance --min 50 --wait 1"),
        "topup": ("topup", "topup --wait 1"),
        "auto-topup": ("auto-topup", "auto-topup --enable"),
        "keys --create": ("keys --create", "keys --create --save FOLDER/new.key"),
        "keys --revoke": ("keys --revoke key_2 --yes",),
        "--dry-run": ("keys --create --dry-run",),
        "failure": ("topup --amount 0",),
    }

    def fields(self, line: str) -> set[str]:
        """The names of the fields that a command shows, in all its lines."""
        with tempfile.TemporaryDirectory() as folder:
            result = self.ops(*line.replace("FOLDER", folder).split(), "--json")
        said = (result.out or result.err).splitlines()
        return set().union(*(names_in(json.loads(line)) for line in said))

    def test_every_field_is_in_the_readme(self) -> None:
        self.box.apply(card_saved=True, keys=["CI"])
        told = table("unknown is `null`.")
        rows = [re.findall("`([^`]+)`", what) + re.findall("failure", what) for what, _ in told]
        self.assertLessEqual({*COMMANDS, *self.SHOWN}, {name for names in rows for name in names})
        balance = set(re.findall("`([a-z_]+)`", told[0][1].partition("; with")[0]))
        for names, (_, text) in zip(rows, told):
            with self.subTest(names):
                listed = set(re.findall("`([a-z_]+)`", text))
                if "`balance` object" in text:
                    listed = listed - {"balance"} | balance
                lines = [line for name in names for line in self.SHOWN.get(name, (name,))]
                self.assertEqual(set().union(*map(self.fields, lines)), listed)


class Audit(unittest.TestCase):
    """The greps of SECURITY.md, run: each finds its places in the section that it names."""

    page: ClassVar = (ROOT / ".github" / "SECURITY.md").read_text("utf-8")
    greps: ClassVar = re.findall(r"^(grep -nE '.*' ops\.py) +# (.*)$", page, re.MULTILINE)

    def found(self, command: str) -> set[int]:
        """The numbers of the lines that a grep shows."""
        done = run("sh", "-c", f"LC_ALL=C.UTF-8 {command}", folder=SKILL)
        return {int(line.partition(":")[0]) for line in done.out.splitlines()}

    @unittest.skipIf(os.name == "nt" or not shutil.which("grep"), "needs grep and a shell")
    def test_each_finds_its_places_in_the_section_it_names_and_no_others(self) -> None:
        promised = [(command, said) for command, said in self.greps if ": " in said]
        self.assertEqual((len(promised), len(self.greps)), (6, 8))
        for command, said in promised:
            section = said.rpartition(": ")[2]
            found = {section_of(line) for line in self.found(command) if line > min(SECTIONS)}
            self.assertEqual(found, set() if section == "nowhere" else {section}, said)
        sections, imports = (self.found(command) for command, _ in self.greps[:2])
        self.assertEqual(sections, set(SECTIONS))
        nodes = ast.walk(ast.parse(OPS.read_text("utf-8")))
        kinds = (ast.Import, ast.ImportFrom)
        self.assertLessEqual({node.lineno for node in nodes if isinstance(node, kinds)}, imports)


def block(start: str) -> str:
    """The block of the README that begins like this."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (found,) = [text for text in blocks if text.startswith(start)]
    return str(found)


def inline(start: str) -> str:
    """The one command in a sentence of the README that begins like this."""
    (line,) = re.findall(rf"`({re.escape(start)}[^`]*)`", README)
    return str(line)


@unittest.skipIf(os.name == "nt", "a POSIX shell")
class Pasted(unittest.TestCase):
    """What the README says to paste, in a folder that is also the home."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        (self.folder / ".bin").mkdir()
        os.symlink(sys.executable, self.folder / ".bin" / "python3")

    def paste(self, script: str, *needs: str, **env: str) -> Result:
        """Run a block in a shell."""
        for program in needs:
            if not shutil.which(program):
                self.skipTest(f"needs {program}")
        path = f"{self.folder / '.bin'}{os.pathsep}{KEPT['PATH']}"
        env = {"PATH": path, "HOME": str(self.folder), **env}
        return run("sh", "-c", script, folder=self.folder, **env)


class InAClone(Pasted):
    def setUp(self) -> None:
        super().setUp()
        for name in ("tests", "skills"):
            os.symlink(ROOT / name, self.folder / name)
        os.symlink(self.folder, self.folder / "cacheforge-ops")

    def test_the_first_output_is_the_real_one(self) -> None:
        command = "python3 tests/sandbox.py balance"
        done = self.paste(command)
        self.assertEqual(block(f"$ {command}\n"), f"$ {command}\n{done.out}{done.err}")

    def test_the_first_link_can_be_paid_while_the_command_waits(self) -> None:
        line = inline("python3 tests/sandbox.py --balance 0 topup --wait")
        done = in_process(line.replace("topup", "--pay-after 0 topup"))
        self.assertEqual(done.exit, 0, done)
        self.assertRegex(done.out, r"(?s)http://127\.0\.0\.1:\d+/pay/\w+.*rose by \$10\.00")

    def test_a_lost_key_exits_6(self) -> None:
        done = in_process(inline("python3 tests/sandbox.py --fault"))
        self.assertEqual((done.exit, done.out), (6, ""), done)

    def test_the_key_of_a_job_is_revoked_at_its_end(self) -> None:
        script = block("set -e\npython3 skills/cacheforge-ops/ops.py keys")
        with Sandbox() as box:
            done = self.paste(script, **box.env)
            self.assertEqual(done.exit, 0, done)
            self.assertIn("Balance       $12.34", done.out)
            own, job = box.account.keys
            self.assertEqual((own.revoked_at, bool(job.revoked_at)), (None, True))
            (used,) = [asked for asked in box.requests if asked.path.endswith("/billing")]
            self.assertEqual(used.headers["Authorization"], f"Bearer {job.secret}")
            self.assertEqual([*self.folder.glob("job.*")], [])
            box.add_faults(CREATE, 400)  # without a key, none is revoked
            del box.requests[:]
            self.assertEqual(self.paste(script, **box.env).exit, 1)
            self.assertEqual(box.calls("POST"), [CREATE])

    def test_the_status_line_asks_once_in_five_minutes(self) -> None:
        with Sandbox("12.34") as box:
            for faults, asked in (((), 1), ((), 1), ((400,), 2)):
                if faults:
                    box.add_faults("GET /v1/account/billing", *faults)
                    os.utime(self.folder / ".cache" / "cacheforge-balance", (0, 0))
                shown = self.paste(block("f=~/.cache"), **box.env).out
                self.assertEqual((shown, len(box.calls())), ("Balance       $12.34\n", asked))

    def test_the_cron_line_speaks_only_of_trouble(self) -> None:
        command = block("0 7 * * *").partition("* * * ")[2]
        with Sandbox("20") as box:
            self.assertEqual(self.paste(command, **box.env).out, "")
            box.set_balance("19.99")
            self.assertIn("19.99", self.paste(command, **box.env).out)
        nowhere = {**box.env, "CACHEFORGE_BASE_URL": "http://127.0.0.1:9"}
        command = command.replace("balance", "balance --timeout 1")
        self.assertIn("127.0.0.1:9", self.paste(command, **nowhere).out)


class InYourOwnProject(Pasted):
    """The README's blocks for other projects, in a folder with nothing but sandbox.py."""

    def setUp(self) -> None:
        super().setUp()
        shutil.copy(ROOT / "tests" / "sandbox.py", self.folder)

    @unittest.skipUnless(importlib.util.find_spec("pytest"), "pytest is not installed")
    def test_the_test_for_pytest(self) -> None:
        test = block("import json")
        for text, exit_code in ((test, 0), (test.replace("balance_usd=0", "balance_usd=1"), 1)):
            (self.folder / "test_credit.py").write_text(text)
            argv = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_credit.py")
            done = run(sys.executable, *argv, folder=self.folder, PYTHONWARNINGS="")
            self.assertEqual(done.exit, exit_code, done)

    def test_the_test_for_a_shell(self) -> None:
        test = block("python3 sandbox.py --balance 0 --exec sh")
        done = self.paste(test, "curl")
        self.assertEqual(done.exit, 0, done)
        self.assertNotEqual(self.paste(test.replace("--balance 0", "--balance 1")).exit, 0)

    def test_the_test_for_javascript(self) -> None:
        (self.folder / "credit.mjs").write_text(block("import assert"))
        done = self.paste(inline("python3 sandbox.py --exec node"), "node")
        self.assertEqual(done.exit, 0, done)

    def test_the_job_whose_steps_are_shells_of_their_own(self) -> None:
        (self.folder / "credit.mjs").write_text(block("import assert"))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = str(probe.getsockname()[1])
        job = block("jobs:").replace("8466", port)
        steps = re.findall(r"^ {6}- run: (?:\|\n((?: {10}.*\n)+)|(.*))", job, re.M)
        self.assertEqual(len(steps), 2)
        variables, pid = self.folder / "github.env", self.folder / "pid"
        env = {"GITHUB_ENV": str(variables)}
        for lines, line in steps:
            script = textwrap.dedent(lines or line).replace("&\n", f"2>log & echo $! > {pid}\n")
            done = self.paste(f"set -e\n{script}", "curl", "node", **env)
            if lines:
                self.addCleanup(os.kill, int(pid.read_text()), signal.SIGTERM)
            self.assertEqual(done.exit, 0, done)
            env.update(re.findall("^(.*?)=(.*)$", variables.read_text(), re.M))
        self.assertEqual(env["OPENAI_BASE_URL"], f"http://127.0.0.1:{port}/v1")

    def test_the_table_names_what_there_is(self) -> None:
        table = README.partition("| in Python |")[2].partition("\n\n")[0]
        with Sandbox() as box:
            names = re.findall(r"`box\.(\w+)", table)
            self.assertGreater(len(names), 9)
            self.assertEqual([name for name in names if not hasattr(box, name)], [])
            calls = {call.split()[1] for call in box.controls}
        self.assertEqual(set(re.findall(r"/sandbox/\w+", table)), calls)
