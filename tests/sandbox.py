#!/usr/bin/env python3
"""A fake CacheForge service for tests: one account, payment pages, and the LLM gateway.

It speaks the HTTP of the real service: the same paths, fields and units, and it refuses the
same mistakes. No money moves. It is one file that needs the standard library only, so it can
be copied into any project. As a library:

    with Sandbox(balance_usd=5) as box:
        os.environ.update(box.env)  # where the service is, and the key, for any client
        box.set_balance(0)  # from now on the gateway responds with 402
        box.pay()  # pays the last payment link
        box.add_faults("POST /v1/chat/completions", 503, "lost")  # the next two calls fail
        box.requests  # the requests so far

From other languages the same verbs are HTTP calls under /sandbox/ (see `sandbox.py --help`).
What is not known of the real service is a likely guess here: GET /v1/models,
POST /v1/messages, streams, and that auto top-up charges the card at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import hashlib
import html
import json
import os
import re
import secrets
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal
from email.message import Message
from http.client import responses
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Callable, NamedTuple, TypeVar, Union
from urllib.parse import unquote

__version__ = "2.0.0"
OPS = Path(__file__).resolve().parent.parent / "skills" / "cacheforge-ops" / "ops.py"
DEFAULT_KEY = "cf_sandbox_0123456789abcdef"
MICROUSD_PER_USD = 1_000_000
MAX_REQUEST_BYTES = 10_000_000
KEPT_REQUESTS = 1000
CREATED_AT = "2026-01-02T03:04:05Z"  # of the keys that exist from the start
CODES = {401: "invalid_api_key", 402: "insufficient_credit"}
ANTHROPIC_CODES = {401: "authentication_error", 402: "billing_error", 403: "permission_error"}
ANTHROPIC_CODES |= {404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error"}
ANTHROPIC_CODES |= {529: "overloaded_error"}

Json = dict[str, Any]
Headers = Mapping[str, str]
NO_HEADERS: Headers = {}
Usd = Union[str, int, float, Decimal]
Box = TypeVar("Box", bound="Sandbox")


class Refused(ValueError):
    """A request or a setting that is refused: the status and headers of the response."""

    def __init__(self, message: str, status: int = 400, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


def require(true: object, message: str) -> None:
    """Raises Refused with this message unless it is `true`."""
    if not true:
        raise Refused(message)


def now() -> str:
    """The time as the service writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_id(prefix: str) -> str:
    """An id that nothing else has."""
    return f"{prefix}{secrets.token_hex(6)}"


def error_body(path: str, status: int, message: str, request_id: str) -> Json:
    """An error as CacheForge reports it; under /v1/messages, as Anthropic reports it."""
    if path.startswith("/v1/messages"):
        other = "api_error" if status >= 500 else "invalid_request_error"
        error = {"type": ANTHROPIC_CODES.get(status, other), "message": message}
        return {"type": "error", "error": error, "request_id": request_id}
    code = CODES.get(status, responses.get(status, "scripted").lower().replace(" ", "_"))
    return {"error": {"message": message, "type": code, "code": code}}


@dataclass
class Request:
    """A request that arrived. The names in `headers` are case-insensitive."""

    method: str
    path: str
    headers: Message
    body: bytes = b""
    id: str = field(default_factory=lambda: new_id("req_"))
    status: int | None = None  # of the response; None if there was none
    local: bool = True  # whether it came from this machine
    broken: Refused | None = None  # why the body could not be read

    @property
    def call(self) -> str:
        """`METHOD /path`, as in `add_faults`."""
        return f"{self.method} {self.path}"

    @property
    def json(self) -> Any:
        """The body as JSON; None if it is empty. Raises ValueError."""
        return json.loads(self.body) if self.body else None

    @property
    def secret(self) -> str:
        """The key that it was sent with."""
        scheme, _, secret = self.headers.get("Authorization", "").partition(" ")
        return secret if scheme.lower() == "bearer" else self.headers.get("X-Api-Key", "")

    def read_object(self) -> Json:
        """The body as a JSON object; {} if it is empty. Raises Refused."""
        writes = self.method in ("POST", "PATCH") and self.path.startswith("/v1/account/")
        if writes and self.headers.get_content_type() != "application/json":
            raise Refused("The Content-Type must be application/json", 415)
        try:
            body = self.json if self.body else {}
        except (ValueError, RecursionError):
            raise Refused("The body is not JSON") from None
        require(isinstance(body, dict), "The body is not a JSON object")
        return body

    def as_json(self) -> Json:
        """The request as GET /sandbox/requests shows it: without its secrets."""
        masked = ("authorization", "x-api-key", "cookie")
        headers = {n: "***" if n.lower() in masked else v for n, v in self.headers.items()}
        try:
            body = self.json
        except (ValueError, RecursionError):
            body = self.body.decode("utf-8", "replace")
        line = {"method": self.method, "path": self.path, "headers": headers, "body": body}
        return {**line, "status": self.status, "id": self.id}


class Response(NamedTuple):
    """A response; a stream has a part for each event."""

    status: int
    kind: str
    parts: Sequence[bytes]
    headers: Headers = NO_HEADERS


@dataclass
class Fault:
    """A response that goes wrong: raw bytes, how slowly they are sent, and how it ends.

    `end` is `close`, `reset` (RST) or `hang` (no end until the sandbox closes). With `after`
    the service first does what was asked. With `half`, half of its own response is sent.
    """

    raw: bytes = b""
    end: str = "close"
    drip_s: float = 0.0
    after: bool = False
    half: bool = False
    status: int | None = None  # as it is recorded

    @classmethod
    def reply(cls, status: int = 200, body: object = None, headers: Headers = NO_HEADERS) -> Fault:
        """A response of any status, with these headers; a `body` but for bytes is sent as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        lines = {**lines, "Connection": "close", **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        line = f"HTTP/1.1 {status} {responses.get(status, 'Scripted')}\r\n{head}\r\n"
        return cls(line.encode("latin-1") + content, status=status)

    @classmethod
    def of(cls, what: FaultLike, path: str = "") -> Fault:
        """A fault as `--fault` takes it (see `sandbox.py --help`). Raises ValueError."""
        if isinstance(what, Fault):
            return what
        text, request_id = str(what), new_id("req_")
        if text.startswith("done+"):
            return dataclasses.replace(cls.of(text[len("done+") :], path), after=True)
        ids = {"X-Request-Id": request_id, "request-id": request_id}
        named = {
            "lost": cls(after=True),
            "reset": cls(end="reset"),
            "hang": cls(end="hang"),
            "drip": cls(cls.reply(200, b" " * 300, ids).raw[:300], drip_s=0.1),  # 30 s in all
            "html": cls.reply(200, b"<!doctype html>", {**ids, "Content-Type": "text/html"}),
            "empty": cls.reply(200, b"", ids),
            "cut": cls.reply(200, b'{"', {**ids, "Content-Length": "900"}),
            "cut-stream": cls(after=True, half=True),
        }
        if text in named:
            return named[text]
        whole = f"200:{text}" if text[:1] in ("{", "[") else text
        form = r"([2-9]\d\d)(?::(.*)|((?: [\w-]+: ?[^;\r\n]+;?)*))"
        match = re.fullmatch(form, whole, re.DOTALL) if isinstance(what, (str, int)) else None
        if not match:
            raise Refused(
                f"{text!r} is neither a status (503), a status with headers (429 Retry-After: 2),"
                f" STATUS:BODY, a JSON body, nor one of {', '.join(named)}"
            )
        status, body, headers = int(match[1]), match[2], match[3]
        if body is None:
            error = error_body(path, status, responses.get(status, "Scripted"), request_id)
            ids.update(re.findall(r"([\w-]+): ?([^;]+)", headers))
            return cls.reply(status, error if status >= 400 else {}, ids)
        try:
            json.loads(body)
        except ValueError:
            ids["Content-Type"] = "text/plain; charset=utf-8"
        return cls.reply(status, body.encode(), ids)


FaultLike = Union[Fault, str, int]


def read_fault(text: str) -> tuple[str, list[FaultLike]]:
    """A call and its faults, from `CALL=WHAT`; `3*WHAT` is three. Raises ValueError."""
    call, equals, what = text.partition("=")
    require(equals, f"write CALL=WHAT, such as 'GET /v1/models=503', not {text!r}")
    times = re.match(r"([1-9][0-9]{0,3})\*", what)
    return (call, [what[times.end() :]] * int(times[1])) if times else (call, [what])


@dataclass
class Key:
    """An API key."""

    id: str
    secret: str
    label: str | None
    created_at: str
    revoked_at: str | None = None
    last_used_at: str | None = None


@dataclass
class Link:
    """A payment link."""

    token: str
    amount_usd: int
    method: str
    paid: bool = False


@dataclass
class Account:
    """The account: ledger, keys, links, provider. `lock` guards all of it."""

    api_key: str = DEFAULT_KEY
    ledger: list[tuple[str, int]] = field(default_factory=list)  # why, microdollars
    keys: list[Key] = field(default_factory=list)
    links: dict[str, Link] = field(default_factory=dict)
    card_saved: bool = False
    auto_topup: Json = field(default_factory=lambda: {"enabled": False})
    upstream: dict[str, str] = field(default_factory=dict)
    tenant_name: str = "Sandbox Inc."
    tenant_status: str = "active"
    pay_after_s: float | None = None  # each link is paid so long after it was created
    price_microusd: int = 20_000  # of a gateway call
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.keys.append(Key("key_1", self.api_key, "sandbox", CREATED_AT))

    @property
    def balance_microusd(self) -> int:
        return sum(amount for _, amount in self.ledger)

    def credit(self, why: str, amount_microusd: int) -> None:
        self.ledger.append((why, amount_microusd))

    def check_key(self, secret: str) -> None:
        """Accept a valid key. Raises Refused 401."""
        for key in self.keys:
            if secret == key.secret and key.revoked_at is None:
                key.last_used_at = now()
                return
        raise Refused("Invalid API key", 401)

    def pay(self, link: Link) -> bool:
        """Pay a link; False if it was paid before. A payment by card saves the card."""
        with self.lock:
            if link.paid:
                return False
            link.paid = True
            self.card_saved = self.card_saved or link.method == "stripe"
            self.credit(f"paid {link.token}", link.amount_usd * MICROUSD_PER_USD)
            return True

    def charge(self, why: str, amount_microusd: int) -> None:
        """Take credit, then apply the auto top-up rule."""
        with self.lock:
            self.credit(why, -amount_microusd)
            self.refill()

    def refill(self) -> None:
        """Charge the saved card if the auto top-up rule says so."""
        rule, cent_microusd = self.auto_topup, MICROUSD_PER_USD // 100
        below = rule["enabled"] and self.balance_microusd < rule["thresholdCents"] * cent_microusd
        if below and self.card_saved:
            self.credit("auto top-up", rule["amountCents"] * cent_microusd)

    def settings(self) -> Json:
        """The account under the names that `Sandbox.apply` takes."""
        names = ("card_saved", "auto_topup", "upstream", "tenant_name", "tenant_status")
        return {
            "balance_usd": str(Decimal(self.balance_microusd) / MICROUSD_PER_USD),
            **{name: getattr(self, name) for name in names},
            "keys": [key.label for key in self.keys[1:]],
            "unpaid_links": [x.amount_usd for x in list(self.links.values()) if not x.paid],
        }


def read_rule(body: Any) -> Json:
    """An auto top-up rule. Raises Refused."""
    known = isinstance(body, dict) and type(body.get("enabled")) is bool
    require(known, "enabled must be true or false")
    if not body["enabled"]:
        return {"enabled": False}
    threshold, amount = body.get("thresholdCents"), body.get("amountCents")
    whole = type(threshold) is type(amount) is int and threshold >= 0 and amount >= 1
    require(whole, "thresholdCents and amountCents must be integers")
    return {"enabled": True, "thresholdCents": threshold, "amountCents": amount}


def read_upstream(body: Any, before: Mapping[str, str] = {}) -> dict[str, str]:
    """A provider: what is in `body` replaces what was there `before`. Raises Refused."""
    names = ("kind", "baseUrl", "apiKey")
    parts = {name: body[name] for name in names if name in body} if isinstance(body, dict) else {}
    texts = all(isinstance(part, str) and part for part in parts.values())
    require(parts and texts, "kind, baseUrl and apiKey must be text")
    merged = {**before, **parts}
    if merged.get("kind") != before.get("kind"):
        merged = parts  # the address and the key of another provider do not carry over
    kind, url = merged.get("kind"), merged.get("baseUrl", "")
    require(kind != "openai", "kind openai is called custom, with baseUrl https://api.openai.com")
    known = kind in ("openrouter", "anthropic", "custom")
    require(known, "kind must be one of openrouter, anthropic, custom")
    require(kind != "custom" or url, "kind custom needs a baseUrl")
    address = not url or re.fullmatch(r"https?://[\w.:\[\]-]+(/[!-~]*)?", url)
    require(address, "baseUrl must be an address, such as https://llm.example.com")
    return merged


def check_gateway_body(body: Json) -> None:
    """Raises Refused if this is no request to a model."""
    messages = body.get("messages")
    rows = messages if isinstance(messages, list) else []
    roles = [isinstance(row, dict) and isinstance(row.get("role"), str) for row in rows]
    require(roles and all(roles), "messages must be a list of objects with a role")
    require(isinstance(body.get("model"), str), "model must be a string")
    require(body.get("stream") is None or type(body["stream"]) is bool, "stream must be a boolean")


def demanded_call(body: Json) -> tuple[str, Json] | None:
    """The tool that `tool_choice` demands, and arguments for it. Raises Refused."""
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind not in ("required", "any", "function", "tool"):
        return None
    try:
        tools = [tool.get("function", tool) for tool in body["tools"]]
        if isinstance(choice, dict) and kind in ("function", "tool"):
            name = choice.get("function", choice)["name"]
            tools = [tool for tool in tools if tool["name"] == name]
        schema = tools[0].get("parameters") or tools[0].get("input_schema") or {}
        return tools[0]["name"], sample({**schema, "type": "object"}, schema)
    except (AttributeError, LookupError, TypeError, RecursionError):
        reason = "tool_choice demands a tool that is not in tools, or whose schema is unusable"
        raise Refused(reason) from None


def sample(schema: Json, root: Json) -> Any:
    """A value that fits a JSON schema; of an object, its required fields."""
    if "$ref" in schema:
        return sample(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema or "enum" in schema:
        return schema["enum"][0] if "enum" in schema else sample(schema["anyOf"][0], root)
    kind = schema.get("type", "string")  # or a list of them
    if "object" in kind:
        fields = schema.get("properties", {})
        return {name: sample(fields.get(name, {}), root) for name in schema.get("required", ())}
    if "integer" in kind or "number" in kind:
        return schema.get("minimum", schema.get("maximum", 1))
    if "boolean" in kind or "array" in kind:
        return True if "boolean" in kind else []
    return "sample".ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]


class Service:
    """The account's calls and the gateway's, a method for each.

    Each takes the body and returns an object (sent as JSON) or a list of events.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self.origin = ""  # the address that the call came to: payment links lead there
        self.routes: dict[str, Callable[[Any], Json | list[str]]] = {
            "POST /v1/chat/completions": self.chat,
            "POST /v1/messages": self.messages,
            "POST /v1/responses": self.use_chat,
            "POST /v1/embeddings": self.use_chat,
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
        revoke = re.fullmatch(r"/v1/account/keys/([^/]+)/revoke", path)
        if revoke and method == "POST":
            return lambda body: self.revoke_key(unquote(revoke[1]))
        return self.routes.get(f"{'GET' if method == 'HEAD' else method} {path}")

    def check_call(self, call: str) -> None:
        """Raises Refused if this is no call of the service, so that no fault waits in vain."""
        if not self.find(*call.partition(" ")[::2]):
            like = difflib.get_close_matches(call, self.routes, 1, 0.8) or self.routes
            raise Refused(f"{call!r} is no call of this service: try {', '.join(like)}")

    def respond(self, request: Request, origin: str) -> Json | list[str]:
        """What is responded to a call. Raises Refused."""
        with self.account.lock:
            self.origin = origin
            self.account.check_key(request.secret)
            handler = self.find(request.method, request.path)
            if not handler:
                allowed = [m for m in ("GET", "POST", "PATCH") if self.find(m, request.path)]
                if allowed:
                    raise Refused("Method not allowed", 405, Allow=", ".join(allowed))
                raise Refused("Not found: GET / lists the calls of this sandbox", 404)
            return handler(request.read_object())

    def use_chat(self, body: Any) -> Json:
        raise Refused("Not in this sandbox: use POST /v1/chat/completions", 404)

    def billing(self, body: Any) -> Json:
        rule = self.account.auto_topup
        billing = {
            "creditBalanceMicrousd": self.account.balance_microusd,
            "autoTopupEnabled": rule["enabled"],
            "autoTopupThresholdCents": rule.get("thresholdCents", 0),
            "autoTopupAmountCents": rule.get("amountCents", 0),
            "defaultPaymentMethodSet": self.account.card_saved,
        }
        return {"billing": billing}

    def topup(self, body: Any) -> Json:
        amount, method = body.get("amountUsd"), body.get("method")
        require(type(amount) is int, f"amountUsd must be whole dollars, not {amount!r}")
        require(amount >= 10, "amountUsd must be at least 10")
        require(method in ("stripe", "crypto"), "method must be stripe or crypto")
        link = Link(secrets.token_hex(8), amount, method)
        self.account.links[link.token] = link
        if self.account.pay_after_s is not None:
            timer = threading.Timer(self.account.pay_after_s, self.account.pay, [link])
            timer.daemon = True
            timer.start()
        return {"paymentUrl": f"{self.origin}/pay/{link.token}"}

    def set_auto_topup(self, body: Any) -> Json:
        rule = read_rule(body)
        allowed = self.account.card_saved or not rule["enabled"]
        require(allowed, "Auto top-up needs a saved card: pay one top-up by card")
        self.account.auto_topup = rule
        self.account.refill()
        return {"ok": True}

    def info(self, body: Any) -> Json:
        account = self.account
        tenant = {"id": "tn_sandbox", "name": account.tenant_name, "status": account.tenant_status}
        active = sum(key.revoked_at is None for key in account.keys)
        known = {"upstreamConfigured": bool(account.upstream), "activeKeys": active}
        return {"tenant": {**tenant, **known}}

    def upstream(self, body: Any) -> Json:
        shown = {name: v for name, v in self.account.upstream.items() if name != "apiKey"}
        return {"configured": bool(shown), "upstream": shown or None}

    def set_upstream(self, body: Any) -> Json:
        self.account.upstream = read_upstream(body, self.account.upstream)
        return {"ok": True}

    def keys(self, body: Any) -> Json:
        rows = []
        for key in self.account.keys:
            row: Json = {"id": key.id, "prefix": key.secret[:12], "label": key.label}
            row |= {"createdAt": key.created_at, "lastUsedAt": key.last_used_at}
            rows.append({**row, "revokedAt": key.revoked_at})
        return {"keys": rows}

    def create_key(self, body: Any) -> Json:
        number = len(self.account.keys) + 1
        key = Key(f"key_{number}", f"cf_{secrets.token_hex(16)}", None, now())
        self.account.keys.append(key)
        return {"id": key.id, "apiKey": key.secret, "prefix": key.secret[:12]}

    def revoke_key(self, key_id: str) -> Json:
        for key in self.account.keys:
            if key.id == key_id:
                key.revoked_at = key.revoked_at or now()
                return {"ok": True}
        raise Refused("No such key", 404)

    def models(self, body: Any) -> Json:
        model = {"id": "sandbox", "object": "model", "created": 1767225600, "owned_by": "sandbox"}
        return {"object": "list", "data": [model]}

    def _accept(self, body: Json) -> tuple[str, list[str], int, int]:
        """Check and charge a gateway call. Returns the tool to call, or "", its arguments or the
        text in pieces, and the tokens in and out."""
        check_gateway_body(body)
        call = demanded_call(body)
        self.account.refill()
        if self.account.balance_microusd <= 0:
            raise Refused("Payment Required: credit is used up", 402)
        self.account.charge("call", self.account.price_microusd)
        text = json.dumps(call[1]) if call else ""
        hello = ["Hello", " from", " the", " sandbox."]
        tool, pieces = (call[0], [text[:3], text[3:]]) if call else ("", hello)
        asked, said = len(json.dumps(body["messages"])), len("".join(pieces))
        return tool, pieces, asked // 4 + 1, said // 4 + 1  # about four characters a token

    def chat(self, body: Any) -> Json | list[str]:
        """A completion in OpenAI's form, whole or as a stream."""
        tool, pieces, asked, said = self._accept(body)
        usage = {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
        base = {"id": new_id("chatcmpl-"), "created": int(time.time()), "model": body["model"]}
        message: Json = {"role": "assistant", "content": None if tool else "".join(pieces)}
        deltas: list[Json] = [{"content": piece} for piece in pieces]
        if tool:
            function = {"name": tool, "arguments": "".join(pieces)}
            call = {"id": new_id("call_"), "type": "function", "function": function}
            message["tool_calls"] = [call]
            first = {**call, "index": 0, "function": {"name": tool, "arguments": ""}}
            rest = [{"index": 0, "function": {"arguments": piece}} for piece in pieces]
            deltas = [{"tool_calls": [part]} for part in (first, *rest)]
        end = "tool_calls" if tool else "stop"
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": end}
            return {**base, "object": "chat.completion", "choices": [choice], "usage": usage}
        deltas = [{"role": "assistant", "content": None if tool else ""}, *deltas, {}]
        choices: list[Json] = [{"index": 0, "delta": d, "finish_reason": None} for d in deltas]
        choices[-1]["finish_reason"] = end
        base["object"] = "chat.completion.chunk"
        chunks: list[Json] = [{**base, "choices": [choice]} for choice in choices]
        options = body.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            chunks.append({**base, "choices": [], "usage": usage})
        return [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]

    def messages(self, body: Any) -> Json | list[str]:
        """A message in Anthropic's form, whole or as a stream."""
        tool, pieces, asked, said = self._accept(body)
        usage = {"input_tokens": asked, "output_tokens": said}
        end = {"stop_reason": "tool_use" if tool else "end_turn", "stop_sequence": None}
        empty: Json = {"type": "text", "text": ""}
        block: Json = {**empty, "text": "".join(pieces)}
        deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
        if tool:
            empty = {"type": "tool_use", "id": new_id("toolu_"), "name": tool, "input": {}}
            block = {**empty, "input": json.loads("".join(pieces))}
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        message: Json = {"id": new_id("msg_"), "type": "message", "role": "assistant"}
        message |= {"model": body["model"], "content": [block], "usage": usage, **end}
        if not body.get("stream"):
            return message
        events: list[Json] = [
            {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}},
            {"type": "content_block_start", "index": 0, "content_block": empty},
            *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": end, "usage": usage},
            {"type": "message_stop"},
        ]
        return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]


STYLE = """:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }
body { max-width: 44rem; margin: 10vh auto; padding: 0 1rem; overflow-wrap: anywhere }
pre { white-space: pre-wrap } button { font: inherit; padding: .5rem 2rem }"""


def page(title: str, content: str, status: int = 200, **headers: str) -> Response:
    """A page for a person, without scripts."""
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title} - CacheForge sandbox</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><style>{STYLE}</style></head>
<body><main>{content}</main><footer>A sandbox: no money moves.</footer></body></html>
"""
    headers["Cache-Control"] = "no-store"  # so that going back never shows the unpaid page
    return Response(status, "text/html; charset=utf-8", [text.encode()], headers)


def payment_page(account: Account, request: Request) -> Response:
    """The payer's page: the amount, the method, and a button until it is paid."""
    token, _, action = request.path[len("/pay/") :].partition("/")
    link = account.links.get(token)
    if link is None or action not in ("", "cancel"):
        told = "It may have been cut when it was copied, or its sandbox has stopped."
        return page("Unknown link", f"<h1>There is no such payment link</h1><p>{told}</p>", 404)
    if request.method not in ("GET", "HEAD", "POST"):
        raise Refused("Method not allowed", 405, Allow="GET, HEAD, POST")
    here, amount = f"/pay/{token}", f"${link.amount_usd:,}.00"
    if request.method == "POST" and not action:
        account.pay(link)
        return page("Paid", "", 303, Location=here)  # so that a reload does not pay again
    title, foot = f"Pay {amount}", f'<form method="post"><button>Pay {amount}</button></form>'
    foot += f'<p><a href="{here}/cancel">Cancel</a></p>'
    if link.paid:
        title, foot = "Paid", '<p role="status">Paid. You can close this page.</p>'
    elif action:
        title, foot = "Not paid", "<p>Nothing was charged. The link stays open.</p>"
        foot += f'<p><a href="{here}">Back to the payment</a></p>'
    means = {"stripe": "by card", "crypto": "in crypto"}[link.method]
    return page(title, f"<h1>CacheForge credit: {amount}</h1><p>To be paid {means}.</p>{foot}")


def index_page(box: Sandbox, local: bool) -> Response:
    """What this is, how to connect, the account, and the last requests."""
    values = {n: v if local or "KEY" not in n else "..." for n, v in box.env.items()}
    settings = box.account.settings()
    if "apiKey" in (settings["upstream"] or {}):  # perhaps a real one
        settings["upstream"] = {**settings["upstream"], "apiKey": "..."}
    sections = {
        "Connect": [f"{name}={value}" for name, value in values.items()],
        "Account": [f"{name}: {json.dumps(value)}" for name, value in settings.items()],
        "Last requests": [f"{r.call} {r.status or '-'}" for r in box.requests[:-21:-1]] or ["none"],
        "Calls": [*box.service.routes, *box.controls],
    }
    content = "<h1>CacheForge sandbox</h1><p>A fake service, for tests. It is ready.</p>"
    for title, lines in sections.items():
        content += f"<h2>{title}</h2><pre>{html.escape(chr(10).join(lines), quote=False)}</pre>"
    return page("Ready", content)


class Handler(BaseHTTPRequestHandler):
    """HTTP. A request is recorded and carried out, and its status recorded, before it is
    answered, so that nothing is lost when the client or the sandbox stops."""

    protocol_version = "HTTP/1.1"
    server_version = f"CacheForgeSandbox/{__version__}"
    sys_version = ""
    server: Server
    timeout = 60
    disable_nagle_algorithm = True  # headers and body are two writes: without it, 40 ms apart

    def do_any(self) -> None:
        box = self.server.sandbox
        path = re.sub("^https?://[^/]*", "", self.path).partition("?")[0]
        request = Request(self.command, path, self.headers)
        request.local = self.client_address[0] == "127.0.0.1"
        try:
            request.body = self._read_body()
        except Refused as refused:
            request.broken = refused
        if path == "/" or path.startswith("/sandbox/"):
            self._send(request, box.respond(request))
            return
        box.record(request)
        fault = box.next_fault(request.call)
        response = None if fault and not fault.after else box.respond(request)
        if response and (not fault or fault.half):
            request.status = response.status
            box.log(f"{request.call} {response.status}{' (cut)' if fault else ''}")
            self._send(request, response, cut=fault is not None)
        elif fault:
            request.status = fault.status
            box.log(f"{request.call} {fault.status or '-'} (scripted)")
            self._send_fault(fault)

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = do_OPTIONS = do_any

    def _read_body(self) -> bytes:
        """The body. Raises Refused if it cannot be read, and ends the connection."""
        length = self.headers.get("Content-Length", "0")
        coding = self.headers.get("Transfer-Encoding", "")
        if coding.lower() == "chunked":
            body = b""
            while size := self._read_size():
                body += self._read_exactly(size, len(body))
                self.rfile.readline(3)
            while self.rfile.readline(999).strip():
                pass  # trailers
            return body
        if coding or not length.isdecimal():
            reason = "Send the body with a Content-Length, or chunked"
            raise Refused(reason, 411, Connection="close")
        return self._read_exactly(int(length))

    def _read_size(self) -> int:
        text = self.rfile.readline(999).partition(b";")[0].strip()
        if not re.fullmatch(b"[0-9a-fA-F]{1,9}", text):
            raise Refused("The body is not chunked", Connection="close")
        return int(text, 16)

    def _read_exactly(self, count: int, before: int = 0) -> bytes:
        if before + count > MAX_REQUEST_BYTES:
            raise Refused("Body too large", 413, Connection="close")
        body = self.rfile.read(count)
        if len(body) != count:
            raise Refused("The body ended early", Connection="close")
        return body

    def _send(self, request: Request, response: Response, cut: bool = False) -> None:
        """Send a response; if it is `cut`, only the first half of a stream, and no other body."""
        chunked = response.kind == "text/event-stream" and self.request_version == "HTTP/1.1"
        self.send_response(response.status)
        self.send_header("Content-Type", response.kind)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(sum(map(len, response.parts))))
        ids = {"X-Request-Id": request.id, "request-id": request.id}  # Anthropic's name, too
        for name, value in {**ids, **response.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if cut:  # not announced, since Node takes an early end for the end if it was
            self.close_connection = True
        parts = response.parts if self.command != "HEAD" else []
        for part in parts[: len(parts) // 2] if cut else parts:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
        if chunked and not cut:
            self.wfile.write(b"0\r\n\r\n")

    def _send_fault(self, fault: Fault) -> None:
        """Send a fault, then end the connection."""
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
                closing.wait()
            elif fault.end == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                # each of these holds the connection open: close them all
                self.rfile.close()
                self.wfile.close()
                self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(socketserver.ThreadingTCPServer):
    """A thread per connection; none of them keeps the process alive."""

    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = os.name != "nt"  # there it would share a port that is in use
    sandbox: Sandbox

    def process_request(self, request: Any, client_address: Any) -> None:
        self.sandbox.connections.add(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are to be expected


def to_microusd(usd: Usd) -> int:
    """Dollars with up to six decimals, perhaps negative, as microdollars. Raises Refused."""
    text = f"{Decimal(str(usd)):f}" if type(usd) in (int, float, Decimal) else usd
    known = isinstance(text, str) and re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,6})?", text)
    require(known, f"dollars are written like 0, 12.34 or -1.50, not {usd!r}")
    return int(Decimal(text) * MICROUSD_PER_USD)


def read_seconds(value: Any) -> Any:
    """Seconds, or None. Raises Refused."""
    fits = value is None or (type(value) in (int, float) and 0 <= value <= 1e6)
    require(fits, f"must be seconds, such as 5 or 0.5, or null, not {value!r}")
    return value


READERS: dict[str, Callable[[Any], Any]] = {
    "balance_usd": to_microusd,
    "auto_topup": read_rule,
    "upstream": lambda value: read_upstream(value) if value else {},
    "pay_after_s": read_seconds,
}
EXAMPLES: Json = {"card_saved": True, "tenant_name": "text", "tenant_status": "active"}
EXAMPLES |= {"keys": ["label"], "unpaid_links": [10], "faults": ["GET /v1/models=503"]}
SETTINGS = [*READERS, *EXAMPLES]


def read_setting(name: str, value: Any) -> Any:
    """A setting of an account, checked. Raises Refused."""
    known = ", ".join(SETTINGS)
    require(name in SETTINGS, f"{name!r} is no setting of an account; they are {known}")
    if name in READERS:
        try:
            return READERS[name](value)
        except Refused as refused:
            raise Refused(f"{name}: {refused}") from None
    example = EXAMPLES[name]
    values, examples = (value, example) if isinstance(example, list) else ([value], [example])
    fits = isinstance(values, list) and all(type(each) is type(examples[0]) for each in values)
    require(fits, f"{name}: must be like {json.dumps(example)}, not {value!r}")
    return value


class Sandbox:
    """A running service with one account. Use it with `with`, or `start` and `close`.

    `settings` are those of `apply`. `port` 0 takes any free one. `account` is the account
    itself: ledger, keys, links.
    """

    def __init__(
        self,
        balance_usd: Usd = "12.34",
        api_key: str = DEFAULT_KEY,
        port: int = 0,
        host: str = "127.0.0.1",
        **settings: Any,
    ) -> None:
        self.log: Callable[[str], object] = lambda line: None  # called with a line per request
        self.closing = threading.Event()
        self.connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._opening = {"balance_usd": balance_usd, **settings}
        self._api_key = api_key
        self.reset()
        self._server = Server((host, port), Handler)
        self._server.sandbox = self
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self: Box) -> Box:
        """Begin to serve, in a thread; returns itself."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop serving, end all connections, and free the port."""
        self.closing.set()
        if self._thread.is_alive():
            with contextlib.suppress(OSError):  # this connection wakes the thread from its wait
                host, port = self.url.partition("://")[2].split(":")
                socket.create_connection((host, int(port)), 1).close()
            self._thread.join()
        self._server.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self: Box) -> Box:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while not self.closing.is_set():
            self._server.handle_request()

    @property
    def url(self) -> str:
        """The base URL."""
        host, port = map(str, self._server.server_address[:2])
        return f"http://{host.replace('0.0.0.0', '127.0.0.1')}:{port}"

    @property
    def env(self) -> dict[str, str]:
        """The variables that point clients here: CacheForge's, OpenAI's and Anthropic's."""
        urls = {"CACHEFORGE": self.url, "OPENAI": f"{self.url}/v1", "ANTHROPIC": self.url}
        pairs = (("BASE_URL", urls), ("API_KEY", dict.fromkeys(urls, self.account.api_key)))
        return {f"{name}_{what}": values[name] for name in urls for what, values in pairs}

    def reset(self) -> None:
        """Start again: the account and the faults as they were at first, no requests."""
        self.account = Account(self._api_key)
        self.service = Service(self.account)
        self.requests: list[Request] = []  # the last 1,000, oldest first
        self.clear_faults()
        self.apply(**self._opening)

    def apply(self, **settings: Any) -> Json:
        """Change the account, or raise ValueError and change nothing. Returns its settings.

        `balance_usd`, `card_saved`, `auto_topup` and `upstream` (as the service takes them),
        `tenant_name`, `tenant_status`, `keys` (the labels of more API keys), `unpaid_links`
        (their amounts), `faults` (as --fault takes them), and `pay_after_s` (each link is paid
        so long after it was created; None: it is not).
        """
        values = {name: read_setting(name, value) for name, value in settings.items()}
        faults = [read_fault(text) for text in values.pop("faults", ())]
        read = [(call, self._read_faults(call, each)) for call, each in faults]
        account = self.account
        with account.lock:
            if "balance_usd" in values:
                account.credit("set", values.pop("balance_usd") - account.balance_microusd)
            if "keys" in values:
                del account.keys[1:]
            for number, label in enumerate(values.pop("keys", ()), 2):
                secret = f"cf_{hashlib.sha256(b'%d' % number).hexdigest()[:32]}"  # always the same
                account.keys.append(Key(f"key_{number}", secret, label, CREATED_AT))
            for number, amount_usd in enumerate(values.pop("unpaid_links", ()), 1):
                account.links[f"unpaid{number}"] = Link(f"unpaid{number}", amount_usd, "stripe")
            vars(account).update(values)
        for call, each in read:
            self.add_faults(call, *each)
        return account.settings()

    @property
    def balance_usd(self) -> Decimal:
        """The balance in dollars."""
        return Decimal(self.account.balance_microusd) / MICROUSD_PER_USD

    def set_balance(self, usd: Usd) -> None:
        """Set the balance; with 0, the gateway responds with 402."""
        self.apply(balance_usd=usd)

    def charge(self, usd: Usd) -> None:
        """Take credit, as calls do: auto top-up may follow."""
        amount_microusd = to_microusd(usd)
        require(amount_microusd >= 0, f"a charge cannot be negative: {usd}")
        self.account.charge("charged", amount_microusd)

    def pay(self, token: str | None = None) -> bool:
        """Pay a link (its token or address), or the last one; False if it was paid before."""
        links = self.account.links
        token = next(reversed(links), "") if token is None else token.rpartition("/pay/")[2]
        created = ", ".join(links) or "none"
        require(token in links, f"there is no payment link {token!r}; created so far: {created}")
        return self.account.pay(links[token])

    def add_faults(self, call: str, *faults: FaultLike) -> None:
        """Let the next calls of `METHOD /path` fail like this, in order. Raises ValueError.

        A fault is a number (503), a text as --fault takes it ("429 Retry-After: 2", "lost"),
        or a Fault. ID stands for any key's id.
        """
        read = self._read_faults(call, faults)
        with self._lock:
            self._faults.setdefault(call, []).extend(read)

    def _read_faults(self, call: str, faults: Sequence[FaultLike]) -> list[Fault]:
        self.service.check_call(call)
        return [Fault.of(fault, call.partition(" ")[2]) for fault in faults]

    def clear_faults(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._faults: dict[str, list[Fault]] = {}
            self._fired: set[str] = set()

    @property
    def unused_faults(self) -> list[str]:
        """The calls that have faults, but none of them has happened."""
        return [call for call in self._faults if call not in self._fired]

    def next_fault(self, call: str) -> Fault | None:
        """The fault that is due, if any."""
        with self._lock:
            for name in (call, re.sub("/keys/[^/]+/revoke$", "/keys/ID/revoke", call)):
                if self._faults.get(name):
                    self._fired.add(name)
                    return self._faults[name].pop(0)
        return None

    def calls(self, *methods: str) -> list[str]:
        """The requests so far as `METHOD /path`, all or those of some methods."""
        return [each.call for each in self.requests if not methods or each.method in methods]

    def record(self, request: Request) -> None:
        """Remember a request."""
        with self._lock:
            self.requests.append(request)
            del self.requests[:-KEPT_REQUESTS]

    def respond(self, request: Request) -> Response:
        """The response to a request."""
        status, headers = 200, NO_HEADERS
        try:
            value = self._carry_out(request)
        except Refused as refused:
            status, headers = refused.status, refused.headers
            value = error_body(request.path, status, str(refused), request.id)
        if isinstance(value, Response):
            return value
        if isinstance(value, list):
            return Response(200, "text/event-stream", [event.encode() for event in value])
        return Response(status, "application/json", [json.dumps(value).encode()], headers)

    def _carry_out(self, request: Request) -> Response | Json | list[str]:
        if request.broken:
            raise request.broken
        if request.path.startswith("/pay/"):
            return payment_page(self.account, request)
        if request.path != "/" and not request.path.startswith("/sandbox/"):
            scheme, _, here = self.url.partition("://")
            return self.service.respond(request, f"{scheme}://{request.headers.get('Host', here)}")
        if request.call in ("GET /", "HEAD /"):
            return index_page(self, request.local)
        if not request.local:
            self.account.check_key(request.secret)
        control = self.controls.get(request.call)
        if not control:
            raise Refused(f"{request.call} is none of GET /, {', '.join(self.controls)}", 404)
        try:
            return control(**request.read_object()) or {"ok": True}
        except (AttributeError, TypeError) as error:  # a field is missing, too many, or no text
            raise Refused(f"{request.call}: {str(error).rpartition('() ')[2]}") from None

    @property
    def controls(self) -> dict[str, Callable[..., Any]]:
        """The calls under /sandbox/; their parameters are the fields of the body."""
        return {
            "GET /sandbox/requests": lambda: {"requests": [r.as_json() for r in [*self.requests]]},
            "POST /sandbox/faults": lambda call, faults: self.add_faults(call, *faults),
            "DELETE /sandbox/faults": self.clear_faults,
            "POST /sandbox/account": self.apply,
            "POST /sandbox/pay": lambda token=None: {"paid": self.pay(token)},
            "POST /sandbox/reset": self.reset,
        }


EPILOG = f"""
examples:
  try a command of ops.py         sandbox.py balance
  pay a link after 5 s            sandbox.py --balance 0 --pay-after 5 topup --wait
  run a test with its variables   sandbox.py --balance 0 --exec ./smoke-test
  serve other programs            sandbox.py --serve --port 8466
  see a lost response             sandbox.py --fault 'POST /v1/account/keys=lost' keys --create

--exec sets CACHEFORGE_BASE_URL, CACHEFORGE_API_KEY and the same for OPENAI_ and ANTHROPIC_,
and the exit code is the command's. --serve prints them for a shell.
GET / needs no key: it says that the sandbox is ready, and shows the account.

WHAT is 503 (any status), '429 Retry-After: 2' (with headers, separated by ;), 409:BODY, a
JSON body, or one of:
  lost   carried out, then no response      html   a page instead of JSON
  reset  the connection is reset            empty  no body
  hang   no response, and no end            cut    the body ends early
  drip   a byte now and then, for 30 s      cut-stream   half of the real response
done+WHAT carries the call out first; N*WHAT stands for N times. Faults are used in order.
In CALL, ID stands for any key's id: 'POST /v1/account/keys/ID/revoke=503'.

An account has any of: {", ".join(SETTINGS[:7])},
{", ".join(SETTINGS[7:])}.
Tests in any language control a sandbox by JSON over HTTP, on this machine without a key:
  GET /sandbox/requests     the last {KEPT_REQUESTS} requests
  POST /sandbox/faults      {{"call": "GET /v1/models", "faults": ["429 Retry-After: 2"]}}
  DELETE /sandbox/faults    forget them
  POST /sandbox/account     {{"balance_usd": 0}}: change the account; the response shows it
  POST /sandbox/pay         pay the last link, or {{"token": "..."}}
  POST /sandbox/reset       start again
"""


def make_parser() -> argparse.ArgumentParser:
    """Our own options, up to the first word that is none; the rest is the command."""
    parser = argparse.ArgumentParser(
        prog="sandbox.py",
        usage="sandbox.py [options] COMMAND [ARG...] | --exec CMD [ARG...] | --serve",
        description="A fake CacheForge service for tests. COMMAND and what follows goes to ops.py.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--exec", action="store_true", help="run CMD, any program")
    add("--serve", action="store_true", help="serve until Ctrl-C")
    add("--port", type=int, default=0, help="the port (default: any that is free)")
    add("--host", default="127.0.0.1", help="0.0.0.0 serves everybody (default 127.0.0.1)")
    add("--balance", metavar="USD", help="the balance (default 12.34)")
    add("--key", default=DEFAULT_KEY, help=f"the API key (default {DEFAULT_KEY})")
    add("--pay-after", type=float, metavar="SECONDS", help="pay each link after that long")
    words = "the account: a JSON file, or JSON itself: '{\"card_saved\": true}'"
    add("--account", metavar="FILE.json", default="{}", help=words)
    add("--fault", metavar="CALL=WHAT", action="append", default=[], help="let it fail; repeatable")
    add("--verbose", action="store_true", help="print a line per request on stderr")
    add("--version", action="version", version=f"sandbox.py {__version__}")
    add("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def read_account(options: argparse.Namespace) -> Json:
    """The settings that the options ask for. Raises ValueError."""
    given = {"balance_usd": options.balance, "pay_after_s": options.pay_after}
    text = options.account
    try:
        settings = json.loads(text if text[:1] == "{" else Path(text).read_text("utf-8"))
        settings["faults"] = settings.get("faults", []) + options.fault
    except (OSError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"--account {text}: {error}") from None
    return {**settings, **{name: value for name, value in given.items() if value is not None}}


def read_command(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """What is to be run; nothing with --serve. Ends the program if the options are wrong."""
    command: list[str] = options.command[options.command[:1] == ["--"] :]
    if options.serve and (options.exec or command):
        parser.error("--serve runs no command")
    if not options.serve and not command:
        parser.error("nothing to do: give an ops.py command, --exec CMD, or --serve (see --help)")
    if options.serve or options.exec:
        return command
    if not OPS.exists():
        told = f"{command[0]!r} needs ops.py, which is not at {OPS}"
        parser.error(f"{told}; --serve and --exec CMD work without it")
    return [sys.executable, str(OPS), *command]


def say(line: str) -> None:
    """Print a line on stderr, if somebody reads it."""
    try:
        if sys.stderr:
            print(line, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = None  # so that Python does not try again when it ends, and exits with 120


def serve(box: Sandbox, host: str) -> int:
    """Print how to reach the sandbox, then serve until a signal comes."""
    with contextlib.suppress(KeyboardInterrupt):
        for name in ("SIGINT", "SIGTERM"):  # a shell lets what is in the background ignore SIGINT
            signal.signal(getattr(signal, name), signal.default_int_handler)
        local = host in ("127.0.0.1", "localhost")
        say(f"# serving {'this machine' if local else f'whoever can reach {host}'}; Ctrl-C stops")
        for variable, value in box.env.items():
            print(f"export {variable}={value}", flush=True)
        box.start()  # only now, so that a response means that all is printed
        while True:
            time.sleep(1)  # a signal that came to another thread does not end a sleep
    return 0


def run_inside(box: Sandbox, command: Sequence[str]) -> int:
    """Run a command with the variables set; returns its exit code."""
    try:
        child = subprocess.Popen(list(command), env={**os.environ, **box.env})
    except OSError as error:
        say(f"sandbox: cannot run {command[0]}: {error.strerror}")
        return 127 if isinstance(error, FileNotFoundError) else 126
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    signal.signal(signal.SIGINT, lambda *_: None)  # the command gets it, too, and decides
    code = child.wait()
    return 128 - code if code < 0 else code


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser()
    options = parser.parse_args(argv)
    command = read_command(parser, options)
    host, port = options.host, options.port
    try:
        box = Sandbox(api_key=options.key, port=port, host=host, **read_account(options))
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    except (OSError, OverflowError) as error:
        say(f"sandbox: cannot listen on {host}, port {port}: {error}")
        return 2
    if options.verbose:
        box.log = say
    with contextlib.closing(box):
        code = serve(box, host) if options.serve else run_inside(box.start(), command)
    for call in box.unused_faults:  # that may be a mistake in a test
        say(f"sandbox: a fault was not used, because nobody called {call}")
    if str(OPS) in command[:2]:  # its output may name links and commands that work no more
        say("sandbox: stopped; its links and keys are gone (--serve keeps a sandbox running)")
    return code


if __name__ == "__main__":
    sys.exit(main())
