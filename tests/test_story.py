"""The story that the skill is for: a call gets 402, a person pays, the call works."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

from support import SandboxTest


class PaymentRequired(SandboxTest):
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

    def test_call_402_balance_topup_pay_call(self) -> None:
        self.assertEqual(self.chat(), 402)
        balance = self.ok("balance", "--json").json
        self.assertFalse(balance["funded"])
        argv = balance["next"].split()[2:]  # what it says to run is run as it stands
        link = self.ok(*argv, "--json").json
        self.assertEqual(self.chat(), 402)
        with urllib.request.urlopen(link["payment_url"], data=b"", timeout=10) as page:
            self.assertIn(b"Paid", page.read())
        self.assertTrue(self.ok("balance", "--json").json["funded"])
        self.assertEqual(self.chat(), 200)
