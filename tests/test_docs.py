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
from typing import Any, ClassVar

import sandbox
from support import (
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

FILES = (ROOT / "README.md", SKILL / "SKILL.md", SKILL / "SKILL.zh-CN.md")
PAGES = {page.name: page.read_text("utf-8") for page in FILES}
VARIABLE = re.compile(r"\bCACHEFORGE_[A-Z_]+|\b[A-Z_]+_(?:COLOR|PROXY|FILE)\b")


def help_text(*argv: str) -> str:
    result = call_ops(*argv, "--help")
    assert result.exit == 0, result
    return result.out


def commands_of_help() -> list[str]:
    """The commands that `--help` lists."""
    return re.findall(r"^    ([a-z][a-z-]*) +\S", help_text().partition("\noptions:")[0], re.M)


COMMANDS = commands_of_help()


def command_lines(text: str) -> Iterator[list[str]]:
    """The arguments of every `ops.py ...` in a page, spelled with a path or without, and
    of every code span that is such arguments; what is the shell's is left off."""
    command = "|".join(COMMANDS)
    spelled = rf"(?m)(?:^|[ `/(])ops\.py ((?:{command})(?: [^`|#;\n]*)?)"
    for line in re.findall(spelled, text) + re.findall(rf"`((?:{command})(?: [^`]*)?)`", text):
        yield list(takewhile(lambda word: not re.search("[<>&()]", word), line.split()))


def options_of(*command: str) -> set[str]:
    """The long options that the help of a command lists, or that of the whole program."""
    _, _, listed = help_text(*command).partition("\noptions:\n")
    return set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", listed.partition("\n\n")[0], re.M))


def exit_codes_of_help() -> list[str]:
    """The exit codes that `--help` lists."""
    _, _, listed = help_text().partition("\nexit codes:\n")
    return re.findall(r"^  (\d+) +\S", listed.partition("\n\n")[0], re.MULTILINE)


def names_in(value: object) -> set[str]:
    """The names of all fields of a JSON value."""
    if isinstance(value, list):
        return {name for item in value for name in names_in(item)}
    if isinstance(value, dict):
        return {name for item in value.items() for name in (item[0], *names_in(item[1]))}
    return set()


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the table under a heading of the README, or after a sentence that ends so."""
    rest = page.partition(heading)[2].partition("\n| --- ")[2]
    rows = takewhile(lambda line: line.startswith("| "), rest.splitlines()[1:])
    return [re.split(r" (?<!\\)\| ", row.strip("| ")) for row in rows]


def read_variables() -> set[str]:
    """The environment variables that stand as whole texts in the program."""
    tree = ast.parse((SKILL / "ops.py").read_text("utf-8"))
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {text for text in texts if isinstance(text, str) and VARIABLE.fullmatch(text)}


def declared_variables() -> set[str]:
    """The environment variables that SKILL.md declares to its host."""
    return set(re.findall(r"- name: (\w+)", PAGES["SKILL.md"]))


def plugin() -> dict[str, Any]:
    """The one plugin that the marketplace file offers."""
    text = (ROOT / ".claude-plugin" / "marketplace.json").read_text("utf-8")
    (offered,) = json.loads(text)["plugins"]
    assert isinstance(offered, dict)
    return offered


STAND_INS = {"KEY_ID": "key_2", '"$id"': "key_2", "sk-or-...": "sk-or-v1-abcdef"}
UNFINISHED = (["keys", "--revoke"], ["upstream", "--set"])


class CommandLines(SandboxTest):
    def setUp(self) -> None:
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def runs(self, argv: list[str]) -> None:
        self.save_card()
        self.ops("keys", "--create")
        self.box.apply(pay_after_s=0)
        spoken = [STAND_INS.get(word, word) for word in argv]
        spoken = [re.sub(r"^(\w+\.key)$", rf"{self.folder}/\1", word) for word in spoken]
        result = self.ops(*spoken, OPENROUTER_API_KEY="sk-or-v1-abcdef")
        expected = 4 if argv == ["balance", "--min", "20"] else 0
        self.assertEqual(result.exit, expected, f"{argv}\n{result}")

    def check(self, text: str, at_least: int) -> None:
        """Run the command lines of a page, each on an account of its own."""
        lines = list(command_lines(text))
        self.assertGreaterEqual(len(lines), at_least)
        for argv in lines:
            if argv not in UNFINISHED:  # named, not shown: the arguments are elsewhere
                with self.subTest(argv=argv):
                    self.setUp()
                    self.runs(argv)
                    self.doCleanups()

    def test_those_of_the_pages_run(self) -> None:
        for text in PAGES.values():
            self.check(text, 13)

    def test_those_of_the_help_run(self) -> None:
        for command in COMMANDS:
            self.check(help_text(command).partition("examples:")[2], 1)


class Agreement(unittest.TestCase):
    readme = PAGES["README.md"]

    def test_every_command_is_on_every_page(self) -> None:
        self.assertGreaterEqual(len(COMMANDS), 6)
        spans = re.findall(r"`ops\.py ([a-z][a-z-]*)", str(table(self.readme, "\n## Commands\n")))
        self.assertEqual(set(spans), set(COMMANDS))
        for name in ("SKILL.md", "SKILL.zh-CN.md"):
            body = PAGES[name].rpartition("\n---\n")[2]
            wants = re.findall(r"^\| (?!---).* \| (.*) \|$", body, re.MULTILINE)[1:]
            spans = re.findall(r"`([a-z-]+)", " ".join(wants))
            self.assertEqual(set(spans), set(COMMANDS), name)

    def test_every_option_is_in_the_readme(self) -> None:
        offered = options_of().union(*map(options_of, COMMANDS))
        self.assertGreaterEqual(len(offered), 20)
        section = re.split("\n## ", self.readme.partition("\n## Commands\n")[2])[0]
        self.assertEqual(set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", section)), offered)

    def test_every_exit_code_is_on_every_page(self) -> None:
        codes = exit_codes_of_help()
        self.assertGreaterEqual(len(codes), 8)
        rows = table(self.readme, "\n## Exit codes\n")
        self.assertEqual([row[0] for row in rows], codes)
        for name in ("SKILL.md", "SKILL.zh-CN.md"):
            listed = re.findall(r"^- (\d+)[:\uff1a]", PAGES[name], re.MULTILINE)
            self.assertEqual(listed, codes, name)
        self.assertEqual({str(answer.exit) for answer in shown_commands("console")}, set(codes))

    def test_the_names_of_the_exit_codes_are_those_of_the_errors(self) -> None:
        named = {row[0]: row[1] for row in table(self.readme, "\n## Exit codes\n")}
        for answer in shown_commands("console"):
            for line in answer.err:
                if line.startswith('{"error":'):
                    self.assertEqual(json.loads(line)["error"]["code"], named[str(answer.exit)])

    def test_every_variable_that_the_program_reads_is_declared_and_explained(self) -> None:
        read = read_variables()
        self.assertGreaterEqual(len(read), 5)
        self.assertLessEqual(read, set(VARIABLE.findall(PAGES["README.md"])))
        self.assertLessEqual(read, declared_variables())
        self.assertEqual(declared_variables(), set(VARIABLE.findall(help_text())))

    def test_the_version_is_the_same_everywhere(self) -> None:
        self.assertIn(f'version: "{ops.__version__}"\n', PAGES["SKILL.md"])
        changes = (SKILL / "CHANGELOG.md").read_text("utf-8")
        self.assertEqual(re.findall(r"^## \[(.*?)\]", changes, re.M)[0], ops.__version__)
        self.assertEqual(call_ops("--version").out, f"cacheforge-ops {ops.__version__}\n")
        self.assertEqual(plugin()["version"], ops.__version__)
        self.assertEqual(sandbox.__version__, ops.__version__)

    def test_a_tag_on_this_commit_names_the_version(self) -> None:
        tags = git("tag", "--points-at", "HEAD", "v*").split()
        self.assertLessEqual(set(tags), {f"v{ops.__version__}"})


# what the README's table of JSON fields calls a row, and commands that show all of its fields
SHOWN: dict[str, tuple[str, ...]] = {
    "balance": ("balance", "balance --min 5", "balance --min 50 --wait 1"),
    "topup": ("topup", "topup --wait 1"),
    "auto-topup": ("auto-topup", "auto-topup --enable"),
    "upstream": ("upstream",),
    "keys": ("keys",),
    "keys --create": ("keys --create", "keys --create --save FOLDER/new.key"),
    "keys --revoke": ("keys --revoke key_2 --yes",),
    "info": ("info",),
    "--dry-run": ("keys --create --dry-run",),
    "--version": ("--version",),
    "failure": ("topup --amount 0",),
}


class JsonFields(SandboxTest):
    def fields(self, line: str) -> set[str]:
        """The names of the fields that a command shows, in all its lines."""
        with tempfile.TemporaryDirectory() as folder:
            argv = line.replace("FOLDER", folder).split()
            result = self.ops(*argv, "--json")
        said = result.out or result.err
        return {name for told in said.splitlines() for name in names_in(json.loads(told))}

    def test_every_field_is_in_the_readme(self) -> None:
        self.save_card()
        self.box.service.create_key({})
        for name in COMMANDS:
            self.assertIn(name, SHOWN)
        told = table(PAGES["README.md"], "unknown is `null`.")
        rows = [re.findall("`([^`]+)`", what) + re.findall("failure", what) for what, _ in told]
        self.assertEqual(sorted(name for names in rows for name in names), sorted(SHOWN))
        balance = set(re.findall("`([a-z_]+)`", told[0][1].partition("; with")[0]))
        for names, (_, text) in zip(rows, told):
            with self.subTest(names):
                listed = set(re.findall("`([a-z_]+)`", text))
                if "`balance` object" in text:
                    listed = listed - {"balance"} | balance
                lines = [line for name in names for line in SHOWN[name]]
                self.assertEqual(set().union(*map(self.fields, lines)), listed)


class Skill(unittest.TestCase):
    head = PAGES["SKILL.md"].split("---\n")[1]

    def test_the_front_matter_has_the_five_keys_of_the_specification(self) -> None:
        keys = re.findall(r"^([a-z-]+):", self.head, re.MULTILINE)
        self.assertEqual(keys, ["name", "description", "license", "compatibility", "metadata"])
        self.assertIn(f"name: {SKILL.name}\n", self.head)

    def test_the_description_is_quoted_short_and_without_angle_brackets(self) -> None:
        match = re.search(r'^description: "([^"<>]+)"$', self.head, re.MULTILINE)
        assert match
        self.assertLess(len(match[1]), 500)
        for word in ("balance", "402", "Use "):
            self.assertIn(word, match[1][:160])

    def test_it_never_tells_an_agent_to_act_without_asking(self) -> None:
        for phrase in ("without confirm", "do not ask", "without asking", "ignore", "autonomous"):
            self.assertNotIn(phrase, PAGES["SKILL.md"].lower())

    def test_it_says_first_that_the_program_lies_beside_it_and_names_the_published_path_once(
        self,
    ) -> None:
        for name in ("SKILL.md", "SKILL.zh-CN.md"):
            text = PAGES[name]
            first = text.index("`ops.py`")
            self.assertLess(first, text.index("**402"))
            self.assertEqual(text.count("skills/cacheforge-ops/ops.py"), 1)


class Translation(unittest.TestCase):
    """The Chinese page says the same things in the same places."""

    def spans(self, name: str) -> list[str]:
        body = PAGES[name].rpartition("---\n# ")[2] if name == "SKILL.md" else PAGES[name]
        return re.findall(r"`([^`]+)`", body.replace("SKILL.md", ""))

    def test_commands_flags_variables_and_paths_are_the_same_in_the_same_order(self) -> None:
        self.assertEqual(self.spans("SKILL.zh-CN.md"), self.spans("SKILL.md"))

    def test_every_step_and_section_is_there(self) -> None:
        for pattern in (r"^## ", r"^\d\. ", r"^- ", r"^\| "):
            english, chinese = (
                len(re.findall(pattern, PAGES[name].rpartition("\n---\n")[2], re.MULTILINE))
                for name in ("SKILL.md", "SKILL.zh-CN.md")
            )
            self.assertEqual(english, chinese, pattern)


class Readme(unittest.TestCase):
    text = PAGES["README.md"]

    def test_the_first_two_commands_are_the_promised_ones(self) -> None:
        self.assertEqual(
            re.findall(r"^\$ (python3 .*)$", self.text, re.MULTILINE)[:2],
            ["python3 tests/sandbox.py balance", "python3 -m unittest discover -s tests"],
        )

    def test_the_shown_output_is_the_real_one(self) -> None:
        shown = re.findall(
            r"^\$ python3 (tests/sandbox\.py .*)\n((?:(?!```).*\n)*)```", self.text, re.MULTILINE
        )
        self.assertGreaterEqual(len(shown), 1)
        for command, expected in shown:
            done = run(sys.executable, *command.split())
            self.assertEqual(plain(done.out + done.err), plain(expected), command)

    def test_every_link_to_a_file_leads_somewhere(self) -> None:
        pages = [ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md", *FILES]
        for page in pages:
            for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text("utf-8")):
                self.assertTrue((page.parent / target).exists(), f"{page.name}: {target}")

    def test_what_its_commands_leave_behind_is_ignored_by_git(self) -> None:
        left = {"new.key", *re.findall(r"> ?([a-z]+\.[a-z]+)", self.text)}
        ignored = git("check-ignore", *left).split()
        self.assertEqual(set(ignored), left)


class Audit(unittest.TestCase):
    """The greps of SECURITY.md, run: each finds its places in the section that it names."""

    lines: ClassVar = list(enumerate(OPS.read_text("utf-8").splitlines(), 1))
    page: ClassVar = (ROOT / ".github" / "SECURITY.md").read_text("utf-8")
    greps: ClassVar = re.findall(r"^(grep -nE '.*' ops\.py) +# (.*)$", page, re.MULTILINE)

    def found(self, command: str) -> list[tuple[int, str]]:
        """Line numbers and lines that a grep shows."""
        pattern = re.compile(command[len("grep -nE '") : -len("' ops.py")])
        return [(number, line) for number, line in self.lines if pattern.search(line)]

    def test_each_finds_its_places_in_the_section_it_names_and_no_others(self) -> None:
        promised = [(command, said) for command, said in self.greps if ": " in said]
        self.assertEqual(len(promised), 6)
        first = min(SECTIONS)
        places = 0
        for command, said in promised:
            section = said.rpartition(": ")[2]
            found = [(number, line) for number, line in self.found(command) if number > first]
            places += len(found)
            with self.subTest(said=said):
                self.assertEqual(bool(found), section != "nowhere")
                self.assertEqual([hit for hit in found if section_of(hit[0]) != section], [])
        self.assertLess(places, 60)

    @unittest.skipIf(sys.version_info < (3, 10), "no list of the standard library's modules")
    def test_what_is_imported_is_shown_and_is_the_standard_library(self) -> None:
        shown = {number for number, _ in self.found(self.greps[1][0])}
        for node in ast.walk(ast.parse(OPS.read_text("utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self.assertIn(node.lineno, shown)
                names = [alias.name for alias in node.names]
                for name in names if isinstance(node, ast.Import) else [str(node.module)]:
                    top = name.partition(".")[0]
                    self.assertIn(top, {*sys.stdlib_module_names, "__future__"})

    @unittest.skipIf(os.name == "nt" or not shutil.which("grep"), "needs grep and a shell")
    def test_grep_finds_what_this_test_finds(self) -> None:
        for command, _ in self.greps:
            done = run("sh", "-c", f"LC_ALL=C.UTF-8 {command}", folder=SKILL)
            numbers = [int(line.partition(":")[0]) for line in done.out.splitlines()]
            self.assertEqual(numbers, [number for number, _ in self.found(command)], command)


@unittest.skipIf(os.name == "nt", "a POSIX shell")
class Snippets(unittest.TestCase):
    """What the README says to paste, pasted into a shell, in a folder like a clone."""

    folder: ClassVar[Path]

    @classmethod
    def setUpClass(cls) -> None:
        place = tempfile.TemporaryDirectory()
        cls.addClassCleanup(place.cleanup)
        cls.folder = Path(place.name)
        for name in ("tests", "skills"):
            os.symlink(ROOT / name, cls.folder / name)
        os.symlink(cls.folder, cls.folder / "cacheforge-ops")
        (cls.folder / "bin").mkdir()
        os.symlink(sys.executable, cls.folder / "bin" / "python3")

    @staticmethod
    def snippet(start: str) -> str:
        """The block of the README that begins like this."""
        blocks = re.findall(r"^```\w*\n(.*?)^```", PAGES["README.md"], re.MULTILINE | re.DOTALL)
        (block,) = [block for block in blocks if block.startswith(start)]
        return str(block)

    @classmethod
    def paste(cls, script: str, **env: str) -> Result:
        """Run a block in a shell, at home in the folder."""
        path = f"{cls.folder / 'bin'}{os.pathsep}{KEPT['PATH']}"
        home = {"PATH": path, "HOME": str(cls.folder)}
        return run("sh", "-c", script, folder=cls.folder, **{**home, **env})

    def needs(self, *programs: str) -> None:
        for program in programs:
            if not shutil.which(program):
                self.skipTest(f"needs {program}")

    def inline(self, start: str) -> str:
        """The one command in a sentence of the README that begins like this."""
        (line,) = re.findall(rf"`({re.escape(start)}[^`]*)`", PAGES["README.md"])
        return str(line)

    def test_the_first_link_can_be_paid_while_the_command_waits(self) -> None:
        line = self.inline("python3 tests/sandbox.py --balance 0 topup --wait")
        done = in_process(line.replace("topup", "--pay-after 0 topup"))
        self.assertEqual(done.exit, 0, done)
        self.assertRegex(done.out, r"http://127\.0\.0\.1:\d+/pay/\w+")
        self.assertRegex(done.out, r"rose by \$10\.00")

    def test_a_lost_key_exits_6(self) -> None:
        done = self.paste(self.inline("python3 tests/sandbox.py --fault"))
        self.assertEqual((done.exit, done.out), (6, ""), done)

    def test_the_key_of_a_job_is_revoked_at_its_end(self) -> None:
        with Sandbox() as box:
            done = self.paste(
                self.snippet("set -e\npython3 skills/cacheforge-ops/ops.py keys"), **box.env
            )
            self.assertEqual(done.exit, 0, done)
            self.assertIn("Balance       $12.34", done.out)
            own, job = box.account.keys
            self.assertEqual((own.revoked_at, bool(job.revoked_at)), (None, True))
            (used,) = [asked for asked in box.requests if asked.path.endswith("/billing")]
            self.assertEqual(used.headers["Authorization"], f"Bearer {job.secret}")
        self.assertEqual([*self.folder.glob("job.*")], [])

    def test_a_job_that_gets_no_key_revokes_none(self) -> None:
        with Sandbox() as box:
            box.add_faults("POST /v1/account/keys", 400)
            script = self.snippet("set -e\npython3 skills/cacheforge-ops/ops.py keys")
            self.assertEqual(self.paste(script, **box.env).exit, 1)
            self.assertEqual(box.calls("POST"), ["POST /v1/account/keys"])

    def test_the_status_line_asks_once_in_five_minutes(self) -> None:
        line = self.snippet("f=~/.cache")
        with Sandbox("12.34") as box:
            shown = [self.paste(line, **box.env).out for _ in range(3)]
            self.assertEqual(shown, ["Balance       $12.34\n"] * 3)
            self.assertEqual(len(box.calls()), 1)
            box.add_faults("GET /v1/account/billing", 400)
            path = self.folder / ".cache" / "cacheforge-balance"
            os.utime(path, (0, 0))
            self.assertEqual(self.paste(line, **box.env).out, "Balance       $12.34\n")
            self.assertEqual(len(box.calls()), 2)

    def test_the_cron_line_speaks_only_of_trouble(self) -> None:
        command = self.snippet("0 7 * * *").partition("* * * ")[2]
        for balance_usd, expected in (("20", ""), ("19.99", "19.99")):
            with Sandbox(balance_usd) as box:
                said = self.paste(command, **box.env).out
                self.assertIn(expected, said)
                self.assertEqual(bool(expected), bool(said))
        nowhere = {**box.env, "CACHEFORGE_BASE_URL": "http://127.0.0.1:9"}
        command = command.replace("balance", "balance --timeout 1")
        self.assertIn("127.0.0.1:9", self.paste(command, **nowhere).out)


class InYourOwnProject(unittest.TestCase):
    """The README's blocks for other projects, in a folder with nothing but sandbox.py."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        shutil.copy(ROOT / "tests" / "sandbox.py", self.folder)
        self.env = {"PATH": f"{self.folder / '.bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
        (self.folder / ".bin").mkdir()
        if os.name != "nt":
            os.symlink(sys.executable, self.folder / ".bin" / "python3")

    def block(self, kind: str, start: str) -> str:
        """The block of the README that begins like this."""
        found = re.findall(rf"^```{kind}\n(.*?)^```", PAGES["README.md"], re.M | re.S)
        (block,) = [block for block in found if block.startswith(start)]
        return str(block)

    def needs(self, *programs: str) -> None:
        for program in programs:
            if not shutil.which(program):
                self.skipTest(f"needs {program}")

    def sh(self, script: str, shell: str = "sh", **env: str) -> Result:
        return run(shell, "-ex", "-c", script, folder=self.folder, **{**self.env, **env})

    @unittest.skipUnless(importlib.util.find_spec("pytest"), "pytest is not installed")
    def test_the_test_for_pytest(self) -> None:
        test = self.block("python", "import json")
        for text, exit_code in ((test, 0), (test.replace("balance_usd=0", "balance_usd=1"), 1)):
            (self.folder / "test_credit.py").write_text(text)
            argv = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_credit.py")
            done = run(sys.executable, *argv, folder=self.folder, PYTHONWARNINGS="")
            self.assertEqual(done.exit, exit_code, done)

    @unittest.skipIf(os.name == "nt", "a POSIX shell")
    def test_the_test_for_a_shell(self) -> None:
        self.needs("curl")
        test = self.block("bash", "python3 sandbox.py --balance 0 --exec sh")
        for shell in filter(shutil.which, ("sh", "bash")):
            done = self.sh(test, shell)
            self.assertEqual(done.exit, 0, done)
            self.assertNotEqual(self.sh(test.replace("--balance 0", "--balance 1"), shell).exit, 0)

    @unittest.skipIf(os.name == "nt", "a POSIX shell")
    def test_the_test_for_javascript(self) -> None:
        self.needs("node")
        (line,) = re.findall(r"`(python3 sandbox\.py --exec node .*?)`", PAGES["README.md"])
        test = self.block("javascript", "import assert")
        for text, exit_code in ((test, 0), (test.replace("Retry-After: 2", "Retry-After: 3"), 1)):
            (self.folder / "credit.mjs").write_text(text)
            done = self.sh(line)
            self.assertEqual(done.exit, exit_code, done)

    @unittest.skipIf(os.name == "nt", "a POSIX shell")
    def test_the_job_whose_steps_are_shells_of_their_own(self) -> None:
        self.needs("curl", "node")
        (self.folder / "credit.mjs").write_text(self.block("javascript", "import assert"))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = str(probe.getsockname()[1])
        job = self.block("yaml", "jobs:").replace("8466", port)
        steps = re.findall(r"^ {6}- run: (?:\|\n((?: {10}.*\n)+)|(.*))", job, re.M)
        self.assertEqual(len(steps), 2)
        variables, pid = self.folder / "github.env", self.folder / "pid"
        env = {**self.env, "GITHUB_ENV": str(variables)}
        self.addCleanup(lambda: os.kill(int(pid.read_text()), signal.SIGTERM))
        for lines, line in steps:
            script = textwrap.dedent(lines or line).replace("&\n", f"2>log & echo $! > {pid}\n")
            done = self.sh(script, **env)
            self.assertEqual(done.exit, 0, done)
            env.update(re.findall("^(.*?)=(.*)$", variables.read_text(), re.M))
        self.assertEqual(env["OPENAI_BASE_URL"], f"http://127.0.0.1:{port}/v1")

    def test_the_file_is_a_part_of_a_release(self) -> None:
        text = (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
        for name in ("ops.py", "sandbox.py"):
            self.assertRegex(text, rf"cp .*/{name}\b.* dist/")
            self.assertRegex(text, rf"sha256sum .*\b{name} .*> SHA256SUMS")

    def test_the_table_names_what_there_is(self) -> None:
        table = PAGES["README.md"].partition("| in Python |")[2].partition("\n\n")[0]
        names = re.findall(r"`box\.(\w+)", table)
        self.assertGreater(len(names), 9)
        with Sandbox() as box:
            for name in names:
                self.assertTrue(hasattr(box, name), name)
            calls = {call.split()[1] for call in box.controls}
        self.assertEqual(set(re.findall(r"/sandbox/\w+", table)), calls)


class Plugin(unittest.TestCase):
    def test_it_is_the_skill_alone(self) -> None:
        offered = plugin()
        self.assertEqual((offered["name"], offered["source"]), (SKILL.name, "./"))
        self.assertEqual(offered["skills"], [f"./skills/{SKILL.name}"])


def plain(text: str) -> str:
    """Output without what differs from run to run: ports, tokens, folders."""
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
    text = re.sub(r"/pay/\w+", "/pay/TOKEN", text)
    return re.sub(r"python3 \S*ops\.py", "python3 ops.py", text)
