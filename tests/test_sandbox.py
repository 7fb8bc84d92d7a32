"""The sandbox: it behaves like the service, is strict with mistakes, and is easy to stop."""

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
from typing import Any, ClassVar
from unittest import mock

import sandbox
from sandbox import Sandbox
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
    SandboxTest,
    ops,
    run,
    start,
)

SCRIPT = str(ROOT / "tests" / "sandbox.py")
CHAT = "POST /v1/chat/completions"
MESSAGES = "POST /v1/messages"
ASK: Any = {"model": "m", "messages": [{"role": "user", "content": "Say hello."}]}


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
    sent = {"Authorization": f"Bearer {DEFAULT_KEY}"}
    if body is not None:
        sent["Content-Type"] = "application/json"
    sent = {**sent, **{name.replace("_", "-"): value for name, value in headers.items()}}
    content = body if isinstance(body, str) else None if body is None else json.dumps(body)
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

    def test_the_key_is_checked_in_either_header(self) -> None:
        for call in (BILLING, "GET /v1/models"):
            for value in ("", "Bearer cf_wrong", f"Bearer {DEFAULT_KEY}x", f"Basic {DEFAULT_KEY}"):
                for key, status in (("", 401), ("cf_wrong", 401), (DEFAULT_KEY, 200)):
                    reply = self.ask(call, Authorization=value, X_Api_Key=key)
                    expected = 401 if value.startswith("Bearer") else status
                    self.assertEqual(reply.status, expected, (value, key))
                    if expected == 401:
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
        for method, saved in (("crypto", False), ("stripe", True)):
            self.assertTrue(self.box.pay(self.pay_link(10, method)))
            self.assertIs(self.box.account.card_saved, saved)

    def test_a_link_leads_back_to_where_the_call_came_to(self) -> None:
        reply = self.ask(TOPUP, {"amountUsd": 10, "method": "stripe"}, Host="sandbox:8402")
        self.assertRegex(reply.json["paymentUrl"], r"^http://sandbox:8402/pay/[0-9a-f]{16}$")

    def test_bad_topups_are_refused(self) -> None:
        for body, told in (
            ({"amountUsd": 9, "method": "stripe"}, "must be at least 10"),
            ({"amountUsd": True, "method": "stripe"}, "must be whole dollars, not True"),
            ({"amountUsd": 10.0, "method": "stripe"}, "must be whole dollars, not 10.0"),
            ({"amountUsd": 10, "method": "cash"}, "method must be stripe or crypto"),
            *(({}, "whole dollars"), ([], "not a JSON object"), ("{", "not JSON")),
            ("[" * 100_000, "not JSON"),
        ):
            reply = self.ask(TOPUP, body)
            self.assertEqual(reply.status, 400)
            self.assertIn(told, reply.json["error"]["message"])
        self.assertEqual(self.box.account.links, {})

    def test_auto_topup_needs_a_card_and_refills_when_the_balance_is_below(self) -> None:
        rule = {"enabled": True, "thresholdCents": 1234, "amountCents": 1000}
        call = "PATCH /v1/account/billing/auto-topup"
        self.assertEqual(self.ask(call, rule).status, 400)
        self.box.account.auto_topup = {**rule, "thresholdCents": 9999}
        self.ask(CHAT, ASK)
        self.assertEqual(self.box.account.balance_microusd, 12_320_000)
        self.box.account.credit("back", 20_000)
        self.save_card()
        self.assertEqual(self.ask(call, rule).status, 200)
        self.assertEqual(self.box.account.balance_microusd, 12_340_000)
        self.ask(CHAT, ASK)
        self.assertEqual(self.box.account.balance_microusd, 12_340_000 - 20_000 + 10_000_000)
        self.ask(call, {**rule, "thresholdCents": 9999})  # at once
        self.assertEqual(self.box.account.balance_microusd, 32_320_000)

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

    def test_an_unknown_or_incomplete_provider_is_refused_with_the_reason(self) -> None:
        for parts, told in (
            ({"kind": "openai"}, "openai is called custom, with baseUrl https://api.openai.com"),
            ({"kind": "gopher"}, "kind must be one of openrouter, anthropic, custom"),
            ({"kind": "custom"}, "kind custom needs a baseUrl"),
            ({"kind": "custom", "baseUrl": "llm.example.com"}, "baseUrl must be an address"),
            ({"kind": "custom", "baseUrl": "https://"}, "baseUrl must be an address"),
            ({"kind": 7}, "must be text"),
        ):
            reply = self.ask("POST /v1/account/upstream", parts)
            self.assertEqual(reply.status, 400)
            self.assertIn(told, reply.json["error"]["message"])
        self.assertEqual(self.box.account.upstream, {})

    def test_account_writes_must_be_declared_as_json_and_gateway_calls_need_not(self) -> None:
        rule = "PATCH /v1/account/billing/auto-topup"
        for call in (CREATE, TOPUP, rule, "POST /v1/account/keys/key_1/revoke"):
            for kind in ("application/x-www-form-urlencoded", "text/plain", "json"):
                self.assertEqual(self.ask(call, "{}", Content_Type=kind).status, 415, (call, kind))
            self.assertEqual(self.ask(call).status, 415, call)
        (key,) = self.box.account.keys
        self.assertIsNone(key.revoked_at)
        self.assertEqual(self.ask(CREATE, {}, Content_Type="Application/JSON; a=b").status, 200)
        self.assertEqual(self.ask(CHAT, ASK, Content_Type="text/plain").status, 200)

    def test_402_comes_once_credit_is_used_up_and_the_rule_cannot_refill(self) -> None:
        self.box.charge("12.33")
        self.assertEqual(self.ask(CHAT, ASK).json["choices"][0]["finish_reason"], "stop")
        for call, body in ((CHAT, ASK), (CHAT, {**ASK, "stream": True}), (MESSAGES, ASK)):
            reply = self.ask(call, body)
            kind = "billing_error" if call == MESSAGES else "insufficient_credit"
            self.assertEqual((reply.status, reply.json["error"]["type"]), (402, kind))
        rule = {"enabled": True, "thresholdCents": 100, "amountCents": 1000}
        self.box.apply(balance_usd=0, auto_topup=rule, card_saved=True)
        self.assertEqual(self.ask(CHAT, ASK).status, 200)
        self.assertEqual(self.box.balance_usd, Decimal("9.98"))

    def test_a_gateway_body_that_is_no_request_to_a_model_is_400_and_costs_nothing(self) -> None:
        for body in (
            *({}, {"model": "m"}, {**ASK, "messages": "hi"}, {**ASK, "messages": []}),
            *({**ASK, "messages": ["hi"]}, {**ASK, "messages": [{"content": "hi"}]}),
            *({**ASK, "model": 7}, {"messages": ASK["messages"]}, {**ASK, "stream": "yes"}),
            *({**ASK, "tool_choice": "required"}, {**ASK, "tool_choice": "any", "tools": 7}),
        ):
            for call in (CHAT, MESSAGES):
                self.assertEqual(self.ask(call, body).status, 400, body)
        self.assertEqual(self.box.account.balance_microusd, 12_340_000)
        self.assertEqual(self.ask(CHAT, {**ASK, "stream": None}).status, 200)

    def test_calls_that_this_gateway_has_not_say_what_to_use(self) -> None:
        for call in ("POST /v1/responses", "POST /v1/embeddings"):
            reply = self.ask(call, {})
            self.assertEqual(reply.status, 404)
            self.assertIn("use POST /v1/chat/completions", reply.text)
            self.box.add_faults(call, 503)
            self.assertEqual(self.ask(call, {}).status, 503)

    def test_messages_are_refused_in_the_form_of_anthropic(self) -> None:
        self.box.set_balance(0)
        self.box.add_faults(MESSAGES, 529)
        for key, status, kind in (
            *((DEFAULT_KEY, 529, "overloaded_error"), (DEFAULT_KEY, 402, "billing_error")),
            ("cf_wrong", 401, "authentication_error"),
        ):
            reply = self.ask(MESSAGES, ASK, Authorization="", X_Api_Key=key)
            self.assertEqual((reply.status, reply.json["type"]), (status, "error"))
            self.assertEqual(reply.json["error"]["type"], kind)
            self.assertEqual(reply.json["request_id"], reply.headers["request-id"])
        self.box.set_balance(1)
        self.assertRegex(self.ask(MESSAGES, ASK).headers["request-id"], "^req_[0-9a-f]{12}$")

    def test_a_stream_ends_and_the_connection_serves_the_next_request(self) -> None:
        wire = http.client.HTTPConnection(self.box.url.partition("://")[2], timeout=PATIENCE_S)
        with contextlib.closing(wire):
            for _ in range(2):
                body = json.dumps({**ASK, "stream": True})
                wire.request("POST", "/v1/chat/completions", body, {"X-Api-Key": DEFAULT_KEY})
                self.assertTrue(wire.getresponse().read().endswith(b"data: [DONE]\n\n"))
        with dial(self.box) as bare:  # HTTP/1.0 has no chunks
            head = f"POST /v1/messages HTTP/1.0\r\nX-Api-Key: {DEFAULT_KEY}\r\n"
            bare.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            text = bare.makefile().read()
        self.assertNotIn("Transfer-Encoding", text)
        self.assertTrue(text.endswith('data: {"type": "message_stop"}\n\n'))

    def test_unknown_paths_are_404_and_other_methods_405_with_those_allowed(self) -> None:
        self.assertEqual(self.ask("GET /v1/account/nothing").status, 404)
        for call, allowed in (
            ("PUT /v1/account/billing", "GET"),
            ("DELETE /v1/account/keys", "GET, POST"),
            ("GET /v1/account/keys/key_1/revoke", "POST"),
            ("OPTIONS /v1/chat/completions", "POST"),
            ("PUT /pay/open", "GET, HEAD, POST"),
        ):
            self.box.account.links["open"] = sandbox.Link("open", 10, "stripe")
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
            ({"Transfer_Encoding": "gzip"}, 411),
            ({"Content_Length": "-1"}, 411),
            ({"Content_Length": str(len(big))}, 413),
        ):
            reply = self.ask(CREATE, "", **headers)
            self.assertEqual((reply.status, reply.headers["Connection"]), (status, "close"))
        for chunks, status in (
            *((b"x\r\n{}\r\n0\r\n\r\n", 400), (b"-1\r\n{}\r\n0\r\n\r\n", 400)),
            *((b"2\r\n{", 400), (b"989681\r\n", 413)),
        ):
            came = self.send_chunks(chunks, ends=chunks == b"2\r\n{")
            self.assertTrue(came.startswith(f"HTTP/1.1 {status} "), came)
        with dial(self.box) as wire:
            wire.sendall(
                f"{CREATE} HTTP/1.1\r\nAuthorization: Bearer {DEFAULT_KEY}\r\n"
                "Content-Length: 9\r\n\r\n{}".encode()
            )
            wire.shutdown(socket.SHUT_WR)
            self.assertIn("400", wire.makefile().readline())
        self.assertEqual(len(self.box.account.keys), 1)

    def send_chunks(self, chunks: bytes, ends: bool = False) -> str:
        """What comes back for a chunked body."""
        with dial(self.box) as wire:
            head = f"{CREATE} HTTP/1.1\r\nAuthorization: Bearer {DEFAULT_KEY}\r\n"
            head += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            wire.sendall(head.encode() + chunks)
            if ends:
                wire.shutdown(socket.SHUT_WR)
            return wire.makefile().read()

    def test_a_chunked_body_is_read(self) -> None:
        chunks = b"1;a=b\r\n{\r\n1\r\n}\r\n0\r\nX-Trailer: 1\r\n\r\n"
        following = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"
        self.assertEqual(self.send_chunks(chunks + following).count("HTTP/1.1 200 OK\n"), 2)
        self.assertEqual(self.box.requests[-1].json, {})

    def test_a_request_is_recorded_and_logged_before_it_is_answered(self) -> None:
        lines: queue.Queue[str] = queue.Queue()
        go = threading.Event()

        def log(line: str) -> None:
            lines.put(line)
            go.wait(PATIENCE_S)

        self.box.log = log
        self.box.add_faults("GET /v1/models", "503")
        for told in ("GET /v1/models 503 (scripted)", "GET /v1/models 401"):
            go.clear()
            with dial(self.box) as wire:
                wire.sendall(b"GET /v1/models HTTP/1.1\r\n\r\n")
                self.assertEqual(lines.get(timeout=PATIENCE_S), told)
                self.assertEqual(select.select([wire], [], [], 0.1)[0], [])
                self.assertEqual(self.box.calls()[-1], "GET /v1/models")
                go.set()
                self.assertTrue(wire.recv(1))

    def test_the_index_page_says_how_to_connect_and_what_happened_and_is_not_recorded(self) -> None:
        self.ask(CHAT, {"model": "<b>"})
        for _ in range(2):
            reply = self.ask("GET /", Authorization="")
            self.assertEqual((reply.status, reply.kind), (200, "text/html; charset=utf-8"))
            Page(reply.text)
        for part in (
            *("<title>Ready - CacheForge sandbox</title>", "no money moves", CHAT),
            *(f"OPENAI_BASE_URL={self.box.url}/v1\n", f"CACHEFORGE_API_KEY={DEFAULT_KEY}\n"),
            *('balance_usd: "12.34"', f"{CHAT} 400", "POST /sandbox/reset"),
        ):
            self.assertIn(part, reply.text)
        self.assertEqual(self.box.calls(), [CHAT])


SCHEMA: Any = {
    "type": "object",
    "$defs": {"Unit": {"enum": ["C", "F"]}},
    "properties": {
        "city": {"type": "string", "minLength": 9, "maxLength": 9},
        "days": {"type": "integer", "minimum": 3},
        "share": {"type": "number", "maximum": 0.5},
        "now": {"type": "boolean"},
        "unit": {"$ref": "#/$defs/Unit"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "when": {"type": "object", "required": ["day"], "properties": {"day": {"type": "number"}}},
        "tags": {"type": "array", "items": {"type": "string"}},
        "zone": {"type": ["integer", "null"]},
        "free": {},
        "left_out": {"type": "string"},
    },
    "required": ["city", "days", "share", "now", "unit", "note", "when", "tags", "zone", "free"],
}
ARGUMENTS: Any = {
    **{"city": "sample...", "days": 3, "share": 0.5, "now": True, "unit": "C", "note": "sample"},
    **{"when": {"day": 1}, "tags": [], "zone": 1, "free": "sample"},
}


class Tools(SandboxTest):
    """`tool_choice` that demands a call gets one, with arguments that fit the schema."""

    openai: ClassVar[Any] = [
        {"type": "function", "function": {"name": "clock"}},
        {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    ]
    named: ClassVar[Any] = {"type": "function", "function": {"name": "weather"}}
    anthropic: ClassVar[Any] = [{"name": "clock"}, {"name": "weather", "input_schema": SCHEMA}]

    def test_it_is_called_whole_and_in_a_stream(self) -> None:
        for call, tools, choice, expected in (
            (CHAT, self.openai, "required", ("clock", {})),
            (CHAT, self.openai, self.named, ("weather", ARGUMENTS)),
            (MESSAGES, self.anthropic, {"type": "any"}, ("clock", {})),
            (MESSAGES, self.anthropic, {"type": "tool", "name": "weather"}, ("weather", ARGUMENTS)),
        ):
            body = {**ASK, "tools": tools, "tool_choice": choice}
            whole = ask(self.box, call, body).json
            text = ask(self.box, call, {**body, "stream": True}).text
            datas = [part.partition("data: ")[2] for part in text.split("\n\n")]
            events = [json.loads(data) for data in datas if data.startswith("{")]
            check = self.check_openai if call == CHAT else self.check_anthropic
            check(whole, events, *expected)

    def check_openai(self, whole: Any, chunks: list[Any], name: str, arguments: Any) -> None:
        ends = [whole["choices"][0], chunks[-1]["choices"][0]]
        self.assertEqual([end["finish_reason"] for end in ends], ["tool_calls"] * 2)
        function = ends[0]["message"]["tool_calls"][0]["function"]
        self.assertEqual((function["name"], json.loads(function["arguments"])), (name, arguments))
        calls = [chunk["choices"][0]["delta"].get("tool_calls", [{}])[0] for chunk in chunks]
        self.assertEqual(calls[1]["function"]["name"], name)
        streamed = "".join(call["function"]["arguments"] for call in calls if call)
        self.assertEqual(json.loads(streamed), arguments)

    def check_anthropic(self, whole: Any, events: list[Any], name: str, arguments: Any) -> None:
        (block,) = whole["content"]
        self.assertEqual(whole["stop_reason"], "tool_use")
        self.assertEqual((block["name"], block["input"]), (name, arguments))
        self.assertEqual(events[1]["content_block"]["name"], name)
        parts = [e["delta"].get("partial_json", "") for e in events if "delta" in e]
        self.assertEqual(json.loads("".join(parts)), arguments)

    def test_without_a_demand_there_is_text(self) -> None:
        for choice in ("auto", "none", None, {"type": "auto"}):
            body = {**ASK, "tools": self.openai, "tool_choice": choice}
            (whole,) = ask(self.box, CHAT, body).json["choices"]
            self.assertEqual(whole["message"]["content"], "Hello from the sandbox.")

    def test_a_demand_that_cannot_be_met_is_400(self) -> None:
        loop = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
        for tools, name in ((self.openai, "other"), ([{"name": "x", "parameters": loop}], "x")):
            choice = {"type": "function", "function": {"name": name}}
            reply = ask(self.box, CHAT, {**ASK, "tools": tools, "tool_choice": choice})
            self.assertEqual(reply.status, 400)
            self.assertIn("tool_choice", reply.text)
        self.assertEqual(self.box.account.balance_microusd, 12_340_000)


class Control(SandboxTest):
    """The calls under /sandbox/, for tests in any language: JSON, and no key."""

    def control(self, call: str, body: object = None, status: int = 200) -> Any:
        reply = ask(self.box, call, body, Authorization="", Content_Type="text/plain")
        self.assertEqual((reply.status, reply.kind), (status, "application/json"), reply.text)
        return reply.json

    def test_requests_are_shown_without_secrets_and_not_mixed_with_these(self) -> None:
        ask(self.box, CHAT, ASK)
        ask(self.box, f"{BILLING}?a=b", Authorization="", X_Api_Key=DEFAULT_KEY, X_Mine="1")
        ask(self.box, CREATE, "no json")
        self.box.add_faults(BILLING, "lost")
        with self.assertRaises(http.client.RemoteDisconnected):
            ask(self.box, BILLING)
        shown = self.control("GET /sandbox/requests")["requests"]
        self.assertEqual([each["status"] for each in shown], [200, 200, 400, None])
        self.assertEqual([each["body"] for each in shown], [ASK, None, "no json", None])
        self.assertEqual((shown[0]["method"], shown[0]["path"]), ("POST", "/v1/chat/completions"))
        self.assertEqual(
            (shown[0]["headers"]["Authorization"], shown[1]["headers"]["X-Mine"]), ("***", "1")
        )
        self.assertNotIn(DEFAULT_KEY, json.dumps(shown))
        request = self.box.requests[1]
        self.assertEqual(
            (request.call, request.headers["x-mine"], request.status), (BILLING, "1", 200)
        )
        self.assertEqual((request.json, self.box.requests[0].json), (None, ASK))

    def test_faults_are_added_and_deleted(self) -> None:
        body = {"call": BILLING, "faults": ["429 Retry-After: 2", 503, "503"]}
        self.assertEqual(self.control("POST /sandbox/faults", body), {"ok": True})
        first = ask(self.box, BILLING)
        self.assertEqual((first.status, first.headers["Retry-After"]), (429, "2"))
        self.assertEqual(ask(self.box, BILLING).status, 503)
        self.assertEqual(self.control("DELETE /sandbox/faults"), {"ok": True})
        self.assertEqual(ask(self.box, BILLING).status, 200)

    def test_the_account_is_changed_and_shown(self) -> None:
        shown = self.control("POST /sandbox/account", {"balance_usd": 0.5, "card_saved": True})
        self.assertEqual((shown["balance_usd"], shown["card_saved"]), ("0.5", True))
        self.assertEqual(self.control("POST /sandbox/account"), shown)
        self.assertEqual(self.box.balance_usd, Decimal("0.5"))

    def test_links_are_paid(self) -> None:
        self.control("POST /sandbox/pay", status=400)
        links = [ask(self.box, TOPUP, {"amountUsd": n, "method": "stripe"}).json for n in (10, 20)]
        first = {"token": links[0]["paymentUrl"]}
        self.assertEqual(self.control("POST /sandbox/pay"), {"paid": True})
        self.assertEqual(self.box.balance_usd, Decimal("32.34"))
        self.assertEqual(self.control("POST /sandbox/pay", first), {"paid": True})
        self.assertEqual(self.control("POST /sandbox/pay", first), {"paid": False})

    def test_reset_starts_again_as_it_began(self) -> None:
        with Sandbox(balance_usd=3, card_saved=True) as box:
            box.add_faults(BILLING, 503)
            box.apply(balance_usd=9, card_saved=False, keys=["a"])
            self.assertEqual(ask(box, CREATE, {}).status, 200)
            self.assertEqual(ask(box, "POST /sandbox/reset", Authorization="").json, {"ok": True})
            self.assertEqual((box.requests, box.balance_usd), ([], 3))
            self.assertEqual((box.account.card_saved, len(box.account.keys)), (True, 1))
            self.assertEqual(ask(box, BILLING).status, 200)

    def test_mistakes_are_400_with_the_reason(self) -> None:
        for call, body, told in (
            ("POST /sandbox/faults", {"call": "GET /v1/model", "faults": [503]}, "GET /v1/models"),
            ("POST /sandbox/faults", {"call": BILLING, "fault": [503]}, "faults: got an unexp"),
            ("POST /sandbox/faults", {"call": 7, "faults": [503]}, "'int' object"),
            ("POST /sandbox/faults", {"call": BILLING, "faults": [[]]}, "neither a status"),
            ("POST /sandbox/account", {"ballance": 1}, "'ballance' is no setting"),
            ("POST /sandbox/account", {"balance_usd": None}, "balance_usd: "),
            ("POST /sandbox/account", {"self": 1}, "self"),
            ("POST /sandbox/account", [], "not a JSON object"),
            ("POST /sandbox/account", "{", "not JSON"),
            ("POST /sandbox/pay", {"token": "nope"}, "no payment link 'nope'"),
            ("POST /sandbox/pay", {"tokn": "nope"}, "argument 'tokn'"),
        ):
            self.assertIn(told, self.control(call, body, 400)["error"]["message"])
        message = self.control("POST /sandbox/request", {}, 404)["error"]["message"]
        self.assertIn("GET /sandbox/requests", message)

    def test_from_another_machine_it_takes_the_key(self) -> None:
        if sys.platform != "linux":
            self.skipTest("needs an address of this machine that is not 127.0.0.1")
        with Sandbox(host="0.0.0.0") as box:  # 127.0.0.2 stands for another machine
            host, port = "127.0.0.2", int(box.url.rpartition(":")[2])
            for headers, status in (({}, 401), ({"X-Api-Key": DEFAULT_KEY}, 200)):
                wire = http.client.HTTPConnection(host, port, PATIENCE_S, ("127.0.0.2", 0))
                with contextlib.closing(wire):
                    wire.request("GET", "/sandbox/requests", headers=headers)
                    self.assertEqual(wire.getresponse().status, status)
                    wire.close()
                    wire.request("GET", "/")
                    self.assertNotIn(DEFAULT_KEY.encode(), wire.getresponse().read())


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
        self.box.account.links["open"] = sandbox.Link("open", amount_usd, method)
        return "/pay/open"

    def test_an_unpaid_link_shows_amount_method_a_button_and_a_way_out(self) -> None:
        parts = (" $1,000.00<", "in crypto", ">Pay $1,000.00<", ">Cancel<", 'method="post"')
        self.get(self.link(1000, "crypto"), *parts, 'href="/pay/open/cancel"')

    def test_paying_leads_to_a_page_that_can_be_reloaded_and_credits_once(self) -> None:
        path = self.link()
        for _ in range(3):
            reply = ask(self.box, f"POST {path}", "", Authorization="")
            self.assertEqual((reply.status, reply.headers["Location"]), (303, path))
        self.assertEqual(self.box.account.balance_microusd, 37_340_000)
        for where in (path, f"{path}/cancel"):
            reply = self.get(where, "Paid. You can close this page.")
            self.assertNotIn('method="post"', reply.text)

    def test_cancelling_charges_nothing_and_leads_back(self) -> None:
        parts = ("Nothing was charged. The link stays open.", 'href="/pay/open"')
        self.assertEqual(self.get(f"{self.link()}/cancel", *parts).status, 200)
        self.assertEqual(ask(self.box, "POST /pay/open/cancel").status, 200)
        self.assertEqual(self.box.account.balance_microusd, 12_340_000)

    def test_an_unknown_link_gets_a_page_as_good_as_the_others(self) -> None:
        self.link()
        for path in ("/pay/", "/pay/nope", "/pay/open/else", "/pay/%3Cb%3E"):
            reply = self.get(path, ">There is no such payment link<")
            self.assertEqual(reply.status, 404, path)

    def test_the_colours_are_those_of_the_browser_in_the_light_and_in_the_dark(self) -> None:
        self.assertIn("color-scheme: light dark", sandbox.STYLE)
        self.assertNotRegex(sandbox.STYLE, r"(?<!-)\b(color|background|border)\b[^-]|#")


class Faults(SandboxTest):
    """Each fault, in a word."""

    body: ClassVar[Any] = {}

    def meet(self, call: str = BILLING, timeout_s: float = PATIENCE_S) -> str:
        """Status, kind and body; or the exception, as http.client names it."""
        connection = http.client.HTTPConnection(self.box.url.partition("://")[2], timeout=timeout_s)
        with contextlib.closing(connection):
            try:
                headers = {"X-Api-Key": DEFAULT_KEY, "Content-Type": "application/json"}
                method, _, path = call.partition(" ")
                connection.request(method, path, json.dumps(self.body), headers)
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
            self.box.add_faults(BILLING, what)
            with self.subTest(what):
                self.assertTrue(self.meet().startswith(met))
                self.assertTrue(self.meet().startswith('200 application/json {"billing": {'))

    def test_a_fault_may_have_headers_and_has_a_phrase_and_a_request_id(self) -> None:
        for what, phrase, header in (
            ("429 Retry-After: 2", "Too Many Requests", ("Retry-After", "2")),
            ("503 Retry-After: 1; X-A: b c", "Service Unavailable", ("X-A", "b c")),
            ("302 Location: http://127.0.0.1:9/", "Found", ("Location", "http://127.0.0.1:9/")),
            ("402", "Payment Required", ("Content-Type", "application/json")),
            ("200 X-Request-Id: mine", "OK", ("X-Request-Id", "mine")),
            ("empty", "OK", ("Content-Length", "0")),
        ):
            self.box.add_faults(BILLING, what)
            with dial(self.box) as wire:
                wire.sendall(b"GET /v1/account/billing HTTP/1.1\r\n\r\n")
                response = http.client.HTTPResponse(wire)
                response.begin()
                self.assertEqual(response.reason, phrase)
                self.assertEqual(response.headers[header[0]], header[1])
                self.assertRegex(response.headers["X-Request-Id"], "^(req_[0-9a-f]{12}|mine)$")
                self.assertEqual(self.box.requests[-1].status, response.status)
        for what in ("429 Retry-After", "429 : 2", "429 A: b\r\nC: d", "429Retry-After: 2", "1"):
            with self.assertRaisesRegex(ValueError, "is neither a status"):
                self.box.add_faults(BILLING, what)

    def test_a_hang_lasts_until_the_sandbox_closes(self) -> None:
        self.box.add_faults(BILLING, *["hang"] * 2)
        self.assertEqual(self.meet(timeout_s=0.2), "timeout")
        with dial(self.box) as wire, mock.patch.object(self.box.closing, "wait") as wait:
            wait.side_effect = lambda timeout_s=None: waited.append(timeout_s)
            waited: list[object] = []
            wire.sendall(b"GET /v1/account/billing HTTP/1.1\r\n\r\n")
            self.assertEqual(wire.recv(1), b"")
        self.assertEqual(waited, [None])  # no end of its own

    def test_a_stream_may_break_midway_and_the_client_can_tell(self) -> None:
        for call, body, shown in (
            (CHAT, {**ASK, "stream": True}, b'"content": "Hello"'),
            (MESSAGES, {**ASK, "stream": True}, b'"text": "Hello"'),
            (CHAT, ASK, b""),
        ):
            self.box.add_faults(call, "cut-stream")
            wire = http.client.HTTPConnection(self.box.url.partition("://")[2], timeout=PATIENCE_S)
            with contextlib.closing(wire):
                path = call.partition(" ")[2]
                wire.request("POST", path, json.dumps(body), {"X-Api-Key": DEFAULT_KEY})
                response = wire.getresponse()
                self.assertIsNone(response.headers["Connection"])  # else Node takes it as whole
                with self.assertRaises(http.client.IncompleteRead) as broken:
                    response.read()
            self.assertIn(shown, broken.exception.partial)
            self.assertNotRegex(broken.exception.partial, rb'"(stop|end_turn)"|total_tokens')
        self.assertEqual(self.box.account.balance_microusd, 12_280_000)

    def test_a_fault_for_any_key_and_for_one(self) -> None:
        self.box.apply(keys=["a", "b"])
        self.box.add_faults("POST /v1/account/keys/ID/revoke", 503)
        self.box.add_faults("POST /v1/account/keys/key_3/revoke", 409)
        met = [self.meet(f"POST /v1/account/keys/key_{n}/revoke")[:3] for n in (3, 2, 2)]
        self.assertEqual(met, ["409", "503", "200"])

    def test_a_drip_comes_byte_by_byte_and_ends_after_30_s(self) -> None:
        self.box.add_faults(BILLING, "drip")
        with dial(self.box) as wire:
            wire.sendall(b"GET /v1/account/billing HTTP/1.1\r\n\r\n")
            began = time.monotonic()
            self.assertEqual([wire.recv(1) for _ in range(4)], [b"H", b"T", b"T", b"P"])
            self.assertGreater(time.monotonic() - began, 0.25)
        drip = Fault.of("drip")
        self.assertAlmostEqual(len(drip.raw) * drip.drip_s, 30)

    def test_done_carries_it_out_before_the_fault(self) -> None:
        for what, done in (
            *(("503", 0), ("done+503", 1), ("lost", 1), ("reset", 0)),
            *(("done+reset", 1), ("done+html", 1)),
        ):
            before = len(self.box.account.keys)
            self.box.add_faults(CREATE, what)
            self.meet(CREATE)
            self.assertEqual(len(self.box.account.keys) - before, done, what)


class Library(unittest.TestCase):
    def test_a_balance_is_a_number_or_text_and_is_exact(self) -> None:
        for balance, microusd in (
            *((0, 0), (12, 12_000_000), (-3, -3_000_000), ("12.34", 12_340_000)),
            *((12.5, 12_500_000), (0.1, 100_000), (1e-6, 1), (1e2, 100_000_000)),
            *(("-1.50", -1_500_000), (Decimal("0.000001"), 1), (Decimal("1E+2"), 100_000_000)),
        ):
            with Sandbox(balance_usd=balance) as box:
                self.assertEqual(box.account.balance_microusd, microusd)
                self.assertEqual(box.balance_usd, Decimal(str(balance)))

    def test_anything_else_is_told_what_to_write(self) -> None:
        texts: list[Any] = ["", "ten", "1.2345678", "$5", "1e3", Decimal("NaN"), 1e-7, float("inf")]
        for odd in (*texts, True, None, b"1"):
            told = f"dollars are written like 0, 12.34 or -1.50, not {re.escape(repr(odd))}"
            with self.assertRaisesRegex(ValueError, told):
                Sandbox(balance_usd=odd)

    def test_charge_takes_so_much_and_the_rule_refills_and_set_balance_sets_it(self) -> None:
        with Sandbox(balance_usd=5) as box:
            box.charge("1.50")
            self.assertEqual(box.balance_usd, Decimal("3.5"))
            for usd in (0, "-2", 7.25):
                box.set_balance(usd)
                self.assertEqual(box.balance_usd, Decimal(str(usd)))
            with self.assertRaisesRegex(ValueError, "cannot be negative: -1"):
                box.charge(-1)
            rule = {"enabled": True, "thresholdCents": 900, "amountCents": 1000}
            box.apply(card_saved=True, auto_topup=rule)
            self.assertEqual(box.balance_usd, Decimal("7.25"))
            box.charge(0)
            self.assertEqual(box.balance_usd, Decimal("17.25"))

    def test_an_account_takes_all_its_settings_and_shows_them(self) -> None:
        rule = {"enabled": True, "thresholdCents": 200, "amountCents": 1000}
        given: Any = {
            **{"balance_usd": "3.5", "card_saved": True, "auto_topup": rule},
            **{"upstream": {"kind": "custom", "baseUrl": "https://x.example"}, "keys": ["a", "b"]},
            **{"tenant_name": "T", "tenant_status": "suspended", "unpaid_links": [10, 20]},
        }
        for box in (Sandbox(**given), Sandbox()):
            with box:
                box.apply(**given)
                self.assertEqual(box.account.settings(), given)
                box.apply(pay_after_s=0, faults=[f"{BILLING}=2*503"])
                self.assertEqual([ask(box, BILLING).status for _ in range(3)], [503, 503, 200])
                ask(box, CHAT, ASK)
                self.assertEqual(box.balance_usd, Decimal("3.48"))
                rows = ask(box, "GET /v1/account/keys").json["keys"]
                self.assertEqual([row["id"] for row in rows], ["key_1", "key_2", "key_3"])

    def test_a_mistake_in_the_settings_changes_nothing_and_is_named(self) -> None:
        with Sandbox() as box:
            for wrong, told in (
                ({"ballance": 1}, "'ballance' is no setting of an account; they are balance_usd,"),
                ({"card_saved": "yes"}, "card_saved: must be like true, not 'yes'"),
                ({"balance_usd": "ten"}, "balance_usd: dollars are written like"),
                ({"keys": [1]}, r'keys: must be like \["label"\], not \[1\]'),
                ({"keys": "ab"}, r"keys: must be like .*, not 'ab'"),
                ({"unpaid_links": [True]}, r"unpaid_links: must be like \[10\]"),
                ({"faults": ["503"]}, "write CALL=WHAT, such as"),
                ({"pay_after_s": -1}, "pay_after_s: must be seconds, such as 5 or 0.5, or null"),
                ({"pay_after_s": float("nan")}, "pay_after_s: must be seconds"),
                ({"pay_after_s": True}, "pay_after_s: must be seconds"),
                ({"auto_topup": {"enabled": True}}, "auto_topup: thresholdCents and amountCents"),
                ({"auto_topup": 7}, "auto_topup: enabled must be"),
                ({"upstream": {"kind": "openai"}}, "upstream: kind openai is called custom"),
                ({"upstream": 7}, "upstream: kind, baseUrl and apiKey must be text"),
                ({"faults": ["GET /nothing=503"]}, "'GET /nothing' is no call"),
                ({"faults": [f"{BILLING}=sleepy"]}, "'sleepy' is neither"),
            ):
                with self.assertRaisesRegex(ValueError, told):
                    box.apply(tenant_name="changed", **wrong)
                self.assertEqual(box.account.tenant_name, "Sandbox Inc.")

    def test_a_closed_sandbox_serves_its_open_connections_no_more(self) -> None:
        """As with a client that is kept for all tests, and a sandbox on the same port for each."""
        first = Sandbox(balance_usd=5)
        wire = http.client.HTTPConnection(first.url.partition("://")[2], timeout=PATIENCE_S)
        with contextlib.closing(wire):
            wire.auto_open = 0
            wire.connect()
            with first:
                wire.request("GET", "/v1/account/billing", headers={"X-Api-Key": DEFAULT_KEY})
                self.assertEqual(wire.getresponse().read()[:9], b'{"billing')
                hanging = dial(first)
                first.add_faults(BILLING, Fault(b"x", end="hang"))
                hanging.sendall(b"GET /v1/account/billing HTTP/1.1\r\n\r\n")
                self.assertEqual(hanging.recv(1), b"x")
            with Sandbox(balance_usd=7, port=int(first.url.rpartition(":")[2])) as second:
                with self.assertRaises((ConnectionError, http.client.HTTPException)):
                    body, key = json.dumps(ASK), {"X-Api-Key": DEFAULT_KEY}
                    wire.request("POST", "/v1/chat/completions", body, key)
                    wire.getresponse()
                with hanging:
                    self.assertEqual(hanging.recv(1), b"")
                self.assertEqual((first.balance_usd, second.requests), (5, []))

    def test_only_the_last_1000_requests_are_kept(self) -> None:
        with Sandbox() as box, ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: ask(box, f"GET /v1/n/{n}"), range(1010)))
            self.assertEqual(len(box.requests), 1000)

    def test_under_many_threads_the_ledger_is_exact_and_each_fault_happens_once(self) -> None:
        with Sandbox(balance_usd=1) as box, ThreadPoolExecutor(60) as pool:
            box.add_faults(CHAT, *["503"] * 20)
            statuses = list(pool.map(lambda _: ask(box, CHAT, ASK).status, range(80)))
        self.assertEqual([statuses.count(n) for n in (200, 402, 503)], [50, 10, 20])
        self.assertEqual(box.balance_usd, 0)

    def test_pay_takes_a_link_or_its_address_and_says_whether_it_was_unpaid(self) -> None:
        with Sandbox(balance_usd=0) as box:
            reply = ask(box, TOPUP, {"amountUsd": 10, "method": "stripe"})
            self.assertTrue(box.pay(reply.json["paymentUrl"]))
            (token,) = box.account.links
            self.assertFalse(box.pay(token))
            self.assertFalse(box.pay())
            self.assertEqual(box.balance_usd, 10)
            ask(box, TOPUP, {"amountUsd": 20, "method": "stripe"})
            self.assertTrue(box.pay())  # the last one
            self.assertEqual(box.balance_usd, 30)
            with self.assertRaisesRegex(ValueError, f"link 'x'; created so far: {token}"):
                box.pay("https://elsewhere.example/pay/x")

    def test_faults_that_could_never_happen_are_refused(self) -> None:
        with Sandbox() as box:
            for call, told in (
                ("POST /v1/chat/completion", "service: try POST /v1/chat/completions$"),
                ("/v1/models", "'/v1/models' is no call of this service"),
                ("GET /v1/chat/completions", "is no call of this service"),
                ("DELETE /nothing", "try POST /v1/chat/completions, .*ID/revoke"),
            ):
                with self.assertRaisesRegex(ValueError, told):
                    box.add_faults(call, "503")
            for what in ("sleepy", "99", 7, True, None, 5.03):
                with self.assertRaisesRegex(ValueError, f"'{what}' is neither a status"):
                    box.add_faults(BILLING, "503", what)  # type: ignore[arg-type]
            self.assertEqual(ask(box, BILLING).status, 200)
            box.add_faults("GET /v1/models", 503, Fault.reply(200, {"data": []}))
            self.assertEqual(ask(box, "GET /v1/models").status, 503)
            self.assertEqual(ask(box, "GET /v1/models").json, {"data": []})

    def test_faults_are_forgotten_and_unused_ones_named(self) -> None:
        with Sandbox() as box:
            box.add_faults(BILLING, 503, 503)
            box.add_faults(CREATE, 503)
            ask(box, BILLING)
            self.assertEqual(box.unused_faults, [CREATE])
            box.clear_faults()
            self.assertEqual((box.unused_faults, ask(box, BILLING).status), ([], 200))

    def test_start_and_close_do_without_a_with(self) -> None:
        box = Sandbox(balance_usd=1).start()
        self.assertEqual(ask(box, BILLING).status, 200)
        box.close()
        box.close()
        with self.assertRaises(OSError):
            ask(box, BILLING)
        Sandbox().close()  # never started

    def test_every_public_name_says_what_it_is(self) -> None:
        for thing in (Sandbox, Fault, sandbox.Request):
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
        tool = f"{shlex.quote(sys.executable)} {shlex.quote(str(OPS))}"
        script = (
            f"{tool} topup >&2 && until {tool} balance --min 1 > /dev/null; do :; done;"
            f" {tool} balance"
        )
        began = time.monotonic()
        result = run_sandbox("--balance", "0", "--pay-after", "0.5", "--exec", "sh", "-c", script)
        self.assertIn("$10.00", result.out)
        self.assertGreaterEqual(time.monotonic() - began, 0.5)

    def test_a_command_gets_the_variables_of_openai_and_anthropic_too(self) -> None:
        program = "import json, os; print(json.dumps(dict(os.environ)))"
        done = run_sandbox("--exec", sys.executable, "-c", program)
        env = done.json
        self.assertEqual((done.exit, done.err), (0, ""))
        for name in ("CACHEFORGE", "OPENAI", "ANTHROPIC"):
            self.assertEqual(env[f"{name}_API_KEY"], DEFAULT_KEY)
        self.assertEqual(env["OPENAI_BASE_URL"], env["CACHEFORGE_BASE_URL"] + "/v1")
        self.assertEqual(env["ANTHROPIC_BASE_URL"], env["CACHEFORGE_BASE_URL"])

    def test_an_account_comes_from_a_file_or_stands_on_the_command_line(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "account.json")
            path.write_text(
                '{"balance_usd": 3, "tenant_name": "M\u00fcller", "keys": ["a"]}', "utf-8"
            )
            more = {"tenant_status": "suspended", "faults": ["GET /v1/account/info=503"]}
            result = run_sandbox("--account", str(path), "info", "--json")
            self.assertEqual(result.exit, 0, result)
            tenant = result.json["tenant"]
            self.assertEqual((tenant["name"], tenant["active_keys"]), ("M\u00fcller", 2))
            result = run_sandbox("--account", json.dumps(more), "info", "--json")
            self.assertEqual(result.json["tenant"]["status"], "suspended")
            result = run_sandbox("--account", json.dumps(more), "--balance", "7", "balance")
            self.assertIn("$7.00", result.out)
            self.assertIn("nobody called GET /v1/account/info\n", result.err)

    def test_a_mistake_in_an_account_is_one_line_below_the_usage(self) -> None:
        for text, told in (
            ("no/such.json", "--account no/such.json: [Errno 2] No such file or directory"),
            ("{", "--account {: "),
            ('{"ballance": 1}', "'ballance' is no setting of an account"),
            ('{"faults": ["GET /v1/bill=503"]}', "'GET /v1/bill' is no call of this service"),
        ):
            result = run_sandbox("--account", text, "balance")
            self.assertEqual((result.exit, result.out), (2, ""))
            self.assertIn(f"sandbox.py: error: {told}", result.err)
            self.assertNotIn("Traceback", result.err)

    @unittest.skipUnless(Path("/dev/full").exists(), "needs /dev/full")
    def test_its_own_lines_never_change_the_exit_code(self) -> None:
        for end in ("2>/dev/full", "2>&-"):
            line = f"{shlex.quote(sys.executable)} {shlex.quote(SCRIPT)} balance {end}"
            result = run("sh", "-c", line)
            self.assertEqual((result.exit, result.err), (0, ""))
            self.assertNotIn("sandbox:", result.out)

    def test_verbose_prints_a_line_per_request_and_ops_ends_with_the_word_that_all_is_gone(
        self,
    ) -> None:
        end = "sandbox: stopped; its links and keys are gone (--serve keeps a sandbox running)\n"
        asked = "GET /v1/account/billing 200\n"
        self.assertEqual(run_sandbox("--verbose", "balance").err, asked + end)

    def test_the_version_is_that_of_the_tool(self) -> None:
        self.assertEqual(run_sandbox("--version").out, f"sandbox.py {ops.__version__}\n")


class Serving(unittest.TestCase):
    """`--serve`: until it is told to stop."""

    @contextlib.contextmanager
    def serving(self, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
        """A sandbox in a process of its own, and its port."""
        child = start(sys.executable, SCRIPT, *options, "--serve")
        try:
            assert child.stdout
            exports = [child.stdout.readline() for _ in range(6)]
            self.assertRegex(exports[0], r"^export CACHEFORGE_BASE_URL=http://127\.0\.0\.1:\d+\n$")
            url = exports[0].rstrip("\n").partition("=")[2]
            self.assertEqual(exports[2], f"export OPENAI_BASE_URL={url}/v1\n")
            self.assertEqual(exports[4], f"export ANTHROPIC_BASE_URL={url}\n")
            for line, name in zip(exports[1::2], ("CACHEFORGE", "OPENAI", "ANTHROPIC")):
                self.assertEqual(line, f"export {name}_API_KEY={DEFAULT_KEY}\n")
            yield child, int(url.rpartition(":")[2])
        finally:
            child.kill()
            child.communicate()

    def test_a_port_that_is_busy_or_too_high_is_one_sentence(self) -> None:
        with Sandbox() as box:
            for port in (box.url.rsplit(":", 1)[1], "65536"):
                result = run_sandbox("--serve", "--port", port)
                told = f"sandbox: cannot listen on 127.0.0.1, port {port}: "
                self.assertEqual((result.exit, result.out), (2, ""))
                self.assertRegex(result.err, f"^{told}.+\n$")

    @unittest.skipIf(os.name == "nt", "POSIX signals")
    def test_a_signal_ends_it_and_frees_its_port_even_where_a_shell_made_it_deaf(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as `&` in a script does
            try:
                serving = self.serving("--verbose", "--fault", f"{CREATE}=503")
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
            self.assertEqual(err.splitlines()[1], "GET /v1/account/info 401")
            unused = f"sandbox: a fault was not used, because nobody called {CREATE}"
            self.assertEqual(err.splitlines()[2:], [unused])
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
