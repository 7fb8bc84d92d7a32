"""The sandbox: it behaves like the service, is strict with mistakes, and is easy to stop."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from email.message import Message
from pathlib import Path
from typing import Any
from unittest import mock

import sandbox
from sandbox import Sandbox
from support import (
    BILLING,
    CREATE,
    DEFAULT_KEY,
    PATIENCE_S,
    ROOT,
    SET_RULE,
    SET_UPSTREAM,
    TOPUP,
    UPSTREAM,
    Fault,
    Request,
    Result,
    SandboxTest,
    end,
    in_process,
    ops,
    run,
    start,
)

SCRIPT = str(ROOT / "tests" / "sandbox.py")
CHAT, MESSAGES = "POST /v1/chat/completions", "POST /v1/messages"
ASK: Any = {"model": "m", "messages": [{"role": "user", "content": "Say hello."}]}
TEN: Any = {"amountUsd": 10, "method": "stripe"}


class Reply:
    """What came over the wire."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.reason = response.status, response.reason
        self.headers = response.headers
        self.kind = response.headers.get("Content-Type", "")
        self.text = response.read().decode()

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def connection(box: Sandbox) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(box.url.partition("://")[2], timeout=PATIENCE_S)


def ask(box: Sandbox, call: str, body: object = None, **headers: str) -> Reply:
    """Send one request with http.client, which follows nothing and adds little."""
    method, _, path = call.partition(" ")
    sent = {"Authorization": f"Bearer {DEFAULT_KEY}"}
    if body is not None:
        sent["Content-Type"] = "application/json"
    sent = {**sent, **{name.replace("_", "-"): value for name, value in headers.items()}}
    content = body if isinstance(body, str) or body is None else json.dumps(body)
    with contextlib.closing(connection(box)) as wire:
        wire.request(method, path, content, sent)
        return Reply(wire.getresponse())


def dial(box: Sandbox, text: str) -> socket.socket:
    """A bare connection on which this was sent."""
    host, _, port = box.url.partition("://")[2].partition(":")
    wire = socket.create_connection((host, int(port)), PATIENCE_S)
    wire.sendall(text.replace("\n", "\r\n").encode())
    return wire


def exchange(box: Sandbox, text: str) -> str:
    """What comes back for these bytes, after which nothing more is sent."""
    with dial(box, text) as wire:
        wire.shutdown(socket.SHUT_WR)
        return wire.makefile().read()


# calls, bodies that are refused, the status if it is not 400, and a part of the response
REFUSED = r"""
POST /v1/account/billing/topup
  {"amountUsd": 9, "method": "stripe"}      must be at least 10
  {"amountUsd": true, "method": "stripe"}   must be whole dollars, not True
  {"amountUsd": 10.0, "method": "stripe"}   must be whole dollars, not 10.0
  {"amountUsd": 10, "method": "cash"}       method must be stripe or crypto
  []                                        not a JSON object
  {                                         not JSON
PATCH /v1/account/billing/auto-topup
  {"enabled": true, "thresholdCents": 9, "amountCents": 9}   needs a saved card
POST /v1/account/upstream
  {"kind": "openai"}                         called custom, with baseUrl https://api.openai.com
  {"kind": "gopher"}                         kind must be one of openrouter, anthropic, custom
  {"kind": "custom"}                         kind custom needs a baseUrl
  {"kind": "custom", "baseUrl": "x.test"}    baseUrl must be an address
  {"kind": 7}                                must be text
POST /v1/chat/completions, POST /v1/messages
  {}                                                             messages must be a list
  {"model": "m", "messages": "hi"}                               messages must be a list
  {"model": "m", "messages": ["hi"]}                             messages must be a list
  {"model": "m", "messages": [{"content": "hi"}]}                of objects with a role
  {"model": 7, "messages": [{"role": "user"}]}                   model must be a string
  {"model": "m", "messages": [{"role": "user"}], "stream": "y"}  stream must be a boolean
POST /sandbox/account
  {"tenant_name": "x", "ballance": 1}                     'ballance' is no setting of an account
  {"tenant_name": "x", "keys": [1]}                       keys: must be like [\"label\"], not [1]
  {"unpaid_links": [true]}                                unpaid_links: must be like [10]
  {"pay_after_s": true}                                   pay_after_s: must be seconds
  {"pay_after_s": NaN}                                    pay_after_s: must be seconds
  {"auto_topup": 7}                                       auto_topup: enabled must be
  {"upstream": 7}                                         upstream: kind, baseUrl and apiKey must
  {"card_saved": true, "faults": ["GET /nothing=503"]}    'GET /nothing' is no call
  []                                                      not a JSON object
POST /sandbox/pay
  {"token": "nope"}   no payment link 'nope'; created so far: unpaid1
  {"token": 7}        'int' object
POST /sandbox/faults
  {"call": "GET /v1/model", "faults": [503]}      no call of this service: try GET /v1/models
  {"call": "DELETE /x", "faults": [503]}          try POST /v1/chat/completions, POST /v1/messages
  {"call": "GET /v1/models", "fault": [503]}      faults: got an unexpected
  {"call": 7, "faults": [503]}                    'int' object
GET /v1/account/nothing
  {}    404 GET / lists the calls of this sandbox
POST /v1/responses, POST /v1/embeddings
  {}    404 use POST /v1/chat/completions
POST /v1/account/keys/key_9/revoke
  {}    404 No such key
POST /sandbox/request
  {}    404 GET /sandbox/requests
PUT /v1/account/billing
  {}    405 Allow: GET
DELETE /v1/account/keys
  {}    405 Allow: GET, POST
GET /v1/account/keys/key_1/revoke, OPTIONS /v1/chat/completions
  {}    405 Allow: POST
PUT /pay/unpaid1
  {}    405 Allow: GET, HEAD, POST
"""
NO_FAULTS = ("1", "429 Retry-After", "429 : 2", "429 A: b\r\nC: d", "429A: 2", 7, True, None, 5.03)


def refused() -> Iterator[tuple[str, str, int, str]]:
    """The calls, bodies, statuses and reasons of the table above, and some that are made."""
    for line in REFUSED.strip().splitlines():
        if line[0] != " ":
            calls = line.split(", ")
        else:
            body, status, told = re.findall(r"  (.*?) {2,}([0-9]{3} )?(.*)", line)[0]
            yield from ((call, body, int(status or 400), told) for call in calls)
    yield TOPUP, "[" * 100_000, 400, "not JSON"
    for wrong in NO_FAULTS:
        body = json.dumps({"call": BILLING, "faults": [503, wrong]})
        yield "POST /sandbox/faults", body, 400, "is neither a status"


class Wire(SandboxTest):
    """The service, spoken to by a client that was never written for it."""

    def ask(self, call: str, body: object = None, **headers: str) -> Reply:
        return ask(self.box, call, body, **headers)

    def test_a_mistake_is_refused_with_the_reason_and_changes_nothing(self) -> None:
        before = self.box.apply(unpaid_links=[10])
        for call, body, status, told in refused():
            with self.subTest(call=call, body=body[:99]):
                reply = self.ask(call, body)
                self.assertEqual(reply.status, status, reply.text)
                said = str(reply.headers).splitlines() if status == 405 else reply.text
                self.assertIn(told, said)
                self.assertEqual((self.box.apply(), self.box.unused_faults), (before, []))

    def test_account_writes_must_be_declared_as_json_and_gateway_calls_need_not(self) -> None:
        for call in (CREATE, TOPUP, SET_RULE, "POST /v1/account/keys/key_1/revoke"):
            for kind in ("application/x-www-form-urlencoded", "text/plain", "json", ""):
                self.assertEqual(self.ask(call, "{}", Content_Type=kind).status, 415, (call, kind))
        (key,) = self.box.account.keys
        self.assertIsNone(key.revoked_at)
        self.assertEqual(self.ask(CREATE, {}, Content_Type="Application/JSON; a=b").status, 200)
        body = {**ASK, "stream": None}
        self.assertEqual(self.ask(CHAT, body, Content_Type="text/plain").status, 200)

    def test_the_key_is_checked_in_either_header(self) -> None:
        good, basic = f"Bearer {DEFAULT_KEY}", f"Basic {DEFAULT_KEY}"
        for authorization, key, status in (
            *((good, "", 200), (good.lower(), "", 200), ("", DEFAULT_KEY, 200)),
            *((basic, DEFAULT_KEY, 200), (basic, "", 401), ("", "", 401), ("", "cf_wrong", 401)),
            *(("Bearer cf_wrong", DEFAULT_KEY, 401), (f"{good}x", DEFAULT_KEY, 401)),
        ):
            for call in (BILLING, "GET /v1/models"):
                reply = self.ask(call, Authorization=authorization, X_Api_Key=key)
                self.assertEqual(reply.status, status, (authorization, key))
                if status == 401:
                    self.assertEqual(reply.json["error"]["code"], "invalid_api_key")

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

    def test_the_provider_is_shown_without_its_key(self) -> None:
        self.ask(SET_UPSTREAM, {"kind": "openrouter", "apiKey": "sk-or-secret"})
        shown = self.ask(UPSTREAM).json
        self.assertEqual(shown, {"configured": True, "upstream": {"kind": "openrouter"}})

    def test_the_rule_refills_at_once_and_on_a_call_if_the_balance_is_below(self) -> None:
        self.box.apply(balance_usd=5, card_saved=True)
        rule = {"enabled": True, "thresholdCents": 500, "amountCents": 1000}
        steps: tuple[tuple[Callable[[], object], str], ...] = (
            (lambda: self.ask(SET_RULE, rule), "5"),  # which is not below
            (lambda: self.ask(CHAT, ASK), "14.98"),
            (lambda: self.box.charge("14.98"), "10"),
            (lambda: self.box.set_balance(0), "0"),
            (lambda: self.ask(MESSAGES, ASK), "9.98"),
            (lambda: self.ask(SET_RULE, {**rule, "thresholdCents": 999}), "19.98"),
            (lambda: self.box.apply(balance_usd=1, card_saved=False), "1"),
            (lambda: self.ask(CHAT, ASK), "0.98"),
        )
        for step, balance_usd in steps:
            step()
            self.assertEqual(self.box.balance_usd, Decimal(balance_usd))

    def test_errors_of_the_gateway_have_the_form_of_openai_or_anthropic(self) -> None:
        self.box.set_balance("0.01")
        self.assertEqual(self.ask(CHAT, ASK).json["choices"][0]["finish_reason"], "stop")
        self.assertRegex(self.ask("GET /").headers["request-id"], "^req_[0-9a-f]{12}$")
        self.box.add_faults(MESSAGES, 529)
        for call, body, key, status, kind in (
            (CHAT, ASK, DEFAULT_KEY, 402, "insufficient_credit"),
            (CHAT, {**ASK, "stream": True}, DEFAULT_KEY, 402, "insufficient_credit"),
            (MESSAGES, ASK, DEFAULT_KEY, 529, "overloaded_error"),
            (MESSAGES, ASK, DEFAULT_KEY, 402, "billing_error"),
            (MESSAGES, ASK, "cf_wrong", 401, "authentication_error"),
        ):
            reply = self.ask(call, body, Authorization="", X_Api_Key=key)
            self.assertEqual((reply.status, reply.json["error"]["type"]), (status, kind))
            if call == MESSAGES:
                self.assertEqual(reply.json["type"], "error")
                self.assertEqual(reply.json["request_id"], reply.headers["request-id"])

    def test_a_stream_ends_and_the_connection_serves_the_next_request(self) -> None:
        body = json.dumps({**ASK, "stream": True})
        with contextlib.closing(connection(self.box)) as wire:
            for _ in range(2):
                wire.request("POST", "/v1/chat/completions", body, {"X-Api-Key": DEFAULT_KEY})
                self.assertTrue(wire.getresponse().read().endswith(b"data: [DONE]\n\n"))
        head = f"POST /v1/messages HTTP/1.0\nX-Api-Key: {DEFAULT_KEY}\nContent-Length: {len(body)}"
        text = exchange(self.box, f"{head}\n\n{body}")  # HTTP/1.0 has no chunks
        self.assertNotIn("Transfer-Encoding", text)
        self.assertTrue(text.endswith('data: {"type": "message_stop"}\n\n'))

    def test_head_is_get_without_the_body(self) -> None:
        self.box.apply(unpaid_links=[10])
        for path in ("/v1/account/billing", "/", "/pay/unpaid1"):
            reply = self.ask(f"HEAD {path}")
            length = int(reply.headers["Content-Length"])
            self.assertEqual((reply.status, length), (200, len(self.ask(f"GET {path}").text)))
        self.assertTrue(exchange(self.box, "HEAD / HTTP/1.1\n\n").endswith("\n\n"))

    def test_a_body_is_read_whole_or_the_call_changes_nothing(self) -> None:
        head = f"{CREATE} HTTP/1.1\nContent-Type: application/json\nX-Api-Key: {DEFAULT_KEY}\n"
        chunked = "Transfer-Encoding: chunked\n\n"
        for rest, status in (
            *(("Transfer-Encoding: gzip\n\n", 411), ("Content-Length: -1\n\n", 411)),
            *((f"Content-Length: {sandbox.MAX_REQUEST_BYTES + 1}\n\n", 413),),
            *(("Content-Length: 9\n\n{}", 400), (f"{chunked}x\n{{}}\n0\n\n", 400)),
            *((f"{chunked}-1\n{{}}\n0\n\n", 400), (f"{chunked}2\n{{", 400)),
            (f"{chunked}989681\n", 413),
        ):
            came = exchange(self.box, head + rest)
            self.assertTrue(came.startswith(f"HTTP/1.1 {status} "), (rest, came))
            self.assertIn("Connection: close\n", came)
            self.assertEqual(len(self.box.account.keys), 1)
        whole = f"{head}{chunked}1;a=b\n{{\n1\n}}\n0\nX-Trailer: 1\n\n"
        came = exchange(self.box, f"{whole}GET / HTTP/1.1\n\n")
        self.assertEqual(came.count("HTTP/1.1 200 OK\n"), 2)
        self.assertEqual(self.box.requests[-1].json, {})

    def test_a_request_is_recorded_and_logged_before_it_is_answered(self) -> None:
        lines, go = queue.Queue[str](), threading.Event()

        def log(line: str) -> None:
            lines.put(line)
            go.wait(PATIENCE_S)

        self.box.log = log
        self.box.add_faults("GET /v1/models", "503")
        for told in ("GET /v1/models 503 (scripted)", "GET /v1/models 401"):
            go.clear()
            with dial(self.box, "GET /v1/models HTTP/1.1\n\n") as wire:
                self.assertEqual(lines.get(timeout=PATIENCE_S), told)
                self.assertEqual(select.select([wire], [], [], 0.1)[0], [])
                self.assertEqual(self.box.calls()[-1], "GET /v1/models")
                go.set()
                self.assertTrue(wire.recv(1))

    def test_the_index_page_says_how_to_connect_and_what_happened_and_is_not_recorded(self) -> None:
        self.ask("POST /v1/<b>", {})
        for _ in range(2):
            reply = self.ask("GET /", Authorization="")
            self.assertEqual((reply.status, reply.kind), (200, "text/html; charset=utf-8"))
        for part in (
            *("<title>Ready - CacheForge sandbox</title>", "no money moves", CHAT),
            *(f"OPENAI_BASE_URL={self.box.url}/v1\n", f"CACHEFORGE_API_KEY={DEFAULT_KEY}\n"),
            *('balance_usd: "12.34"', "POST /v1/&lt;b&gt; 404", "POST /sandbox/reset"),
        ):
            self.assertIn(part, reply.text)
        self.assertEqual(self.box.calls(), ["POST /v1/<b>"])


# the fields of a tool's arguments: the schema, and what is sent for it
FIELDS: dict[str, tuple[Any, Any]] = {
    "city": ({"type": "string", "minLength": 9, "maxLength": 9}, "sample..."),
    "days": ({"type": "integer", "minimum": 3}, 3),
    "share": ({"type": "number", "maximum": 0.5}, 0.5),
    "now": ({"type": "boolean"}, True),
    "unit": ({"$ref": "#/$defs/Unit"}, "C"),
    "note": ({"anyOf": [{"type": "string", "maxLength": 2}, {"type": "null"}]}, "sa"),
    "when": ({"type": "object", "required": ["day"], "properties": {"day": {}}}, {"day": "sample"}),
    "tags": ({"type": "array", "items": {"type": "string"}}, []),
    "zone": ({"type": ["integer", "null"]}, 1),
    "free": ({}, "sample"),
}
SCHEMA = {
    **{"type": "object", "$defs": {"Unit": {"enum": ["C", "F"]}}, "required": list(FIELDS)},
    "properties": {"left_out": {}, **{name: schema for name, (schema, _) in FIELDS.items()}},
}
NAMED = {"type": "function", "function": {"name": "weather"}}
WEATHER = ("weather", {name: value for name, (_, value) in FIELDS.items()})


class Tools(SandboxTest):
    """`tool_choice` that demands a call gets one, with arguments that fit the schema."""

    def ask(self, call: str, choice: Any, stream: bool = False) -> Reply:
        tools: Any = [{"name": "clock"}, {"name": "weather", "input_schema": SCHEMA}]
        if call == CHAT:
            tools[1]["parameters"] = tools[1].pop("input_schema")
            tools = [{"type": "function", "function": tool} for tool in tools]
        return ask(self.box, call, {**ASK, "tools": tools, "tool_choice": choice, "stream": stream})

    def events(self, call: str, choice: Any) -> list[Any]:
        """The objects of a stream."""
        lines = self.ask(call, choice, stream=True).text.splitlines()
        return [json.loads(line[len("data: ") :]) for line in lines if line[:7] == "data: {"]

    def test_in_the_form_of_openai(self) -> None:
        for choice, (name, arguments) in (("required", ("clock", {})), (NAMED, WEATHER)):
            (whole,) = self.ask(CHAT, choice).json["choices"]
            (call,) = whole["message"]["tool_calls"]
            self.assertEqual(call["function"]["name"], name)
            self.assertEqual(json.loads(call["function"]["arguments"]), arguments)
            parts = [chunk["choices"][0] for chunk in self.events(CHAT, choice)]
            ends = (whole["finish_reason"], parts[-1]["finish_reason"])
            self.assertEqual(ends, ("tool_calls", "tool_calls"))
            calls = [part["delta"]["tool_calls"][0]["function"] for part in parts[1:-1]]
            self.assertEqual(calls[0]["name"], name)
            self.assertEqual(json.loads("".join(part["arguments"] for part in calls)), arguments)

    def test_in_the_form_of_anthropic(self) -> None:
        named = {"type": "tool", "name": "weather"}
        for choice, expected in (({"type": "any"}, ("clock", {})), (named, WEATHER)):
            whole, events = self.ask(MESSAGES, choice).json, self.events(MESSAGES, choice)
            self.assertEqual(whole["stop_reason"], "tool_use")
            (block,) = whole["content"]
            self.assertEqual((block["name"], block["input"]), expected)
            parts = [event["delta"].get("partial_json", "") for event in events if "delta" in event]
            streamed = events[1]["content_block"]["name"], json.loads("".join(parts))
            self.assertEqual(streamed, expected)

    def test_a_demand_that_cannot_be_met_is_400(self) -> None:
        loop = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
        demands: tuple[tuple[Any, Any], ...] = (
            *(("required", None), ("required", 7), (NAMED, [{"name": "clock"}])),
            ({"type": "any"}, [{"name": "x", "parameters": loop}]),
        )
        for call in (CHAT, MESSAGES):
            for choice, tools in demands:
                reply = ask(self.box, call, {**ASK, "tool_choice": choice, "tools": tools})
                self.assertEqual(reply.status, 400)
                self.assertIn("tool_choice demands a tool", reply.text)
        self.assertEqual(self.box.balance_usd, Decimal("12.34"))

    def test_without_a_demand_there_is_text(self) -> None:
        for choice in ("auto", "none", None, {"type": "auto"}):
            (whole,) = self.ask(CHAT, choice).json["choices"]
            self.assertEqual(whole["message"]["content"], "Hello from the sandbox.")


class Control(SandboxTest):
    """The calls under /sandbox/, for tests in any language: JSON, and no key."""

    def control(self, call: str, body: object = None) -> Any:
        reply = ask(self.box, call, body, Authorization="", Content_Type="text/plain")
        self.assertEqual((reply.status, reply.kind), (200, "application/json"), reply.text)
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
        self.assertEqual((shown[1]["method"], shown[1]["path"]), ("GET", "/v1/account/billing"))
        self.assertEqual(shown[0]["headers"]["Authorization"], "***")
        self.assertEqual(shown[1]["headers"]["X-Mine"], "1")
        self.assertNotIn(DEFAULT_KEY, json.dumps(shown))
        seen = self.box.requests[1]
        self.assertEqual((seen.call, seen.headers["x-mine"], seen.json), (BILLING, "1", None))

    def test_faults_are_added_and_deleted_and_unused_ones_named(self) -> None:
        body = {"call": BILLING, "faults": ["429 Retry-After: 2", 503, "503"]}
        self.assertEqual(self.control("POST /sandbox/faults", body), {"ok": True})
        self.box.add_faults(CREATE, Fault.reply(200, {}))
        first = ask(self.box, BILLING)
        self.assertEqual((first.status, first.headers["Retry-After"]), (429, "2"))
        self.assertEqual(ask(self.box, BILLING).status, 503)
        self.assertEqual(self.box.unused_faults, [CREATE])
        self.assertEqual(self.control("DELETE /sandbox/faults"), {"ok": True})
        self.assertEqual((self.box.unused_faults, ask(self.box, BILLING).status), ([], 200))

    def test_an_account_takes_all_its_settings_and_shows_them(self) -> None:
        rule = {"enabled": True, "thresholdCents": 200, "amountCents": 1000}
        given: Any = {
            **{"balance_usd": "3.5", "card_saved": True, "auto_topup": rule},
            **{"upstream": {"kind": "custom", "baseUrl": "https://x.example"}, "keys": ["a", "b"]},
            **{"tenant_name": "T", "tenant_status": "suspended", "unpaid_links": [10, 20]},
        }
        for _ in range(2):
            self.assertEqual(self.control("POST /sandbox/account", given), given)
        more = {"pay_after_s": 0, "faults": [f"{BILLING}=2*503"]}
        self.assertEqual(self.control("POST /sandbox/account", more), given)
        self.assertEqual([ask(self.box, BILLING).status for _ in range(3)], [503, 503, 200])
        rows = ask(self.box, "GET /v1/account/keys").json["keys"]
        self.assertEqual([row["id"] for row in rows], ["key_1", "key_2", "key_3"])
        with Sandbox(**given) as box:
            self.assertEqual(box.apply(), given)

    def test_links_are_paid_once_and_a_card_is_saved(self) -> None:
        with self.assertRaisesRegex(ValueError, "no payment link ''; created so far: none"):
            self.box.pay()
        links = [
            ask(self.box, TOPUP, {"amountUsd": amount, "method": method}).json["paymentUrl"]
            for amount, method in ((10, "crypto"), (20, "stripe"))
        ]
        first = links[0].rpartition("/")[2]
        for token, paid, balance_usd, card_saved in (
            *((links[0], True, "22.34", False), (first, False, "22.34", False)),
            *((None, True, "42.34", True), (None, False, "42.34", True)),  # the last one
        ):
            body = {"token": token} if token else None
            self.assertEqual(self.control("POST /sandbox/pay", body), {"paid": paid})
            self.assertEqual(self.box.balance_usd, Decimal(balance_usd))
            self.assertIs(self.box.account.card_saved, card_saved)
        with self.assertRaisesRegex(ValueError, f"link 'x'; created so far: {first}, "):
            self.box.pay("https://elsewhere.example/pay/x")

    def test_reset_starts_again_as_it_began(self) -> None:
        with Sandbox(balance_usd=3, card_saved=True) as box:
            box.add_faults(BILLING, 503)
            box.apply(balance_usd=9, card_saved=False, keys=["a"])
            ask(box, CREATE, {})
            ask(box, "POST /sandbox/reset", Authorization="")
            self.assertEqual((box.requests, box.balance_usd), ([], 3))
            self.assertEqual((box.account.card_saved, len(box.account.keys)), (True, 1))
            self.assertEqual(ask(box, BILLING).status, 200)

    @unittest.skipUnless(sys.platform == "linux", "needs an address that is not 127.0.0.1")
    def test_from_another_machine_it_takes_the_key(self) -> None:
        with Sandbox(host="0.0.0.0") as box:  # 127.0.0.2 stands for another machine
            host, port = "127.0.0.2", int(box.url.rpartition(":")[2])
            for path, headers, status in (
                *(("/sandbox/requests", {}, 401), ("/", {}, 200)),
                ("/sandbox/requests", {"X-Api-Key": DEFAULT_KEY}, 200),
            ):
                wire = http.client.HTTPConnection(host, port, PATIENCE_S, (host, 0))
                with contextlib.closing(wire):
                    wire.request("GET", path, headers=headers)
                    reply = Reply(wire.getresponse())
                self.assertEqual(reply.status, status)
                self.assertNotIn(DEFAULT_KEY, reply.text)


class PaymentPages(SandboxTest):
    def test_a_link_leads_back_to_where_the_call_came_to(self) -> None:
        reply = ask(self.box, TOPUP, TEN, Host="sandbox:8402")
        self.assertRegex(reply.json["paymentUrl"], r"^http://sandbox:8402/pay/[0-9a-f]{16}$")

    def check(self, path: str, *parts: str, status: int = 200) -> None:
        """Look at a page, on which these parts have to stand."""
        reply = ask(self.box, f"GET {path}", Authorization="")
        self.assertEqual((reply.status, reply.headers["Cache-Control"]), (status, "no-store"))
        for part in ('<html lang="en">', 'name="viewport"', *parts):
            self.assertIn(part, reply.text)
        self.assertIs("<form" in reply.text, "<form" in parts)

    def test_a_payer_sees_what_is_to_be_paid_and_pays_it_once(self) -> None:
        self.box.account.links["x"] = sandbox.Link("x", 1000, "crypto")
        to_pay = (" $1,000.00<", "in crypto", "<form", ">Pay $1,000.00<", 'href="/pay/x/cancel"')
        self.check("/pay/x", *to_pay)
        for path in ("/pay/", "/pay/nope", "/pay/x/else", "/pay/%3Cb%3E"):
            self.check(path, ">There is no such payment link<", status=404)
        self.assertEqual(ask(self.box, "POST /pay/x/cancel").status, 200)
        self.check("/pay/x/cancel", "Nothing was charged. The link stays open.", 'href="/pay/x"')
        self.assertEqual(self.box.balance_usd, Decimal("12.34"))
        for _ in range(2):
            reply = ask(self.box, "POST /pay/x", "", Authorization="")
            self.assertEqual((reply.status, reply.headers["Location"]), (303, "/pay/x"))
            for path in ("/pay/x", "/pay/x/cancel"):
                self.check(path, "Paid. You can close this page.")
            self.assertEqual(self.box.balance_usd, Decimal("1012.34"))

    def test_links_are_paid_so_many_seconds_after_they_were_created(self) -> None:
        self.box.apply(pay_after_s=0.2)
        paid, pay, began = threading.Event(), self.box.account.pay, time.monotonic()

        def told(link: sandbox.Link) -> None:
            pay(link)
            paid.set()

        with mock.patch.object(self.box.account, "pay", told):
            ask(self.box, TOPUP, TEN)
            self.assertTrue(paid.wait(PATIENCE_S))
        self.assertGreaterEqual(time.monotonic() - began, 0.2)
        self.assertEqual(self.box.balance_usd, Decimal("22.34"))


class Faults(SandboxTest):
    """Each fault, in a word."""

    def meet(self, call: str = BILLING, body: object = None) -> str:
        """Status, kind and body; or the exception, as http.client names it."""
        try:
            reply = ask(self.box, call, body)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
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
        for what, phrase, name, value in (
            ("429 Retry-After: 2", "Too Many Requests", "Retry-After", "2"),
            ("503 Retry-After: 1; X-A: b c", "Service Unavailable", "X-A", "b c"),
            ("302 Location: http://127.0.0.1:9/", "Found", "Location", "http://127.0.0.1:9/"),
            ("200 X-Request-Id: req_000000000000", "OK", "X-Request-Id", "req_000000000000"),
            ("empty", "OK", "Content-Length", "0"),
        ):
            self.box.add_faults(BILLING, what)
            reply = ask(self.box, BILLING)
            self.assertEqual((reply.reason, reply.headers[name]), (phrase, value))
            self.assertRegex(reply.headers["X-Request-Id"], "^req_[0-9a-f]{12}$")
            self.assertEqual(self.box.requests[-1].status, reply.status)

    def test_done_carries_it_out_before_the_fault(self) -> None:
        for what, done in (
            *(("503", 0), ("done+503", 1), ("lost", 1), ("reset", 0)),
            *(("done+reset", 1), ("done+html", 1)),
        ):
            before = len(self.box.account.keys)
            self.box.add_faults(CREATE, what)
            self.meet(CREATE, {})
            self.assertEqual(len(self.box.account.keys) - before, done, what)

    def test_a_fault_for_any_key_and_for_one(self) -> None:
        self.box.apply(keys=["a", "b"])
        self.box.add_faults("POST /v1/account/keys/ID/revoke", 503)
        self.box.add_faults("POST /v1/account/keys/key_3/revoke", 409)
        met = [self.meet(f"POST /v1/account/keys/key_{n}/revoke", {})[:3] for n in (3, 2, 2)]
        self.assertEqual(met, ["409", "503", "200"])

    def test_a_hang_has_no_end_but_that_of_the_sandbox(self) -> None:
        self.box.add_faults(BILLING, "hang")
        with mock.patch.object(self.box.closing, "wait") as wait:
            self.assertEqual(self.meet(), "RemoteDisconnected")
        wait.assert_called_once_with()

    def test_a_drip_comes_byte_by_byte_and_ends_after_30_s(self) -> None:
        self.box.add_faults(BILLING, "drip")
        with dial(self.box, "GET /v1/account/billing HTTP/1.1\n\n") as wire:
            began = time.monotonic()
            self.assertEqual([wire.recv(1) for _ in range(4)], [b"H", b"T", b"T", b"P"])
            self.assertGreater(time.monotonic() - began, 0.25)
        drip = Fault.of("drip")
        self.assertAlmostEqual(len(drip.raw) * drip.drip_s, 30)

    def test_a_stream_may_break_midway_and_the_client_can_tell(self) -> None:
        for call, stream, shown in (
            *((CHAT, True, b'"content": "Hello"'), (MESSAGES, True, b'"text": "Hello"')),
            (CHAT, False, b""),
        ):
            self.box.add_faults(call, "cut-stream")
            with contextlib.closing(connection(self.box)) as wire:
                body = json.dumps({**ASK, "stream": stream})
                wire.request("POST", call.partition(" ")[2], body, {"X-Api-Key": DEFAULT_KEY})
                response = wire.getresponse()
                self.assertIsNone(response.headers["Connection"])  # else Node takes it as whole
                with self.assertRaises(http.client.IncompleteRead) as broken:
                    response.read()
            self.assertIn(shown, broken.exception.partial)
            self.assertNotRegex(broken.exception.partial, rb'"(stop|end_turn)"|total_tokens')
        self.assertEqual(self.box.balance_usd, Decimal("12.28"))


class Library(unittest.TestCase):
    def test_a_balance_is_a_number_or_text_and_is_exact(self) -> None:
        good = (0, 12, -3, "12.34", 12.5, 0.1, 1e-6, 1e2, "-1.5", Decimal("1E-6"), Decimal("1E2"))
        with Sandbox() as box:
            for balance in good:
                box.set_balance(balance)
                self.assertEqual(box.balance_usd, Decimal(str(balance)))
            with self.assertRaisesRegex(ValueError, "cannot be negative: -1"):
                box.charge(-1)
        texts: list[Any] = ["", "ten", "1.2345678", "$5", "1e3", Decimal("NaN"), 1e-7, float("inf")]
        for odd in (*texts, True, None, b"1"):
            told = f"dollars are written like 0, 12.34 or -1.50, not {re.escape(repr(odd))}"
            with self.assertRaisesRegex(ValueError, told):
                Sandbox(balance_usd=odd)

    def test_only_the_last_1000_requests_are_kept(self) -> None:
        with Sandbox() as box:
            for number in range(1010):
                box.record(Request("GET", f"/{number}", Message()))
            self.assertEqual((len(box.requests), box.calls()[0]), (1000, "GET /10"))

    def test_under_many_threads_the_ledger_is_exact_and_each_fault_happens_once(self) -> None:
        with Sandbox(balance_usd=1) as box, ThreadPoolExecutor(60) as pool:
            box.add_faults(CHAT, *["503"] * 20)
            statuses = list(pool.map(lambda _: ask(box, CHAT, ASK).status, range(80)))
        self.assertEqual([statuses.count(n) for n in (200, 402, 503)], [50, 10, 20])
        self.assertEqual(box.balance_usd, 0)

    def test_a_closed_sandbox_serves_nobody_any_more(self) -> None:
        """As with a client that is kept for all tests, and a sandbox on the same port for each."""
        Sandbox().close()  # never started
        first, key = Sandbox(balance_usd=5).start(), {"X-Api-Key": DEFAULT_KEY}
        with contextlib.closing(connection(first)) as wire:
            wire.request("GET", "/v1/account/billing", headers=key)
            self.assertEqual(wire.getresponse().read()[:9], b'{"billing')
            wire.auto_open = 0  # so that it does not connect again
            first.add_faults(BILLING, Fault(b"x", end="hang"))
            with dial(first, "GET /v1/account/billing HTTP/1.1\n\n") as hanging:
                self.assertEqual(hanging.recv(1), b"x")
                first.close()
                self.assertEqual(hanging.recv(1), b"")
            first.close()
            with Sandbox(balance_usd=7, port=int(first.url.rpartition(":")[2])) as second:
                with self.assertRaises((ConnectionError, http.client.HTTPException)):
                    wire.request("POST", "/v1/chat/completions", json.dumps(ASK), key)
                    wire.getresponse()
                self.assertEqual((first.balance_usd, second.requests), (5, []))
        with self.assertRaises(OSError):
            ask(first, BILLING)


def call_sandbox(*argv: str) -> Result:
    """Call the command line in this process, if it is one that ends without a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = sandbox.main(argv)
        except SystemExit as done:
            code = int(str(done))
    return Result(code, out.getvalue().encode(), err.getvalue().encode())


class CommandLine(unittest.TestCase):
    """What tests/transcripts/sandbox.md does not show."""

    def test_a_copy_without_ops_says_what_it_can_still_do(self) -> None:
        with mock.patch.object(sandbox, "OPS", Path("no", "ops.py")):
            result = call_sandbox("balance")
        self.assertEqual(result.exit, 2)
        self.assertIn("'balance' needs ops.py, which is not at no", result.err)
        self.assertIn("--serve and --exec CMD work without it", result.err)

    def test_a_port_that_is_busy_or_too_high_is_one_sentence(self) -> None:
        with Sandbox() as box:
            for port in (box.url.rsplit(":", 1)[1], "65536"):
                result = call_sandbox("--serve", "--port", port)
                told = f"sandbox: cannot listen on 127.0.0.1, port {port}: "
                self.assertEqual((result.exit, result.out), (2, ""))
                self.assertRegex(result.err, f"^{told}.+\n$")

    def test_the_version_is_that_of_the_tool(self) -> None:
        self.assertEqual(call_sandbox("--version").out, f"sandbox.py {ops.__version__}\n")

    def test_an_account_comes_from_a_file_and_options_go_before_it(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "account.json")
            settings = '{"balance_usd": 3, "tenant_name": "M\u00fcller", "tenant_status": "closed"}'
            path.write_text(settings, "utf-8")
            line = f"python3 tests/sandbox.py --account {path.as_posix()}"
            tenant = in_process(f"{line} info --json").json["tenant"]
            self.assertEqual((tenant["name"], tenant["status"]), ("M\u00fcller", "closed"))
            self.assertIn("$7.00", in_process(f"{line} --balance 7 balance").out)
            path.write_text("{")
            result = call_sandbox("--account", str(path), "balance")
            self.assertEqual(result.exit, 2)
            self.assertIn(f"sandbox.py: error: --account {path}: ", result.err)

    @unittest.skipUnless(Path("/dev/full").exists(), "needs /dev/full")
    def test_its_own_lines_never_change_the_exit_code(self) -> None:
        for where in ("2>/dev/full", "2>&-"):
            argv = f"--fault '{CREATE}=503' --exec sh -c 'exit 7'"
            result = run("sh", "-c", f"'{sys.executable}' '{SCRIPT}' {argv} {where}")
            self.assertEqual((result.exit, result.out, result.err), (7, "", ""))


class Serving(unittest.TestCase):
    """A process that goes on until it is told to stop."""

    def serve(self, *options: str) -> tuple[subprocess.Popen[str], int]:
        """`--serve` with more options; the process and its port."""
        child = start(sys.executable, SCRIPT, "--serve", *options)
        self.addCleanup(end, child)
        assert child.stdout
        lines = [child.stdout.readline() for _ in range(6)]
        url = lines[0].rstrip("\n").partition("=")[2]
        self.assertRegex(url, r"^http://127\.0\.0\.1:\d+$")
        urls = {"CACHEFORGE": url, "OPENAI": f"{url}/v1", "ANTHROPIC": url}
        told = [(f"{name}_BASE_URL={urls[name]}", f"{name}_API_KEY={DEFAULT_KEY}") for name in urls]
        self.assertEqual(lines, [f"export {each}\n" for pair in told for each in pair])
        return child, int(url.rpartition(":")[2])

    @unittest.skipIf(os.name == "nt", "POSIX signals")
    def test_a_signal_ends_it_and_frees_its_port_even_where_a_shell_made_it_deaf(self) -> None:
        fault = ("--fault", f"{CREATE}=503")
        for number, options, whom in (
            (signal.SIGINT, (), "this machine"),
            (signal.SIGTERM, ("--host", "0.0.0.0"), "whoever can reach 0.0.0.0"),
        ):
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as `&` in a script does
            try:
                child, port = self.serve("--verbose", *fault, *options)
            finally:
                signal.signal(signal.SIGINT, before)
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as wire:
                wire.request("GET", "/v1/account/info")
                self.assertEqual(wire.getresponse().status, 401)
            with socket.socket() as probe:  # another address of this machine
                refused = probe.connect_ex(("127.0.0.2", port)) != 0
                self.assertTrue(sys.platform != "linux" or refused == (not options))
            child.send_signal(number)
            out, err = child.communicate(timeout=PATIENCE_S)
            self.assertEqual((child.returncode, out), (0, ""))
            lines = [f"# serving {whom}; Ctrl-C stops", "GET /v1/account/info 401"]
            lines += [f"sandbox: a fault was not used, because nobody called {CREATE}"]
            self.assertEqual(err.splitlines(), lines)
            with socket.socket() as probe:
                self.assertNotEqual(probe.connect_ex(("127.0.0.1", port)), 0)

    @unittest.skipIf(os.name == "nt", "POSIX signals")
    def test_a_command_is_ended_with_the_sandbox(self) -> None:
        program = "import time; print('up', flush=True); time.sleep(600)"
        child = start(sys.executable, SCRIPT, "--exec", sys.executable, "-c", program)
        assert child.stdout
        self.assertEqual(child.stdout.readline(), "up\n")
        child.terminate()
        out, err = child.communicate(timeout=PATIENCE_S)  # ends when nobody has the pipes open
        self.assertEqual((child.returncode, out, err), (143, "", ""))
