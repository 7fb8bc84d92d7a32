"""What tests of the contract share: odd services, refusals, and the commands of `Next:`."""

from __future__ import annotations

import json
import re
from typing import Any

from support import Result, SandboxTest, next_words


def objects(text: str) -> list[Any]:
    """The JSON objects in `text`, one a line and nothing else."""
    for line in text.splitlines():
        assert line.startswith("{"), text
    return [json.loads(line) for line in text.splitlines()]


def rows(text: str) -> dict[str, str]:
    """The lines of `label   value` in a report, as a mapping."""
    parts = [re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines()]
    return {part[0]: part[1] for part in parts if len(part) == 2}


def next_commands(result: Result) -> list[list[str]]:
    """The arguments of each command that a result says to run next."""
    lines = (result.out + result.err).splitlines()
    told = [line[len("Next: ") :] for line in lines if line.startswith("Next: ")]
    for line in lines:
        if line.startswith("{"):
            shown = json.loads(line)
            told.append((shown.get("error") or shown).get("next"))
    return [next_words(line) for line in told if line]


class ContractTest(SandboxTest):
    """A fresh sandbox, which can be made to tell anything of itself."""

    def service_says(self, call: str, reply: object) -> None:
        """Let the service always answer one call of the API with `reply`."""
        self.box.service.routes[call] = lambda body: reply

    def has(self, found: dict[str, Any], **expected: object) -> None:
        """Check that `found` holds what is expected; it may hold more."""
        self.assertEqual({**found, **expected}, found)

    def refused(self, *argv: str, says: str = "", stdin: str = "", **env: str) -> Result:
        """Run what must be refused here: exit 2, nothing sent, and `says` is on stderr."""
        before = len(self.box.requests)
        result = self.ops(*argv, stdin=stdin, **env)
        with self.subTest(argv=argv, env=env):
            self.assertEqual((result.exit, result.out), (2, ""), result)
            self.assertEqual(len(self.box.requests), before)
            self.assertIn(says, result.err)
            self.assertTrue(result.err)
        return result

    def follow(self, result: Result) -> Result:
        """Run the last command that a result says to run next: it must not be refused."""
        words = next_commands(result)[-1]
        followed = self.ops(*words)
        self.assertNotEqual(followed.exit, 2, (words, followed))
        return followed
