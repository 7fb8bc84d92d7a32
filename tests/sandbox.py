#!/usr/bin/env python3
"""A small, honest CacheForge on this machine: accounts, payment pages and the gateway.

Money is fake, the wire is not: the paths, fields and units of the service, and as strict.
One file, standard library only, that also works when it is copied alone. As a library:

    with Sandbox(balance_usd=5) as box:
        os.environ.update(box.env)  # CACHEFORGE_BASE_URL and CACHEFORGE_API_KEY
        box.spend()  # the gateway answers 402 from now on
        box.pay(link)  # a person pays
        box.script("POST /v1/chat/completions", "503", "lost")  # the next two go wrong
        box.requests  # what has been asked

On the command line: `sandbox.py --help`. What the service is known to answer is done as it
does it. Not known, so only likely: GET /v1/models, POST /v1/messages, streams, and that
auto top-up charges at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import hashlib
import html
import json
import os
import re
import secrets
import signal
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, NamedTuple, Union
from urllib.parse import unquote, urlsplit

OPS = Path(__file__).resolve().parent.parent / "skills" / "cacheforge-ops" / "ops.py"
DEFAULT_KEY = "cf_sandbox_0123456789abcdef"
MICROUSD_PER_USD = 1_000_000
MICROUSD_PER_CENT = 10_000
SMALLEST_TOPUP_USD = 10
MAX_REQUEST_BYTES = 10_000_000
METHODS = ("GET", "POST", "PATCH")
KINDS = ("openrouter", "anthropic", "custom")
KEY_LISTS = ("plain", "masked", "bare", "unmarked", "dropped")
DOLLARS = r"(-?)([0-9]{1,9})(?:\.([0-9]{1,6}))?"
BORN_AT = "2026-01-02T03:04:05Z"
REPLY = ("Hello", " from", " the", " sandbox.")

Json = dict[str, Any]
Usd = Union[str, int, Decimal]


class Problem(Exception):
    """A request that the service refuses."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


class Seen(NamedTuple):
    """One request as it arrived. Header names have no case."""

    method: str
    path: str
    headers: Message
    body: bytes

    @property
    def call(self) -> str:
        """`METHOD /path`, the name under which replies are scripted."""
        return f"{self.method} {self.path}"

    @property
    def json(self) -> Any:
        """The body as JSON; None where it is empty."""
        return json.loads(self.body) if self.body else None


class Answer(NamedTuple):
    """One honest answer; a stream of events is sent part by part."""

    status: int
    kind: str
    parts: Sequence[bytes]
    headers: Mapping[str, str] = {}

    @classmethod
    def json(cls, value: object, status: int = 200, **headers: str) -> Answer:
        """An answer in JSON."""
        return cls(status, "application/json", [json.dumps(value).encode()], headers)

    @classmethod
    def refusal(cls, problem: Problem, **headers: str) -> Answer:
        """A problem in the service's own form."""
        error = {"message": problem.message, "type": problem.code, "code": problem.code}
        return cls.json({"error": error}, problem.status, **headers)


@dataclass
class Fault:
    """One scripted answer: raw bytes, how slowly they come, and how it ends.

    `end` is `close`, `reset` (RST) or `hang` (open until the sandbox closes).
    `after` lets the service do what was asked before the answer goes wrong.
    """

    raw: bytes = b""
    end: str = "close"
    drip_s: float = 0.0
    after: bool = False

    @classmethod
    def reply(
        cls,
        status: int = 200,
        body: object = None,
        headers: Mapping[str, str] = {},
        after: bool = False,
    ) -> Fault:
        """A well-formed answer with any status; `body` is bytes, or goes out as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            "Connection": "close",
            **headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return cls(f"HTTP/1.1 {status} Scripted\r\n{head}\r\n".encode() + content, after=after)

    @classmethod
    def of(cls, what: str) -> Fault:
        """A fault in a word, as `--fault` takes it. Raises ValueError.

        `503`, `409:BODY`, a JSON body alone, one of FAULTS, or `done+` and one of these: what
        was asked is carried out before it goes wrong.
        """
        if what.startswith("done+"):
            return dataclasses.replace(cls.of(what[len("done+") :]), after=True)
        if what in FAULTS:
            return FAULTS[what]
        match = re.match(r"([2-9][0-9]{2})(?::|$)", what)
        if not match and what[:1] not in ("{", "["):
            raise ValueError(
                f"{what!r} is neither a status (503), STATUS:BODY, a JSON body,"
                f" nor one of {', '.join(FAULTS)}"
            )
        status, body = (int(match[1]), what[match.end() :]) if match else (200, what)
        if what == str(status):
            words = HTTPStatus(status).phrase if status in list(HTTPStatus) else "Scripted"
            error = {"message": words, "code": words.lower().replace(" ", "_")}
            body = json.dumps({"error": error} if status >= 400 else {})
        try:
            json.loads(body)
            kind = "application/json"
        except ValueError:
            kind = "text/plain; charset=utf-8"
        return cls.reply(status, body.encode(), {"Content-Type": kind})


FAULTS = {
    "lost": Fault(after=True),
    "reset": Fault(end="reset"),
    "hang": Fault(end="hang"),
    "drip": dataclasses.replace(Fault.reply(200, b" " * 10_000), drip_s=0.1),
    "html": Fault.reply(200, b"<!doctype html><title>Hi</title>", {"Content-Type": "text/html"}),
    "empty": Fault.reply(200, b""),
    "cut": Fault.reply(200, b'{"', {"Content-Length": "900"}),
}


@dataclass
class Key:
    """An API key as the service keeps it."""

    id: str
    secret: str
    label: str | None
    created_at: str
    revoked_at: str | None = None
    last_used_at: str | None = None

    @property
    def prefix(self) -> str:
        """What a list shows of the secret."""
        return self.secret[:12]


@dataclass
class Link:
    """A payment link."""

    token: str
    amount_usd: int
    method: str
    paid: bool = False


@dataclass
class Books:
    """The account: ledger, keys, links, provider. One lock guards it all."""

    api_key: str = DEFAULT_KEY
    ledger: list[tuple[str, int]] = field(default_factory=list)  # why, microdollars
    keys: list[Key] = field(default_factory=list)
    links: dict[str, Link] = field(default_factory=dict)
    card_saved: bool = False
    auto_topup: Json = field(default_factory=lambda: {"enabled": False})
    upstream: dict[str, str] = field(default_factory=dict)
    tenant_name: str = "Sandbox Inc."
    tenant_status: str = "active"
    cost_microusd: int = 20_000
    shows_keys: str = "plain"  # one of KEY_LISTS
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.keys.append(Key("key_1", self.api_key, "sandbox", BORN_AT))

    @property
    def balance_microusd(self) -> int:
        """What the ledger adds up to."""
        return sum(amount for _, amount in self.ledger)

    def credit(self, why: str, amount_microusd: int) -> None:
        """Write a line into the ledger."""
        with self.lock:
            self.ledger.append((why, amount_microusd))

    def check_key(self, secret: str) -> None:
        """Let a valid key pass. Raises Problem 401."""
        for key in self.keys:
            if secret == key.secret and key.revoked_at is None:
                key.last_used_at = now()
                return
        raise Problem(401, "Invalid API key", "invalid_api_key")

    def pay(self, link: Link) -> bool:
        """Pay a link; False if it had been paid before. Card payments save the card."""
        with self.lock:
            if link.paid:
                return False
            link.paid = True
            self.card_saved = self.card_saved or link.method == "stripe"
            self.credit(f"paid {link.token}", link.amount_usd * MICROUSD_PER_USD)
            return True

    def use(self, why: str, amount_microusd: int) -> None:
        """Take credit, and refill it by the rule."""
        with self.lock:
            self.credit(why, -amount_microusd)
            self.refill()

    def refill(self) -> None:
        """Charge the saved card where the rule says so."""
        rule = self.auto_topup
        if not (rule["enabled"] and self.card_saved):
            return
        if self.balance_microusd < rule["thresholdCents"] * MICROUSD_PER_CENT:
            self.credit("auto top-up", rule["amountCents"] * MICROUSD_PER_CENT)

    def charge_call(self) -> None:
        """Take the price of one gateway call. Raises Problem 402."""
        if self.balance_microusd <= 0:
            raise Problem(402, "Payment Required: credit is used up", "insufficient_credit")
        self.use("call", self.cost_microusd)


def now() -> str:
    """The time as the service writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_count(value: object, least: int) -> bool:
    """Whether `value` is a JSON integer of at least `least`; `true` is none."""
    return type(value) is int and value >= least


def count_tokens(value: object) -> int:
    """About four characters each."""
    return len(json.dumps(value)) // 4


class Service:
    """The account and the gateway, a method for each call.

    Each takes the body and returns an object (sent as JSON) or a list of events.
    """

    def __init__(self, books: Books) -> None:
        self.books = books
        self.origin = ""  # where the call came to, which payment links lead back to
        self.on_link: Callable[[Link], object] = lambda link: None
        self.routes: dict[str, Callable[[Any], Json | list[str]]] = {
            "POST /v1/chat/completions": self.chat,
            "POST /v1/messages": self.messages,
            "GET /v1/models": self.models,
            "GET /v1/account/billing": self.billing,
            "POST /v1/account/billing/topup": self.topup,
            "PATCH /v1/account/billing/auto-topup": self.set_auto_topup,
            "GET /v1/account/info": self.info,
            "GET /v1/account/upstream": self.upstream,
            "POST /v1/account/upstream": self.set_upstream,
            "GET /v1/account/keys": self.keys,
            "POST /v1/account/keys": self.create_key,
            "POST /v1/account/keys/ID/revoke": self.revoke_key,
        }

    def find(self, method: str, path: str) -> Callable[[Any], Json | list[str]] | None:
        """What answers a call, if anything does."""
        revoke = re.fullmatch(r"/v1/account/keys/([^/]+)/revoke", path)
        if revoke and method == "POST":
            return lambda body: self.revoke_key(unquote(revoke[1]))
        return self.routes.get(f"{'GET' if method == 'HEAD' else method} {path}")

    def answer(self, seen: Seen, origin: str) -> Answer:
        """Answer one call; a refusal is an answer, too."""
        with self.books.lock:
            self.origin = origin
            try:
                self.books.check_key(self._secret(seen))
                handler = self.find(seen.method, seen.path)
                if handler is None:
                    return self._not_found(seen.path)
                value = handler(self._body(seen))
            except Problem as problem:
                return Answer.refusal(problem)
        if isinstance(value, list):
            return Answer(200, "text/event-stream", [event.encode() for event in value])
        return Answer.json(value)

    def _secret(self, seen: Seen) -> str:
        scheme, _, secret = seen.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return secret
        return seen.headers.get("X-Api-Key", "") if seen.path == "/v1/messages" else ""

    def _body(self, seen: Seen) -> Any:
        kind = seen.headers.get_content_type()
        if seen.body and seen.path.startswith("/v1/account/") and kind != "application/json":
            raise Problem(415, "Send Content-Type: application/json", "content_type")
        try:
            body = seen.json if seen.body else {}
        except (ValueError, RecursionError):
            raise Problem(400, "The body is not JSON", "json") from None
        if not isinstance(body, dict):
            raise Problem(400, "The body is not a JSON object", "json")
        return body

    def _not_found(self, path: str) -> Answer:
        allowed = [method for method in METHODS if self.find(method, path)]
        if allowed:
            problem = Problem(405, "Method not allowed", "method")
            return Answer.refusal(problem, Allow=", ".join(allowed))
        message = "Not found: GET / lists the calls that this sandbox answers"
        return Answer.refusal(Problem(404, message, "not_found"))

    def billing(self, body: Any) -> Json:
        rule = self.books.auto_topup
        return {
            "billing": {
                "creditBalanceMicrousd": self.books.balance_microusd,
                "autoTopupEnabled": rule["enabled"],
                "autoTopupThresholdCents": rule.get("thresholdCents", 0),
                "autoTopupAmountCents": rule.get("amountCents", 0),
                "defaultPaymentMethodSet": self.books.card_saved,
            }
        }

    def topup(self, body: Any) -> Json:
        amount, method = body.get("amountUsd"), body.get("method")
        if not is_count(amount, SMALLEST_TOPUP_USD):
            raise Problem(400, f"amountUsd must be at least {SMALLEST_TOPUP_USD}", "amount")
        if method not in ("stripe", "crypto"):
            raise Problem(400, "method must be stripe or crypto", "method")
        link = Link(secrets.token_hex(8), amount, method)
        self.books.links[link.token] = link
        self.on_link(link)
        return {"paymentUrl": f"{self.origin}/pay/{link.token}"}

    def set_auto_topup(self, body: Any) -> Json:
        enabled = body.get("enabled")
        if enabled is False:
            self.books.auto_topup = {"enabled": False}
            return {"ok": True}
        if enabled is not True:
            raise Problem(400, "enabled must be true or false", "enabled")
        threshold, amount = body.get("thresholdCents"), body.get("amountCents")
        if not (is_count(threshold, 0) and is_count(amount, 1)):
            raise Problem(400, "thresholdCents and amountCents must be integers", "amount")
        if not self.books.card_saved:
            raise Problem(400, "Auto top-up needs a saved card: pay one top-up by card", "no_card")
        self.books.auto_topup = {
            "enabled": True,
            "thresholdCents": threshold,
            "amountCents": amount,
        }
        self.books.refill()
        return {"ok": True}

    def info(self, body: Any) -> Json:
        return {
            "tenant": {
                "id": "tn_sandbox",
                "name": self.books.tenant_name,
                "status": self.books.tenant_status,
                "upstreamConfigured": bool(self.books.upstream),
                "activeKeys": sum(key.revoked_at is None for key in self.books.keys),
            }
        }

    def upstream(self, body: Any) -> Json:
        shown = {name: v for name, v in self.books.upstream.items() if name != "apiKey"}
        return {"configured": bool(shown), "upstream": shown or None}

    def set_upstream(self, body: Any) -> Json:
        parts = {name: body[name] for name in ("kind", "baseUrl", "apiKey") if name in body}
        if not parts or not all(isinstance(part, str) and part for part in parts.values()):
            raise Problem(400, "kind, baseUrl and apiKey must be text", "upstream")
        merged = {**self.books.upstream, **parts}
        if merged.get("kind") not in KINDS:
            raise Problem(400, f"kind must be one of {', '.join(KINDS)}", "kind")
        if parts.get("kind", merged["kind"]) != self.books.upstream.get("kind"):
            merged = {**parts}  # another provider: the old address and key do not carry over
        if merged["kind"] == "custom" and "baseUrl" not in merged:
            raise Problem(400, "kind custom needs a baseUrl", "base_url")
        self.books.upstream = merged
        return {"ok": True}

    def keys(self, body: Any) -> Json:
        how = self.books.shows_keys
        shown = [key for key in self.books.keys if how != "dropped" or key.revoked_at is None]
        rows: list[Json] = [
            {
                "id": key.id,
                "prefix": f"{key.secret[:7]}\u2026" if how == "masked" else key.prefix,
                "label": key.label,
                "createdAt": key.created_at,
                "lastUsedAt": key.last_used_at,
                "revokedAt": key.revoked_at,
            }
            for key in shown
        ]
        left_out = {"bare": "prefix", "unmarked": "revokedAt"}.get(how)
        return {"keys": [{k: v for k, v in row.items() if k != left_out} for row in rows]}

    def create_key(self, body: Any) -> Json:
        number = len(self.books.keys) + 1
        key = Key(f"key_{number}", f"cf_{secrets.token_hex(16)}", None, now())
        self.books.keys.append(key)
        return {"id": key.id, "apiKey": key.secret, "prefix": key.prefix}

    def revoke_key(self, key_id: str) -> Json:
        key = next((key for key in self.books.keys if key.id == key_id), None)
        if key is None:
            raise Problem(404, "No such key", "not_found")
        key.revoked_at = key.revoked_at or now()
        return {"ok": True}

    def models(self, body: Any) -> Json:
        model = {"id": "sandbox", "object": "model", "created": 1767225600, "owned_by": "sandbox"}
        return {"object": "list", "data": [model]}

    def chat(self, body: Any) -> Json | list[str]:
        """A completion as OpenAI's clients read it, whole or as a stream."""
        self.books.charge_call()
        asked, said = count_tokens(body.get("messages")), count_tokens("".join(REPLY))
        usage = {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
        base = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": body.get("model", "sandbox"),
        }
        if not body.get("stream"):
            message = {"role": "assistant", "content": "".join(REPLY)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return {**base, "object": "chat.completion", "choices": [choice], "usage": usage}
        base["object"] = "chat.completion.chunk"
        deltas = [{"role": "assistant", "content": ""}, *({"content": part} for part in REPLY), {}]
        chunks: list[Json] = [
            {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            for delta in deltas
        ]
        chunks[-1]["choices"][0]["finish_reason"] = "stop"
        options = body.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            chunks.append({**base, "choices": [], "usage": usage})
        return [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]

    def messages(self, body: Any) -> Json | list[str]:
        """A message as Anthropic's clients read it, whole or as a stream."""
        self.books.charge_call()
        asked, said = count_tokens(body.get("messages")), count_tokens("".join(REPLY))
        usage = {"input_tokens": asked, "output_tokens": said}
        end = {"stop_reason": "end_turn", "stop_sequence": None}
        message = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": body.get("model", "sandbox"),
            "content": [{"type": "text", "text": "".join(REPLY)}],
            "usage": usage,
            **end,
        }
        if not body.get("stream"):
            return message
        block = {"index": 0, "content_block": {"type": "text", "text": ""}}
        deltas = [{"type": "text_delta", "text": part} for part in REPLY]
        events: list[Json] = [
            {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}},
            {"type": "content_block_start", **block},
            *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": end, "usage": usage},
            {"type": "message_stop"},
        ]
        return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]


STYLE = """
 :root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6472; --card: #fff;
   --page: #f2f4f7; --line: #e4e7ec; --button: #17703a; --good: #17703a; }
 @media (prefers-color-scheme: dark) { :root { --ink: #eef1f6; --soft: #a5afbf;
   --card: #1b212c; --page: #10141b; --line: #2d3645; --button: #1b7a42; --good: #5ad18a; } }
 * { box-sizing: border-box }
 body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1rem;
   background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif }
 main { width: 100%; max-width: 24rem; background: var(--card); border-radius: 1rem;
   border: 1px solid var(--line); padding: 2rem; text-align: center; text-wrap: balance;
   overflow-wrap: anywhere }
 h1 { font-size: 1rem; font-weight: 600; margin: 0; color: var(--soft) }
 h2 { font-size: 1.4rem; line-height: 1.3; margin: 1rem 0 .5rem }
 .amount { font-size: clamp(1.6rem, 9vw, 3rem); font-weight: 700; line-height: 1.2;
   margin: .5rem 0 }
 .soft, footer { color: var(--soft); margin: 0 0 1.5rem }
 .good { color: var(--good); font-weight: 600; margin: 0 }
 button, .button { display: block; width: 100%; padding: .9rem; border: 0; border-radius: .6rem;
   background: var(--button); color: #fff; font: inherit; font-weight: 600; cursor: pointer;
   text-decoration: none }
 .cancel { display: block; padding: .9rem; color: var(--soft) }
 :focus-visible { outline: 3px solid var(--ink); outline-offset: 2px }
 footer { margin: 1.5rem 0 0; font-size: .85rem }
"""


def page(title: str, content: str, status: int = 200, **headers: str) -> Answer:
    """A page for a person, without scripts."""
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title} - CacheForge sandbox</title>
<style>{STYLE}</style></head><body><main>
<h1>CacheForge credit</h1>
{content}
<footer>A sandbox: no money moves.</footer>
</main></body></html>
"""
    headers["Cache-Control"] = "no-store"  # going back must not show it unpaid
    return Answer(status, "text/html; charset=utf-8", [text.encode()], headers)


def payment_page(books: Books, seen: Seen) -> Answer:
    """What the payer sees: the amount, the method, and a button until it is paid."""
    token, _, action = seen.path[len("/pay/") :].partition("/")
    link = books.links.get(token)
    if link is None or action not in ("", "cancel"):
        return page(
            "Unknown link",
            "<h2>There is no such payment link</h2>"
            '<p class="soft">It may have been cut when it was copied, or it is from a sandbox'
            " that has ended. Ask whoever sent it for a new one.</p>",
            404,
        )
    here = html.escape(f"/pay/{token}")
    allowed = ("GET", "HEAD") if action else ("GET", "HEAD", "POST")
    if seen.method not in allowed:
        problem = Problem(405, "Method not allowed", "method")
        return Answer.refusal(problem, Allow=", ".join(allowed))
    if seen.method == "POST":
        books.pay(link)
        return page("Paid", "", 303, Location=here)  # a reload sends nothing again
    amount = f"${link.amount_usd:,}.00"
    means = {"stripe": "by card", "crypto": "in crypto"}[link.method]
    head = f'<p class="amount">{amount}</p><p class="soft">{means}</p>'
    if link.paid:
        done = '<p class="good" role="status">Paid. You can close this page.</p>'
        return page("Paid", head + done)
    if action:
        back = f'<a class="button" href="{here}">Back to the payment</a>'
        return page(
            "Not paid",
            f'<h2>Not paid</h2><p class="soft">Nothing was charged. The link stays open.</p>{back}',
        )
    form = f'<form method="post"><button>Pay {amount}</button></form>'
    return page(f"Pay {amount}", f'{head}{form}<a class="cancel" href="{here}/cancel">Cancel</a>')


def front_page(service: Service) -> Answer:
    """What this is."""
    lines = (
        "CacheForge sandbox",
        "This stands in for the CacheForge service, so that software can be tested against it.",
        "No money moves. It answers:",
        "",
        *service.routes,
    )
    return Answer(200, "text/plain; charset=utf-8", ["".join(f"{s}\n" for s in lines).encode()])


class Handler(BaseHTTPRequestHandler):
    """HTTP in front of it all. Read, record, carry out, log, answer: a stop loses none of it."""

    protocol_version = "HTTP/1.1"
    server_version = "CacheForgeSandbox"
    sys_version = ""
    server: Server
    timeout = 60
    disable_nagle_algorithm = True  # headers and body are two writes: no 40 ms between

    def do_any(self) -> None:
        box = self.server.sandbox
        path = urlsplit(self.path).path
        if path == "/favicon.ico":  # browsers ask by themselves
            self._send(Answer(404, "text/plain", [b""]))
            return
        body, refusal = b"", None
        try:
            body = self._read_body()
        except Problem as problem:
            refusal = Answer.refusal(problem, Connection="close")
        seen = Seen(self.command, path, self.headers, body)
        box.record(seen)
        fault = box.next_fault(seen.call)
        answer = None
        if not fault or fault.after:
            answer = refusal or box.answer(seen)
        if fault:
            box.log(f"{seen.call} (scripted)")
            self._misbehave(fault)
        elif answer:
            box.log(f"{seen.call} {answer.status}")
            self._send(answer)

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = do_OPTIONS = do_any

    def _read_body(self) -> bytes:
        """The body. Raises Problem where it cannot be had, which ends the connection."""
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdecimal():
            raise Problem(411, "Send the body with a Content-Length", "length_required")
        if int(length) > MAX_REQUEST_BYTES:
            raise Problem(413, "Body too large", "too_large")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise Problem(400, "The body ended early", "length")
        return body

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        if answer.kind == "text/event-stream":  # ends with the connection
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(sum(map(len, answer.parts))))
        self.send_header("X-Request-Id", f"req_{secrets.token_hex(6)}")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        for part in answer.parts if self.command != "HEAD" else ():
            self.wfile.write(part)

    def _misbehave(self, fault: Fault) -> None:
        """Act out a scripted fault, then drop the connection."""
        self.close_connection = True
        closing = self.server.sandbox.closing
        step = 1 if fault.drip_s else max(1, len(fault.raw))
        with contextlib.suppress(OSError):
            for start in range(0, len(fault.raw), step):
                self.wfile.write(fault.raw[start : start + step])
                self.wfile.flush()
                if fault.drip_s and closing.wait(fault.drip_s):
                    break
            if fault.end == "hang":
                closing.wait(60)
            elif fault.end == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                # a dup'ed descriptor would keep the connection: close them all at once
                self.rfile.close()
                self.wfile.close()
                self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Silence http.server's own log: the sandbox writes a line per request."""


class Server(ThreadingHTTPServer):
    """A thread per connection, none of which keeps the process alive."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    allow_reuse_address = os.name != "nt"  # there it would share a port that is in use
    sandbox: Sandbox
    tls: ssl.SSLContext | None = None

    def __init__(self, host: str, port: int) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), Handler)

    def server_bind(self) -> None:
        """Bind, without http.server's search for a host name that nobody needs."""
        socketserver.TCPServer.server_bind(self)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection, in its own thread; a TLS handshake is part of that."""
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        with self.tls.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the job."""


class Sandbox:
    """A running CacheForge with one account. Use it with `with`, or `start` and `close`.

    `balance_usd` is the opening balance: dollars as int, str or Decimal. `pay_after_s` has
    somebody pay each link that long after it was made. `port` 0 takes any free one. `log` is
    called with a line per request. `books` is the account itself, to look at or to set up.
    """

    def __init__(
        self,
        balance_usd: Usd = "12.34",
        api_key: str = DEFAULT_KEY,
        pay_after_s: float | None = None,
        port: int = 0,
        log: Callable[[str], object] = lambda line: None,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.books = Books(api_key=api_key)
        self.books.credit("opening balance", to_microusd(balance_usd))
        self.service = Service(self.books)
        self.log = log
        self.requests: list[Seen] = []  # all so far, oldest first
        self.closing = threading.Event()
        self._arrival = threading.Condition()
        self._faults: dict[str, list[Fault]] = {}
        try:
            self._server = Server(host, port)
        except (OSError, OverflowError) as error:
            code = getattr(error, "errno", errno.EINVAL)
            why = getattr(error, "strerror", "the highest is 65535")
            if code == errno.EADDRINUSE:
                why = "it is in use; leave the port out to get one that is free"
            raise OSError(code, f"cannot listen on {host}, port {port}: {why}") from None
        self._server.sandbox = self
        self._server.tls = tls
        self._thread = threading.Thread(target=self._serve, daemon=True)
        if pay_after_s is not None:
            self.service.on_link = lambda link: self._pay_later(link, pay_after_s)

    def start(self) -> Sandbox:
        """Begin to serve, in a thread; returns itself."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop serving and free the port."""
        self.closing.set()
        if self._thread.is_alive():
            with contextlib.suppress(OSError):  # a connection wakes it from its wait
                socket.create_connection(self._address, 1).close()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while not self.closing.is_set():
            self._server.handle_request()

    @property
    def _address(self) -> tuple[str, int]:
        host, port = self._server.server_address[:2]
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(host), str(host)), port

    @property
    def url(self) -> str:
        """The base URL."""
        scheme = "https" if self._server.tls else "http"
        host, port = self._address
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    @property
    def env(self) -> dict[str, str]:
        """The two variables that point a client here."""
        return {"CACHEFORGE_BASE_URL": self.url, "CACHEFORGE_API_KEY": self.books.api_key}

    @property
    def balance_usd(self) -> Decimal:
        """The balance in dollars."""
        return Decimal(self.books.balance_microusd) / MICROUSD_PER_USD

    def pay(self, link: Link | str) -> bool:
        """Pay a link (or its address) as a person would; False if it was paid before."""
        token = link.token if isinstance(link, Link) else link.rpartition("/pay/")[2]
        if token not in self.books.links:
            made = ", ".join(self.books.links) or "none"
            raise ValueError(f"there is no payment link {token!r}; made so far: {made}")
        return self.books.pay(self.books.links[token])

    def spend(self, amount_usd: Usd | None = None) -> None:
        """Use up credit: so many dollars, or all there is, so that the gateway answers 402."""
        with self.books.lock:
            amount_microusd = max(0, self.books.balance_microusd)
            if amount_usd is not None:
                amount_microusd = to_microusd(amount_usd)
            if amount_microusd < 0:
                raise ValueError(f"what is spent cannot be negative: {amount_usd}")
            self.books.use("spent", amount_microusd)

    def script(self, call: str, *faults: Fault | str) -> None:
        """Answer the next calls of `METHOD /path` with these, in order, then honestly.

        A fault is a `Fault`, or a word for one as in `Fault.of`: "503", "lost", '409:{"a": 1}'.
        """
        if not re.fullmatch(r"[A-Z]+ /\S*", call):
            raise ValueError(f"a call is written as 'GET /v1/account/billing', not {call!r}")
        made = [Fault.of(fault) if isinstance(fault, str) else fault for fault in faults]
        with self._arrival:
            self._faults.setdefault(call, []).extend(made)

    def script_nothing(self) -> None:
        """Forget what was scripted."""
        with self._arrival:
            self._faults.clear()

    def wait_for(self, call: str, timeout_s: float = 60) -> bool:
        """Wait until such a request has arrived; whether it has."""
        with self._arrival:
            return self._arrival.wait_for(lambda: call in self.calls(), timeout_s)

    def calls(self, *methods: str) -> list[str]:
        """The calls so far, as `METHOD /path`, all or of some methods."""
        return [seen.call for seen in self.requests if not methods or seen.method in methods]

    @property
    def writes(self) -> list[Seen]:
        """The requests so far that were meant to change something."""
        return [seen for seen in self.requests if seen.method not in ("GET", "HEAD")]

    def record(self, seen: Seen) -> None:
        """Remember a request."""
        with self._arrival:
            self.requests.append(seen)
            self._arrival.notify_all()

    def next_fault(self, call: str) -> Fault | None:
        """The scripted answer that is due, if any."""
        with self._arrival:
            queue = self._faults.get(call)
            return queue.pop(0) if queue else None

    def answer(self, seen: Seen) -> Answer:
        """The honest answer."""
        if seen.call in ("GET /", "HEAD /"):
            return front_page(self.service)
        if seen.path.startswith("/pay/"):
            return payment_page(self.books, seen)
        scheme, _, here = self.url.partition("://")
        return self.service.answer(seen, f"{scheme}://{seen.headers.get('Host', here)}")

    def _pay_later(self, link: Link, delay_s: float) -> None:
        def pay() -> None:
            self.books.pay(link)
            self.log(f"somebody paid ${link.amount_usd}")

        timer = threading.Timer(delay_s, pay)
        timer.daemon = True
        timer.start()


def to_microusd(usd: Usd) -> int:
    """Dollars with up to six decimals, perhaps negative, as microdollars."""
    if isinstance(usd, bool) or not isinstance(usd, (str, int, Decimal)):
        raise TypeError(f"dollars are an int, str or Decimal, such as '12.34', not {usd!r}")
    text = f"{usd:f}" if isinstance(usd, Decimal) else str(usd)
    match = re.fullmatch(DOLLARS, text)
    if not match:
        raise ValueError(f"dollars are written like 0, 12.34 or -1.50, not {text!r}")
    microusd = int(match[2]) * MICROUSD_PER_USD + int((match[3] or "").ljust(6, "0"))
    return -microusd if match[1] else microusd


Reader = Callable[[str], Any]


def matching(pattern: str, words: str, read: Reader) -> Reader:
    """A reader for an option: what has the pattern, else an error that says what it must be."""

    def checked(text: str) -> Any:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"must be {words}, not {text!r}")
        return read(text)

    return checked


def read_rule(text: str) -> Json:
    """Auto top-up that is on."""
    threshold, _, amount = text.partition(":")
    return {"enabled": True, "thresholdCents": int(threshold), "amountCents": int(amount)}


def read_upstream(text: str) -> dict[str, str]:
    """A provider."""
    kind, _, url = text.partition("=")
    return {"kind": kind, **({"baseUrl": url} if url else {})}


def read_fault(text: str) -> tuple[str, list[Fault]]:
    """What `Sandbox.script` takes."""
    call, _, what = text.partition("=")
    service = Service(Books())
    if not service.find(*call.partition(" ")[::2]):
        raise argparse.ArgumentTypeError(
            f"{call!r} is no call of this service; write CALL=WHAT, such as"
            f" 'GET /v1/account/billing=503', where CALL is one of {', '.join(service.routes)}"
        )
    times = re.match(r"([1-9][0-9]{0,3})\*", what)
    try:
        fault = Fault.of(what[times.end() :] if times else what)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return call, [fault] * (int(times[1]) if times else 1)


EXAMPLES = """
what people do with it:
  try a command of ops.py         sandbox.py balance
  see somebody pay                sandbox.py --balance 0 --pay-after 5 topup --wait
  run a test of their own in it   sandbox.py --balance 0 --exec ./smoke-test
  serve other programs            sandbox.py --serve --port 8402
  see trouble                     sandbox.py --fault 'POST /v1/account/keys=lost' keys --create

A command gets CACHEFORGE_BASE_URL and CACHEFORGE_API_KEY, and its exit code is ours.
For OpenAI's clients the base URL is $CACHEFORGE_BASE_URL/v1, for Anthropic's it has no /v1.

WHAT is 503 (any status), 409:BODY, a JSON body, or one of:
  lost   carried out, then no answer        html   a page instead of JSON
  reset  the connection is reset            empty  no body
  hang   no answer, the connection stays    cut    the body ends early
  drip   a byte now and then
done+WHAT carries it out first, N*WHAT stands for N times. Faults are used up in order.
"""


def make_parser() -> argparse.ArgumentParser:
    """Our own options, up to the first word that is not one; the rest is the command."""
    parser = argparse.ArgumentParser(
        prog="sandbox.py",
        usage="sandbox.py [options] COMMAND [ARG...] | --exec CMD [ARG...] | --serve",
        description="A CacheForge account on this machine, with fake money, to test against.\n"
        "COMMAND and what follows goes to ops.py.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def add(name: str, metavar: str, read: Reader, words: str, default: object = None) -> None:
        parser.add_argument(name, metavar=metavar, type=read, help=words, default=default)

    def switch(name: str, words: str) -> None:
        parser.add_argument(name, action="store_true", help=words)

    number = r"[0-9]{1,5}"
    seconds = matching(r"[0-9]{1,6}(\.[0-9]{1,6})?", "seconds, such as 5 or 0.5", float)
    dollars = matching(DOLLARS, "dollars, such as 0, 12.34 or -1.50", str)
    cents = matching(r"[0-9]{1,9}:[1-9][0-9]{0,8}", "two amounts in cents (200:1000)", read_rule)
    provider = r"(openrouter|anthropic)(=.+)?|custom=.+"
    kind = matching(provider, "openrouter, anthropic or custom=URL", read_upstream)
    switch("--exec", "run CMD, any program")
    switch("--serve", "serve until Ctrl-C")
    add(
        "--port",
        "PORT",
        matching(number, "a port, such as 8402", int),
        "for --serve (default: any that is free)",
    )
    add("--host", "HOST", str, "0.0.0.0 serves anybody (default 127.0.0.1: only this machine)")
    add("--balance", "USD", dollars, "opening balance (default 12.34)", "12.34")
    add("--key", "KEY", str, f"the API key (default {DEFAULT_KEY})", DEFAULT_KEY)
    switch("--card", "a card is saved")
    add("--rule", "THRESHOLD_CENTS:AMOUNT_CENTS", cents, "auto top-up is on")
    add("--upstream", "KIND[=URL]", kind, "the provider is set")
    add("--keys", "N", matching(number, "a number, such as 3", int), "N more API keys", 0)
    add("--tenant", "NAME", str, "the tenant's name", "Sandbox Inc.")
    add("--status", "WORD", str, "the tenant's status", "active")
    add("--pay-after", "SECONDS", seconds, "somebody pays each link that long after it was made")
    parser.add_argument(
        "--fault",
        metavar="CALL=WHAT",
        type=read_fault,
        action="append",
        default=[],
        help="answer the next such call with WHAT; repeatable",
    )
    parser.add_argument(
        "--show-keys",
        choices=KEY_LISTS,
        default="plain",
        help="list keys with their prefix (the default), a masked one, none at all, without"
        " revokedAt, or without those that are revoked",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """The options, with `command` as what is to be run. Ends the program if they are wrong."""
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.command[:1] == ["--"]:
        del options.command[0]
    command = options.command
    if options.serve and options.exec:
        parser.error("--serve and --exec exclude each other")
    if options.serve and command:
        parser.error(f"--serve runs nothing: leave out {command[0]!r}, or leave out --serve")
    if not options.serve and not command:
        parser.error("nothing to do: give an ops.py command, --exec CMD, or --serve (see --help)")
    if not options.serve and (options.port is not None or options.host):
        parser.error("--port and --host go with --serve; a command finds its own way")
    if not options.serve and not options.exec:
        if not OPS.exists():
            parser.error(f"{command[0]!r} needs ops.py, which is not at {OPS}; --serve and --exec"
                " CMD work without it")  # fmt: skip
        options.command = [sys.executable, str(OPS), *command]
    return options


def furnish(box: Sandbox, options: argparse.Namespace) -> None:
    """Give the account what the options say."""
    books = box.books
    books.card_saved = options.card
    books.auto_topup = options.rule or books.auto_topup
    books.upstream = options.upstream or books.upstream
    books.tenant_name = options.tenant
    books.tenant_status = options.status
    books.shows_keys = options.show_keys
    for number in range(2, 2 + options.keys):
        secret = f"cf_{hashlib.sha256(b'%d' % number).hexdigest()[:32]}"  # the same each time
        books.keys.append(Key(f"key_{number}", secret, f"agent {number}", BORN_AT))
    for call, faults in options.fault:
        box.script(call, *faults)


def serve(box: Sandbox, open_to: str) -> int:
    """Print how to reach the sandbox, and serve until told to stop."""
    try:
        for name in ("SIGINT", "SIGTERM"):  # a shell starts what is in the background deaf to it
            signal.signal(getattr(signal, name), signal.default_int_handler)
        print(f"# serving {open_to}; Ctrl-C stops", file=sys.stderr, flush=True)
        for variable, value in box.env.items():
            print(f"export {variable}={value}", flush=True)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return 0


def run_inside(box: Sandbox, command: Sequence[str]) -> int:
    """Run a command with both variables set; its exit code."""
    try:
        child = subprocess.Popen(list(command), env={**os.environ, **box.env})
    except OSError as error:
        print(f"sandbox: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        try:
            code = child.wait()
        except KeyboardInterrupt:  # the terminal sent it to the command as well: it decides
            continue
        return 128 - code if code < 0 else code


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = read_options(sys.argv[1:] if argv is None else argv)
    host = options.host or "127.0.0.1"

    def log(line: str) -> None:
        if options.serve:
            print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    try:
        box = Sandbox(
            options.balance, options.key, options.pay_after, options.port or 0, log, host=host
        )
    except OSError as error:
        print(f"sandbox: {error.strerror}", file=sys.stderr)
        return 2
    furnish(box, options)
    with box:
        if not options.serve:
            return run_inside(box, options.command)
        local = host in ("127.0.0.1", "::1", "localhost")
        return serve(box, "this machine" if local else f"whoever can reach {host}")


if __name__ == "__main__":
    sys.exit(main())
