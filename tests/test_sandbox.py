"""The sandbox: honest enough to be anybody's mock, and easy to stop."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import sys
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from support import DEFAULT_KEY, PATIENCE_S, ROOT, Fault, Result, Sandbox, SandboxTest, run, start

SCRIPT = str(ROOT / "tests" / "sandbox.py")


def run_sandbox(*argv: str) -> Result:
    return run(sys.executable, SCRIPT, *argv)


class Wire(SandboxTest):
    """Spoken to by urllib, a client that was never written for it."""

    def call(
        self, method: str, path: str, body: object = None, key: str = DEFAULT_KEY
    ) -> tuple[int, Any]:
        request = urllib.request.Request(
            self.box.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {key}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                status, content = response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                status, content = error.code, error.read()
        return status, json.loads(content)

    def page(self, url: str, method: str = "GET") -> str:
        request = urllib.request.Request(url, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.read().decode()  # type: ignore[no-any-return]

    def pay_link(self, amount_usd: int = 10, method: str = "stripe") -> str:
        body = {"amountUsd": amount_usd, "method": method}
        status, reply = self.call("POST", "/v1/account/billing/topup", body)
        self.assertEqual(status, 200)
        return reply["paymentUrl"]  # type: ignore[no-any-return]

    def test_the_key_is_checked(self) -> None:
        for key in ("", "cf_wrong", DEFAULT_KEY + "x"):
            status, reply = self.call("GET", "/v1/account/billing", key=key)
            self.assertEqual(status, 401)
            self.assertIn("message", reply["error"])

    def test_paying_credits_once_however_often_it_is_pressed(self) -> None:
        link = self.pay_link(25)
        page = self.page(link)
        for part in ("$25.00", "by card", "<button>Pay $25.00"):
            self.assertIn(part, page)
        for _ in range(3):
            self.assertIn("Paid", self.page(link, "POST"))
        self.assertEqual(self.box.books.balance_microusd, 37_340_000)
        self.assertNotIn("<button>", self.page(link))

    def test_a_card_payment_saves_the_card_and_crypto_does_not(self) -> None:
        self.page(self.pay_link(10, "crypto"), "POST")
        self.assertFalse(self.box.books.card_saved)
        self.page(self.pay_link(10, "stripe"), "POST")
        self.assertTrue(self.box.books.card_saved)

    def test_bad_topups_are_refused(self) -> None:
        bodies: tuple[object, ...] = (
            {"amountUsd": 9, "method": "stripe"},
            {"amountUsd": True, "method": "stripe"},
            {"amountUsd": 10.5, "method": "stripe"},
            {"amountUsd": 10, "method": "cash"},
            {},
            [],
        )
        for body in bodies:
            self.assertEqual(self.call("POST", "/v1/account/billing/topup", body)[0], 400)

    def test_auto_topup_refills_when_usage_takes_the_balance_below(self) -> None:
        rule = {"enabled": True, "thresholdCents": 1234, "amountCents": 1000}
        path = "/v1/account/billing/auto-topup"
        self.assertEqual(self.call("PATCH", path, rule)[0], 400)
        self.save_card()
        self.assertEqual(self.call("PATCH", path, rule)[0], 200)
        self.call("POST", "/v1/chat/completions", {})
        self.assertEqual(self.box.books.balance_microusd, 12_340_000 - 20_000 + 10_000_000)

    def test_keys_are_shown_once_and_die_when_revoked(self) -> None:
        _, made = self.call("POST", "/v1/account/keys", {})
        _, listed = self.call("GET", "/v1/account/keys")
        self.assertNotIn(made["apiKey"], json.dumps(listed))
        self.assertEqual(listed["keys"][1]["prefix"], made["prefix"])
        self.assertEqual(self.call("GET", "/v1/account/info", key=made["apiKey"])[0], 200)
        self.assertEqual(self.call("POST", f"/v1/account/keys/{made['id']}/revoke", {})[0], 200)
        self.assertEqual(self.call("GET", "/v1/account/info", key=made["apiKey"])[0], 401)

    def test_the_provider_is_shown_without_its_key(self) -> None:
        parts = {"kind": "openrouter", "apiKey": "sk-or-secret"}
        self.assertEqual(self.call("POST", "/v1/account/upstream", parts)[0], 200)
        _, reply = self.call("GET", "/v1/account/upstream")
        self.assertEqual(reply, {"configured": True, "upstream": {"kind": "openrouter"}})

    def test_the_gateway_answers_402_once_credit_is_used_up(self) -> None:
        self.box.books.credit("spent", -12_330_000)
        status, reply = self.call("POST", "/v1/chat/completions", {"model": "m"})
        self.assertEqual((status, reply["choices"][0]["finish_reason"]), (200, "stop"))
        self.assertEqual(self.call("POST", "/v1/chat/completions", {})[0], 402)
        self.assertEqual(self.call("GET", "/v1/account/billing")[0], 200)

    def test_unknown_paths_and_methods(self) -> None:
        self.assertEqual(self.call("GET", "/v1/account/nothing")[0], 404)
        self.assertEqual(self.call("PUT", "/v1/account/billing", {})[0], 405)


BILLING = "GET /v1/account/billing"


class Switches(unittest.TestCase):
    """What the command line can set up, seen by a client that is not ours."""

    def ask(self, *options: str, call: str = BILLING, times: int = 1) -> list[str]:
        """What a plain client inside the sandbox gets: status, kind and body, or the failure."""
        program = (
            "import os, sys, http.client as h\n"
            "base, key = os.environ['CACHEFORGE_BASE_URL'], os.environ['CACHEFORGE_API_KEY']\n"
            f"for _ in range({times}):\n"
            "    connection = h.HTTPConnection(base[7:], timeout=1)\n"
            "    try:\n"
            "        headers = {'Authorization': 'Bearer ' + key}\n"
            f"        connection.request(*{call!r}.split(), '{{}}', headers)\n"
            "        r = connection.getresponse()\n"
            "        print(r.status, r.getheader('Content-Type'), r.read().decode())\n"
            "    except (OSError, h.HTTPException) as error:\n"
            "        print(type(error).__name__.replace('TimeoutError', 'timeout'))\n"
            "    connection.close()\n"
        )
        result = run_sandbox(*options, "--exec", sys.executable, "-c", program)
        self.assertEqual((result.exit, result.err), (0, ""), result)
        return result.out.splitlines()

    def reply(self, *options: str, call: str = BILLING) -> Any:
        """The JSON of an honest answer."""
        (line,) = self.ask(*options, call=call)
        self.assertTrue(line.startswith("200 application/json "), line)
        return json.loads(line[len("200 application/json ") :])

    def test_card_and_rule(self) -> None:
        billing = self.reply("--balance", "1", "--card", "--rule", "250:1050")["billing"]
        self.assertTrue(billing["defaultPaymentMethodSet"])
        self.assertTrue(billing["autoTopupEnabled"])
        self.assertEqual(billing["autoTopupThresholdCents"], 250)
        self.assertEqual(billing["autoTopupAmountCents"], 1050)
        self.assertEqual(billing["creditBalanceMicrousd"], 1_000_000)
        self.assertFalse(self.reply()["billing"]["defaultPaymentMethodSet"])

    def test_tenant_and_status(self) -> None:
        options = ("--tenant", "Müller & Söhne", "--status", "suspended", "--keys", "2")
        tenant = self.reply(*options, call="GET /v1/account/info")["tenant"]
        self.assertEqual((tenant["name"], tenant["status"]), ("Müller & Söhne", "suspended"))
        self.assertEqual(tenant["activeKeys"], 3)

    def test_upstream_with_and_without_an_address(self) -> None:
        for option, shown in (
            ("anthropic", {"kind": "anthropic"}),
            (
                "custom=https://a.example/v1?b=c",
                {"kind": "custom", "baseUrl": "https://a.example/v1?b=c"},
            ),
        ):
            reply = self.reply("--upstream", option, call="GET /v1/account/upstream")
            self.assertEqual(reply, {"configured": True, "upstream": shown})

    def test_more_keys_are_labelled_and_the_same_each_time(self) -> None:
        lists = [self.reply("--keys", "2", call="GET /v1/account/keys")["keys"] for _ in range(2)]
        self.assertEqual([key["id"] for key in lists[0]], ["key_1", "key_2", "key_3"])
        self.assertEqual([key["label"] for key in lists[0]], ["sandbox", "agent 2", "agent 3"])
        self.assertEqual(lists[0][1:], lists[1][1:])
        self.assertEqual(len({key["prefix"] for key in lists[0]}), 3)

    def test_keys_are_shown_as_asked(self) -> None:
        for word, prefix, marked in (
            ("plain", DEFAULT_KEY[:12], True),
            ("masked", DEFAULT_KEY[:7] + "\u2026", True),
            ("bare", None, True),
            ("unmarked", DEFAULT_KEY[:12], False),
        ):
            (key,) = self.reply("--show-keys", word, call="GET /v1/account/keys")["keys"]
            with self.subTest(word):
                self.assertEqual((key.get("prefix"), "revokedAt" in key), (prefix, marked))

    def test_each_kind_of_fault_is_met_once_then_the_service_answers(self) -> None:
        for what, met in (
            ("503", '503 application/json {"error": {"message": "Service Unavailable"'),
            ("599", '599 application/json {"error": {"message": "Scripted"'),
            ("200", "200 application/json {}"),
            ('409:{"a": 1}', '409 application/json {"a": 1}'),
            ("500:bad=luck", "500 text/plain; charset=utf-8 bad=luck"),
            ("429:", "429 text/plain; charset=utf-8 "),
            ('{"billing": 7}', '200 application/json {"billing": 7}'),
            ("[1", "200 text/plain; charset=utf-8 [1"),
            ("lost", "RemoteDisconnected"),
            ("reset", "ConnectionResetError"),
            ("hang", "timeout"),
            ("html", "200 text/html <!doctype html>"),
            ("empty", "200 application/json "),
            ("cut", "IncompleteRead"),
        ):
            first, second = self.ask("--fault", f"{BILLING}={what}", times=2)
            with self.subTest(what):
                self.assertTrue(first.lower().startswith(met.lower()), first)
                self.assertTrue(second.startswith('200 application/json {"billing"'), second)

    def test_a_drip_keeps_the_connection_busy_and_never_comes_to_an_end(self) -> None:
        with (
            Sandbox() as box,
            socket.create_connection(
                (box.url[7:].split(":")[0], int(box.url.rsplit(":", 1)[1])), 10
            ) as client,
        ):
            box.script(BILLING, Fault.of("drip"))
            client.sendall(b"GET /v1/account/billing HTTP/1.1\r\nHost: a\r\n\r\n")
            self.assertEqual([client.recv(1) for _ in range(4)], [b"H", b"T", b"T", b"P"])

    def test_faults_are_used_up_in_order_and_may_be_counted(self) -> None:
        options = (
            "--fault",
            f"{BILLING}=2*503",
            "--fault",
            f"{BILLING}=429",
            "--fault",
            "GET /v1/account/info=500",
        )
        lines = self.ask(*options, times=4)
        self.assertEqual([line[:3] for line in lines], ["503", "503", "429", "200"])

    def test_done_carries_it_out_before_the_fault(self) -> None:
        for what, done in (
            ("503", 0),
            ("done+503", 1),
            ("lost", 1),
            ("reset", 0),
            ("done+reset", 1),
            ("2*done+html", 2),
        ):
            with Sandbox() as box:
                times, _, rest = what.rpartition("*")
                box.script("POST /v1/account/keys", *[Fault.of(rest)] * int(times or 1))
                for _ in range(int(times or 1)):
                    request = urllib.request.Request(
                        box.url + "/v1/account/keys",
                        b"{}",
                        {"Authorization": f"Bearer {DEFAULT_KEY}"},
                    )
                    with contextlib.suppress(OSError, http.client.HTTPException):
                        urllib.request.urlopen(request, timeout=10).close()
                self.assertEqual(len(box.books.keys) - 1, done, what)

    def test_bad_switches_are_told_what_is_wrong_with_them(self) -> None:
        for argv, told in (
            (
                ("--fault", "GET /v1/account/bill=503"),
                "'GET /v1/account/bill' is no call of this service",
            ),
            (("--fault", "503"), "write CALL=WHAT"),
            (("--fault", f"{BILLING}=sleepy"), "'sleepy' is neither a status"),
            (("--fault", f"{BILLING}=99"), "'99' is neither a status"),
            (("--fault", f"{BILLING}=0*503"), "'0*503' is neither a status"),
            (("--fault", f"{BILLING}="), "'' is neither a status"),
            (("--rule", "200"), "must be THRESHOLD_CENTS:AMOUNT_CENTS"),
            (("--rule", "200:0"), "must be THRESHOLD_CENTS:AMOUNT_CENTS"),
            (("--upstream", "custom"), "openrouter, anthropic or custom=URL"),
            (("--upstream", "none"), "openrouter, anthropic or custom=URL"),
            (("--keys", "-1"), "must be a number"),
            (("--show-keys", "not"), "invalid choice"),
        ):
            result = run_sandbox(*argv, "balance")
            with self.subTest(argv):
                self.assertEqual((result.exit, result.out), (2, ""))
                self.assertIn(told, result.err.splitlines()[-1])


class CommandLine(unittest.TestCase):
    def test_it_runs_ops_against_a_fresh_account(self) -> None:
        result = run_sandbox("--balance", "-1.50", "balance")
        self.assertEqual((result.exit, result.err), (0, ""))
        self.assertIn("-$1.50", result.out)

    def test_the_exit_code_is_that_of_the_command(self) -> None:
        self.assertEqual(run_sandbox("balance", "--wat").exit, 2)
        program = "import sys; sys.exit(7)"
        self.assertEqual(run_sandbox("--exec", sys.executable, "-c", program).exit, 7)

    def test_exec_sets_both_variables(self) -> None:
        program = (
            "from os import environ as e\n"
            "print(e['CACHEFORGE_BASE_URL'][:7], len(e['CACHEFORGE_API_KEY']))"
        )
        result = run_sandbox("--key", "cf_mine", "--exec", sys.executable, "-c", program)
        self.assertEqual(result.out, "http:// 7\n")

    def test_an_unknown_program_is_a_clear_error(self) -> None:
        result = run_sandbox("--exec", str(Path("no") / "such" / "program"))
        self.assertEqual(result.exit, 127)
        self.assertNotIn("Traceback", result.err)

    def test_its_help_explains_itself(self) -> None:
        for option in ("--balance", "--pay-after", "--key", "--serve", "--exec", "--port"):
            self.assertIn(option, run_sandbox("--help").out)

    def test_bad_options_exit_2(self) -> None:
        for argv in ((), ("--balance", "ten", "balance"), ("--serve", "balance")):
            result = run_sandbox(*argv)
            self.assertEqual(result.exit, 2)
            self.assertNotIn("Traceback", result.err)

    @unittest.skipIf(os.name == "nt", "POSIX signals")
    def test_serve_prints_two_exports_logs_and_frees_its_port_on_ctrl_c(self) -> None:
        child = start(sys.executable, SCRIPT, "--serve")
        assert child.stdout and child.stderr
        exports = [child.stdout.readline() for _ in range(2)]
        self.assertRegex(exports[0], r"^export CACHEFORGE_BASE_URL=http://127\.0\.0\.1:\d+\n$")
        self.assertEqual(exports[1], f"export CACHEFORGE_API_KEY={DEFAULT_KEY}\n")
        port = int(exports[0].rsplit(":", 1)[1])
        with self.assertRaises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/account/info", timeout=10)
        caught.exception.close()
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=PATIENCE_S)
        self.assertEqual((child.returncode, out), (0, ""))
        self.assertIn("GET /v1/account/info 401", err)
        self.assertNotIn("Traceback", err)
        with socket.socket() as probe:
            self.assertNotEqual(probe.connect_ex(("127.0.0.1", port)), 0)

    def test_somebody_pays_each_link_after_a_while(self) -> None:
        program = (
            "import os, subprocess, sys, time, json\n"
            f"ops = [sys.executable, {str(ROOT / 'skills/cacheforge-ops/ops.py')!r}]\n"
            "subprocess.run([*ops, 'topup'], stdout=subprocess.DEVNULL, check=True)\n"
            "end = time.monotonic() + 30\n"
            "while time.monotonic() < end:\n"
            "    out = subprocess.run([*ops, 'balance', '--json'], stdout=-1, check=True).stdout\n"
            "    if json.loads(out)['funded']: sys.exit(0)\n"
            "sys.exit(1)\n"
        )
        began = time.monotonic()
        argv = ("--balance", "0", "--pay-after", "0.5", "--exec", sys.executable, "-c", program)
        self.assertEqual(run_sandbox(*argv).exit, 0)
        self.assertGreaterEqual(time.monotonic() - began, 0.5)
