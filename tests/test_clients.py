"""Clients that were not written for the sandbox: OpenAI's own package, and curl."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import unittest
from decimal import Decimal
from typing import Any
from unittest import mock

from support import Sandbox, SandboxTest, run

ASK: Any = {"model": "m", "messages": [{"role": "user", "content": "Say hello."}]}


@unittest.skipUnless(
    importlib.util.find_spec("openai"), "the package openai is not installed (pip install openai)"
)
class OpenAI(SandboxTest):
    """The package as its users call it; only address and key are ours."""

    def setUp(self) -> None:
        super().setUp()
        self.openai: Any = importlib.import_module("openai")
        base = f"{self.box.url}/v1"
        client = self.openai.OpenAI(base_url=base, api_key=self.box.account.api_key, max_retries=0)
        self.client: Any = self.enter(client)

    def enter(self, client: Any) -> Any:
        self.addCleanup(client.close)
        return client

    def test_a_completion_is_whole_and_costs_credit(self) -> None:
        reply = self.client.chat.completions.create(**ASK)
        self.assertEqual(reply.choices[0].message.content, "Hello from the sandbox.")
        self.assertEqual((reply.model, reply.choices[0].finish_reason), ("m", "stop"))
        self.assertTrue(reply.id.startswith("chatcmpl-"))
        self.assertGreater(reply.created, 1_700_000_000)
        usage = reply.usage
        self.assertGreater(usage.prompt_tokens, 0)
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        self.assertEqual(self.box.account.balance_microusd, 12_320_000)

    def test_a_stream_comes_in_pieces_and_tells_its_usage_when_asked(self) -> None:
        for options in ({}, {"stream_options": {"include_usage": True}}):
            chunks = list(self.client.chat.completions.create(**ASK, stream=True, **options))
            pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
            self.assertGreater(len(pieces), 3)
            self.assertEqual("".join(filter(None, pieces)), "Hello from the sandbox.")
            reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
            self.assertEqual((reasons[-1], set(reasons[:-1])), ("stop", {None}))
            self.assertEqual(chunks[-1].usage is not None, bool(options))

    def test_a_stream_that_breaks_is_an_error(self) -> None:
        self.box.add_faults("POST /v1/chat/completions", "cut-stream")
        with self.assertRaisesRegex(Exception, "incomplete chunked read|Connection error"):
            list(self.client.chat.completions.create(**ASK, stream=True))

    def test_a_demanded_tool_is_called(self) -> None:
        fields = {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}}
        schema = {"type": "object", "properties": fields, "required": ["city", "unit"]}
        tools = [{"type": "function", "function": {"name": "weather", "parameters": schema}}]
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            reply = self.client.chat.completions.create(**ASK, tools=tools, tool_choice=choice)
            (call,) = reply.choices[0].message.tool_calls
            self.assertEqual(call.function.name, "weather")
            self.assertEqual(json.loads(call.function.arguments), {"city": "sample", "unit": "C"})

    def test_the_variables_are_all_that_it_takes(self) -> None:
        with mock.patch.dict(os.environ, self.box.env):
            client = self.enter(self.openai.OpenAI())
        self.assertEqual(client.chat.completions.create(**ASK).model, "m")

    def test_a_client_that_is_kept_talks_to_the_sandbox_that_is_open(self) -> None:
        port = int(self.box.url.rpartition(":")[2])
        self.client.chat.completions.create(**ASK)
        self.box.close()
        with Sandbox(balance_usd=1, port=port) as second:
            self.client.chat.completions.create(**ASK)
            self.assertEqual(second.balance_usd, Decimal("0.98"))
        self.assertEqual(self.box.balance_usd, Decimal("12.32"))

    def test_models_are_listed(self) -> None:
        self.assertEqual([model.id for model in self.client.models.list()], ["sandbox"])

    def test_without_credit_both_ways_raise_402_until_somebody_pays(self) -> None:
        self.box.set_balance(0)
        for stream in (False, True):
            with self.assertRaises(self.openai.APIStatusError) as caught:
                self.client.chat.completions.create(**ASK, stream=stream)
            self.assertEqual(caught.exception.status_code, 402)
            self.assertEqual(caught.exception.code, "insufficient_credit")
        self.box.pay(self.box.service.topup({"amountUsd": 10, "method": "stripe"})["paymentUrl"])
        self.client.chat.completions.create(**ASK)

    def test_a_wrong_key_and_a_scripted_fault_are_its_own_errors(self) -> None:
        self.box.add_faults("POST /v1/chat/completions", "429 Retry-After: 7")
        with self.assertRaises(self.openai.RateLimitError) as caught:
            self.client.chat.completions.create(**ASK)
        self.assertEqual(caught.exception.response.headers["retry-after"], "7")
        self.assertTrue(caught.exception.request_id.startswith("req_"))
        with self.assertRaises(self.openai.AuthenticationError):
            self.enter(self.client.with_options(api_key="cf_wrong")).models.list()


@unittest.skipUnless(shutil.which("curl"), "curl is not installed")
class Curl(SandboxTest):
    def curl(self, path: str, *argv: str) -> str:
        done = run("curl", "-sS", "--noproxy", "*", *argv, f"{self.box.url}{path}")
        self.assertEqual((done.exit, done.err), (0, ""), done)
        return done.out

    def test_lower_case_headers_are_served(self) -> None:
        key = f"authorization: Bearer {self.box.account.api_key}"
        reply = json.loads(self.curl("/v1/account/info", "-H", key))
        self.assertEqual(reply["tenant"]["id"], "tn_sandbox")

    def test_a_message_in_the_style_of_anthropic_whole_and_as_a_stream(self) -> None:
        key = ("-H", f"x-api-key: {self.box.account.api_key}")
        message = json.loads(self.curl("/v1/messages", *key, "-d", json.dumps(ASK)))
        self.assertEqual(message["content"][0]["text"], "Hello from the sandbox.")
        self.assertEqual((message["type"], message["stop_reason"]), ("message", "end_turn"))
        self.assertGreater(message["usage"]["input_tokens"], 0)
        stream = self.curl("/v1/messages", *key, "-d", json.dumps({**ASK, "stream": True}))
        events = [block.split("\n") for block in stream.strip().split("\n\n")]
        datas = [json.loads(data.partition("data: ")[2]) for _, data in events]
        self.assertEqual([name for name, _ in events], [f"event: {d['type']}" for d in datas])
        self.assertEqual((datas[0]["type"], datas[-1]["type"]), ("message_start", "message_stop"))
        text = "".join(d["delta"].get("text", "") for d in datas if "delta" in d)
        self.assertEqual(text, "Hello from the sandbox.")

    def test_a_test_suite_is_driven_by_curl_alone(self) -> None:
        self.assertIn("<title>Ready", self.curl("/", "--retry", "20", "--retry-connrefused"))
        call = {"call": "GET /v1/models", "faults": ["429 Retry-After: 2"]}
        self.curl("/sandbox/faults", "-d", json.dumps(call))
        key = ("-H", f"authorization: Bearer {self.box.account.api_key}")
        self.assertIn("Retry-After: 2", self.curl("/v1/models", "-i", *key))
        self.curl("/sandbox/account", "-d", '{"balance_usd": 0}')
        body = ("-d", json.dumps(ASK))
        self.assertIn("insufficient_credit", self.curl("/v1/chat/completions", *key, *body))
        shown = json.loads(self.curl("/sandbox/requests"))["requests"]
        self.assertEqual([each["status"] for each in shown], [429, 402])
        topup = '{"amountUsd": 10, "method": "stripe"}'
        kind = ("-H", "content-type: application/json")
        self.curl("/v1/account/billing/topup", *key, *kind, "-d", topup)
        self.assertEqual(json.loads(self.curl("/sandbox/pay", "-d", "")), {"paid": True})
        self.assertIn("Hello", self.curl("/v1/chat/completions", *key, *body))

    def test_a_chunked_body_is_read(self) -> None:
        key = ("-H", f"x-api-key: {self.box.account.api_key}", "-H", "transfer-encoding: chunked")
        self.assertIn("Hello", self.curl("/v1/messages", *key, "-d", json.dumps(ASK)))

    def test_a_link_is_paid_by_one_post(self) -> None:
        link = self.box.service.topup({"amountUsd": 10, "method": "stripe"})["paymentUrl"]
        self.assertIn("Paid. You can close this page.", self.curl(link, "-L", "-d", ""))
        self.assertEqual(self.box.account.balance_microusd, 22_340_000)
