"""The sandbox: honest enough to be anybody's mock, and easy to stop."""

from __future__ import annotations

import contextlib
import html.parser
import http.client
import json
import os
import queue
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import sandbox
from support import (
    BILLING,
    CREATE,
    DEFAULT_KEY,
    OPS,
    PATIENCE_S,
    ROOT,
    TOPUP,
    Fault,
    Result,
    Sandbox,
    SandboxTest,
    run,
    start,
)

SCRIPT = str(ROOT / "tests" / "sandbox.py")
CHAT = "POST /v1/chat/completions"


def run_sandbox(*argv: str) -> Result:
    return run(sys.executable, SCRIPT, *argv)


class Reply:
    """What came over the wire."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.kind = response.headers.get("Content-Type", "")
        self.text = response.read().decode()

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def ask(box: Sandbox, call: str, body: object = None, **headers: str) -> Reply:
    """Send one request with http.client, which follows nothing and adds little."""
    method, _, path = call.partition(" ")
    sent = {"Authorization": f"Bearer {box.books.api_key}"}
    sent = {**sent, **{name.replace("_", "-"): value for name, value in headers.items()}}
    content = body if isinstance(body, str) else None if body is None else json.dumps(body)
    sent.setdefault("Content-Type", "application/json")
    connection = http.client.HTTPConnection(box.url.partition("://")[2], timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request(method, path, content, sent)
        return Reply(connection.getresponse())


def dial(box: Sandbox) -> socket.socket:
    """A bare connection."""
    host, _, port = box.url.partition("://")[2].partition(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


class Wire(SandboxTest):
    """The service, spoken to by a client that was never written for it."""

    def ask(self, call: str, body: object = None, **headers: str) -> Reply:
        return ask(self.box, call, body, **headers)

    def pay_link(self, amount_usd: int = 10, method: str = "stripe") -> str:
        reply = self.ask(TOPUP, {"amountUsd": amount_usd, "method": method})
        return str(reply.json["paymentUrl"])

    def test_the_key_is_checked(self) -> None:
        for value in ("", "Bearer cf_wrong", f"Bearer {DEFAULT_KEY}x", f"Basic {DEFAULT_KEY}"):
            reply = self.ask(BILLING, Authorization=value)
            self.assertEqual(reply.status, 401)
            self.assertEqual(reply.json["error"]["code"], "invalid_api_key")

    def test_header_names_and_the_scheme_have_no_case(self) -> None:
        for name in ("authorization", "AUTHORIZATION", "aUTHORIZATION"):
            with dial(self.box) as wire:
                wire.sendall(
                    f"GET /v1/account/billing HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
                    f"{name}: bearer {DEFAULT_KEY}\r\n\r\n".encode()
                )
                self.assertEqual(wire.makefile().readline(), "HTTP/1.1 200 OK\n")

    def test_a_card_payment_saves_the_card_and_crypto_does_not(self) -> None:
        self.assertTrue(self.box.pay(self.pay_link(10, "crypto")))
        self.assertFalse(self.box.books.card_saved)
        self.assertTrue(self.box.pay(self.pay_link(10, "stripe")))
        self.assertTrue(self.box.books.card_saved)

    def test_a_link_leads_back_to_where_the_call_came_to(self) -> None:
        reply = self.ask(TOPUP, {"amountUsd": 10, "method": "stripe"}, Host="sandbox:8402")
        self.assertRegex(reply.json["paymentUrl"], r"^http://sandbox:8402/pay/[0-9a-f]{16}$")

    def test_bad_topups_are_refused(self) -> None:
        for body in (
            *({"amountUsd": amount, "method": "stripe"} for amount in (9, True, 10.5)),
            *({"amountUsd": 10, "method": "cash"}, {}, [], "{", "[" * 100_000),
        ):
            self.assertEqual(self.ask(TOPUP, body).status, 400)
        self.assertEqual(self.box.books.links, {})

    def test_a_body_that_is_not_called_json_is_refused(self) -> None:
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            reply = self.ask(TOPUP, {"amountUsd": 10, "method": "stripe"}, Content_Type=kind)
            self.assertEqual(reply.status, 415)
        self.assertEqual(self.box.books.links, {})

    def test_auto_topup_needs_a_card_and_refills_when_the_balance_is_below(self) -> None:
        rule = {"enabled": True, "thresholdCents": 1234, "amountCents": 1000}
        call = "PATCH /v1/account/billing/auto-topup"
        self.assertEqual(self.ask(call, rule).status, 400)
        self.box.books.auto_topup = {**rule, "thresholdCents": 9999}
        self.ask(CHAT, {})
        self.assertEqual(self.box.books.balance_microusd, 12_320_000)
        self.box.books.credit("back", 20_000)
        self.save_card()
        self.assertEqual(self.ask(call, rule).status, 200)
        self.assertEqual(self.box.books.balance_microusd, 12_340_000)
        self.ask(CHAT, {})
        self.assertEqual(self.box.books.balance_microusd, 12_340_000 - 20_000 + 10_000_000)
        self.ask(call, {**rule, "thresholdCents": 9999})  # at once
        self.assertEqual(self.box.books.balance_microusd, 32_320_000)

    def test_keys_are_shown_once_and_die_when_revoked(self) -> None:
        made = self.ask(CREATE, {}).json
        listed = self.ask("GET /v1/account/keys")
        self.assertNotIn(made["apiKey"], listed.text)
        self.assertEqual(listed.json["keys"][1]["prefix"], made["prefix"])
        theirs = f"Bearer {made['apiKey']}"
        self.assertEqual(self.ask(BILLING, Authorization=theirs).status, 200)
        revoked = self.ask(f"POST /v1/account/keys/{made['id'].replace('_', '%5f')}/revoke", {})
        self.assertEqual(revoked.status, 200)
        self.assertEqual(self.ask(BILLING, Authorization=theirs).status, 401)
        self.assertEqual(self.ask("POST /v1/account/keys/key_9/revoke", {}).status, 404)

    def test_the_provider_is_shown_without_its_key(self) -> None:
        parts = {"kind": "openrouter", "apiKey": "sk-or-secret"}
        self.assertEqual(self.ask("POST /v1/account/upstream", parts).status, 200)
        shown = self.ask("GET /v1/account/upstream").json
        self.assertEqual(shown, {"configured": True, "upstream": {"kind": "openrouter"}})

    def test_the_gateway_answers_402_once_credit_is_used_up(self) -> None:
        self.box.spend("12.33")
        self.assertEqual(self.ask(CHAT, {"model": "m"}).json["choices"][0]["finish_reason"], "stop")
        for call in (CHAT, "POST /v1/messages"):
            reply = self.ask(call, {"stream": True})
            self.assertEqual(reply.status, 402)
            self.assertEqual(reply.json["error"]["code"], "insufficient_credit")

    def test_unknown_paths_are_404_and_other_methods_405_with_those_allowed(self) -> None:
        self.assertEqual(self.ask("GET /v1/account/nothing").status, 404)
        for call, allowed in (
            ("PUT /v1/account/billing", "GET"),
            ("DELETE /v1/account/keys", "GET, POST"),
            ("GET /v1/account/keys/key_1/revoke", "POST"),
            ("OPTIONS /v1/chat/completions", "POST"),
            ("PUT /pay/open", "GET, HEAD, POST"),
            ("POST /pay/open/cancel", "GET, HEAD"),
        ):
            self.box.books.links["open"] = sandbox.Link("open", 10, "stripe")
            reply = self.ask(call)
            self.assertEqual((reply.status, reply.headers["Allow"]), (405, allowed), call)

    def test_head_is_get_without_the_body(self) -> None:
        link = self.pay_link().partition("/pay/")[2]
        for path in ("/v1/account/billing", "/", f"/pay/{link}"):
            reply = self.ask(f"HEAD {path}")
            length = int(reply.headers["Content-Length"])
            self.assertEqual((reply.status, length), (200, len(self.ask(f"GET {path}").text)))
        with dial(self.box) as wire:
            wire.sendall(b"HEAD / HTTP/1.1\r\nConnection: close\r\n\r\n")
            self.assertTrue(wire.makefile(newline="").read().endswith("\r\n\r\n"))

    def test_a_body_that_cannot_be_read_whole_changes_nothing(self) -> None:
        big = "x" * (sandbox.MAX_REQUEST_BYTES + 1)
        for headers, status in (
            ({"Transfer_Encoding": "chunked"}, 411),
            ({"Content_Length": "-1"}, 411),
            ({"Content_Length": str(len(big))}, 413),
        ):
            reply = self.ask(CREATE, "", **headers)
            self.assertEqual((reply.status, reply.headers["Connection"]), (status, "close"))
        with dial(self.box) as wire:
            wire.sendall(
                f"{CREATE} HTTP/1.1\r\nAuthorization: Bearer {DEFAULT_KEY}\r\n"
                "Content-Length: 9\r\n\r\n{}".encode()
            )
            wire.shutdown(socket.SHUT_WR)
            self.assertIn("400", wire.makefile().readline())
        self.assertEqual(len(self.box.books.keys), 1)

    def test_a_request_is_recorded_and_logged_before_it_is_answered(self) -> None:
        lines: queue.Queue[str] = queue.Queue()
        go = threading.Event()

        def log(line: str) -> None:
            lines.put(line)
            go.wait(PATIENCE_S)

        self.box.log = log
        self.box.script("GET /", "503")
        for told in ("GET / (scripted)", "GET / 200"):
            go.clear()
            with dial(self.box) as wire:
                wire.sendall(b"GET / HTTP/1.1\r\n\r\n")
                self.assertEqual(lines.get(timeout=PATIENCE_S), told)
                self.assertEqual(select.select([wire], [], [], 0.1)[0], [])
                self.assertEqual(self.box.calls()[-1], "GET /")
                go.set()
                self.assertTrue(wire.recv(1))

    def test_the_front_page_says_what_this_is(self) -> None:
        reply = self.ask("GET /", Authorization="")
        self.assertEqual((reply.status, reply.kind), (200, "text/plain; charset=utf-8"))
        for part in ("stands in for the CacheForge service", CHAT, "No money moves"):
            self.assertIn(part, reply.text)

    def test_a_browser_that_looks_for_an_icon_makes_no_noise(self) -> None:
        lines: list[str] = []
        self.box.log = lines.append
        self.assertEqual(self.ask("GET /favicon.ico").text, "")
        self.assertEqual((lines, self.box.requests), ([], []))


class Page(html.parser.HTMLParser):
    """A page whose tags have to be closed, each in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        if self.open:
            raise ValueError(f"not closed: {self.open}")

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open.pop() != tag:
            raise ValueError(f"closed too early: {tag}")


class PaymentPages(SandboxTest):
    def get(self, path: str, *parts: str) -> Reply:
        """A page, on which these parts have to stand."""
        reply = ask(self.box, f"GET {path}", Authorization="")
        self.assertEqual(reply.headers["Cache-Control"], "no-store")
        Page(reply.text)
        for part in ('lang="en"', 'name="viewport"', 'href="data:,"', *parts):
            self.assertIn(part, reply.text)
        return reply

    def link(self, amount_usd: int = 25, method: str = "stripe") -> str:
        self.box.books.links["open"] = sandbox.Link("open", amount_usd, method)
        return "/pay/open"

    def test_an_unpaid_link_shows_amount_method_a_button_and_a_way_out(self) -> None:
        parts = (">$1,000.00<", "in crypto", ">Pay $1,000.00<", ">Cancel<", 'method="post"')
        self.get(self.link(1000, "crypto"), *parts, 'href="/pay/open/cancel"')

    def test_paying_leads_to_a_page_that_can_be_reloaded_and_credits_once(self) -> None:
        path = self.link()
        for _ in range(3):
            reply = ask(self.box, f"POST {path}", "", Authorization="")
            self.assertEqual((reply.status, reply.headers["Location"]), (303, path))
        self.assertEqual(self.box.books.balance_microusd, 37_340_000)
        for where in (path, f"{path}/cancel"):
            reply = self.get(where, "Paid. You can close this page.")
            self.assertNotIn('method="post"', reply.text)

    def test_cancelling_charges_nothing_and_leads_back(self) -> None:
        parts = ("Nothing was charged. The link stays open.", 'href="/pay/open"')
        self.assertEqual(self.get(f"{self.link()}/cancel", *parts).status, 200)
        self.assertEqual(self.box.books.balance_microusd, 12_340_000)

    def test_an_unknown_link_gets_a_page_as_good_as_the_others(self) -> None:
        self.link()
        for path in ("/pay/", "/pay/nope", "/pay/open/else", "/pay/%3Cb%3E"):
            reply = self.get(path, ">There is no such payment link<")
            self.assertEqual(reply.status, 404, path)

    def test_every_text_has_a_contrast_of_4_5_in_the_light_and_in_the_dark(self) -> None:
        light, dark = re.findall(r":root \{(.*?)\}", sandbox.STYLE, re.DOTALL)
        for scheme in (light, dark):
            colors = dict(re.findall(r"--(\w+): #(\w+)", scheme))
            pairs = [(colors[ink], colors["card"]) for ink in ("ink", "soft", "good")]
            for ink, paper in (*pairs, ("fff", colors["button"])):
                bright, dim = sorted((luminance(ink), luminance(paper)), reverse=True)
                self.assertGreaterEqual((bright + 0.05) / (dim + 0.05), 4.5, (ink, paper))


def luminance(color: str) -> float:
    """The relative luminance of WCAG 2."""
    wide = color if len(color) == 6 else "".join(digit * 2 for digit in color)
    parts = [int(wide[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


class Faults(SandboxTest):
    """Scripted trouble, in a word each."""

    def meet(self, call: str = BILLING, timeout_s: float = PATIENCE_S) -> str:
        """Status, kind and body; or the exception, as http.client names it."""
        connection = http.client.HTTPConnection(self.box.url.partition("://")[2], timeout=timeout_s)
        with contextlib.closing(connection):
            try:
                headers = {"Authorization": f"Bearer {DEFAULT_KEY}"}
                headers["Content-Type"] = "application/json"
                method, _, path = call.partition(" ")
                connection.request(method, path, "{}", headers)
                reply = Reply(connection.getresponse())
            except (OSError, http.client.HTTPException) as error:
                return type(error).__name__.replace("TimeoutError", "timeout")
        return f"{reply.status} {reply.kind} {reply.text}"

    def test_each_is_met_once_and_then_the_service_answers(self) -> None:
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
            ("html", "200 text/html <!doctype html>"),
            ("empty", "200 application/json "),
            ("cut", "IncompleteRead"),
        ):
            self.box.script(BILLING, what)
            with self.subTest(what):
                self.assertTrue(self.meet().startswith(met))
                self.assertTrue(self.meet().startswith('200 application/json {"billing": {'))

    def test_a_hang_answers_nothing(self) -> None:
        self.box.script(BILLING, "hang")
        self.assertEqual(self.meet(timeout_s=0.2), "timeout")

    def test_a_drip_is_an_answer_that_never_comes_to_an_end(self) -> None:
        self.box.script("GET /", "drip")
        with dial(self.box) as wire:
            wire.sendall(b"GET / HTTP/1.1\r\n\r\n")
            began = time.monotonic()
            self.assertEqual([wire.recv(1) for _ in range(4)], [b"H", b"T", b"T", b"P"])
            self.assertGreater(time.monotonic() - began, 0.25)

    def test_done_carries_it_out_before_the_fault(self) -> None:
        for what, done in (
            *(("503", 0), ("done+503", 1), ("lost", 1), ("reset", 0)),
            *(("done+reset", 1), ("done+html", 1)),
        ):
            before = len(self.box.books.keys)
            self.box.script(CREATE, what)
            self.meet(CREATE)
            self.assertEqual(len(self.box.books.keys) - before, done, what)


class Library(unittest.TestCase):
    def test_a_balance_is_an_int_a_str_or_a_decimal(self) -> None:
        for balance, microusd in (
            *((0, 0), (12, 12_000_000), (-3, -3_000_000), ("12.34", 12_340_000)),
            *(("-1.50", -1_500_000), (Decimal("0.000001"), 1), (Decimal("1E+2"), 100_000_000)),
        ):
            with Sandbox(balance_usd=balance) as box:
                self.assertEqual(box.books.balance_microusd, microusd)
                self.assertEqual(box.balance_usd, Decimal(str(balance)))

    def test_anything_else_is_told_what_to_write(self) -> None:
        for balance in (12.5, True, None, b"1"):
            with self.assertRaisesRegex(TypeError, f"int, str or Decimal, .* not {balance!r}"):
                Sandbox(balance_usd=balance)  # type: ignore[arg-type]
        for text in ("", "ten", "1.2345678", "$5", "1e3", Decimal("NaN")):
            with self.assertRaisesRegex(ValueError, "dollars are written like 0, 12.34 or -1.50"):
                Sandbox(balance_usd=text)

    def test_spend_takes_so_much_or_all_there_is_and_the_rule_refills(self) -> None:
        with Sandbox(balance_usd=5) as box:
            box.spend("1.50")
            self.assertEqual(box.balance_usd, Decimal("3.5"))
            box.spend()
            self.assertEqual(box.balance_usd, 0)
            box.spend(2)
            box.spend()
            self.assertEqual(box.balance_usd, -2)
            with self.assertRaisesRegex(ValueError, "cannot be negative: -1"):
                box.spend(-1)
            box.books.card_saved = True
            box.books.auto_topup = {"enabled": True, "thresholdCents": 100, "amountCents": 1000}
            box.spend(0)
            self.assertEqual(box.balance_usd, 8)

    def test_pay_takes_a_link_or_its_address_and_says_whether_it_was_unpaid(self) -> None:
        with Sandbox(balance_usd=0) as box:
            reply = ask(box, TOPUP, {"amountUsd": 10, "method": "stripe"})
            self.assertTrue(box.pay(reply.json["paymentUrl"]))
            (link,) = box.books.links.values()
            self.assertFalse(box.pay(link))
            self.assertFalse(box.pay(link.token))
            self.assertEqual(box.balance_usd, 10)
            with self.assertRaisesRegex(
                ValueError, f"no payment link 'x'; made so far: {link.token}"
            ):
                box.pay("https://elsewhere.example/pay/x")

    def test_script_refuses_what_could_never_be_met(self) -> None:
        with Sandbox() as box:
            with self.assertRaisesRegex(ValueError, "a call is written as .* not '/v1/models'"):
                box.script("/v1/models", "503")
            with self.assertRaisesRegex(ValueError, "'sleepy' is neither a status"):
                box.script(BILLING, "503", "sleepy")
            box.script("POST /v1/embeddings", Fault.reply(200, {"data": []}))
            self.assertEqual(ask(box, "POST /v1/embeddings", {}).json, {"data": []})

    def test_start_and_close_do_without_a_with(self) -> None:
        box = Sandbox(balance_usd=1).start()
        self.assertEqual(ask(box, BILLING).status, 200)
        box.close()
        box.close()
        with self.assertRaises(OSError):
            ask(box, BILLING)
        Sandbox().close()  # never started

    def test_a_port_that_there_is_not_is_told(self) -> None:
        with self.assertRaisesRegex(OSError, "port 65536: the highest is 65535"):
            Sandbox(port=65536)

    @unittest.skipUnless(socket.has_ipv6, "no IPv6")
    def test_it_may_live_at_an_ipv6_address(self) -> None:
        try:
            box = Sandbox(host="::1")
        except OSError as error:
            self.skipTest(str(error))
        with box:
            self.assertRegex(box.url, r"^http://\[::1\]:\d+$")
            self.assertEqual(ask(box, BILLING).status, 200)

    def test_requests_hold_what_was_asked(self) -> None:
        with Sandbox() as box:
            ask(box, "POST /v1/chat/completions?a=b", {"model": "m"}, X_Mine="1")
            (seen,) = box.requests
        self.assertEqual((seen.call, seen.json), (CHAT, {"model": "m"}))
        self.assertEqual(seen.headers["x-mine"], "1")

    def test_many_threads_use_up_each_fault_once(self) -> None:
        with Sandbox() as box:
            box.script(BILLING, *["503"] * 20)
            with ThreadPoolExecutor(30) as pool:
                statuses = list(pool.map(lambda _: ask(box, BILLING).status, range(30)))
        self.assertEqual((statuses.count(503), statuses.count(200)), (20, 10))

    def test_every_public_name_says_what_it_is(self) -> None:
        for thing in (Sandbox, Fault, sandbox.Seen, sandbox.Link, sandbox.Books):
            for name, member in vars(thing).items():
                if not name.startswith("_") and (callable(member) or isinstance(member, property)):
                    self.assertTrue(member.__doc__, f"{thing.__name__}.{name}")


class CommandLine(unittest.TestCase):
    def test_a_copy_without_ops_says_what_it_can_still_do_and_does_it(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copy(SCRIPT, folder)
            result = run(sys.executable, copy, "balance", folder=folder)
            self.assertEqual(result.exit, 2)
            self.assertIn("'balance' needs ops.py, which is not at", result.err)
            self.assertIn("--serve and --exec CMD work without it", result.err)
            done = run(sys.executable, copy, "--exec", sys.executable, "-c", "print(1)")
            self.assertEqual((done.exit, done.out), (0, "1\n"))

    @unittest.skipIf(os.name == "nt", "a POSIX shell")
    def test_somebody_pays_each_link_after_a_while(self) -> None:
        ops = f"{shlex.quote(sys.executable)} {shlex.quote(str(OPS))}"
        script = (
            f"{ops} topup >&2 && until {ops} balance --min 1 > /dev/null; do :; done; {ops} balance"
        )
        began = time.monotonic()
        result = run_sandbox("--balance", "0", "--pay-after", "0.5", "--exec", "sh", "-c", script)
        self.assertIn("$10.00", result.out)
        self.assertGreaterEqual(time.monotonic() - began, 0.5)


class Serving(unittest.TestCase):
    """`--serve`: until it is told to stop."""

    @contextlib.contextmanager
    def serving(self, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
        """A sandbox in a process of its own, and its port."""
        child = start(sys.executable, SCRIPT, *options, "--serve")
        try:
            assert child.stdout
            exports = [child.stdout.readline() for _ in range(2)]
            self.assertRegex(exports[0], r"^export CACHEFORGE_BASE_URL=http://127\.0\.0\.1:\d+\n$")
            self.assertEqual(exports[1], f"export CACHEFORGE_API_KEY={DEFAULT_KEY}\n")
            yield child, int(exports[0].rsplit(":", 1)[1])
        finally:
            child.kill()
            child.communicate()

    def test_a_busy_port_is_one_sentence(self) -> None:
        with Sandbox() as box:
            port = box.url.rsplit(":", 1)[1]
            result = run_sandbox("--serve", "--port", port)
        told = f"sandbox: cannot listen on 127.0.0.1, port {port}: it is in use; leave the port out"
        self.assertEqual((result.exit, result.out), (2, ""))
        self.assertEqual(result.err, f"{told} to get one that is free\n")

    @unittest.skipIf(os.name == "nt", "POSIX signals")
    def test_a_signal_ends_it_and_frees_its_port_even_where_a_shell_made_it_deaf(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as `&` in a script does
            try:
                serving = self.serving()
                child, port = serving.__enter__()
            finally:
                signal.signal(signal.SIGINT, before)
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as wire:
                wire.request("GET", "/v1/account/info")
                self.assertEqual(wire.getresponse().status, 401)
            child.send_signal(number)
            out, err = child.communicate(timeout=PATIENCE_S)
            self.assertEqual((child.returncode, out), (0, ""))
            self.assertEqual(err.splitlines()[0], "# serving this machine; Ctrl-C stops")
            self.assertRegex(err.splitlines()[1], r"^\d\d:\d\d:\d\d GET /v1/account/info 401$")
            self.assertEqual(len(err.splitlines()), 2)
            with socket.socket() as probe:
                self.assertNotEqual(probe.connect_ex(("127.0.0.1", port)), 0)

    def test_only_this_machine_is_served_unless_asked(self) -> None:
        for options, told in (
            ((), "# serving this machine; Ctrl-C stops\n"),
            (("--host", "0.0.0.0"), "# serving whoever can reach 0.0.0.0; Ctrl-C stops\n"),
        ):
            with self.serving(*options) as (child, port):
                assert child.stderr
                self.assertEqual(child.stderr.readline(), told)
                with socket.socket() as probe:  # another address of this machine
                    refused = probe.connect_ex(("127.0.0.2", port)) != 0
                if sys.platform == "linux":
                    self.assertEqual(refused, not options)

    @unittest.skipUnless(Path("/proc/self/stat").exists(), "reads the CPU time from /proc")
    def test_an_idle_server_uses_no_cpu(self) -> None:
        with self.serving() as (child, port):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as wire:
                wire.request("GET", "/")  # all is set up once this is answered
                wire.getresponse().read()
            counts = []
            for _ in range(4):  # the rest of the first answer, or others' work, may fall in one
                counts.append(self.wake_ups(child.pid))
                time.sleep(0.2)
            self.assertLessEqual(
                min(after - before for before, after in zip(counts, counts[1:])), 2
            )

    def wake_ups(self, pid: int) -> int:
        """How often its threads have begun to wait."""
        texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
        return sum(int(re.findall(r"^voluntary_ctxt_switches:\s*(\d+)", t, re.M)[0]) for t in texts)

    @unittest.skipIf(os.name == "nt", "POSIX signals")
    def test_a_command_is_ended_with_the_sandbox(self) -> None:
        program = "import time; print('up', flush=True); time.sleep(600)"
        child = start(sys.executable, SCRIPT, "--exec", sys.executable, "-c", program)
        assert child.stdout
        self.assertEqual(child.stdout.readline(), "up\n")
        child.terminate()
        out, err = child.communicate(timeout=PATIENCE_S)  # ends when nobody has the pipes open
        self.assertEqual((child.returncode, out, err), (143, "", ""))
