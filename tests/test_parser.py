"""Parser: bad command lines get one clear answer, exit 2, and nothing is sent."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
import unittest

from contract import ContractTest, objects
from support import OPS, ROOT, call_ops, ops, run

SECRET = "sk-or-v1-Sup3rS3cret"
COMMANDS = ("balance", "topup", "auto-topup", "upstream", "keys", "info")


class BadInput(ContractTest):
    def test_options_that_lack_their_verb(self) -> None:
        for line, verb in (
            ("auto-topup --threshold 500", "--enable"),
            ("auto-topup --amount 500", "--enable"),
            ("auto-topup --disable --threshold 500", "--enable"),
            ("auto-topup --disable --amount 500", "--enable"),
            ("upstream --kind openrouter", "--set"),
            ("upstream --base-url https://llm.example.com", "--set"),
            ("upstream --api-key abcdef", "--set"),
            ("upstream --api-key-env THEIRS", "--set"),
            ("keys --yes", "--revoke"),
            ("keys --force", "--revoke"),
            ("keys --create --yes", "--revoke"),
            ("keys --create --force", "--revoke"),
            ("keys --save new.key", "--create"),
            ("keys --revoke key_1 --yes --save new.key", "--create"),
        ):
            self.refused(*line.split(), says=verb, THEIRS="abcdef")

    def test_options_that_exclude_each_other_or_lack_a_part(self) -> None:
        for line in (
            "auto-topup --enable --disable",
            "keys --create --revoke key_1",
            "upstream --set --kind custom --api-key - --api-key-env X",
            "upstream --set",
            "upstream --set --kind custom",
            "upstream --set --kind azure",
            "topup --method cash",
            "topup --amount",
            "balance extra",
            "balance --wat",
        ):
            self.refused(*line.split(), stdin="abcdef\n")

    def test_a_dry_run_of_a_read_is_no_silent_no_op(self) -> None:
        for command in ("balance", "info", "auto-topup", "upstream", "keys"):
            self.refused(command, "--dry-run")

    def test_abbreviated_options_are_refused_on_every_command(self) -> None:
        for line in (
            *("topup --am 25", "auto-topup --en", "upstream --se", "keys --creat"),
            *("balance --js", "info --verb", "--js balance", "--vers"),
        ):
            self.refused(*line.split())

    def test_an_unknown_command_lists_the_six_and_asks_for_the_near_one(self) -> None:
        for typed, near in (
            ("balence", "balance"),
            ("balances", "balance"),
            ("autotopup", "auto-topup"),
            ("auto-top-up", "auto-topup"),
            ("top-up", "topup"),
            ("key", "keys"),
        ):
            told = self.refused(typed).err
            for command in COMMANDS:
                self.assertIn(command, told)
            self.assertRegex(told, rf"(?i)did you mean\W+{near}\b")
        self.assertNotRegex(self.refused("qqqqqq").err, "(?i)did you mean")

    def test_durations(self) -> None:
        for value in ("0", "-1", "nan", "inf", "1e3", "", "soon"):
            self.refused("balance", f"--timeout={value}", says="--timeout")
            for command in ("balance", "topup"):
                self.refused(command, f"--wait={value}", says="--wait")
        told = self.ops("balance", "--timeout", "100000").err + self.ops("topup", "--wait=1e9").err
        self.assertNotRegex(told, r"above 0\b(?!.*\d)")

    def test_a_mistyped_secret_never_comes_back(self) -> None:
        for argv in (
            ("upstream", "--set", "--apikey", SECRET),
            ("upstream", "--set", f"--apikey={SECRET}"),
            ("upstream", f"--set={SECRET}"),
            ("upstream", "--set", "--kind", SECRET),
            ("upstream", "--set", "--base-url", SECRET),
            ("upstream", "--set", "--api-key", SECRET + " x"),
            ("upstream", "--set", "--api-key-env", SECRET),
            ("upstream", "--set", "--api-key", SECRET, "--kind"),
            ("upstream", SECRET),
            (SECRET,),
            (f"--{SECRET}", "balance"),
            ("topup", "--amount", SECRET),
            ("topup", "--method", f"it's {SECRET}"),
            ("keys", "--revoke", SECRET, "--yes"),
            ("balance", "--timeout", SECRET),
        ):
            for extra in ((), ("--json",), ("--verbose",)):
                with self.subTest(argv=argv, extra=extra):
                    result = self.fails(2, *argv, *extra)
                    self.assertNotIn("Sup3rS3cret", result.err)
        self.assertEqual(self.box.writes, [])


class Shape(ContractTest):
    def test_common_options_work_before_and_after_the_command(self) -> None:
        for line in (
            "--json --timeout 5 --verbose balance",
            "balance --json --timeout 5 --verbose",
            "--json balance --timeout 5 --verbose",
            "--verbose balance --json",
        ):
            result = self.ops(*line.split())
            self.assertEqual((result.exit, result.json["balance_usd"]), (0, "12.34"))
            self.assertIn("/v1/account/billing", result.err)
        self.refused("--timeout", "0", "balance")

    def test_usage_errors_come_in_the_envelope_wherever_json_stands(self) -> None:
        for line in (
            *("--json topup --amount x", "topup --amount x --json", "--json", "--json balence"),
            *("balence --json", "balance --wat --json"),
        ):
            result = self.refused(*line.split())
            (said,) = objects(result.err)
            self.has(said["error"], code="usage", exit=2, retryable=False, http_status=None)

    def test_version(self) -> None:
        for flag in ("--version", "-V"):
            self.assertIn(ops.__version__, call_ops(flag).out)
            self.assertEqual(call_ops(flag, "--json").json, {"version": ops.__version__})
        self.assertEqual(call_ops("--json", "--version").json, {"version": ops.__version__})


class Help(ContractTest):
    def words(self, *argv: str) -> str:
        """A help page on one line."""
        result = call_ops(*argv, "--help")
        self.assertEqual((result.exit, result.err), (0, ""), result)
        return " ".join(result.out.split())

    def test_it_has_commands_examples_exit_codes_and_variables(self) -> None:
        shown = call_ops("--help").out
        for command in COMMANDS:
            self.assertRegex(shown, rf"(?m)^\s+{command}\b")
        for code in (0, 1, 2, 3, 4, 5, 6, 130):
            self.assertRegex(shown, rf"(?m)(^|\s\s){code} +[a-zA-Z]")
        for name in (
            *("CACHEFORGE_API_KEY", "CACHEFORGE_BASE_URL", "CACHEFORGE_MAX_TOPUP_USD"),
            *("CACHEFORGE_ALLOW_INSECURE_HTTP", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE"),
            *("NO_COLOR", "https://app.anvil-ai.io", "500"),
        ):
            self.assertIn(name, shown)

    def test_what_it_says_of_5_and_6_is_which_may_be_repeated(self) -> None:
        codes = re.search(r"(?i)exit codes?\b.*?\b5 (.*?)\b6 (.*?)\b130\b", self.words())
        assert codes
        self.assertIn("repeat", codes[1])
        self.assertNotIn("safe to repeat", codes[2])
        self.assertIn("key", codes[2])

    def test_each_command_names_its_defaults_units_and_kinds(self) -> None:
        for command, defaults in (
            ("balance", ("30", "100")),
            ("topup", ("10", "stripe", "100")),
            ("auto-topup", ("200", "1000")),
        ):
            told = re.findall(r"default[:s]? \$?([a-z0-9]+)", self.words(command))
            self.assertLessEqual(set(defaults), set(told), command)
        for word in ("stripe", "crypto", "dollars", "typically"):
            self.assertIn(word, self.words("topup"))
        self.assertIn("cents", self.words("auto-topup"))
        for kind in ("openrouter", "anthropic", "custom", "openai"):
            self.assertIn(kind, self.words("upstream"))

    def test_each_example_on_a_page_is_a_command_that_works(self) -> None:
        self.box.service.create_key({})
        self.save_card()
        self.addCleanup(os.chdir, os.getcwd())
        for page in ((), *((command,) for command in COMMANDS)):
            shown = call_ops(*page, "--help").out.replace("KEY_ID", "key_2")
            env = dict.fromkeys(re.findall(r"--api-key-env (\w+)", shown), "sk-or-v1-abcdef")
            examples = re.findall(rf"(?m)^ +(?:python3 )?\S*{OPS.name} +(.+)$", shown)
            self.assertGreaterEqual(len(examples), 1 if page else 3, shown)
            for line in examples:
                with tempfile.TemporaryDirectory() as folder:
                    os.chdir(folder)
                    result = self.ops(*shlex.split(line), stdin="sk-or-v1-abcdef\n", **env)
                    os.chdir(ROOT)
                self.assertIn(result.exit, (0, 4), (line, result))

    def test_a_bare_call_shows_the_help_and_exits_2(self) -> None:
        result = call_ops()
        self.assertEqual((result.exit, result.out), (2, ""))
        for command in COMMANDS:
            self.assertRegex(result.err, rf"(?m)^\s+{command}\b")

    @unittest.skipUnless(os.path.exists("/dev/full"), "needs /dev/full")
    def test_on_a_full_disk_it_fails_in_one_line(self) -> None:
        for argv in ("--help", "--version", "topup --help"):
            result = run("sh", "-c", f'"$0" "$1" {argv} > /dev/full', sys.executable, str(OPS))
            self.assertEqual((result.exit, len(result.err.splitlines())), (1, 1), result)
            self.assertNotIn("mistake", result.err)


class OlderPython(unittest.TestCase):
    def test_it_says_in_one_line_which_python_it_needs(self) -> None:
        old = "import runpy, sys; sys.version_info = (3, 8, 20, 'final', 0); sys.argv.pop(0);"
        old += "runpy.run_path(sys.argv[0], run_name='__main__')"
        result = run(sys.executable, "-c", old, str(OPS), "balance")
        self.assertNotEqual(result.exit, 0)
        self.assertEqual(result.out, "")
        self.assertIn("3.9", result.err)
        self.assertEqual(len(result.err.splitlines()), 1)
