"""Clients that were not written for the sandbox: OpenAI's own package, and curl."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import unittest
from typing import Any

from support import SandboxTest, run

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
        client = self.openai.OpenAI(base_url=base, api_key=self.box.books.api_key, max_retries=0)
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
        self.assertEqual(self.box.books.balance_microusd, 12_320_000)

    def test_a_stream_comes_in_pieces_and_tells_its_usage_when_asked(self) -> None:
        for options in ({}, {"stream_options": {"include_usage": True}}):
            chunks = list(self.client.chat.completions.create(**ASK, stream=True, **options))
            pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
            self.assertGreater(len(pieces), 3)
            self.assertEqual("".join(filter(None, pieces)), "Hello from the sandbox.")
            reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
            self.assertEqual((reasons[-1], set(reasons[:-1])), ("stop", {None}))
            self.assertEqual(chunks[-1].usage is not None, bool(options))

    def test_models_are_listed(self) -> None:
        self.assertEqual([model.id for model in self.client.models.list()], ["sandbox"])

    def test_without_credit_both_ways_raise_402_until_somebody_pays(self) -> None:
        self.box.spend()
        for stream in (False, True):
            with self.assertRaises(self.openai.APIStatusError) as caught:
                self.client.chat.completions.create(**ASK, stream=stream)
            self.assertEqual(caught.exception.status_code, 402)
            self.assertEqual(caught.exception.code, "insufficient_credit")
        self.box.pay(self.box.service.topup({"amountUsd": 10, "method": "stripe"})["paymentUrl"])
        self.client.chat.completions.create(**ASK)

    def test_a_wrong_key_and_a_scripted_fault_are_its_own_errors(self) -> None:
        self.box.script("POST /v1/chat/completions", "429")
        with self.assertRaises(self.openai.RateLimitError):
            self.client.chat.completions.create(**ASK)
        with self.assertRaises(self.openai.AuthenticationError):
            self.enter(self.client.with_options(api_key="cf_wrong")).models.list()


@unittest.skipUnless(shutil.which("curl"), "curl is not installed")
class Curl(SandboxTest):
    def curl(self, path: str, *argv: str) -> str:
        done = run("curl", "-sS", "--noproxy", "*", *argv, f"{self.box.url}{path}")
        self.assertEqual((done.exit, done.err), (0, ""), done)
        return done.out

    def test_lower_case_headers_are_served(self) -> None:
        key = f"authorization: Bearer {self.box.books.api_key}"
        reply = json.loads(self.curl("/v1/account/info", "-H", key))
        self.assertEqual(reply["tenant"]["id"], "tn_sandbox")

    def test_a_message_in_the_style_of_anthropic_whole_and_as_a_stream(self) -> None:
        key = ("-H", f"x-api-key: {self.box.books.api_key}")
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

    def test_that_header_opens_nothing_else(self) -> None:
        key = ("-H", f"x-api-key: {self.box.books.api_key}")
        self.assertIn("invalid_api_key", self.curl("/v1/account/billing", *key))

    def test_a_link_is_paid_by_one_post(self) -> None:
        link = self.box.service.topup({"amountUsd": 10, "method": "stripe"})["paymentUrl"]
        self.assertIn("Paid. You can close this page.", self.curl(link, "-L", "-d", ""))
        self.assertEqual(self.box.books.balance_microusd, 22_340_000)
