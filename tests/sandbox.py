#!/usr/bin/env python3
"""A small, honest CacheForge on loopback: accounts, payment pages and the gateway.

    python3 tests/sandbox.py balance                   run ops.py against a fresh sandbox
    python3 tests/sandbox.py --balance 0 topup --amount 25
    python3 tests/sandbox.py --serve --port 8402       serve until Ctrl-C
    python3 tests/sandbox.py --exec CMD ARG...         run any command inside

Standard library only. Money is fake, the wire is not: the same paths, fields and
units as the service, and as strict. Tests use it as a library, with `Sandbox`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import html
import json
import os
import re
import secrets
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, NamedTuple
from urllib.parse import urlsplit

OPS = Path(__file__).resolve().parent.parent / "skills" / "cacheforge-ops" / "ops.py"
DEFAULT_KEY = "cf_sandbox_0123456789abcdef"
MICROUSD_PER_USD = 1_000_000
MICROUSD_PER_CENT = 10_000
SMALLEST_TOPUP_USD = 10
MAX_REQUEST_BYTES = 1_000_000
KINDS = ("openrouter", "anthropic", "custom")
BORN_AT = "2026-01-02T03:04:05Z"


METHODS = ("GET", "POST", "PATCH")
KEY_LISTS = ("plain", "masked", "bare", "unmarked")


class Problem(Exception):
    """A request that the service refuses."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


class Seen(NamedTuple):
    """One request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def call(self) -> str:
        """`METHOD /path`, the name under which replies are scripted."""
        return f"{self.method} {self.path}"

    @property
    def json(self) -> Any:
        """The body as JSON; None where it is empty."""
        return json.loads(self.body) if self.body else None


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
        """A fault by its name, its status, or its body. Raises ValueError."""
        if what.startswith("done+"):
            return dataclasses.replace(cls.of(what[len("done+") :]), after=True)
        if what in FAULTS:
            return FAULTS[what]
        match = re.fullmatch(r"([2-9][0-9]{2})(:(.*))?", what, re.DOTALL)
        if match and not match[2]:
            status = int(match[1])
            words = HTTPStatus(status).phrase if status in list(HTTPStatus) else "Scripted"
            error = {"message": words, "code": words.lower().replace(" ", "_")}
            return cls.reply(status, {"error": error} if status >= 400 else {})
        if not match and what[:1] not in ("{", "["):
            raise ValueError(
                f"{what!r} is neither a status (503), STATUS:BODY, a JSON body,"
                f" nor one of {', '.join(FAULTS)}"
            )
        status, body = (int(match[1]), match[3]) if match else (200, what)
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
    auto_topup: dict[str, Any] = field(default_factory=lambda: {"enabled": False})
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

    def check_key(self, header: str) -> None:
        """Let a valid bearer key pass. Raises Problem 401."""
        for key in self.keys:
            if header == f"Bearer {key.secret}" and key.revoked_at is None:
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

    def charge_call(self) -> None:
        """Take the price of one gateway call; refill by the rule. Raises Problem 402."""
        if self.balance_microusd <= 0:
            raise Problem(402, "Payment Required: credit is used up", "insufficient_credit")
        self.credit("call", -self.cost_microusd)
        rule = self.auto_topup
        if rule["enabled"]:
            threshold_microusd = rule["thresholdCents"] * MICROUSD_PER_CENT
            if self.balance_microusd < threshold_microusd:
                self.credit("auto top-up", rule["amountCents"] * MICROUSD_PER_CENT)


def now() -> str:
    """The time as the service writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_count(value: object, least: int) -> bool:
    """Whether `value` is a JSON integer of at least `least`; `true` is none."""
    return type(value) is int and value >= least


class Service:
    """The account endpoints and the gateway, a method each: body in, JSON out."""

    def __init__(self, books: Books, make_url: Callable[[str], str]) -> None:
        self.books = books
        self._make_url = make_url
        self.on_link: Callable[[Link], object] = lambda link: None
        self.routes: dict[str, Callable[[Any], object]] = {
            "GET /v1/account/billing": self.billing,
            "POST /v1/account/billing/topup": self.topup,
            "PATCH /v1/account/billing/auto-topup": self.set_auto_topup,
            "GET /v1/account/info": self.info,
            "GET /v1/account/upstream": self.upstream,
            "POST /v1/account/upstream": self.set_upstream,
            "GET /v1/account/keys": self.keys,
            "POST /v1/account/keys": self.create_key,
            "POST /v1/chat/completions": self.chat,
        }

    def find(self, call: str) -> Callable[[Any], object] | None:
        """What answers `METHOD /path`, if anything does."""
        revoke = re.fullmatch(r"POST /v1/account/keys/([^/]+)/revoke", call)
        if revoke:
            return lambda body: self.revoke_key(revoke[1])
        return self.routes.get(call)

    def answer(self, method: str, path: str, body: Any) -> object:
        """Answer one authorized call. Raises Problem."""
        handler = self.find(f"{method} {path}")
        if handler:
            return handler(body)
        if any(self.find(f"{other} {path}") for other in METHODS):
            raise Problem(405, "Method not allowed", "method")
        raise Problem(404, "Not found", "not_found")

    def billing(self, body: Any) -> object:
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

    def topup(self, body: Any) -> object:
        amount, method = body.get("amountUsd"), body.get("method")
        if not is_count(amount, SMALLEST_TOPUP_USD):
            raise Problem(400, f"amountUsd must be at least {SMALLEST_TOPUP_USD}", "amount")
        if method not in ("stripe", "crypto"):
            raise Problem(400, "method must be stripe or crypto", "method")
        link = Link(secrets.token_hex(8), amount, method)
        self.books.links[link.token] = link
        self.on_link(link)
        return {"paymentUrl": self._make_url(f"/pay/{link.token}")}

    def set_auto_topup(self, body: Any) -> object:
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
        return {"ok": True}

    def info(self, body: Any) -> object:
        return {
            "tenant": {
                "id": "tn_sandbox",
                "name": self.books.tenant_name,
                "status": self.books.tenant_status,
                "upstreamConfigured": bool(self.books.upstream),
                "activeKeys": sum(key.revoked_at is None for key in self.books.keys),
            }
        }

    def upstream(self, body: Any) -> object:
        shown = {name: v for name, v in self.books.upstream.items() if name != "apiKey"}
        return {"configured": bool(shown), "upstream": shown or None}

    def set_upstream(self, body: Any) -> object:
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

    def keys(self, body: Any) -> object:
        return {"keys": [self._listed(key) for key in self.books.keys]}

    def _listed(self, key: Key) -> dict[str, str | None]:
        """A key as lists show it."""
        shown = {
            "id": key.id,
            "prefix": key.prefix,
            "label": key.label,
            "createdAt": key.created_at,
            "lastUsedAt": key.last_used_at,
            "revokedAt": key.revoked_at,
        }
        if self.books.shows_keys == "masked":
            shown["prefix"] = f"{key.secret[:7]}\u2026"
        elif self.books.shows_keys == "bare":
            del shown["prefix"]
        elif self.books.shows_keys == "unmarked":
            del shown["revokedAt"]
        return shown

    def create_key(self, body: Any) -> object:
        number = len(self.books.keys) + 1
        key = Key(f"key_{number}", f"cf_{secrets.token_hex(16)}", None, now())
        self.books.keys.append(key)
        return {"id": key.id, "apiKey": key.secret, "prefix": key.prefix}

    def revoke_key(self, key_id: str) -> object:
        key = next((key for key in self.books.keys if key.id == key_id), None)
        if key is None:
            raise Problem(404, "No such key", "not_found")
        key.revoked_at = key.revoked_at or now()
        return {"ok": True}

    def chat(self, body: Any) -> object:
        self.books.charge_call()
        return {
            "object": "chat.completion",
            "model": body.get("model", "sandbox"),
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hello from the sandbox."},
                    "finish_reason": "stop",
                }
            ],
        }


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} - CacheForge sandbox</title>
<style>
 :root {{ color-scheme: light dark; --ink: #1c2330; --soft: #667085; --card: #fff;
   --page: #f2f4f7; --line: #e4e7ec; --go: #17803d; }}
 @media (prefers-color-scheme: dark) {{ :root {{ --ink: #eef1f6; --soft: #98a2b3;
   --card: #1b212c; --page: #10141b; --line: #2d3645; --go: #2ea35a; }} }}
 * {{ box-sizing: border-box }}
 body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1rem;
   background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif }}
 main {{ width: 100%; max-width: 24rem; background: var(--card); border-radius: 1rem;
   border: 1px solid var(--line); padding: 2rem; text-align: center }}
 h1 {{ font-size: 1rem; font-weight: 600; margin: 0; color: var(--soft) }}
 .amount {{ font-size: 3rem; font-weight: 700; line-height: 1.2; margin: .5rem 0 }}
 .soft {{ color: var(--soft); margin: 0 0 1.5rem }}
 button {{ width: 100%; padding: .9rem; border: 0; border-radius: .6rem; cursor: pointer;
   background: var(--go); color: #fff; font: inherit; font-weight: 600 }}
 button:focus-visible {{ outline: 3px solid var(--ink); outline-offset: 2px }}
 .paid {{ color: var(--go); font-weight: 600; margin: 0 }}
 footer {{ margin-top: 1.5rem; font-size: .85rem; color: var(--soft) }}
</style></head><body><main>
<h1>CacheForge credit</h1>
{content}
<footer>A sandbox: no money moves.</footer>
</main></body></html>
"""


def payment_page(link: Link) -> str:
    """What the payer sees: the amount, the method, and a button until it is paid."""
    means = {"stripe": "by card", "crypto": "in crypto"}[link.method]
    amount = f"${link.amount_usd:,}.00"
    if link.paid:
        action = '<p class="paid" role="status">Paid. You can close this page.</p>'
    else:
        action = f'<form method="post"><button>Pay {amount}</button></form>'
    content = f'<p class="amount">{amount}</p><p class="soft">{html.escape(means)}</p>{action}'
    return PAGE.format(title="Paid" if link.paid else f"Pay {amount}", content=content)


class Handler(BaseHTTPRequestHandler):
    """HTTP in front of the service: one request at a time, recorded, then answered."""

    protocol_version = "HTTP/1.1"
    server: Server
    timeout = 60
    disable_nagle_algorithm = True  # headers and body are two writes: no 40 ms between

    def do_any(self) -> None:
        box = self.server.sandbox
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > MAX_REQUEST_BYTES:
            self.close_connection = True
            self._json(413, {"error": {"message": "Body too large", "code": "too_large"}})
            return
        body = self.rfile.read(int(length))
        path = urlsplit(self.path).path
        seen = Seen(self.command, path, dict(self.headers.items()), body)
        box.record(seen)
        fault = box.next_fault(seen.call)
        if fault and not fault.after:
            self._misbehave(fault)
            return
        if path.startswith("/pay/"):
            self._payment(path)
            return
        status, value = self._account(seen)
        if fault:
            self._misbehave(fault)
        else:
            self._json(status, value)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = do_any

    def _account(self, seen: Seen) -> tuple[int, object]:
        """Status and JSON for a call of the API."""
        books = self.server.sandbox.books
        with books.lock:
            try:
                books.check_key(seen.headers.get("Authorization", ""))
                try:
                    body = seen.json if seen.body else {}
                except ValueError:
                    raise Problem(400, "The body is not JSON", "json") from None
                if not isinstance(body, dict):
                    raise Problem(400, "The body is not a JSON object", "json")
                return 200, self.server.sandbox.service.answer(seen.method, seen.path, body)
            except Problem as problem:
                error = {"message": problem.message, "code": problem.code}
                return problem.status, {"error": error}

    def _payment(self, path: str) -> None:
        books = self.server.sandbox.books
        link = books.links.get(path[len("/pay/") :])
        if link is None:
            self._send(404, "text/html; charset=utf-8", b"<h1>No such payment link</h1>")
            return
        if self.command == "POST":
            books.pay(link)
        self._send(200, "text/html; charset=utf-8", payment_page(link).encode())

    def _json(self, status: int, value: object) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Request-Id", f"req_{secrets.token_hex(6)}")
        self.end_headers()
        self.wfile.write(content)
        self.server.sandbox.log(f"{self.command} {urlsplit(self.path).path} {status}")

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
        self.server.sandbox.log(f"{self.command} {urlsplit(self.path).path} (scripted)")

    def log_message(self, format: str, *args: Any) -> None:
        """Silence http.server's own log: the sandbox writes a line per request."""


class Server(ThreadingHTTPServer):
    """A thread per connection, none of which keeps the process alive."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    sandbox: Sandbox
    tls: ssl.SSLContext | None = None

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
    """A running sandbox: a context manager with the books, and a record of requests.

    `pay_after_s` has somebody pay each link that long after it was made.
    """

    def __init__(
        self,
        balance_usd: str = "12.34",
        api_key: str = DEFAULT_KEY,
        pay_after_s: float | None = None,
        port: int = 0,
        log: Callable[[str], None] = lambda line: None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.books = Books(api_key=api_key)
        self.books.credit("opening balance", read_microusd(balance_usd))
        self.service = Service(self.books, lambda path: self.url + path)
        self.log = log
        self.requests: list[Seen] = []
        self.closing = threading.Event()
        self._arrival = threading.Condition()
        self._faults: dict[str, list[Fault]] = {}
        self._server = Server(("127.0.0.1", port), Handler)
        self._server.sandbox = self
        self._server.tls = tls
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.002,))
        self._thread.daemon = True
        if pay_after_s is not None:
            self.service.on_link = lambda link: self._pay_later(link, pay_after_s)

    def __enter__(self) -> Sandbox:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The base URL."""
        scheme = "https" if self._server.tls else "http"
        return f"{scheme}://127.0.0.1:{self._server.server_address[1]}"

    @property
    def env(self) -> dict[str, str]:
        """The two variables that point a client here."""
        return {"CACHEFORGE_BASE_URL": self.url, "CACHEFORGE_API_KEY": self.books.api_key}

    def script(self, call: str, *faults: Fault) -> None:
        """Answer the next calls of `METHOD /path` with these, in order, then honestly."""
        self._faults.setdefault(call, []).extend(faults)

    def script_nothing(self) -> None:
        """Forget what was scripted."""
        self._faults.clear()

    def next_fault(self, call: str) -> Fault | None:
        """The scripted answer that is due, if any."""
        queue = self._faults.get(call)
        return queue.pop(0) if queue else None

    def record(self, seen: Seen) -> None:
        """Remember a request."""
        with self._arrival:
            self.requests.append(seen)
            self._arrival.notify_all()

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
        return [seen for seen in self.requests if seen.method != "GET"]

    def _pay_later(self, link: Link, delay_s: float) -> None:
        def pay() -> None:
            self.books.pay(link)
            self.log(f"somebody paid ${link.amount_usd}")

        timer = threading.Timer(delay_s, pay)
        timer.daemon = True
        timer.start()


def read_microusd(text: str) -> int:
    """Dollars with up to six decimals, perhaps negative, as microdollars."""
    match = re.fullmatch(r"(-?)([0-9]{1,9})(?:\.([0-9]{1,6}))?", text)
    if not match:
        raise argparse.ArgumentTypeError("must be dollars, such as 0, 12.34 or -1.50")
    microusd = int(match[2]) * MICROUSD_PER_USD + int((match[3] or "").ljust(6, "0"))
    return -microusd if match[1] else microusd


def read_count(text: str) -> int:
    """A number of keys."""
    if not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII):
        raise argparse.ArgumentTypeError("must be a number, such as 3")
    return int(text)


def read_rule(text: str) -> dict[str, Any]:
    """`THRESHOLD_CENTS:AMOUNT_CENTS` as a rule that is on."""
    match = re.fullmatch(r"([0-9]{1,9}):([1-9][0-9]{0,8})", text, re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError("must be THRESHOLD_CENTS:AMOUNT_CENTS, such as 200:1000")
    return {"enabled": True, "thresholdCents": int(match[1]), "amountCents": int(match[2])}


def read_upstream(text: str) -> dict[str, str]:
    """`KIND` or `KIND=URL` as a provider."""
    kind, _, url = text.partition("=")
    if kind not in KINDS or (kind == "custom" and not url):
        raise argparse.ArgumentTypeError("must be openrouter, anthropic or custom=URL")
    return {"kind": kind, **({"baseUrl": url} if url else {})}


def read_fault(text: str) -> tuple[str, list[Fault]]:
    """`CALL=WHAT` or `CALL=N*WHAT`, as what `Sandbox.script` takes."""
    call, _, what = text.partition("=")
    times = re.match(r"([1-9][0-9]{0,3})\*", what)
    service = Service(Books(), str)
    if not service.find(call):
        raise argparse.ArgumentTypeError(
            f"{call!r} is no call of this service; write CALL=WHAT, such as"
            " 'GET /v1/account/billing=503', with one of:"
            f" {', '.join(service.routes)}, POST /v1/account/keys/ID/revoke"
        )
    try:
        fault = Fault.of(what[times.end() :] if times else what)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return call, [fault] * (int(times[1]) if times else 1)


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """Our own options, up to the first word that is not one; the rest is the command."""
    parser = argparse.ArgumentParser(
        prog="sandbox.py",
        usage="sandbox.py [options] COMMAND [ARG...] | --exec CMD [ARG...] | --serve",
        description="Run a CacheForge account on this machine, with fake money.",
        epilog="COMMAND and what follows goes to ops.py: sandbox.py --balance 0 topup",
        allow_abbrev=False,
    )
    parser.add_argument("--balance", default="12.34", metavar="USD", help="opening balance")
    parser.add_argument("--key", default=DEFAULT_KEY, help="the API key that is valid")
    parser.add_argument("--card", action="store_true", help="a card is saved")
    parser.add_argument(
        "--rule",
        type=read_rule,
        metavar="THRESHOLD_CENTS:AMOUNT_CENTS",
        help="auto top-up is on",
    )
    parser.add_argument(
        "--upstream", type=read_upstream, metavar="KIND[=URL]", help="the provider that is set"
    )
    parser.add_argument("--keys", type=read_count, default=0, metavar="N", help="N more API keys")
    parser.add_argument("--tenant", default="Sandbox Inc.", metavar="NAME", help="its name")
    parser.add_argument("--status", default="active", metavar="WORD", help="the tenant's status")
    parser.add_argument(
        "--show-keys",
        choices=KEY_LISTS,
        default="plain",
        help="list keys with their prefix, a masked one, none, or without revokedAt",
    )
    parser.add_argument(
        "--fault",
        type=read_fault,
        action="append",
        default=[],
        metavar="CALL=WHAT",
        help="answer the next such call so: a status (503), STATUS:BODY, a JSON body,"
        f" {', '.join(FAULTS)}; done+WHAT carries it out first, N*WHAT stands for N times",
    )
    parser.add_argument(
        "--pay-after",
        type=float,
        metavar="SECONDS",
        help="somebody pays each link this long after it was made",
    )
    parser.add_argument("--serve", action="store_true", help="serve until Ctrl-C")
    parser.add_argument("--port", type=int, default=0, help="with --serve (default: any free)")
    parser.add_argument("--exec", action="store_true", help="run CMD with both variables set")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    try:
        read_microusd(options.balance)
    except argparse.ArgumentTypeError as error:
        parser.error(f"--balance {error}")
    if bool(options.command) == options.serve:
        parser.error("give a command for ops.py, or --exec CMD, or --serve")
    if options.exec and options.serve:
        parser.error("--exec and --serve exclude each other")
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


def serve(box: Sandbox, stop: threading.Event) -> int:
    """Print how to reach the sandbox, and serve until told to stop."""
    for name, value in box.env.items():
        print(f"export {name}={value}", flush=True)
    print("# serving; Ctrl-C stops", file=sys.stderr, flush=True)
    while not stop.wait(3600):
        pass
    return 0


def run_inside(box: Sandbox, command: Sequence[str]) -> int:
    """Run a command with both variables set; its exit code."""
    try:
        child = subprocess.Popen(list(command), env={**os.environ, **box.env})
    except OSError as error:
        print(f"sandbox: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    while True:
        try:
            code = child.wait()
        except KeyboardInterrupt:  # the terminal sent it to the command as well: it decides
            continue
        return 128 - code if code < 0 else code


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = read_options(sys.argv[1:] if argv is None else argv)
    stop = threading.Event()
    if options.serve:
        for name in ("SIGINT", "SIGTERM"):
            signal.signal(getattr(signal, name), lambda *_: stop.set())

    def log(line: str) -> None:
        if options.serve:
            print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    try:
        box = Sandbox(options.balance, options.key, options.pay_after, options.port, log)
    except (OSError, OverflowError) as error:
        print(f"sandbox: cannot listen on port {options.port}: {error}", file=sys.stderr)
        return 2
    furnish(box, options)
    with box:
        if options.serve:
            return serve(box, stop)
        prefix = [] if options.exec else [sys.executable, str(OPS)]
        return run_inside(box, [*prefix, *options.command])


if __name__ == "__main__":
    sys.exit(main())
