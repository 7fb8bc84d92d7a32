"""The story that the skill is for: a call gets 402, a person pays, the call works."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

from contract import ContractTest, next_commands


class PaymentRequired(ContractTest):
    balance_usd = "0"

    def chat(self) -> int:
        """Send the agent's own call through the gateway; its HTTP status."""
        request = urllib.request.Request(
            f"{self.box.url}/v1/chat/completions",
            data=json.dumps({"model": "m", "messages": []}).encode(),
            headers={"Authorization": f"Bearer {self.box.books.api_key}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def test_each_next_step_leads_from_a_402_to_a_call_that_works(self) -> None:
        for extra in ((), ("--json",)):
            self.box.books.ledger[:] = []
            self.assertEqual(self.chat(), 402)
            (words,) = next_commands(self.ok("balance", *extra))
            made = self.ok(*words, *extra)
            link = list(self.box.books.links)[-1]
            self.assertIn(f"{self.box.url}/pay/{link}", made.out)
            (words,) = next_commands(made)
            unpaid = self.ops(*words, *extra)
            self.assertEqual((unpaid.exit, self.chat()), (4, 402), unpaid)
            with urllib.request.urlopen(f"{self.box.url}/pay/{link}", b"", timeout=10) as page:
                self.assertIn(b"Paid", page.read())
            paid = self.ops(*words, *extra)
            self.assertEqual((paid.exit, self.chat()), (0, 200), paid)
            self.assertEqual(next_commands(self.ok("balance", *extra)), [])
