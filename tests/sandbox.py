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
import errno
import functools
import hashlib
import html
import json
import operator
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
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, NamedTuple, TypeVar, Union
from urllib.parse import unquote, urlsplit

__version__ = "2.0.0"
OPS = Path(__file__).resolve().parent.parent / "skills" / "cacheforge-ops" / "ops.py"
DEFAULT_KEY = "cf_sandbox_0123456789abcdef"
MICROUSD_PER_USD = 1_000_000
MICROUSD_PER_CENT = 10_000
SMALLEST_TOPUP_USD = 10
MAX_REQUEST_BYTES = 10_000_000
KEPT_REQUESTS = 1000
METHODS = ("GET", "POST", "PATCH")
KINDS = ("openrouter", "anthropic", "custom")
CREATED_AT = "2026-01-02T03:04:05Z"  # of the keys that exist from the start
REPLY = ("Hello", " from", " the", " sandbox.")
ANTHROPIC_ERRORS = {401: "authentication_error", 402: "billing_error", 403: "permission_error"}
ANTHROPIC_ERRORS |= {404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error"}
ANTHROPIC_ERRORS |= {529: "overloaded_error"}

Json = dict[str, Any]
Headers = Mapping[str, str]
NO_HEADERS: Headers = {}
Usd = Union[str, int, float, Decimal]
Box = TypeVar("Box", bound="Sandbox")


class Refused(Exception):
    """A request that the service refuses."""

    def __init__(self, status: int, message: str, code: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers


def new_id(prefix: str) -> str:
    """A random id."""
    return f"{prefix}{secrets.token_hex(6)}"


def error_body(path: str, status: int, message: str, code: str, request_id: str) -> Json:
    """An error as CacheForge reports it; under /v1/messages, as Anthropic reports it."""
    if not path.startswith("/v1/messages"):
        return {"error": {"message": message, "type": code, "code": code}}
    kind = ANTHROPIC_ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def id_headers(request_id: str) -> dict[str, str]:
    """The request id under CacheForge's name and under Anthropic's."""
    return {"X-Request-Id": request_id, "request-id": request_id}


@dataclass
class Request:
    """A request that arrived. The names in `headers` are case-insensitive."""

    method: str
    path: str
    headers: Message
    body: bytes = b""
    id: str = field(default_factory=lambda: new_id("req_"))
    status: int | None = None  # of the response; None if there was none

    @property
    def call(self) -> str:
        """`METHOD /path`, as in `add_faults`."""
        return f"{self.method} {self.path}"

    @property
    def json(self) -> Any:
        """The body as JSON; None if it is empty. Raises ValueError."""
        return json.loads(self.body) if self.body else None

    def as_json(self) -> Json:
        """The request as GET /sandbox/requests shows it: with its keys masked."""
        shown = {
            name: "***" if name.lower() in ("authorization", "x-api-key", "cookie") else value
            for name, value in self.headers.items()
        }
        try:
            body = self.json
        except (ValueError, RecursionError):
            body = self.body.decode("utf-8", "replace")
        line = {"method": self.method, "path": self.path, "headers": shown, "body": body}
        return {**line, "status": self.status, "id": self.id}


class Response(NamedTuple):
    """A response; a stream has a part for each event."""

    status: int
    kind: str
    parts: Sequence[bytes]
    headers: Headers = NO_HEADERS

    @classmethod
    def json(cls, value: object, status: int = 200, **headers: str) -> Response:
        """A response in JSON."""
        return cls(status, "application/json", [json.dumps(value).encode()], headers)

    @classmethod
    def refusal(cls, request: Request, refused: Refused) -> Response:
        """The response to a request that is refused."""
        body = error_body(request.path, refused.status, str(refused), refused.code, request.id)
        return cls.json(body, refused.status, **refused.headers)


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

    @property
    def status(self) -> int | None:
        """The status in `raw`, if there is one."""
        match = re.match(rb"HTTP/1\.1 ([0-9]{3})", self.raw)
        return int(match[1]) if match else None

    @classmethod
    def reply(
        cls,
        status: int = 200,
        body: object = None,
        headers: Headers = NO_HEADERS,
        after: bool = False,
    ) -> Fault:
        """A response of any status, with these headers; a `body` but for bytes is sent as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        lines = {**lines, "Connection": "close", **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        line = f"HTTP/1.1 {status} {phrase(status)}\r\n{head}\r\n"
        return cls(line.encode("latin-1") + content, after=after)

    @classmethod
    def of(cls, what: FaultLike, path: str = "") -> Fault:
        """A fault as `--fault` takes it (see `sandbox.py --help`). Raises ValueError."""
        if isinstance(what, Fault):
            return what
        text, request_id = str(what), new_id("req_")
        if text.startswith("done+"):
            return dataclasses.replace(cls.of(text[len("done+") :], path), after=True)
        ids = id_headers(request_id)
        page, slow = {**ids, "Content-Type": "text/html"}, cls.reply(200, b" " * 300, ids).raw
        named = {
            "lost": cls(after=True),
            "reset": cls(end="reset"),
            "hang": cls(end="hang"),
            "drip": cls(slow[:300], drip_s=0.1),  # so that it ends after 30 s
            "html": cls.reply(200, b"<!doctype html><title>Hi</title>", page),
            "empty": cls.reply(200, b"", ids),
            "cut": cls.reply(200, b'{"', {**ids, "Content-Length": "900"}),
            "cut-stream": cls(after=True, half=True),
        }
        form = r"([2-9]\d\d)((?: [\w-]+: ?[^;\r\n]+;?)*)|(?:([2-9]\d\d):|(?=[{[]))(.*)"
        match = re.fullmatch(form, text, re.DOTALL) if isinstance(what, (str, int)) else None
        if text in named:
            return named[text]
        if not match:
            raise ValueError(
                f"{text!r} is neither a status (503), a status with headers (429 Retry-After: 2),"
                f" STATUS:BODY, a JSON body, nor one of {', '.join(named)}"
            )
        status = int(match[1] or match[3] or 200)
        if match[1]:
            code = phrase(status).lower().replace(" ", "_")
            error = error_body(path, status, phrase(status), code, request_id)
            ids.update(re.findall(r"([\w-]+): ?([^;]+)", match[2]))
            return cls.reply(status, error if status >= 400 else {}, ids)
        try:
            json.loads(match[4])
        except ValueError:
            ids["Content-Type"] = "text/plain; charset=utf-8"
        return cls.reply(status, match[4].encode(), ids)


FaultLike = Union[Fault, str, int]


def phrase(status: int) -> str:
    """The reason phrase of a status."""
    return HTTPStatus(status).phrase if status in list(HTTPStatus) else "Scripted"


def read_fault(text: str) -> tuple[str, list[FaultLike]]:
    """A call and its faults, from `CALL=WHAT`; `3*WHAT` is three. Raises ValueError."""
    call, equals, what = text.partition("=")
    if not equals:
        raise ValueError(f"write CALL=WHAT, such as 'GET /v1/models=503', not {text!r}")
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

    @property
    def prefix(self) -> str:
        """The part of the secret that a list shows."""
        return self.secret[:12]


def listed_key(number: int, label: str) -> Key:
    """A key that exists from the start, with the same secret each time."""
    secret = f"cf_{hashlib.sha256(b'%d' % number).hexdigest()[:32]}"
    return Key(f"key_{number}", secret, label, CREATED_AT)


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
    price_microusd: int = 20_000  # of a gateway call
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.keys.append(Key("key_1", self.api_key, "sandbox", CREATED_AT))

    @property
    def balance_microusd(self) -> int:
        """The sum of the ledger."""
        return sum(amount for _, amount in self.ledger)

    def credit(self, why: str, amount_microusd: int) -> None:
        """Add a line to the ledger."""
        with self.lock:
            self.ledger.append((why, amount_microusd))

    def check_key(self, secret: str) -> None:
        """Accept a valid key. Raises Refused 401."""
        for key in self.keys:
            if secret == key.secret and key.revoked_at is None:
                key.last_used_at = now()
                return
        raise Refused(401, "Invalid API key", "invalid_api_key")

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
        rule = self.auto_topup
        if not (rule["enabled"] and self.card_saved):
            return
        if self.balance_microusd < rule["thresholdCents"] * MICROUSD_PER_CENT:
            self.credit("auto top-up", rule["amountCents"] * MICROUSD_PER_CENT)

    def charge_call(self) -> None:
        """Take the price of a gateway call. Raises Refused 402."""
        self.refill()
        if self.balance_microusd <= 0:
            raise Refused(402, "Payment Required: credit is used up", "insufficient_credit")
        self.charge("call", self.price_microusd)

    def settings(self) -> Json:
        """The account under the names that `Sandbox.apply` takes."""
        with self.lock:
            names = ("card_saved", "auto_topup", "upstream", "tenant_name", "tenant_status")
            return {
                "balance_usd": str(Decimal(self.balance_microusd) / MICROUSD_PER_USD),
                **{name: getattr(self, name) for name in names},
                "keys": [key.label for key in self.keys[1:]],
                "unpaid_links": [x.amount_usd for x in self.links.values() if not x.paid],
            }


def now() -> str:
    """The time as the service writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_rule(body: Any) -> Json:
    """An auto top-up rule. Raises Refused."""
    if not isinstance(body, dict) or type(body.get("enabled")) is not bool:
        raise Refused(400, "enabled must be true or false", "enabled")
    if not body["enabled"]:
        return {"enabled": False}
    threshold, amount = body.get("thresholdCents"), body.get("amountCents")
    if not (type(threshold) is type(amount) is int and threshold >= 0 and amount >= 1):
        raise Refused(400, "thresholdCents and amountCents must be integers", "amount")
    return {"enabled": True, "thresholdCents": threshold, "amountCents": amount}


def read_upstream(body: Any, before: Mapping[str, str] = {}) -> dict[str, str]:
    """A provider: what is in `body` replaces what was there `before`. Raises Refused."""
    names = ("kind", "baseUrl", "apiKey")
    parts = {name: body[name] for name in names if name in body} if isinstance(body, dict) else {}
    if not parts or not all(isinstance(part, str) and part for part in parts.values()):
        raise Refused(400, "kind, baseUrl and apiKey must be text", "upstream")
    merged = {**before, **parts}
    if merged.get("kind") != before.get("kind"):
        merged = parts  # the address and the key of another provider do not carry over
    url = merged.get("baseUrl", "")
    if merged.get("kind") == "openai":
        reason = "kind openai is called custom, with baseUrl https://api.openai.com"
    elif merged.get("kind") not in KINDS:
        reason = f"kind must be one of {', '.join(KINDS)}"
    elif merged["kind"] == "custom" and not url:
        reason = "kind custom needs a baseUrl"
    elif url and not re.fullmatch(r"https?://[\w.:\[\]-]+(/[!-~]*)?", url):
        reason = "baseUrl must be an address, such as https://llm.example.com"
    else:
        return merged
    raise Refused(400, reason, "upstream")


def count_tokens(value: object) -> int:
    """About four characters each."""
    return len(json.dumps(value)) // 4


def check_gateway_body(body: Json) -> None:
    """Raises Refused 400 if this is no request to a model."""
    messages = body.get("messages")
    if not (isinstance(messages, list) and messages) or not all(
        isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages
    ):
        raise Refused(400, "messages must be a list of objects with a role", "messages")
    if not isinstance(body.get("model"), str):
        raise Refused(400, "model must be a string", "model")
    if not isinstance(body.get("stream", False), (bool, type(None))):
        raise Refused(400, "stream must be true or false", "stream")


def demanded_call(body: Json) -> tuple[str, Json] | None:
    """The tool that `tool_choice` demands, and arguments for it. Raises Refused 400."""
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind not in ("required", "any", "function", "tool"):
        return None
    try:
        functions = [tool.get("function", tool) for tool in body["tools"]]
        schemas = {
            one["name"]: one.get("parameters") or one.get("input_schema") or {} for one in functions
        }
        name = next(iter(schemas))
        if isinstance(choice, dict) and kind in ("function", "tool"):
            name = choice.get("function", choice)["name"]
        return name, dict(sample({"type": "object", **schemas[name]}, schemas[name]))
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError, RecursionError):
        reason = "tool_choice demands a tool that is not in tools, or whose schema is unusable"
        raise Refused(400, reason, "tool_choice") from None


def sample(schema: Json, root: Json) -> Any:
    """A value that fits a JSON schema; of an object, its required fields."""
    if "$ref" in schema:
        return sample(functools.reduce(operator.getitem, schema["$ref"].split("/")[1:], root), root)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    choices = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if choices:
        return sample(choices[0], root)
    kind = schema.get("type", "string")
    if "object" in kind:
        fields = schema.get("properties", {})
        return {name: sample(fields.get(name, {}), root) for name in schema.get("required", ())}
    if "array" in kind:
        return [sample(schema.get("items", {}), root) for _ in range(schema.get("minItems", 0))]
    if "integer" in kind or "number" in kind:
        return min(max(1, schema.get("minimum", 1)), schema.get("maximum", 1_000_000))
    if "string" in kind:
        return "sample".ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]
    return True if "boolean" in kind else None


class Service:
    """The account's calls and the gateway's, a method for each.

    Each takes the body and returns an object (sent as JSON) or a list of events.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self.origin = ""  # the address that the call came to: payment links lead there
        self.on_link: Callable[[Link], object] = lambda link: None
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
        """The method for a call, if there is one."""
        revoke = re.fullmatch(r"/v1/account/keys/([^/]+)/revoke", path)
        if revoke and method == "POST":
            return lambda body: self.revoke_key(unquote(revoke[1]))
        return self.routes.get(f"{'GET' if method == 'HEAD' else method} {path}")

    def check_call(self, call: str) -> None:
        """Raises ValueError if this is no call of the service, so that a fault can happen."""
        if not self.find(*call.partition(" ")[::2]):
            close = difflib.get_close_matches(call, self.routes, 1, 0.8)
            hint = f"the calls are {', '.join(self.routes)}"
            hint = f"did you mean {close[0]!r}?" if close else hint
            raise ValueError(f"{call!r} is no call of this service: {hint}")

    def respond(self, request: Request, origin: str) -> Response:
        """The response to a call."""
        with self.account.lock:
            self.origin = origin
            try:
                self.account.check_key(secret_of(request))
                handler = self.find(request.method, request.path)
                if not handler:
                    raise self._unknown(request.path)
                value = handler(read_body(request))
            except Refused as refused:
                return Response.refusal(request, refused)
        if isinstance(value, list):
            return Response(200, "text/event-stream", [event.encode() for event in value])
        return Response.json(value)

    def _unknown(self, path: str) -> Refused:
        allowed = ", ".join(method for method in METHODS if self.find(method, path))
        if allowed:
            return Refused(405, "Method not allowed", "method", Allow=allowed)
        return Refused(404, "Not found: GET / lists the calls of this sandbox", "not_found")

    def use_chat(self, body: Any) -> Json:
        raise Refused(404, "Not in this sandbox: use POST /v1/chat/completions", "not_found")

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
        if type(amount) is not int:
            raise Refused(400, f"amountUsd must be whole dollars, not {amount!r}", "amount")
        if amount < SMALLEST_TOPUP_USD:
            raise Refused(400, f"amountUsd must be at least {SMALLEST_TOPUP_USD}", "amount")
        if method not in ("stripe", "crypto"):
            raise Refused(400, "method must be stripe or crypto", "method")
        link = Link(secrets.token_hex(8), amount, method)
        self.account.links[link.token] = link
        self.on_link(link)
        return {"paymentUrl": f"{self.origin}/pay/{link.token}"}

    def set_auto_topup(self, body: Any) -> Json:
        rule = read_rule(body)
        if rule["enabled"] and not self.account.card_saved:
            raise Refused(400, "Auto top-up needs a saved card: pay one top-up by card", "no_card")
        self.account.auto_topup = rule
        self.account.refill()
        return {"ok": True}

    def info(self, body: Any) -> Json:
        tenant = {"id": "tn_sandbox", "name": self.account.tenant_name}
        tenant["status"] = self.account.tenant_status
        active = sum(key.revoked_at is None for key in self.account.keys)
        known = {"upstreamConfigured": bool(self.account.upstream), "activeKeys": active}
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
            row: Json = {"id": key.id, "prefix": key.prefix, "label": key.label}
            row |= {"createdAt": key.created_at, "lastUsedAt": key.last_used_at}
            rows.append({**row, "revokedAt": key.revoked_at})
        return {"keys": rows}

    def create_key(self, body: Any) -> Json:
        number = len(self.account.keys) + 1
        key = Key(f"key_{number}", f"cf_{secrets.token_hex(16)}", None, now())
        self.account.keys.append(key)
        return {"id": key.id, "apiKey": key.secret, "prefix": key.prefix}

    def revoke_key(self, key_id: str) -> Json:
        key = next((key for key in self.account.keys if key.id == key_id), None)
        if key is None:
            raise Refused(404, "No such key", "not_found")
        key.revoked_at = key.revoked_at or now()
        return {"ok": True}

    def models(self, body: Any) -> Json:
        model = {"id": "sandbox", "object": "model", "created": 1767225600, "owned_by": "sandbox"}
        return {"object": "list", "data": [model]}

    def _accept(self, body: Json) -> tuple[tuple[str, Json] | None, list[str], int]:
        """Check and charge a gateway call: the tool call to make, the text in pieces, tokens in."""
        check_gateway_body(body)
        call = demanded_call(body)
        self.account.charge_call()
        text = json.dumps(call[1]) if call else ""
        return call, [text[:3], text[3:]] if call else [*REPLY], count_tokens(body["messages"])

    def chat(self, body: Any) -> Json | list[str]:
        """A completion in OpenAI's form, whole or as a stream."""
        call, pieces, asked = self._accept(body)
        said = count_tokens("".join(pieces))
        usage = {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
        base = {"id": new_id("chatcmpl-"), "created": int(time.time()), "model": body["model"]}
        message: Json = {"role": "assistant", "content": None if call else "".join(pieces)}
        deltas: list[Json] = [{"content": piece} for piece in pieces]
        if call:
            made: Json = {"id": new_id("call_"), "type": "function"}
            made["function"] = {"name": call[0], "arguments": "".join(pieces)}
            message["tool_calls"] = [made]
            start = {**made, "index": 0, "function": {"name": call[0], "arguments": ""}}
            rest = [{"index": 0, "function": {"arguments": piece}} for piece in pieces]
            deltas = [{"tool_calls": [part]} for part in (start, *rest)]
        end = "tool_calls" if call else "stop"
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": end}
            return {**base, "object": "chat.completion", "choices": [choice], "usage": usage}
        base["object"] = "chat.completion.chunk"
        deltas = [{"role": "assistant", "content": None if call else ""}, *deltas, {}]
        choices: list[Json] = [{"index": 0, "delta": d, "finish_reason": None} for d in deltas]
        choices[-1]["finish_reason"] = end
        chunks: list[Json] = [{**base, "choices": [choice]} for choice in choices]
        options = body.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            chunks.append({**base, "choices": [], "usage": usage})
        return [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]

    def messages(self, body: Any) -> Json | list[str]:
        """A message in Anthropic's form, whole or as a stream."""
        call, pieces, asked = self._accept(body)
        usage = {"input_tokens": asked, "output_tokens": count_tokens("".join(pieces))}
        end = {"stop_reason": "tool_use" if call else "end_turn", "stop_sequence": None}
        block: Json = {"type": "text", "text": "".join(pieces)}
        empty: Json = {"type": "text", "text": ""}
        deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
        if call:
            block = {"type": "tool_use", "id": new_id("toolu_"), "name": call[0], "input": call[1]}
            empty = {**block, "input": {}}
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


def read_body(request: Request) -> Json:
    """The body as a JSON object; {} if it is empty. Raises Refused."""
    writes = request.method in ("POST", "PATCH") and request.path.startswith("/v1/account/")
    if writes and request.headers.get_content_type() != "application/json":
        raise Refused(415, "The Content-Type must be application/json", "content_type")
    try:
        body = request.json if request.body else {}
    except (ValueError, RecursionError):
        raise Refused(400, "The body is not JSON", "json") from None
    if not isinstance(body, dict):
        raise Refused(400, "The body is not a JSON object", "json")
    return body


def secret_of(request: Request) -> str:
    """The key that a request was sent with."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    return secret if scheme.lower() == "bearer" else request.headers.get("X-Api-Key", "")


STYLE = """
 :root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }
 body { max-width: 60rem; margin: 10vh auto; padding: 0 1rem; overflow-wrap: anywhere }
 .pay { max-width: 24rem; text-align: center }
 pre { white-space: pre-wrap }
 .amount { font-size: clamp(1.6rem, 9vw, 3rem); font-weight: 700; margin: 0 }
 button { width: 100%; padding: .9rem; border: 0; border-radius: .6rem; cursor: pointer;
   background: #17703a; color: #fff; font: inherit; font-weight: 600 }
"""


def page(title: str, content: str, status: int = 200, **headers: str) -> Response:
    """A page for a person, without scripts."""
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title} - CacheForge sandbox</title>
<style>{STYLE}</style></head><body><main>
{content}
<footer>A sandbox: no money moves.</footer>
</main></body></html>
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
    here = html.escape(f"/pay/{token}")
    allowed = ("GET", "HEAD") if action else ("GET", "HEAD", "POST")
    if request.method not in allowed:
        refused = Refused(405, "Method not allowed", "method", Allow=", ".join(allowed))
        return Response.refusal(request, refused)
    if request.method == "POST":
        account.pay(link)
        return page("Paid", "", 303, Location=here)  # so that a reload does not pay again
    amount = f"${link.amount_usd:,}.00"
    title, foot = f"Pay {amount}", f'<form method="post"><button>Pay {amount}</button></form>'
    foot += f'<p><a href="{here}/cancel">Cancel</a></p>'
    if link.paid:
        title, foot = "Paid", '<p role="status">Paid. You can close this page.</p>'
    elif action:
        back = f'<p><a href="{here}">Back to the payment</a></p>'
        title, foot = "Not paid", f"<p>Nothing was charged. The link stays open.</p>{back}"
    means = {"stripe": "by card", "crypto": "in crypto"}[link.method]
    head = f'<h1>CacheForge credit</h1><p class="amount">{amount}</p><p>{means}</p>'
    return page(title, f'<div class="pay">{head}{foot}</div>')


def index_page(box: Sandbox, local: bool) -> Response:
    """What this is, how to connect, the account, and the last requests."""
    variables = {**box.env, **({} if local else {n: "..." for n in box.env if "KEY" in n})}
    sections = {
        "Connect": [f"{name}={value}" for name, value in variables.items()],
        "Account": [f"{name}: {json.dumps(v)}" for name, v in box.account.settings().items()],
        "Last requests": [f"{r.call} {r.status or '-'}" for r in box.requests[:-21:-1]] or ["none"],
        "Calls": [*box.service.routes, *box.controls],
    }
    content = "".join(
        f"<h2>{title}</h2><pre>{html.escape(chr(10).join(lines), quote=False)}</pre>"
        for title, lines in sections.items()
    )
    told = "<h1>CacheForge sandbox</h1><p>A fake service, for tests. It is ready.</p>"
    return page("Ready", told + content)


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
        refusal = None
        try:
            request.body = self._read_body()
        except Refused as refused:
            refusal = Response.refusal(request, refused)
        if path in ("/", "/favicon.ico") or path.startswith("/sandbox/"):
            local = self.client_address[0] in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
            self._send(request, refusal or box.control(request, local))
            return
        box.record(request)
        fault = box.next_fault(request.call)
        response = None if fault and not fault.after else refusal or box.respond(request)
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
        length, coding = self.headers.get("Content-Length"), self.headers.get("Transfer-Encoding")
        ending = {"Connection": "close"}
        try:
            if coding is not None and coding.lower() == "chunked":
                return self._read_chunks()
            if coding is not None or not (length or "0").isdecimal():
                reason = "Send the body with a Content-Length, or chunked"
                raise Refused(411, reason, "length_required", **ending)
            return self._read_exactly(int(length or 0))
        except ValueError:
            raise Refused(400, "The body is broken, or ended early", "length", **ending) from None

    def _read_exactly(self, count: int, before: int = 0) -> bytes:
        if before + count > MAX_REQUEST_BYTES:
            raise Refused(413, "Body too large", "too_large", Connection="close")
        body = self.rfile.read(max(0, count))
        if len(body) != count:
            raise ValueError
        return body

    def _read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(999).partition(b";")[0] or b"x", 16):
            body += self._read_exactly(size, len(body))
            self.rfile.readline(3)
        while self.rfile.readline(999).strip():
            pass  # trailers
        return body

    def _send(self, request: Request, response: Response, cut: bool = False) -> None:
        """Send a response; if it is `cut`, only the first half of a stream, and no other body."""
        stream = response.kind == "text/event-stream"
        chunked = stream and self.request_version == "HTTP/1.1"
        self.send_response(response.status)
        self.send_header("Content-Type", response.kind)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif not stream:
            self.send_header("Content-Length", str(sum(map(len, response.parts))))
        if stream and not chunked:
            self.send_header("Connection", "close")
        # without that header, since Node takes an early end for the end if it was announced
        self.close_connection = self.close_connection or cut
        for name, value in {**id_headers(request.id), **response.headers}.items():
            self.send_header(name, value)
        self.end_headers()
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
        """Nothing: http.server's own log is not wanted."""


class Server(ThreadingHTTPServer):
    """A thread per connection; none of them keeps the process alive."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    allow_reuse_address = os.name != "nt"  # there it would share a port that is in use
    sandbox: Sandbox

    def __init__(self, host: str, port: int) -> None:
        self.connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), Handler)

    def server_bind(self) -> None:
        """Bind, without http.server's search for a host name that nobody needs."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection in a thread of its own."""
        self.connections.add(request)
        super().process_request(request, client_address)

    def hang_up(self) -> None:
        """Shut all connections down, those that wait for a next request, too."""
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients that hang up are to be expected."""


def to_microusd(usd: Usd) -> int:
    """Dollars with up to six decimals, perhaps negative, as microdollars. Raises ValueError."""
    if isinstance(usd, bool) or not isinstance(usd, (str, int, float, Decimal)):
        raise ValueError(f"dollars are a number or text, such as '12.34', not {usd!r}")
    text = usd if isinstance(usd, str) else f"{Decimal(str(usd)):f}"
    match = re.fullmatch(r"(-?)([0-9]{1,9})(?:\.([0-9]{1,6}))?", text)
    if not match:
        raise ValueError(f"dollars are written like 0, 12.34 or -1.50, not {text!r}")
    microusd = int(match[2]) * MICROUSD_PER_USD + int((match[3] or "").ljust(6, "0"))
    return -microusd if match[1] else microusd


def one(kind: type, words: str, many: bool = False) -> Callable[[Any], Any]:
    """A reader that accepts a value of this type, or a list of them. Raises ValueError."""

    def read(value: Any) -> Any:
        values = value if many and isinstance(value, list) else [value]
        if isinstance(value, list) is many and all(type(each) is kind for each in values):
            return value
        raise ValueError(f"must be {words}, not {value!r}")

    return read


def read_seconds(value: Any) -> float | None:
    """Seconds, or None. Raises ValueError."""
    if value is None or (type(value) in (int, float) and 0 <= value <= 1e6):
        return value  # type: ignore[no-any-return]
    raise ValueError(f"must be seconds, such as 5 or 0.5, or null, not {value!r}")


SETTINGS: dict[str, Callable[[Any], Any]] = {
    "balance_usd": to_microusd,
    "card_saved": one(bool, "true or false"),
    "auto_topup": read_rule,
    "upstream": lambda value: read_upstream(value) if value else {},
    "keys": one(str, "a list of labels", many=True),
    "tenant_name": one(str, "text"),
    "tenant_status": one(str, "text"),
    "unpaid_links": one(int, "a list of whole dollars", many=True),
    "pay_after_s": read_seconds,
    "faults": one(str, "a list of CALL=WHAT", many=True),
}


def read_setting(name: str, value: Any) -> Any:
    """A setting of an account, checked. Raises ValueError."""
    if name not in SETTINGS:
        known = ", ".join(SETTINGS)
        raise ValueError(f"{name!r} is no setting of an account; they are {known}")
    try:
        return SETTINGS[name](value)
    except (Refused, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None


class Sandbox:
    """A running service with one account. Use it with `with`, or `start` and `close`.

    `settings` are those of `apply`. `port` 0 takes any free one. `log` is called with a line
    per request. `account` is the account itself: ledger, keys, links.
    """

    def __init__(
        self,
        balance_usd: Usd = "12.34",
        api_key: str = DEFAULT_KEY,
        port: int = 0,
        log: Callable[[str], object] = lambda line: None,
        host: str = "127.0.0.1",
        **settings: Any,
    ) -> None:
        self.log = log
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._opening = {"balance_usd": balance_usd, **settings}
        self._api_key = api_key
        self.reset()
        try:
            self._server = Server(host, port)
        except (OSError, OverflowError) as error:
            code = getattr(error, "errno", errno.EINVAL)
            why = getattr(error, "strerror", "the highest is 65535")
            if code == errno.EADDRINUSE:
                why = "it is in use; leave the port out to get one that is free"
            raise OSError(code, f"cannot listen on {host}, port {port}: {why}") from None
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
                where = urlsplit(self.url)
                socket.create_connection((where.hostname, where.port or 0), 1).close()
            self._thread.join()
        self._server.server_close()
        self._server.hang_up()

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
        host, port = self._server.server_address[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(host), str(host))
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def env(self) -> dict[str, str]:
        """The variables that point clients here: CacheForge's, OpenAI's and Anthropic's."""
        urls = {"CACHEFORGE": self.url, "OPENAI": f"{self.url}/v1", "ANTHROPIC": self.url}
        pairs = (("BASE_URL", urls), ("API_KEY", dict.fromkeys(urls, self.account.api_key)))
        return {f"{name}_{what}": values[name] for name in urls for what, values in pairs}

    def reset(self) -> None:
        """Start again: the account as it was at first, no faults, no requests."""
        self.account = Account(self._api_key)
        self.service = Service(self.account)
        self.service.on_link = self._pay_later
        self.requests: list[Request] = []  # the last 1,000, oldest first
        self._pay_after_s: float | None = None
        self.clear_faults()
        self.apply(**self._opening)

    def apply(self, **settings: Any) -> None:
        """Change the account. Raises ValueError, and then nothing is changed.

        `balance_usd`, `card_saved`, `auto_topup` and `upstream` (as the service takes them),
        `tenant_name`, `tenant_status`, `keys` (the labels of more API keys), `unpaid_links`
        (their amounts), `faults` (as --fault takes them), and `pay_after_s` (each link is paid
        so long after it was created; None: it is not).
        """
        values = {name: read_setting(name, value) for name, value in settings.items()}
        faults = [read_fault(text) for text in values.pop("faults", ())]
        read = [(call, self._read_faults(call, each)) for call, each in faults]
        with self.account.lock:
            if "balance_usd" in values:
                microusd = values.pop("balance_usd") - self.account.balance_microusd
                self.account.credit("balance set", microusd)
            if "keys" in values:
                labels = enumerate(values.pop("keys"), 2)
                self.account.keys[1:] = [listed_key(*numbered) for numbered in labels]
            for number, amount_usd in enumerate(values.pop("unpaid_links", ()), 1):
                link = Link(f"unpaid{number}", amount_usd, "stripe")
                self.account.links[link.token] = link
            self._pay_after_s = values.pop("pay_after_s", self._pay_after_s)
            vars(self.account).update(values)
        for call, each in read:
            self.add_faults(call, *each)

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
        if amount_microusd < 0:
            raise ValueError(f"a charge cannot be negative: {usd}")
        self.account.charge("charged", amount_microusd)

    def pay(self, link: Link | str | None = None) -> bool:
        """Pay a link, its address or its token, or the last link; False if it was paid before."""
        links = self.account.links
        if isinstance(link, Link):
            return self.account.pay(link)
        token = next(reversed(links), "") if link is None else link.rpartition("/pay/")[2]
        if token not in links:
            created = ", ".join(links) or "none"
            raise ValueError(f"there is no payment link {token!r}; created so far: {created}")
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
        """The calls with faults of which none has happened."""
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
        """The service's own response."""
        if request.path.startswith("/pay/"):
            return payment_page(self.account, request)
        scheme, _, here = self.url.partition("://")
        return self.service.respond(request, f"{scheme}://{request.headers.get('Host', here)}")

    @property
    def controls(self) -> dict[str, Callable[[Json], Any]]:
        """The calls under /sandbox/."""
        return {
            "GET /sandbox/requests": self._get_requests,
            "POST /sandbox/faults": self._post_faults,
            "DELETE /sandbox/faults": lambda body: self.clear_faults(),
            "POST /sandbox/account": self._post_account,
            "POST /sandbox/pay": self._post_pay,
            "POST /sandbox/reset": lambda body: self.reset(),
        }

    def control(self, request: Request, local: bool) -> Response:
        """The response to the index page and to the calls under /sandbox/."""
        if request.path == "/favicon.ico":  # browsers ask for it unasked
            return Response(404, "text/plain", [b""])
        if request.call in ("GET /", "HEAD /"):
            return index_page(self, local)
        try:
            if not local:
                self.account.check_key(secret_of(request))
            if request.call not in self.controls:
                calls = ", ".join(["GET /", *self.controls])
                raise Refused(404, f"{request.call} is none of {calls}", "not_found")
            value = self.controls[request.call](read_body(request))
            return Response.json(value or {"ok": True})
        except Refused as refused:
            return Response.refusal(request, refused)
        except (TypeError, ValueError) as error:
            return Response.refusal(request, Refused(400, str(error), "control"))

    def _get_requests(self, body: Json) -> Json:
        return {"requests": [request.as_json() for request in list(self.requests)]}

    def _post_faults(self, body: Json) -> None:
        call, faults = body.get("call"), body.get("faults")
        if set(body) != {"call", "faults"} or not isinstance(call, str):
            raise ValueError('the body must be {"call": "METHOD /path", "faults": [...]}')
        self.add_faults(call, *(faults if isinstance(faults, list) else [faults]))

    def _post_account(self, body: Json) -> Json:
        self.apply(**body)
        return self.account.settings()

    def _post_pay(self, body: Json) -> Json:
        token = body.get("token")
        if set(body) - {"token"} or not isinstance(token, (str, type(None))):
            raise ValueError('the body must be {"token": "..."}, or empty for the last link')
        return {"paid": self.pay(token)}

    def _pay_later(self, link: Link) -> None:
        account = self.account

        def pay() -> None:
            account.pay(link)
            self.log(f"paid ${link.amount_usd}")

        if self._pay_after_s is not None:
            timer = threading.Timer(self._pay_after_s, pay)
            timer.daemon = True
            timer.start()


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

An account has any of: {", ".join(list(SETTINGS)[:7])},
{", ".join(list(SETTINGS)[7:])}.
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
        description="A fake CacheForge service for tests: no money moves.\n"
        "COMMAND and what follows goes to ops.py.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--exec", action="store_true", help="run CMD, any program")
    add("--serve", action="store_true", help="serve until Ctrl-C")
    add("--port", type=int, default=0, help="for --serve (default: any that is free)")
    add("--host", help="0.0.0.0 serves everybody (default 127.0.0.1: only this machine)")
    add("--balance", metavar="USD", help="the balance (default 12.34)")
    add("--key", default=DEFAULT_KEY, help=f"the API key (default {DEFAULT_KEY})")
    add("--pay-after", type=float, metavar="SECONDS", help="pay each link after that long")
    words = "the account: a JSON file, or JSON itself: '{\"card_saved\": true}'"
    add("--account", metavar="FILE.json", default="{}", help=words)
    words = "let the next such call fail; repeatable"
    add("--fault", metavar="CALL=WHAT", action="append", default=[], help=words)
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


def read_options(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The options, with `command` as what is to be run. Ends the program if they are wrong."""
    options = parser.parse_args(argv)
    if options.command[:1] == ["--"]:
        del options.command[0]
    command = options.command
    if options.serve and (options.exec or command):
        parser.error("--serve runs no command")
    if not options.serve and not command:
        parser.error("nothing to do: give an ops.py command, --exec CMD, or --serve (see --help)")
    if not options.serve and (options.port or options.host):
        parser.error("--port and --host need --serve")
    if not options.serve and not options.exec:
        if not OPS.exists():
            parser.error(f"{command[0]!r} needs ops.py, which is not at {OPS}; --serve and --exec"
                " CMD work without it")  # fmt: skip
        options.command = [sys.executable, str(OPS), *command]
    return options


def say(line: str) -> None:
    """Print a line on stderr, if somebody reads it."""
    try:
        if sys.stderr:
            print(line, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = None  # so that Python does not try again when it ends, and exits with 120


def name_unused_faults(box: Sandbox) -> None:
    """Say which faults have not happened, since that may be a mistake in a test."""
    for call in box.unused_faults:
        say(f"sandbox: a fault was not used, because nobody called {call}")


def serve(box: Sandbox, open_to: str) -> int:
    """Print how to reach the sandbox, then serve until a signal comes."""
    try:
        for name in ("SIGINT", "SIGTERM"):  # a shell lets what is in the background ignore SIGINT
            signal.signal(getattr(signal, name), signal.default_int_handler)
        say(f"# serving {open_to}; Ctrl-C stops")
        for variable, value in box.env.items():
            print(f"export {variable}={value}", flush=True)
        box.start()  # only now, so that a response means that all is printed
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return 0
    finally:
        box.close()
        name_unused_faults(box)


def run_inside(box: Sandbox, command: Sequence[str]) -> int:
    """Run a command with the variables set; returns its exit code."""
    try:
        child = subprocess.Popen(list(command), env={**os.environ, **box.env})
    except OSError as error:
        say(f"sandbox: cannot run {command[0]}: {error.strerror}")
        return 127 if isinstance(error, FileNotFoundError) else 126
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        try:
            code = child.wait()
        except KeyboardInterrupt:  # the terminal sends it to the command, too, which decides
            continue
        name_unused_faults(box)
        if str(OPS) in command[:2]:  # its output may name links and commands that work no more
            say("sandbox: stopped; its links and keys are gone (--serve keeps a sandbox running)")
        return 128 - code if code < 0 else code


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser()
    options = read_options(parser, sys.argv[1:] if argv is None else argv)
    host = options.host or "127.0.0.1"

    def log(line: str) -> None:
        if options.verbose:
            say(f"{time.strftime('%H:%M:%S')} {line}")

    try:
        settings = read_account(options)
        box = Sandbox(api_key=options.key, port=options.port, log=log, host=host, **settings)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        say(f"sandbox: {error.strerror}")
        return 2
    if options.serve:
        local = host in ("127.0.0.1", "::1", "localhost")
        return serve(box, "this machine" if local else f"whoever can reach {host}")
    with box:
        return run_inside(box, options.command)


if __name__ == "__main__":
    sys.exit(main())
