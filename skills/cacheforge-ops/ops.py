#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = []
# ///
"""Manage a CacheForge account: balance, top-ups, auto top-up, provider, API keys.

One file, standard library only. Read it from top to bottom: a section uses only the sections
above it. The one exception is the Console: the last section defines it, and passes it in.

    argv -> arguments -> read, write, read back -> a record -> a report -> text or JSON -> stdout

    Errors     the table of exit codes, and the failure that ends a command
    Money      amounts in and out: whole numbers with the unit in the name
    Settings   the environment, URLs, and the check that every key has to pass
    Text       untrusted text made safe to print; fields of JSON
    HTTP       one request and its response, what a status means, when to retry
    Account    one method for each endpoint: JSON in, a record out
    Reports    what a command prints, as text or JSON
    Commands   one function for each thing that the command line can ask for
    Parser     the command line
    main       the process: standard streams, files, signals, the environment, the exit code

A record is a plain dict with our own field names; most reports print it as it is. The API key is
sent only to the configured service. A write is never sent twice.
"""

from __future__ import annotations

import gc

gc.set_threshold(200_000)  # a collection during the imports would cost 2 ms of each start

import errno
import os
import re
import sys
import time
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter

TYPE_CHECKING = False  # importing `typing` takes 3 ms, and only type checkers need it
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from http.client import HTTPResponse
    from typing import Any, NoReturn, TextIO, TypeVar
    from urllib.parse import SplitResult
    from urllib.request import OpenerDirector, Request

    T = TypeVar("T")
    Json = dict[str, Any]
    Call = tuple[str, str, Json]  # method, path, and the body of a write

__version__ = "2.0.0"

if sys.version_info < (3, 9):  # noqa: UP036
    sys.stderr.write("cacheforge-ops needs Python 3.9 or later\n")
    sys.exit(2)


# ── Errors: the table of exit codes, and the failure that ends a command

EXIT_CODES = {  # name: exit code, and its meaning as `--help` prints it
    "ok": (0, "done"),
    "failed": (1, "the service refused, sent something unusable, or stored something else"),
    "usage": (2, "wrong command line or setting, or not confirmed: nothing was changed"),
    "unauthorized": (3, "the service refused the API key"),
    "payment_required": (4, "no credit, less than --min, or still unpaid after --wait"),
    "unreachable": (5, "no usable response: repeating is safe"),
    "uncertain": (6, "a key may have been created, but its secret was lost: run `keys`"),
    "interrupted": (130, "Ctrl-C, SIGTERM or SIGHUP: the message says whether to repeat"),
}


class Failure(Exception):
    """Why a command did not do what was asked. `code` is a name in EXIT_CODES, `hint` a sentence,
    `next` a command line for this program, `response` the Exchange that caused it."""

    def __init__(
        self, code: str, message: str, hint: str = "", next: str = "", response: Any = None
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.hint, self.next = code, message, hint, next
        self.exit, self.retryable = EXIT_CODES[code][0], code == "unreachable"
        self.response = response


class Lost(Failure):
    """A write was sent, but no usable response came back: its outcome is unknown."""


# ── Money: amounts in and out, whole numbers with the unit in the name

CENTS_PER_USD = 100
MICROUSD_PER_CENT = 10_000
MICROUSD_PER_USD = 1_000_000


def usd_text(cents: int) -> str:
    """US cents as text in dollars: 1234 is `$12.34`, -5 is `-$0.05`."""
    dollars, rest = divmod(abs(cents), CENTS_PER_USD)
    return f"{'-' if cents < 0 else ''}${dollars:,}.{rest:02}"


def balance_text(microusd: int | None) -> str:
    """Microdollars as text in dollars, rounded down so that a balance is never overstated."""
    return "unknown" if microusd is None else usd_text(microusd // MICROUSD_PER_CENT)


def exact_usd(microusd: int) -> str:
    """Microdollars as an exact decimal number of dollars, with two to six decimals."""
    dollars, rest = divmod(abs(microusd), MICROUSD_PER_USD)
    decimals = f"{rest:06}".rstrip("0").ljust(2, "0")
    return f"{'-' if microusd < 0 else ''}{dollars}.{decimals}"


class Amount:
    """An amount as it is typed, such as `10`, `2.50`, `10usd` or `1000c`."""

    def __init__(self, text: str, unit: str) -> None:
        """`unit` (usd or c) is the unit of a bare number. The parser has checked the text."""
        number, decimals, suffix = re.findall(r"^([0-9]+)\.?([0-9]*)(usd|c|)$", text)[0]
        self.number = int(number)
        self.bare_unit = "" if suffix else unit
        self.cents = self.number
        if (suffix or unit) == "usd":
            self.cents = self.number * CENTS_PER_USD + int(decimals.ljust(2, "0"))


# ── Settings: the environment, URLs, and the check that every key has to pass

DEFAULT_BASE_URL = "https://app.anvil-ai.io"
DEFAULT_MAX_TOPUP_USD = "500"
SMALLEST_TOPUP_CENTS = 1000  # the service's usual minimum
HOST = r"(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
LOOPBACK = r"localhost|::1|127(\.(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}"
KEY_MISTAKES = (  # what is set by mistake in place of a key: its pattern, and what is wrong
    ("", "is missing or empty"),
    ("['\"`].*|.*['\"`]", "begins or ends with a quote"),
    (r"[A-Za-z_]\w*=[^=].*", "has NAME= in front of the key"),
    (r"\$[\w:]+|\$\{.*\}|\$\(.*\)|%\w+%", "holds the name of a variable, not its value"),
    (r".*(\.\.|\*\*).*|.*\*", "holds a shortened or masked key"),
    (".*<.*>.*|null|undefined", "holds a placeholder"),
    (".*[^!-~].*", "holds a character that no key has, such as a space or a non-ASCII letter"),
)


def split_url(text: str) -> SplitResult:
    """The parts of an http or https URL that all programs read the same way. Raises ValueError."""
    from urllib.parse import urlsplit

    try:
        url = urlsplit(text)
        is_host = bool(re.fullmatch(HOST, url.netloc, re.IGNORECASE)) and url.port != 0
    except ValueError:
        raise ValueError("its host or port is not valid") from None
    if not re.fullmatch("[!-~]+", text):
        raise ValueError("it has a space or a non-ASCII character")
    if url.scheme not in ("http", "https"):
        raise ValueError("it does not begin with https://")
    if "@" in url.netloc:
        raise ValueError("it has a user name")
    if not is_host:
        raise ValueError("its host is not valid")
    return url


def check_url(text: str, name: str, allow_http: bool) -> SplitResult:
    """The parts of a service's URL, called `name` in messages. Raises Failure (usage)."""
    hint = "Write it as https://HOST, with :PORT and /PATH if needed."
    try:
        url = split_url(text)
        if "?" in text or "#" in text:
            raise ValueError("it has a query or a fragment")
    except ValueError as error:
        raise Failure("usage", f"{name} is not valid: {error}", hint) from None
    if url.scheme == "http" and not allow_http:
        hint = "Use https, or set CACHEFORGE_ALLOW_INSECURE_HTTP=1 on a network that you trust."
        raise Failure("usage", f"{name} is plain http, which would send a key unencrypted", hint)
    return url


def check_key(key: str, source: str, refused: Mapping[str, str], hint: str = "") -> None:
    """Raises Failure (usage) if the text is not a key, or a key for a service in `refused`."""
    found = [problem for pattern, problem in KEY_MISTAKES if re.fullmatch(pattern, key, re.DOTALL)]
    found += [f"holds a key for {refused[head]}" for head in refused if key.startswith(head)]
    if found:
        raise Failure("usage", f"{source} {found[0]}", hint)


class Settings:
    """What the environment says, checked. Raises Failure (usage), which quotes no value."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = {name: value.strip() for name, value in environ.items()}
        read = self.environ.get
        self.allow_http = read("CACHEFORGE_ALLOW_INSECURE_HTTP") == "1"
        base_url = read("CACHEFORGE_BASE_URL") or DEFAULT_BASE_URL
        # twice, because only the host that was read tells whether it is this machine
        url = check_url(base_url, "CACHEFORGE_BASE_URL", allow_http=True)
        self.is_loopback = bool(re.fullmatch(LOOPBACK, url.hostname or ""))
        check_url(base_url, "CACHEFORGE_BASE_URL", self.allow_http or self.is_loopback)
        self.scheme, self.host, self.hostname = url.scheme, url.netloc.lower(), url.hostname
        path = re.sub("/*(/v1)?/*$", "", url.path)  # people also set a URL that ends in /v1
        self.base_url = f"{self.scheme}://{self.host}{path}"
        limit_usd = read("CACHEFORGE_MAX_TOPUP_USD") or DEFAULT_MAX_TOPUP_USD
        if not re.fullmatch("[0-9]{1,9}", limit_usd):
            raise Failure("usage", "CACHEFORGE_MAX_TOPUP_USD must be a whole number of dollars")
        self.max_topup_cents = int(limit_usd) * CENTS_PER_USD
        self.api_key = read("CACHEFORGE_API_KEY") or ""
        hint = (
            "Set it to your CacheForge key: export CACHEFORGE_API_KEY=cf_..."
            ' (PowerShell: $env:CACHEFORGE_API_KEY = "cf_...")'
        )
        check_key(self.api_key, "CACHEFORGE_API_KEY", {"sk-": "another service"}, hint)
        self.secrets = [self.api_key]  # never shown; a provider's key and a new key join it

    def mask_key(self) -> str:
        """The account's key, masked: enough to tell two keys apart."""
        prefix = next((head for head in ("cf_", "cfk_") if self.api_key.startswith(head)), "")
        last_four = self.api_key[-4:] if len(self.api_key) >= 16 else ""
        return f"{prefix}...{last_four}"

    def topup_command(self, short_microusd: int = 0) -> str | None:
        """The top-up that covers this, at least the usual minimum; None if it is over the limit."""
        short_usd = -(-short_microusd // MICROUSD_PER_USD)  # rounded up
        amount_usd = max(SMALLEST_TOPUP_CENTS // CENTS_PER_USD, short_usd)
        is_allowed = amount_usd * CENTS_PER_USD <= self.max_topup_cents
        return f"topup --amount {amount_usd}" if is_allowed else None


# ── Text: untrusted text made safe to print; fields of JSON

MAX_TEXT_CHARS = 300
REASON_NAMES = "error message detail error_description title errors msg reason"
SECRET_BLOCK_CHARS = 16  # text with so many consecutive characters of a secret is redacted
MIN_SECRET_CHARS = 8  # a shorter secret could be in ordinary words
ESCAPES = r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
INVISIBLE = (  # characters without a shape that str.isprintable() accepts
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def shares_block(text: str, secret: str) -> bool:
    """Whether the text has the secret, or 16 consecutive characters of it."""
    size = min(len(secret), SECRET_BLOCK_CHARS)
    if size < MIN_SECRET_CHARS or size > len(text):
        return False
    return any(text[at : at + size] in secret for at in range(len(text) - size + 1))


def redact(text: str, secrets: Sequence[str]) -> str:
    """The text without the words that hold a secret, or a part of one."""
    for secret in secrets:
        if shares_block(text, secret):
            words = ("<hidden>" if shares_block(word, secret) else word for word in text.split(" "))
            text = " ".join(words)
    return text


def printable(text: str, secrets: Sequence[str]) -> str:
    """Untrusted text, safe to print: one short line, no control characters, no secrets."""
    if len(text) > 10 * MAX_TEXT_CHARS:  # without the last word, which may be half a secret
        text = text[: 10 * MAX_TEXT_CHARS].rpartition(" ")[0]
    if not (text.isascii() and text.isprintable()):
        text = re.sub(r"\s+", " ", re.sub(f"{ESCAPES}|{INVISIBLE}", "", text))
        text = "".join(filter(str.isprintable, text))
    text = redact(text.strip(), secrets)
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 3] + "..."


def parse_json(body: bytes) -> Any:
    """The JSON value of a body, or None if it is not JSON. NaN and endless numbers become None."""
    import json

    try:
        return json.loads(
            body.decode("utf-8", "replace").lstrip("\ufeff"),
            strict=False,
            parse_int=lambda digits: int(digits) if len(digits) <= 20 else None,
            parse_constant=lambda name: None,
        )
    except (ValueError, RecursionError):
        return None


def to_json(value: Json) -> str:
    """Compact ASCII JSON on one line."""
    import json

    return json.dumps(value, separators=(",", ":"))


def get(fields: object, name: str, kind: type[T]) -> T | None:
    """An optional field: None if it is missing or not exactly of this type."""
    value = fields.get(name) if isinstance(fields, dict) else None
    return value if type(value) is kind else None  # isinstance() accepts True as an int


def reason(value: object, depth: int = 0) -> str:
    """What the JSON of an error says, in any of the common shapes; empty if it says nothing."""
    if isinstance(value, dict) and depth < 5:
        # inside, the names may be those of fields, as in {"errors": {"amount": "too small"}}
        names = [*REASON_NAMES.split(), *(value if depth else ())]
        return next(filter(None, (reason(value.get(name), depth + 1) for name in names)), "")
    if isinstance(value, list) and depth < 5:
        return "; ".join(filter(None, (reason(item, depth + 1) for item in value[:3])))
    is_html = isinstance(value, str) and value.lstrip().startswith("<")
    return value if isinstance(value, str) and not is_html else ""


def says_no(value: object) -> bool:
    """Whether the JSON of a 2xx response says that the request was refused."""
    if not isinstance(value, dict):
        return False
    is_false = value.get("ok") is False or value.get("success") is False
    return bool(is_false or value.get("error") or value.get("errors"))


# ── HTTP: one request and its response, what a status means, when to retry

MAX_BODY_BYTES = 4 * 1024 * 1024
CONNECT_TIMEOUT_S = 4.0
GRACE_S = 1.0  # for the response to a write that was sent before a signal
NO_LIMIT_S = float("inf")
READ_ATTEMPTS = 3
USER = r"(?:[a-z0-9._~!$&'()*+,;=-]|%[0-9a-f]{2})+"
PROXY = rf"(?:http://)?(?:{USER}:{USER}@)?({HOST})/?"
URL_HINT = "Check CACHEFORGE_BASE_URL."
KEY_HINT = "Check CACHEFORGE_API_KEY."
SETTING_HINT = "Check {setting}."  # the base URL, or the proxy if that may have failed
TRUST_HINT = (
    "If a private authority signed it, set SSL_CERT_FILE to the PEM file of that authority. With"
    " Python from python.org on macOS, run Install Certificates.command first."
)
RETRIED = r"sent .*|unsent .*|429|50[234]"
# The pattern of an outcome (see Exchange.conclude), and the code, message and hint of the failure.
# The first row that matches applies.
MEANINGS = (
    (".* SSLCert.*", "failed", "the certificate of {host} is not accepted: {said}", TRUST_HINT),
    (".* SSL.*", "unreachable", "the TLS connection to {where} failed", URL_HINT),
    (".* [Tt]imeout.*", "unreachable", "no complete response from {where} in time", SETTING_HINT),
    ("(unsent )?407", "usage", "the proxy requires another user name or password", SETTING_HINT),
    ("unsent .*", "unreachable", "no connection to {where}: {said}", SETTING_HINT),
    ("sent .*(Line|HTTP|Protocol).*", "failed", "{where} does not speak HTTP", URL_HINT),
    ("sent .*", "unreachable", "no complete response from {where}", URL_HINT),
    ("too long", "failed", "the service sent more than 4 MiB", URL_HINT),
    ("2..", "failed", "the service sent no JSON object", URL_HINT),
    ("401", "unauthorized", "the service refused the API key {key}", KEY_HINT),
    ("402", "payment_required", "the service requires payment: the credit is used up", ""),
    ("403", "unauthorized", "the service does not allow this with the API key {key}", KEY_HINT),
    ("429", "unreachable", "the service is limiting the rate of requests", ""),
    ("3..", "failed", "the service sent a redirect, which is not followed", URL_HINT),
    ("408|[15-9]..", "unreachable", "the service failed", ""),
    ("...", "failed", "the service refused the request", ""),
)


class Clock:
    """The time, and whether a signal has come."""

    # All that a first signal sets: an exception could interrupt the printing of a new key.
    stopped_at: float | None = None

    def now(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep in steps that are short enough to notice a signal. Raises KeyboardInterrupt."""
        end = self.now() + seconds
        while self.now() < end:
            self.raise_if_stopped()
            time.sleep(max(0.0, min(0.1, end - self.now())))

    def raise_if_stopped(self, grace_s: float = 0) -> None:
        """Raises KeyboardInterrupt if a signal came at least `grace_s` seconds ago."""
        if self.stopped_at is not None and self.now() >= self.stopped_at + grace_s:
            raise KeyboardInterrupt


def jitter(low: float, high: float) -> float:
    """A random number from low to high, so that many clients do not act at the same moment."""
    return low + (high - low) * int.from_bytes(os.urandom(2), "big") / 65535


def retry_delay_s(attempt: int, asked_s: int | None) -> float:
    """Seconds before the next attempt: 0.5 to 1 after the first, 1 to 2 after the second, but never
    less than Retry-After."""
    return max(jitter(0.5, 1.0) * attempt, asked_s or 0)


def find_proxy(settings: Settings) -> tuple[str, str]:
    """The proxy setting that applies, and the name of its variable; both empty if none applies."""
    from urllib.request import getproxies, proxy_bypass

    proxy = getproxies().get(settings.scheme, "").strip()
    # No proxy for this machine: it could not reach it, and with http it would also see the key.
    if not proxy or settings.is_loopback or proxy_bypass(settings.host):
        return "", ""
    names = (f"{settings.scheme}_proxy", f"{settings.scheme}_proxy".upper())
    source = next(filter(settings.environ.get, names), "the system's proxy setting")
    match = re.fullmatch(PROXY, proxy, re.IGNORECASE)
    try:  # with other forms, urllib may send the password to the wrong host
        split_url(f"http://{match[1] if match else ''}")
    except ValueError:
        form = "http://[USER:PASSWORD@]HOST[:PORT], with %40 for @ in PASSWORD"
        raise Failure("usage", f"{source} is not {form}") from None
    return proxy.rstrip("/"), source  # urllib takes a final slash for a part of the port


def load_certificates(settings: Settings) -> Any:
    """What https connections are verified with. Raises Failure (usage)."""
    problem = (
        "Python cannot load ssl or the system's certificates, or cannot write to SSLKEYLOGFILE"
    )
    try:
        import ssl

        context = ssl.create_default_context()
        problem = "SSL_CERT_FILE does not name a readable file with certificates"
        if settings.environ.get("SSL_CERT_FILE"):  # which is used already, but without an error
            context.load_verify_locations(settings.environ["SSL_CERT_FILE"])
        return context
    except (ImportError, OSError):
        raise Failure("usage", problem) from None


def make_opener(exchange: Exchange) -> OpenerDirector:
    """An opener for http and https only, which follows no redirect and accepts any status."""
    import socket
    from http import client
    from urllib.request import AbstractHTTPHandler, OpenerDirector, ProxyHandler

    is_https = exchange.settings.scheme == "https"
    options = {"context": load_certificates(exchange.settings)} if is_https else {}

    class Response(client.HTTPResponse):
        def begin(self) -> None:
            super().begin()
            while 102 <= self.status < 200:  # an interim response; http.client skips only 100
                self.headers = None  # type: ignore[assignment]  # or begin() returns at once
                super().begin()

    def connect_tcp(address: Any, timeout: float, source: Any) -> socket.socket:
        # This timeout is for each address of the host: a silent one leaves time for the next.
        sock = socket.create_connection(address, min(CONNECT_TIMEOUT_S, timeout / 4), source)
        sock.settimeout(timeout)
        return sock

    class Connection(client.HTTPSConnection if is_https else client.HTTPConnection):  # type: ignore[misc]
        response_class = Response

        def connect(self) -> None:
            self._create_connection = connect_tcp  # private, but the only place before TLS
            super().connect()  # TCP, the tunnel through a proxy, TLS
            exchange.begin_to_send()

    class Handler(AbstractHTTPHandler):  # urllib's own loads certificates for http, too
        http_request = https_request = AbstractHTTPHandler.do_request_

        def http_open(self, request: Request) -> HTTPResponse:
            return self.do_open(Connection, request, **options)

        https_open = http_open

    opener = OpenerDirector()
    opener.add_handler(Handler())
    if exchange.proxy:
        opener.add_handler(ProxyHandler({"http": exchange.proxy, "https": exchange.proxy}))
    return opener


class Exchange:
    """One request and its response."""

    status: int | None = None
    error: Exception | None = TimeoutError()  # unless `work` ends in time
    sent = False  # whether at least a part of the request was sent
    _length: int | None = None  # of the body, as the response says
    _parsed: Any = None  # the JSON of the body, once `work` has found it complete

    def __init__(self, call: Call, settings: Settings, clock: Clock, seconds: float) -> None:
        from threading import Lock
        from urllib.request import Request

        self.method, path, fields = call
        self.settings, self.clock, self.lock = settings, clock, Lock()
        self.headers: Any = {}  # of the response
        self.body = bytearray()
        self._timeout_s = max(0.001, seconds)  # a socket refuses 0 or less
        data = None
        headers = {
            "Authorization": f"Bearer {settings.api_key}",
            "Accept": "application/json",
            "User-Agent": f"cacheforge-ops/{__version__}",
        }
        if self.method != "GET":
            headers["Content-Type"] = "application/json"
            data = to_json(fields).encode("ascii")
        url = settings.base_url + path
        self._request = Request(url, data, headers, method=self.method)  # noqa: S310
        self.proxy, self.proxy_name = find_proxy(settings)
        self._opener = make_opener(self)

    def begin_to_send(self) -> None:
        """Called once the connection is made. Raises OSError if it is too late to send.

        The lock is never released: who takes it first decides whether the request is sent.
        """
        if self.clock.stopped_at is not None or not self.lock.acquire(blocking=False):
            raise OSError

    def work(self) -> None:
        """Carry it out, unless the caller takes the lock before the first byte is sent."""
        try:
            with self._opener.open(self._request, timeout=self._timeout_s) as response:
                self.status, self.headers = response.status, response.headers
                self._read(response)
                self.error = None
        except Exception as error:  # the reason of a URLError is what went wrong
            cause = getattr(error, "reason", None)
            self.error = cause if isinstance(cause, Exception) else error

    def _read(self, response: HTTPResponse) -> None:
        """Read the body. A JSON object that parses is complete, whatever Content-Length says."""
        self._length = response.length
        response.length = None  # or http.client cuts an object that is longer than it says
        open_braces = 0  # parsing after each block would take too long for a list that comes by row
        while len(self.body) <= MAX_BODY_BYTES:
            is_full = self._length is not None and len(self.body) >= self._length
            is_object = re.match(rb"[\s\xef\xbb\xbf]*\{", self.body)
            if is_object and (is_full or open_braces == 0):
                self._parsed = self._parse()
            if self._parsed is not None:
                break
            # an object with open braces is longer than its Content-Length
            is_end = is_full and not (is_object and open_braces > 0)
            block = b"" if is_end else response.read1(65536)
            if not block:
                break
            self.body += block
            open_braces += block.count(b"{") - block.count(b"}")
        if len(self.body) < min(self._length or 0, MAX_BODY_BYTES):
            raise ConnectionError

    def _parse(self) -> Any:
        """The JSON of the body, even if other bytes follow it."""
        value = parse_json(bytes(self.body))
        return parse_json(bytes(self.body[: self._length])) if value is None else value

    def conclude(self, field: str) -> None:
        """Read what came, once, because an abandoned thread may go on. Set `outcome` for MEANINGS:
        a status, or `sent` or `unsent` and the name of an exception. A 403 with Retry-After counts
        as 429; a 403 without JSON, and a 2xx that says no, count as 400. `field` is that of the
        link or key that was asked for, if any."""
        # the body may be complete in spite of an error
        self.value = self._parse() if self._parsed is None else self._parsed
        self.is_ok = 200 <= (self.status or 0) < 300
        secrets, new_key = self.settings.secrets, get(self.value, field, str)
        if new_key and field == "apiKey":  # a secret from now on, which the request id may repeat
            secrets.append(new_key.strip())
        found = self._header("x-request-id", "request-id", "x-correlation-id", "cf-ray")
        self.request_id = printable(found, secrets)[:100] or None
        seconds = self._header("Retry-After")
        self.retry_after_s = int(seconds) if re.fullmatch("[0-9]{1,99}", seconds) else None
        is_cut = self.is_ok and self.value is None and (self.error or not self.body)
        is_firewall = self.status == 403 and not isinstance(self.value, dict)
        self.outcome = str(self.status)
        if self.status is None or is_cut:
            refusal = re.match("Tunnel connection failed: ([0-9]{3})", str(self.error))
            name = refusal[1] if refusal else type(self.error).__name__
            self.outcome = f"{'sent' if self.sent else 'unsent'} {name}"
        elif self.is_ok and len(self.body) > MAX_BODY_BYTES:
            self.outcome = "too long"
        elif self.status == 403 and self._header("Retry-After"):
            self.outcome = "429"
        elif is_firewall or (self.is_ok and says_no(self.value)):
            self.outcome = "400"

    def _header(self, *names: str) -> str:
        """The first of these headers that the response has; empty if it has none."""
        return next(filter(None, map(self.headers.get, names)), "").strip()

    def summary(self) -> str:
        """The status and what the service says: in JSON or plain text, not HTML or broken JSON."""
        kind = self._header("Content-Type")
        text = self.body.decode("utf-8", "replace").strip("\ufeff \t\r\n")
        if self.is_ok and not isinstance(self.value, dict):
            text = kind
        elif self.value is not None:
            text = reason(self.value)
        elif "html" in kind.lower() or text[:1] in ("<", "{", "["):
            text = ""
        text = printable(text, self.settings.secrets)
        return f"(HTTP {self.status}{': ' if text else ''}{text})"

    def failure(self) -> Failure:
        """What to report for a response that is not what was asked for, or for none."""
        settings, next_step = self.settings, ""
        where, setting = settings.host, "CACHEFORGE_BASE_URL"
        if self.proxy:
            where += " through the proxy " + re.split("[/@]", self.proxy)[-1]
            setting = setting if self.sent and self.status != 407 else self.proxy_name
        # the text of other exceptions is not shown, because it may quote a secret
        said = getattr(self.error, "verify_message", "") or getattr(self.error, "strerror", "")
        if re.fullmatch("unsent [0-9]+", self.outcome):
            said = f"the proxy refused it (HTTP {self.outcome[-3:]})"
        code, words, hint = next(row[1:] for row in MEANINGS if re.fullmatch(row[0], self.outcome))
        is_wrong_path = self.status in (404, 405) and self.method == "GET"
        if code == "failed" and (is_wrong_path or not isinstance(self.value, dict)):
            hint = hint or URL_HINT
        elif code == "payment_required" and self.method == "GET":
            next_step = settings.topup_command() or ""
        elif code == "unreachable" and self.retry_after_s:
            hint = f"Wait {self.retry_after_s} s before you repeat it."
        key = f"{settings.mask_key()} at {settings.host}"
        said = printable(said or "it failed", settings.secrets)
        words = words.format(host=settings.host, where=where, key=key, said=said)
        if self.outcome.isdigit():
            words += f" {self.summary()}"
        return Failure(code, words, hint.format(setting=setting), next_step, self)


class Http:
    """Requests to one service with one key, within `timeout_s` seconds in total."""

    last: Exchange

    def __init__(self, settings: Settings, console: Console, timeout_s: float) -> None:
        self.settings, self.console, self.clock = settings, console, console.clock
        self.timeout_s = self.left_s = timeout_s

    def read(self, path: str, limit_s: float = NO_LIMIT_S, attempts: int = READ_ATTEMPTS) -> Json:
        """The JSON object that a GET returns, tried again if that can help. Raises Failure."""
        kept_s = max(0.0, self.left_s - limit_s)  # for the requests after this one
        for attempt in range(1, attempts + 1):
            exchange = self._exchange(("GET", path, {}), self.left_s - kept_s)
            if exchange.is_ok and isinstance(exchange.value, dict):
                return exchange.value
            failure = exchange.failure()
            delay_s = retry_delay_s(attempt, exchange.retry_after_s)
            is_last = attempt == attempts or self.left_s - delay_s <= kept_s
            if is_last or not (failure.retryable and re.fullmatch(RETRIED, exchange.outcome)):
                break
            self.sleep(delay_s)
        raise failure

    def write(self, write: Call, if_lost: Failure, field: str = "") -> Any:
        """Send a write once; returns the JSON of a 2xx response, None if that is not JSON.

        `if_lost` is the failure to report if the outcome stays unknown. `field` is the link or key
        without which the response is useless. Raises Lost if the outcome is unknown, and Failure
        if the service refused the request or nothing was sent.
        """
        kept_s = min(5.0, self.timeout_s / 4)  # for reading back what was stored
        exchange = self._exchange(write, self.left_s - kept_s, if_lost, field)
        value, found = exchange.value, get(exchange.value, field, str) or ""
        # 303 means that the request was carried out, 408 that its outcome is unknown
        is_refused = re.fullmatch("[34]..", exchange.outcome) and exchange.status not in (303, 408)
        is_usable = not is_refused and (isinstance(value, dict) or not field)
        if exchange.is_ok and (is_usable or found.strip()):
            return value
        failure = exchange.failure()
        if is_refused or not exchange.sent:
            raise failure
        message = f"the request was sent, but its outcome is unknown: {failure.message}"
        message += f"; {if_lost.message}"
        raise Lost(if_lost.code, message, failure.hint, if_lost.next, exchange)

    def sleep(self, seconds: float) -> None:
        """Sleep, as a part of the time that this command has."""
        self.clock.sleep(seconds)
        self.left_s -= seconds

    def _exchange(
        self, call: Call, seconds: float, if_lost: Failure | None = None, field: str = ""
    ) -> Exchange:
        """One request and its response, in a thread that can be abandoned.

        A socket's timeout limits each `recv`, but neither the whole response nor the name lookup;
        waiting for a thread with a timeout limits everything. Both compete for one lock: the thread
        takes it before it sends the first byte, this function when it gives up. So the lock tells
        whether the request was sent; from then on, a signal or a fault is reported as `if_lost`.
        """
        from threading import Thread

        clock = self.clock
        clock.raise_if_stopped()
        self.last = exchange = Exchange(call, self.settings, clock, seconds)
        thread, began = Thread(target=exchange.work, daemon=True), clock.now()
        end = began + seconds
        try:
            try:
                thread.start()
            except RuntimeError:  # the system starts no more threads
                exchange.work()
            while thread.is_alive() and clock.now() < end:
                is_sent_write = if_lost and exchange.lock.locked()
                clock.raise_if_stopped(GRACE_S if is_sent_write else 0)
                thread.join(max(0.0, min(0.1, end - clock.now())))
        finally:
            exchange.sent = not exchange.lock.acquire(blocking=False)
            took_s = clock.now() - began
            self.left_s -= took_s
            if exchange.sent and if_lost:
                self.console.if_stopped = if_lost
        exchange.conclude(field)
        if self.console.verbose:
            status, request_id = exchange.status or "no response", exchange.request_id or "-"
            line = f"{call[0]} {call[1]}: {status}, {took_s * 1000:.0f} ms, id {request_id}"
            self.console.note(line)
        return exchange


# ── Account: one method for each endpoint, JSON in, a record out

BILLING = "/v1/account/billing"
UPSTREAM = "/v1/account/upstream"
KEYS = "/v1/account/keys"
POSSIBLE_MATCH_CHARS = 4  # a prefix that shares fewer with our key says nothing
CERTAIN_MATCH_CHARS = 8  # a single match of so many is our key
LINK_LOST = "a payment link may have been created, but it was not shown; repeating is safe"
KEY_LOST = "a key may have been created, but its secret was lost"


class Account:
    """The account behind one key. Each method raises what `Http.read` or `Http.write` raises."""

    def __init__(self, http: Http) -> None:
        self.http, self.settings, self.console = http, http.settings, http.console

    def _need(self, fields: object, name: str, kind: type[T]) -> T:
        """A required field of the last response. Raises Failure."""
        value = get(fields, name, kind)
        if value is None:
            problem = f"the response cannot be used: {name} is missing or not valid"
            message = f"{problem} {self.http.last.summary()}"
            raise Failure("failed", message, URL_HINT, response=self.http.last)
        return value

    def _texts(self, fields: object, **names: str) -> Json:
        """Optional texts, safe to print; None if missing, empty or of another type."""
        secrets, texts = self.settings.secrets, {}
        for name, wire_name in names.items():
            text = get(fields, wire_name, str)
            texts[name] = (text and printable(text, secrets)) or None
        return texts

    def billing(self, limit_s: float = NO_LIMIT_S, attempts: int = READ_ATTEMPTS) -> Json:
        """The balance, which is required, and the auto top-up rule."""
        billing = self._need(self.http.read(BILLING, limit_s, attempts), "billing", dict)
        self._need(billing, "creditBalanceMicrousd", int)
        return billing_record(billing)

    def create_link(self, write: Call) -> tuple[str, str]:
        """Create a payment link; returns it and its host."""
        response = self.http.write(write, Failure("unreachable", LINK_LOST), "paymentUrl")
        link = self._need(response, "paymentUrl", str).strip()
        try:
            url = split_url(link)
            service = (self.settings.scheme, self.settings.hostname)
            if url.scheme == "http" and service != ("http", url.hostname):
                raise ValueError("it is plain http")
            if redact(link, self.settings.secrets) != link:
                raise ValueError("it has a secret in it")
        except ValueError as error:
            message = f"the service sent a payment link that is not safe to open: {error}"
            hint = "Do not open it; report it to the service's support."
            raise Failure("failed", message, hint, response=self.http.last) from None
        return link, url.netloc

    def upstream(self) -> Json:
        """The provider that is stored; the service never returns its key."""
        response = self.http.read(UPSTREAM)
        configured = self._need(response, "configured", bool)
        upstream = response.get("upstream") if configured else None
        return {"configured": configured, **self._texts(upstream, kind="kind", base_url="baseUrl")}

    def keys(self, limit_s: float = NO_LIMIT_S) -> list[Json]:
        """All API keys in the service's order, without items that have neither id nor prefix."""
        items = self._need(self.http.read(KEYS, limit_s), "keys", list)
        items = [item for item in items if get(item, "id", str) or get(item, "prefix", str)]
        times = {"created_at": "createdAt", "last_used_at": "lastUsedAt", "revoked_at": "revokedAt"}
        keys = []
        for item in items:
            key = self._texts(item, id="id", prefix="prefix", label="label", **times)
            keys.append({**key, "revoked": is_revoked(item)})
        # with the prefixes as they came, because those of the records may be shortened or hidden
        mark_key_in_use(keys, [get(item, "prefix", str) or "" for item in items], self.settings)
        return keys

    def create_key(self, write: Call) -> Json:
        """Create a key. Its secret is in this response only."""
        response = self.http.write(write, Failure("uncertain", KEY_LOST, next="keys"), "apiKey")
        secret = (get(response, "apiKey", str) or "").strip()
        if not re.fullmatch("[!-~]+", secret) or secret == self.settings.api_key:
            message = f"the response has no usable key {self.http.last.summary()}; {KEY_LOST}"
            raise Lost("uncertain", message, next="keys", response=self.http.last)
        return {**self._texts(response, id="id", prefix="prefix"), "api_key": secret}

    def tenant(self) -> Json:
        """Whose account the key belongs to."""
        tenant = self._need(self.http.read("/v1/account/info"), "tenant", dict)
        record = self._texts(tenant, id="id", name="name", status="status")
        record["upstream_configured"] = get(tenant, "upstreamConfigured", bool)
        return {**record, "active_keys": get(tenant, "activeKeys", int)}

    def read_attempts(self) -> Iterator[None]:
        """Yields up to three times, a second apart, as far as there is time: a replica may return
        the old value first."""
        yield
        for _ in range(2):
            if self.http.left_s > 2:
                self.http.sleep(1)
                yield


def billing_record(billing: Json) -> Json:
    """The record of a billing object; of an empty one, the record of an unknown balance."""
    microusd = get(billing, "creditBalanceMicrousd", int)
    return {
        "balance_microusd": microusd,
        "balance_usd": None if microusd is None else exact_usd(microusd),
        "funded": None if microusd is None else microusd > 0,
        "auto_topup": {
            "enabled": get(billing, "autoTopupEnabled", bool),
            "threshold_cents": get(billing, "autoTopupThresholdCents", int),
            "amount_cents": get(billing, "autoTopupAmountCents", int),
        },
        "card_saved": get(billing, "defaultPaymentMethodSet", bool),
    }


def is_revoked(item: Json) -> bool | None:
    """Whether a listed key is marked as revoked; None if the service does not say it plainly."""
    flag, date = get(item, "revoked", bool), item.get("revokedAt", "")
    is_dated = bool(re.match("[1-9]", str(date)))  # 0 and 0001-01-01 mean no date
    if flag is not None:
        return None if is_dated and not flag else flag
    if date is None:
        return False
    return True if is_dated else None


def mark_key_in_use(keys: list[Json], prefixes: list[str], settings: Settings) -> None:
    """Set `in_use` of each key: true, false, or None if it may be the key of this account.

    How the service shortens or masks a prefix is unknown, so the keys are compared with each
    other. The one that shares the most leading characters with our key may be it. So may one
    whose prefix ends, or goes on with a mask, where the match ends.
    """
    own, live = settings.api_key.casefold(), []
    for key, prefix in zip(keys, prefixes):
        key["in_use"] = False
        if not key["revoked"]:
            text = prefix.strip().casefold()
            shared_chars = len(os.path.commonprefix([text, own]))  # noqa: RUF071
            rest = text[shared_chars:]
            ends_there = not rest or not rest[0].isalnum()  # then a mask such as * begins
            live.append((key, shared_chars, ends_there))
    most = max([POSSIBLE_MATCH_CHARS, *(chars for _, chars, _ in live)])
    found = [(key, chars) for key, chars, ends_there in live if chars == most or ends_there]
    found = found or [(key, chars) for key, chars, _ in live]
    is_sure = len(found) == 1 and found[0][1] >= CERTAIN_MATCH_CHARS
    for key, _ in found:
        key["in_use"] = is_sure or None


def revoke_write(key_id: str) -> Call:
    """The request that revokes a key."""
    from urllib.parse import quote

    return "POST", f"{KEYS}/{quote(key_id, safe='')}/revoke", {}


def holds(asked: Any, stored: Any) -> bool | None:
    """Whether what is stored is what was asked for; None if the service does not say."""
    if stored is None:
        return None
    if isinstance(asked, dict):
        parts = [holds(value, stored.get(name)) for name, value in asked.items()]
        return False if False in parts else None if None in parts else True
    if isinstance(asked, str):  # in a URL, only scheme and host have no case
        texts = (text.rstrip("/") for text in (asked, str(stored)))
        asked, stored = (re.sub("^([^/]*//)?[^/]*", lambda m: m[0].lower(), text) for text in texts)
    return bool(asked == stored)


# ── Reports: what a command prints, as text or JSON

PAYMENT_METHODS = {"stripe": "by card", "crypto": "in crypto"}


class Report:
    """What a command prints: `data` as JSON, or `lines` as text. A line that is a tuple is a row
    of cells, and all rows of a report are aligned. The help has no data: it stays text."""

    def __init__(self, data: Json, *lines: str | tuple[str, ...], code: str = "ok") -> None:
        self.data, self.lines, self.exit = data, lines, EXIT_CODES[code][0]

    def as_text(self) -> str:
        """Lines of text; empty lines are left out."""
        rows = [line for line in self.lines if isinstance(line, tuple)]
        widths = [max(map(len, column)) for column in zip(*rows)]
        template = "   ".join(f"{{:{width}}}" for width in widths)
        texts = (line if isinstance(line, str) else template.format(*line) for line in self.lines)
        return "".join(f"{text.rstrip()}\n" for text in texts if text)


def rule_text(rule: Json) -> str:
    """An auto top-up rule in words."""
    if not rule["enabled"]:
        return "unknown" if rule["enabled"] is None else "off"
    if None in rule.values():
        return "on, amounts unknown"
    return f"add {usd_text(rule['amount_cents'])} when below {usd_text(rule['threshold_cents'])}"


def billing_rows(billing: Json) -> list[tuple[str, str]]:
    """The rows of a billing record."""
    return [
        ("Balance", balance_text(billing["balance_microusd"])),
        ("Auto top-up", rule_text(billing["auto_topup"])),
        ("Saved card", {True: "yes", False: "no", None: "unknown"}[billing["card_saved"]]),
    ]


def rise_text(before: Json, after: Json) -> str:
    """How far the balance has risen, in words; empty if it has not, or if that is unknown."""
    old_microusd, new_microusd = before["balance_microusd"], after["balance_microusd"]
    if old_microusd is None or new_microusd is None or new_microusd <= old_microusd:
        return ""
    return f"The balance rose by ${exact_usd(new_microusd - old_microusd)}."


def auto_topup_report(billing: Json, before: Json | None = None) -> Report:
    """The rule and what it will charge, and how far the balance has risen since `before`."""
    rule, microusd = billing["auto_topup"], billing["balance_microusd"]
    threshold_cents, is_below, message = rule["threshold_cents"], None, ""
    if threshold_cents is not None and microusd is not None:
        is_below = microusd < threshold_cents * MICROUSD_PER_CENT
    facts = (rule["enabled"], billing["card_saved"], is_below)
    charges_now = None if None in facts else all(facts)
    if rule["enabled"] and billing["card_saved"] is False:
        message = "No card is saved, so nothing can be charged."
    elif rule["enabled"] and None not in rule.values():
        amount, threshold = usd_text(rule["amount_cents"]), usd_text(threshold_cents)
        card = "the saved card" if billing["card_saved"] else "a saved card"
        message = f"The service charges {card} {amount} each time the balance falls below"
        message += f" {threshold}, until you run auto-topup --disable."
        if charges_now:
            message += f" The balance is already below {threshold}:"
            message += f" expect a charge of {amount} at once."
    if before:
        message = f"{message} {rise_text(before, billing)}".strip()
    data = {**billing, "charges_now": charges_now, "message": message or None}
    del data["funded"]
    return Report(data, *billing_rows(billing), message)


def upstream_report(upstream: Json, line: str = "") -> Report:
    """The provider, without its key."""
    name = upstream["kind"] or "unknown" if upstream["configured"] else "not configured"
    address = [("Base URL", upstream["base_url"])] if upstream["base_url"] else []
    return Report(upstream, ("Provider", name), *address, line)


def keys_report(keys: list[Json]) -> Report:
    """All keys, a row each."""
    rows: list[tuple[str, ...]] = [("ID", "Prefix", "Created", "Last used", "State", "Label")]
    for key in keys:
        state = {True: "revoked", False: "active", None: "-"}[key["revoked"]]
        state = "in use here" if key["in_use"] else state
        times = (key[name] or "-" for name in ("created_at", "last_used_at"))
        times = (time[:16].replace("T", " ") for time in times)
        rows.append((key["id"] or "-", key["prefix"] or "-", *times, state, key["label"] or "-"))
    return Report({"keys": keys}, *(rows if keys else ["No API keys."]))


def key_name(key: Json) -> str:
    """A key in words: its id, and what else is known of it."""
    details = ", ".join(filter(None, (key["prefix"], key.get("label"))))
    return (key["id"] or "a key without an id") + (f" ({details})" if details else "")


def stored_text(stored: Json) -> str:
    """What is stored instead of a change, in words: a rule, a provider, or the state of a key."""
    if "auto_topup" in stored:
        return f"the stored rule is: {rule_text(stored['auto_topup'])}"
    if "configured" in stored:
        words = " ".join(filter(None, (stored["kind"], stored["base_url"]))) or "unknown"
        return f"the stored provider is: {words if stored['configured'] else 'not configured'}"
    return "the list shows the key as not revoked"


def dry_run_report(write: Call, settings: Settings, message: str = "") -> Report:
    """The request that would be sent, with secrets redacted, and its consequences."""
    method, path, fields = write
    url, body = redact(settings.base_url + path, settings.secrets), {}
    for name, value in fields.items():
        body[name] = redact(value, settings.secrets) if isinstance(value, str) else value
    if "apiKey" in body:
        body["apiKey"] = "<hidden>"
    data = {"dry_run": {"method": method, "url": url, "body": body}, "message": message or None}
    return Report(data, f"Not sent, because of --dry-run: {method} {url}", to_json(body), message)


# ── Commands: one function for each thing that the command line can ask for

DEFAULT_WAIT_S = 100.0  # common agent shells end a command after 120 s
CHECK_S = 10.0
LAST_CHECK_S = 0.8


class OptionalRead:
    """A `with` block in which a read may fail. Only a refused key is reported at once, because a
    write would be refused, too."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        return isinstance(error, Failure) and error.code != "unauthorized"


def show_balance(account: Account, args: Namespace) -> Report:
    """`balance`, perhaps with `--min` or `--wait`."""
    least_microusd = 1  # any credit
    if args.min:
        least_microusd = args.min.cents * MICROUSD_PER_CENT
    records = [account.billing()] if args.wait is None else poll_balance(account, args)
    for billing in records:
        balance_microusd = billing["balance_microusd"]
        if balance_microusd is not None and balance_microusd >= least_microusd:
            break
    short_microusd = max(0, least_microusd - balance_microusd)
    least = f" --min {exact_usd(least_microusd)}" if args.min else ""
    topup = account.settings.topup_command(short_microusd)
    next_step = topup if args.wait is None else f"balance --wait{least}"
    rows = billing_rows(billing)
    if args.min:
        billing.update(enough=not short_microusd, short_microusd=short_microusd)
    if args.min and short_microusd:
        rows.append(("Missing", usd_text(-(-short_microusd // MICROUSD_PER_CENT))))
    billing["next"] = next_step if short_microusd else None
    is_unmet = short_microusd and (args.min or args.wait is not None)
    return Report(billing, *rows, code="payment_required" if is_unmet else "ok")


def poll_gap_s(waited_s: float) -> float:
    """Seconds until the next check of a wait: about 5, after a minute about 10."""
    return (5 if waited_s < 60 else 10) * jitter(0.8, 1.2)


def poll_balance(account: Account, args: Namespace) -> Iterator[Json]:
    """Check the balance until the time of a wait is up. Yields the billing record after each check,
    also after a failed one, with its `last_error`. Raises Failure if the key is refused, and at the
    end if no check succeeded."""
    console, clock = account.console, account.console.clock
    end = console.began + args.wait
    last_check = end - min(LAST_CHECK_S, args.wait / 10)  # early enough for its response
    billing, failure, is_told = billing_record({}), None, False
    while True:
        # one check even after the end: if the computer slept, the payment may have arrived
        now = clock.now()
        account.http.left_s = min(CHECK_S, args.timeout, max(LAST_CHECK_S, end - now))
        gap_s = poll_gap_s(now - console.began)
        try:
            billing, failure, asked_s = account.billing(attempts=1), None, 0
        except Failure as error:
            if error.code == "unauthorized":
                raise
            failure = error
            asked_s = (error.response and error.response.retry_after_s) or 0
        yield {**billing, "last_error": failure and failure.message}
        left_s = max(0.0, end - clock.now())
        is_last = last_check - now < 0.001  # not 0: a sleep may end a little early
        if is_last or asked_s > max(0.0, last_check - clock.now()):
            break
        if not is_told:
            console.note(f"Waiting up to {args.wait:g} s for the balance to rise.")
            is_told = True
        clock.sleep(max(0.0, min(max(gap_s, asked_s), last_check - clock.now())))
    clock.sleep(left_s)
    why = f"the balance is {balance_text(billing['balance_microusd'])}"
    why = f"the last check failed: {failure.message}" if failure else why
    console.note(f"No sufficient payment was seen: {why}. Ask the payer before you wait again.")
    if failure and billing["balance_microusd"] is None:
        raise failure


def make_topup(account: Account, args: Namespace) -> Report:
    """`topup`, perhaps with `--wait`."""
    settings, cents, before = account.settings, args.amount.cents, billing_record({})
    check_amount("--amount", args.amount, settings)
    body = {"amountUsd": cents // CENTS_PER_USD, "method": args.method}
    write: Call = ("POST", f"{BILLING}/topup", body)
    if args.dry_run:
        return dry_run_report(write, settings, "Nothing is charged until someone pays the link.")
    with OptionalRead():
        before = account.billing(args.timeout / 3)
    try:
        link, host = account.create_link(write)
    except Failure as failure:
        if failure.code == "failed" and cents < SMALLEST_TOPUP_CENTS:
            failure.hint = f"The smallest top-up is usually {usd_text(SMALLEST_TOPUP_CENTS)}."
        raise
    sentence = f"Pay {usd_text(cents)} {PAYMENT_METHODS[args.method]} for CacheForge credit at"
    sentence += f" {host}. Nothing is charged until you pay:"
    next_step = after_payment(before, cents)
    data = {
        "amount_usd": cents // CENTS_PER_USD,
        "method": args.method,
        "payment_url": link,
        "payment_host": host,
        "message": f"{sentence} {link}",
        "next": next_step if args.wait is None else None,
    }
    report = Report(data, sentence, link)
    if args.wait is None:
        return report
    account.console.deliver(report)
    return wait_for_payment(account, args, before, next_step)


def after_payment(before: Json, cents: int) -> str:
    """The command that shows whether a payment of so many cents has arrived."""
    microusd = before["balance_microusd"]
    if microusd is None or microusd + cents * MICROUSD_PER_CENT <= 0:
        # a wait could end at once (because of earlier credit), or never (the balance stays below 0)
        return "balance"
    if microusd <= 0:
        return "balance --wait"
    next_cent_microusd = (microusd // MICROUSD_PER_CENT + 1) * MICROUSD_PER_CENT
    return f"balance --wait --min {exact_usd(next_cent_microusd)}"


def wait_for_payment(account: Account, args: Namespace, before: Json, next_step: str) -> Report:
    """The rest of `topup --wait`, after its link was printed."""
    printed = "the payment link was printed; repeating creates another"
    account.console.if_stopped = Failure("failed", printed, next=next_step)
    with OptionalRead():
        for billing in poll_balance(account, args):
            before = billing if before["balance_microusd"] is None else before
            if rise_text(before, billing):
                break
    rise = rise_text(before, billing)
    is_known = billing["balance_microusd"] is not None
    billing.update(credit_rose=bool(rise) if is_known else None)
    billing["next"] = None if rise else next_step
    return Report(billing, rise, *billing_rows(billing), code="ok" if rise else "payment_required")


def check_amount(flag: str, amount: Amount, settings: Settings) -> None:
    """Raises Failure (usage) for an amount over the limit, or under a dollar. The hint is for a
    number without a unit, which may have been meant in the other unit."""
    number, limit_cents, hint = amount.number, settings.max_topup_cents, ""
    if amount.cents > limit_cents:
        problem = f"over the limit of {usd_text(limit_cents)} (CACHEFORGE_MAX_TOPUP_USD)"
        hint = "Only the user should raise the limit."
    elif amount.cents < CENTS_PER_USD:
        problem = f"below the minimum of {usd_text(CENTS_PER_USD)}"
    else:
        return
    if amount.bare_unit == "usd" and number % CENTS_PER_USD == 0 and number <= limit_cents:
        hint = f"It was read as dollars. If you meant cents, write {number}c. {hint}"
    elif amount.bare_unit == "c" and 0 < number * CENTS_PER_USD <= limit_cents:
        hint = f"It was read as cents. If you meant dollars, write {number}usd. {hint}".strip()
    raise Failure("usage", f"{flag} is {usd_text(amount.cents)}, {problem}; nothing was sent", hint)


def set_auto_topup(account: Account, args: Namespace) -> Report:
    """`auto-topup --enable` or `--disable`."""
    before = billing_record({})
    text = "The service stops charging the saved card."
    rule, body = {"enabled": args.enable}, {"enabled": args.enable}
    if args.enable:
        check_amount("--threshold", args.threshold, account.settings)
        check_amount("--amount", args.amount, account.settings)
        rule.update(threshold_cents=args.threshold.cents, amount_cents=args.amount.cents)
        body.update(thresholdCents=args.threshold.cents, amountCents=args.amount.cents)
        with OptionalRead():
            before = account.billing(args.timeout / 3)
        balance = balance_text(before["balance_microusd"])
        effect = auto_topup_report({**before, "auto_topup": rule}).data["message"]
        if before["card_saved"] is False:
            effect = "No card is saved: the service will refuse this."
        text = f"The rule: {rule_text(rule)}. The balance: {balance}. {effect}"
    write = ("PATCH", f"{BILLING}/auto-topup", body)
    if args.dry_run:
        return dry_run_report(write, account.settings, text)
    reads = (account.billing() for _ in account.read_attempts())
    return auto_topup_report(change_and_verify(account, write, {"auto_topup": rule}, reads), before)


def change_and_verify(account: Account, write: Call, asked: Json, reads: Iterable[Json]) -> Json:
    """Send a change, read what is stored until it is what was asked for, and return it. Raises
    Failure if it differs, or if the service does not say, except whether a key is revoked."""
    stored: Json = {}
    lost: Lost | None = None
    start = "the service did not refuse the change, but"
    try:
        if_lost = Failure("unreachable", "the change may have been stored; repeating is safe")
        account.http.write(write, if_lost)
    except Lost as failure:
        lost = failure
    try:
        for stored in reads:
            if holds(asked, stored) is not False:
                break
    except Failure as failure:
        if not stored:  # 5, whatever the reason is: storing the same again is safe
            message = f"{start} reading it back failed: {failure.message}; repeating is safe"
            unread = Failure("unreachable", message, failure.hint, response=failure.response)
            raise lost or unread from None
    held = holds(asked, stored)
    if lost and (not held or "apiKey" in write[2]):  # a provider's key cannot be read back
        raise lost
    if not held and (held is False or "revoked" not in asked):
        code = "unreachable" if held is None else "failed"
        hint = "It may need a moment: look again in a minute before you repeat the change."
        raise Failure(code, f"{start} {stored_text(stored)}", hint)
    return stored


def set_upstream(account: Account, args: Namespace) -> Report:
    """`upstream --set`."""
    kind, base_url, key = args.kind, args.base_url, read_provider_key(account, args)
    if kind == "openai":  # the service knows it as a custom provider
        kind, base_url = "custom", base_url or "https://api.openai.com"
    if base_url is not None:
        check_url(base_url, "--base-url", account.settings.allow_http)
    fields = {"kind": kind, "baseUrl": base_url, "apiKey": key}
    body = {name: value for name, value in fields.items() if value is not None}
    if not body:
        raise Failure("usage", "upstream --set needs --kind, --base-url or the provider's key")
    write = ("POST", UPSTREAM, body)
    if args.dry_run:
        text = "Every later call through CacheForge goes to this provider."
        return dry_run_report(write, account.settings, text)
    asked: Json = {"configured": True}
    for name, text in (("kind", kind), ("base_url", base_url)):
        if text is not None:
            asked[name] = printable(text, account.settings.secrets)  # as it is read back
    reads = (account.upstream() for _ in account.read_attempts())
    unseen = "" if key is None else ", except the key, which the service never returns"
    return upstream_report(
        change_and_verify(account, write, asked, reads), f"Saved and verified{unseen}."
    )


def read_provider_key(account: Account, args: Namespace) -> str | None:
    """The provider's key from where the command line says; None if it does not name one."""
    source, key, name = "--api-key", args.api_key, args.api_key_env
    if key is not None and name is not None:
        raise Failure("usage", "--api-key and --api-key-env cannot be used together")
    if name is not None:
        source = "the variable that --api-key-env names"
        key = account.settings.environ.get(name.upper() if os.name == "nt" else name, "")
    elif key == "-":
        source, key = "the key on standard input", account.console.read_secret(args.timeout)
    elif key is None:
        return None
    others = {"anthropic": {"sk-or-": "OpenRouter"}, "openrouter": {"sk-ant-": "Anthropic"}}
    refused = {"cf_": "CacheForge", "cfk_": "CacheForge", **others.get(args.kind, {})}
    secret: str = key.strip()
    check_key(secret, source, refused)
    account.settings.secrets.append(secret)
    return secret


def create_key(account: Account, args: Namespace) -> Report:
    """`keys --create`, perhaps with `--save`."""
    console, before, file = account.console, None, None
    write: Call = ("POST", KEYS, {})
    if args.dry_run:
        return dry_run_report(write, account.settings)
    with OptionalRead():
        before = account.keys(args.timeout / 3)
    if args.save is not None:
        file = console.create_file(args.save)
    try:
        key = account.create_key(write)
        name = key_name(key)
        message = f"the new key {name} was created, but its secret was lost"
        console.if_stopped = Failure("uncertain", message, "Revoke it if it is listed.", "keys")
        if file is None:
            words = f"Store this new key now: it is not shown again. It is listed as {name}."
            return Report(key, key["api_key"], words)
        console.save(file, key.pop("api_key"))
    except BaseException as error:
        if file is not None:
            console.discard(file)
        if isinstance(error, Lost):
            raise lost_key(account, before, error) from None
        raise
    console.if_stopped = Failure("failed", "the new key is saved in the file")
    secrets = account.settings.secrets
    words = f"The new key {name} is saved to {printable(args.save, secrets)}"
    return Report({**key, "saved_to": redact(args.save, secrets)}, words)


def lost_key(account: Account, before: list[Json] | None, lost: Lost) -> Failure:
    """What to report if the response with a new key was lost: also what is new in the list."""
    found = "the list of keys could not be compared with the one before"
    if before is not None:
        from collections import Counter

        try:
            found_names = Counter(map(key_name, account.keys()))
            new = list(found_names - Counter(map(key_name, before)))
            found = f"new in the list of keys: {', '.join(new[:3]) or 'nothing'}"
        except Failure:
            pass
    hint = "A new key that nobody else created is useless without its secret: revoke it."
    return Failure("uncertain", f"{lost.message}; {found}", hint, "keys", lost.response)


def find_key(account: Account, args: Namespace) -> tuple[Json, str]:
    """The key that `--revoke` names, and why revoking it needs `--force`; empty if it does not."""
    key_id, warning = args.revoke, ""
    if printable(key_id, account.settings.secrets) != key_id or "<hidden>" in key_id:
        message = "--revoke needs the id of a key, as keys lists it; nothing was revoked"
        raise Failure("usage", message, next="keys")
    found = [key for key in account.keys(args.timeout / 3) if key["id"] == key_id]
    unlisted = {"id": key_id, "prefix": None, "label": None, "revoked": None, "in_use": None}
    # Two ids may look the same when printed: then take the one that may be in use (False is first)
    key = min(
        found, key=lambda key: (key["revoked"] is True, key["in_use"] is False), default=unlisted
    )
    if not found:
        warning = "No listed key has this id: check it. It may be the key in use."
    elif key["in_use"] is not False:
        verb = "is" if key["in_use"] else "may be"
        warning = f"{key_name(key)} {verb} the key in use here: whatever uses it stops working."
    return key, warning


def revoke_key(account: Account, args: Namespace) -> Report:
    """`keys --revoke KEY_ID`. The key is looked up first, so that the question can name it."""
    key, warning = find_key(account, args)
    name, write, confirmed = key_name(key), revoke_write(args.revoke), True
    if warning and not args.force:
        hint = "--force revokes it anyway; only the user should decide that."
        raise Failure("usage", f"nothing was revoked. {warning}", hint, "keys")
    words = f"{name} {'was already' if key['revoked'] else 'is'} revoked"
    if args.dry_run:
        text = warning or f"{name} stops working for good."
        return dry_run_report(write, account.settings, words if key["revoked"] else text)
    if args.force or not key["revoked"]:
        question = f"{warning} Revoke {name} for good?".strip()
        if not args.yes and not (account.console.has_person() and account.console.ask(question)):
            message = "not confirmed (--yes confirms it if nobody can be asked)"
            raise Failure("usage", f"{message}; nothing was revoked")
        stored = change_and_verify(account, write, {"revoked": True}, key_states(account, key))
        confirmed = stored.get("revoked") is True
    if not confirmed:
        words = f"The service accepted the request, but does not list {name} as revoked"
    revoked = {name: key[name] for name in ("id", "prefix", "label")}
    data = {"revoked": revoked, "already": bool(key["revoked"]), "confirmed": confirmed}
    return Report(data, words)


def key_states(account: Account, key: Json) -> Iterator[Json]:
    """How the key is listed after it was revoked; one that is gone counts as revoked."""
    if "created_at" not in key:
        return  # `find_key` made this record: the key was never listed, so the list proves nothing
    for _ in account.read_attempts():
        try:
            listed = account.keys()
        except Failure as failure:
            if failure.response.status != 401 or key["in_use"] is False:
                raise
            listed = []  # it was the key that this program uses
        yield next((item for item in listed if item["id"] == key["id"]), {"revoked": True})


def show_info(account: Account, args: Namespace) -> Report:
    """`info`."""
    tenant, settings = account.tenant(), account.settings
    keys, base_url = tenant["active_keys"], redact(settings.base_url, settings.secrets)
    name = f" ({tenant['name']})" if tenant["name"] else ""
    provider = {True: "configured", False: "not configured", None: "unknown"}
    return Report(
        {"tenant": tenant, "base_url": base_url, "api_key": settings.mask_key()},
        ("Tenant", f"{tenant['id'] or 'unknown'}{name}"),
        ("Status", tenant["status"] or "unknown"),
        ("Provider", provider[tenant["upstream_configured"]]),
        ("Active keys", "unknown" if keys is None else str(keys)),
        ("Service", base_url),
        ("API key", settings.mask_key()),
    )


# ── Parser: the command line


class Option:
    """An option such as `--threshold CENTS=200`, which has a value and a default. `run` is the
    function of the command if this option decides what the command does."""

    def __init__(self, where: str, spec: str, words: str, run: Any = None) -> None:
        """`where` is the command (empty: all) and the options that it goes with, if any."""
        self.command, _, self.needs = where.partition(" ")
        self.shown, _, self.default = spec.partition("=")
        self.flag, _, self.kind = self.shown.partition(" ")
        self.name, self.run = self.flag[2:].replace("-", "_"), run
        words = f"with {self.needs}: {words}" if self.needs else words
        self.help = f"{words} (default {self.default})" if self.default else words


COMMANDS = {  # what each does, and the function that does it, unless an option decides that
    "balance": ("show the balance, the auto top-up rule, and the saved card", show_balance),
    "topup": ("create a payment link; nothing is charged until someone pays it", make_topup),
    "auto-topup": (
        "show or set the rule that charges the saved card automatically",
        lambda account, args: auto_topup_report(account.billing()),
    ),
    "upstream": (
        "show or set the provider that calls are forwarded to",
        lambda account, args: upstream_report(account.upstream()),
    ),
    "keys": ("list, create or revoke API keys", lambda account, args: keys_report(account.keys())),
    "info": ("show the tenant and the settings of this program", show_info),
}
KINDS = "openrouter, anthropic, custom, openai"
DRY_RUN = "print the request and its consequences, but do not send it"
WAIT = f"(default {DEFAULT_WAIT_S:g} s)"
OPTIONS = (
    Option("balance", "--min DOLLARS", "exit 4 if the balance is below this, such as 2.50"),
    Option("balance", "--wait [SECONDS]", f"wait until it is above 0, or at least --min {WAIT}"),
    Option("topup", "--amount USD=10", "whole dollars, or 2500c; usually at least 10"),
    Option("topup", "--method METHOD=stripe", "stripe or card, or crypto"),
    Option("topup", "--wait [SECONDS]", f"print the link, wait until it is paid {WAIT}"),
    Option("topup", "--dry-run", DRY_RUN),
    Option(
        "auto-topup", "--enable", "charge the saved card when the balance is low", set_auto_topup
    ),
    Option("auto-topup", "--disable", "stop charging the card", set_auto_topup),
    Option("auto-topup --enable", "--threshold CENTS=200", "cents, or 2usd"),
    Option("auto-topup --enable", "--amount CENTS=1000", "cents, or 10usd"),
    Option("auto-topup --enable or --disable", "--dry-run", DRY_RUN),
    Option("upstream", "--set", "store the provider that the other options describe", set_upstream),
    Option("upstream --set", "--kind KIND", f"one of {KINDS}"),
    Option("upstream --set", "--base-url URL", "the provider's address"),
    Option("upstream --set", "--api-key KEY", "the provider's key; - reads it from stdin"),
    Option("upstream --set", "--api-key-env NAME", "the variable that holds the provider's key"),
    Option("upstream --set", "--dry-run", DRY_RUN),
    Option("keys", "--create", "create a key, which is shown once", create_key),
    Option("keys --create", "--save FILE", "write the key to a new private file, do not show it"),
    Option("keys", "--revoke KEY_ID", "revoke a key for good", revoke_key),
    Option("keys --revoke", "--yes", "revoke it without asking"),
    Option("keys --revoke", "--force", "revoke it even if it is, or may be, the key in use"),
    Option("keys --create or --revoke", "--dry-run", DRY_RUN),
    Option("", "--help", "show this help and exit"),
    Option("", "--version", "show the version and exit"),
    Option("", "--json", "print JSON objects, one per line"),
    Option("", "--verbose", "print a line for each HTTP request to stderr"),
    Option("", "--timeout SECONDS=30", "give up after SECONDS in total"),
)
SHORT_NAMES = {"--help": ["-h"], "--version": ["-V"]}
NO_SIGN = "without a $, which shells replace"
VALUES = {  # the name of a value in OPTIONS, its pattern, and what to do if it does not match
    "DOLLARS": (r"[0-9]{1,15}(c|(\.[0-9]{1,2})?(usd)?)", f"write 2.50, 10usd or 1000c, {NO_SIGN}"),
    "USD": (r"(?=.*[1-9])[0-9]{1,13}((usd)?|00c)", f"write whole dollars, 1 or more, {NO_SIGN}"),
    "CENTS": (r"[0-9]{1,15}(c?|(\.[0-9]{1,2})?usd)", f"write 1000, 1000c or 10usd, {NO_SIGN}"),
    "SECONDS": (r"[1-9][0-9]{0,4}(\.[0-9]{1,3})?", "write a number of seconds, at least 1"),
    "[SECONDS]": (r"|(?=.*[1-9])[0-9]{1,5}(\.[0-9]{1,3})?", "write a number of seconds above 0"),
    "METHOD": ("stripe|card|crypto", "write one of stripe, crypto"),
    "KIND": (KINDS.replace(", ", "|"), f"write one of {KINDS}"),
    "KEY_ID": (".*[^.].*", "write the id of a key"),  # an id of dots would be another path
}
EXAMPLES = (
    "balance --min 2.50",
    "topup --amount 10 --wait",
    "auto-topup --enable --threshold 200 --amount 1000 --dry-run",
    "upstream --set --kind openrouter --api-key-env OPENROUTER_API_KEY",
    "keys --create --save new.key",
    "info --json",
)
ENVIRONMENT = {
    "CACHEFORGE_API_KEY": "the account's key (required)",
    "CACHEFORGE_BASE_URL": f"the service (default {DEFAULT_BASE_URL})",
    "CACHEFORGE_MAX_TOPUP_USD": f"limit for top-ups, in USD (default {DEFAULT_MAX_TOPUP_USD})",
    "CACHEFORGE_ALLOW_INSECURE_HTTP": "1 allows plain http to other machines",
    "HTTPS_PROXY, NO_PROXY": "as in other programs",
    "SSL_CERT_FILE": "as in other programs",
}


def options_of(command: str) -> list[Option]:
    """The options that a command takes; without one, those that all take."""
    return [option for option in OPTIONS if option.command in ("", command)]


def table(rows: Mapping[str, str]) -> str:
    """Rows of two cells for the end of the help."""
    width = max(map(len, rows))
    return "".join(f"  {name:{width}}  {words}\n" for name, words in rows.items())


class Parser(ArgumentParser):
    """A parser that prints nothing, and never repeats what was typed: it may be a secret."""

    def __init__(self, **options: Any) -> None:
        # of a fixed width: to measure the terminal, argparse would import shutil
        formatter = lambda prog: RawDescriptionHelpFormatter(prog, width=80)  # noqa: E731
        super().__init__(allow_abbrev=False, add_help=False, formatter_class=formatter, **options)
        self.color = False  # Python 3.14 colours the help by default
        self._positionals.title = "commands"
        self._optionals.title = "options"  # Python 3.9 says "optional arguments"

    def declare(self, option: Option) -> None:
        """Declare an option. Its value is read later, by `read_value`."""
        # with a default, the parser of the command would undo an option before the command
        options: Json = {"help": option.help, "default": SUPPRESS, "action": "store_true"}
        if option.kind:
            options.update(action="store", metavar=option.kind.strip("[]"))
        if option.kind.startswith("["):
            options.update(nargs="?", const="")
        self.add_argument(*SHORT_NAMES.get(option.flag, []), option.flag, **options)

    def error(self, message: str) -> NoReturn:
        """Raise Failure (usage) in our own words, because argparse quotes what was typed."""
        option = re.match("argument (?:.*/)?([^:]+): (expected|ignored)", message)
        typed = re.search("invalid choice: '(.*?)'", message)
        if not option:
            self.fail("unknown command", typed[1] if typed else "", COMMANDS)
        flag = option[1]
        if option[2] == "ignored":
            self.fail(f"{flag} takes no value")
        self.fail(f"{flag} needs a value; if that begins with -, write {flag}=VALUE")

    def fail(self, message: str, typed: str = "", known: Iterable[str] = ()) -> NoReturn:
        """Raise Failure (usage) with the usage, and the known word closest to what was typed."""
        from difflib import get_close_matches

        typed = typed.lower().strip("-")  # with the dashes, all options would look alike
        names = {word.strip("-"): word for word in known if word.strip("-")[:1] == typed[:1]}
        near = [name for name in names if name.startswith(typed)]
        near = get_close_matches(typed, names, 1) or near
        message += f"; did you mean {names[near[0]]}?" if near else ""
        command = self.prog.partition(" ")[2]
        usage = self.format_usage().strip().replace("usage:", "Usage:")
        raise Failure("usage", message, usage, f"{command} --help".strip())


def build_parsers(argv: Sequence[str]) -> dict[str, Parser]:
    """The parsers of all commands, and under an empty name that of the whole command line.

    Declaring an option is slow, so only the commands that occur in argv get theirs.
    """
    meanings = {str(code): meaning for code, meaning in EXIT_CODES.values()}
    epilog = f"exit codes:\n{table(meanings)}\nenvironment:\n{table(ENVIRONMENT)}"
    main_parser = Parser(
        prog="ops.py",
        usage="ops.py COMMAND [options]",
        description="Manage a CacheForge account.",
        epilog=epilog,
    )
    group = main_parser.add_subparsers(metavar="COMMAND", dest="command", prog="ops.py")
    parsers = {"": main_parser}
    for name, (words, _) in COMMANDS.items():
        shown = [f"[{option.shown}]" for option in OPTIONS if option.command == name]
        parsers[name] = group.add_parser(
            name,
            help=words,
            usage=" ".join(["ops.py", name, *shown]),
            description=f"{words[0].upper()}{words[1:]}.",
        )
    for name, parser in parsers.items():
        examples = [f"\n  ops.py {words}" for words in EXAMPLES if words.startswith(name)]
        parser.epilog = f"{parser.epilog or ''}\nexamples:{''.join(examples)}".strip()
        for option in options_of(name) if name in ("", *argv) else ():
            parser.declare(option)
    return parsers


def read_value(option: Option, text: str) -> Any:
    """The value of an option. Raises ValueError."""
    kind = option.kind
    is_amount = kind in ("DOLLARS", "USD", "CENTS")
    text = text.lower() if is_amount else text
    pattern, advice = VALUES.get(kind, (".+", "the value is empty"))
    if not re.fullmatch(pattern, text, re.DOTALL):
        raise ValueError(f"{option.flag}: {advice}")
    if is_amount:
        return Amount(text, "c" if kind == "CENTS" else "usd")
    if "SECONDS" in kind:
        return float(text or DEFAULT_WAIT_S)
    return "stripe" if text == "card" and kind == "METHOD" else text


def read_arguments(args: Namespace) -> Namespace:
    """The values of all options, and the function to call as `run`. Raises ValueError."""
    options, typed = options_of(args.command), vars(args)
    deciding = [option for option in options if option.run and option.name in typed]
    if len(deciding) > 1:
        raise ValueError(f"{deciding[0].flag} and {deciding[1].flag} cannot be used together")
    decided = deciding[0].flag if deciding else ""
    read = Namespace(run=deciding[0].run if deciding else COMMANDS[args.command][1])
    for option in options:
        if option.name in typed and option.needs and decided not in option.needs.split(" or "):
            raise ValueError(f"{option.flag} can only be used with {option.needs}")
        value: Any = option.name in typed
        if option.kind:
            text = typed.get(option.name, option.default or None)
            value = None if text is None else read_value(option, text)
        setattr(read, option.name, value)
    return read


def parse(argv: Sequence[str]) -> Namespace | Report:
    """The arguments of the command line; or the help or version, to print. Raises Failure."""
    if [word for word in argv if not word.startswith("-")][:1] == ["help"]:
        argv = ["--help", *(word for word in argv if word != "help")]
    parsers = build_parsers(argv)
    args, unknown = parsers[""].parse_known_args(argv)
    command, parser = args.command or "", parsers[args.command or ""]
    if "version" in args:
        return Report({"version": __version__}, f"cacheforge-ops {__version__}")
    if "help" in args:
        return Report({}, parser.format_help().rstrip())
    if unknown:
        what = "option" if unknown[0].startswith("-") else f"word; {command} takes only options"
        known = [option.flag for option in options_of(command)]
        parser.fail(f"unknown {what}", unknown[0].partition("=")[0], known)
    if not command:
        raise Failure("usage", "a command is missing", parser.format_help().rstrip())
    try:
        return read_arguments(args)
    except ValueError as error:
        parser.fail(str(error))


# ── main: the only section that prints, reads the environment, or exits


class Console:
    """The world outside: results go to standard output, everything else to standard error."""

    verbose = False
    is_asking = False  # then the first signal interrupts at once
    ask_until = NO_LIMIT_S  # the time on the clock
    secrets: Sequence[str] = ()
    if_stopped: Failure | None = None  # what to report if the result is not delivered

    def __init__(self, argv: Sequence[str]) -> None:
        self.as_json = "--json" in argv  # before parsing, whose errors are JSON, too
        self.clock = Clock()
        self.began = self.clock.now()

    def deliver(self, report: Report) -> None:
        """Print a report. Raises Failure if standard output does not take it."""
        data, text = report.data, report.as_text()
        if "next" in data:
            data = {**data, "next": command_line(data["next"])}
            text += f"Next: {data['next']}\n" if data["next"] else ""
        try:
            sys.stdout.write(to_json(data) + "\n" if self.as_json and data else text)
            sys.stdout.flush()
        except OSError as error:
            problem = f"the result could not be written to standard output ({error.strerror}); "
            raise self.ended("failed", problem) from None
        self.if_stopped = None

    def ended(self, code: str, problem: str = "") -> Failure:
        """The failure of a command that ended before its result was printed or saved."""
        safe = "; repeating is safe" if code == "interrupted" else ""
        about = self.if_stopped or Failure("unreachable", f"nothing was changed{safe}")
        if code == "failed" and about.code == "uncertain":
            code = "uncertain"
        failure = Failure(code, problem + about.message, about.hint, about.next)
        failure.retryable = code == "interrupted" and about.retryable
        return failure

    def fail(self, failure: Failure) -> None:
        """Print a failure as a few lines or one JSON object."""
        response, next_step = failure.response, command_line(failure.next)
        request_id = response and response.request_id
        message, hint = (redact(text, self.secrets) for text in (failure.message, failure.hint))
        error = {
            "code": failure.code,
            "message": message,
            "exit": failure.exit,
            "http_status": response and response.status,
            "request_id": request_id,
            "retryable": failure.retryable,
            "retry_after_seconds": response and response.retry_after_s,
            "hint": hint or None,
            "next": next_step,
        }
        request = f" [request {request_id}]" if request_id else ""
        lines = [f"{failure.code}: {message}{request}", hint, next_step and f"Next: {next_step}"]
        self._write_error({"error": error}, "\n".join(filter(None, lines)) + "\n")

    def note(self, line: str) -> None:
        """Print a line to standard error."""
        line = redact(line, self.secrets)
        self._write_error({"note": line}, f"{line}\n")

    def _write_error(self, data: Json, text: str) -> None:
        try:
            sys.stderr.write(to_json(data) + "\n" if self.as_json else text)
            sys.stderr.flush()
        except (OSError, AttributeError):  # without it (None if closed) the result still counts
            pass

    def has_person(self) -> bool:
        """Whether a person can be asked. Windows calls NUL a terminal, so both must be one."""
        return not self.as_json and all(s and s.isatty() for s in (sys.stdin, sys.stderr))

    def ask(self, question: str) -> bool:
        """Ask the person at the terminal; True for yes."""
        self._write_error({}, f"{question} [y/N] ")
        return self._read_line().strip().lower() in ("y", "yes")

    def read_secret(self, limit_s: float) -> str:
        """One line of standard input, empty if none comes within so many seconds; or of the
        terminal, without an echo."""
        is_terminal = sys.stdin is not None and sys.stdin.isatty()
        if is_terminal and not self.has_person():
            raise Failure("usage", "--api-key - cannot ask for the key here: pipe it in")
        self.ask_until = NO_LIMIT_S if is_terminal else self.clock.now() + limit_s
        return self._read_line(hidden=is_terminal).strip()

    def _read_line(self, hidden: bool = False) -> str:
        from getpass import getpass

        self.is_asking = True
        self._wake_every(0.1)
        try:
            self.clock.raise_if_stopped()
            return getpass("Provider's key: ") if hidden else sys.stdin.readline()
        except (OSError, EOFError, ValueError, AttributeError):  # nothing was typed, or no text
            return ""
        finally:
            self._wake_every(0)
            self.is_asking = False

    def _wake_every(self, seconds: float) -> None:
        """Call `wake` every so many seconds; 0 ends it."""
        import signal

        if sys.platform != "win32" and signal.getsignal(signal.SIGALRM) == self.wake:
            signal.setitimer(signal.ITIMER_REAL, seconds, seconds)

    def wake(self, number: int, frame: object) -> None:
        """Interrupt a question if a signal came just before it, or if its time is up."""
        self.clock.raise_if_stopped()
        if self.clock.now() > self.ask_until:
            raise TimeoutError

    @staticmethod
    def create_file(path: str) -> TextIO:
        """Open a new file that only its owner can read. Raises Failure (usage)."""
        try:
            return open(
                path, "x", encoding="ascii", opener=lambda name, flags: os.open(name, flags, 0o600)
            )
        except OSError as error:
            message = f"--save: the file cannot be created ({error.strerror}); no key was created"
            raise Failure("usage", message) from None

    def save(self, file: TextIO, text: str) -> None:
        """Write a line to a file, down to the disk, and close it. Raises Failure if that fails."""
        try:
            with file:
                file.write(f"{text}\n")
                file.flush()
                try:
                    os.fsync(file.fileno())
                except KeyboardInterrupt:  # a second signal, but the key is in the file
                    pass
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # on some file systems
                        raise
        except OSError as error:
            problem = f"the new key could not be written to the file ({error.strerror}); "
            raise self.ended("failed", problem) from None

    @staticmethod
    def discard(file: TextIO) -> None:
        """Close and remove a file that did not get its key."""
        try:
            file.close()
            os.unlink(file.name)
        except OSError:
            pass


def command_line(words: str | None) -> str | None:
    """A command line of this program that can be pasted into a shell."""
    if not words:
        return None
    from shlex import quote

    path = sys.argv[0]
    return f'python "{path}" {words}' if os.name == "nt" else f"python3 {quote(path)} {words}"


def run(argv: Sequence[str], console: Console) -> Report:
    """Carry out one command line. Raises Failure."""
    if sys.stdout is None:
        raise Failure("usage", "standard output is closed; nothing was sent")
    args = parse(argv)
    if isinstance(args, Report):
        return args
    settings = Settings(os.environ)
    for name, value in settings.environ.items():  # without white space, for urllib and OpenSSL
        if re.fullmatch("(https?|no)_proxy|ssl_cert_file", name, re.IGNORECASE):
            os.environ[name] = value
    console.verbose, console.secrets = args.verbose, settings.secrets
    report: Report = args.run(Account(Http(settings, console, args.timeout)), args)
    return report


def main(argv: Sequence[str], console: Console | None = None) -> int:
    """Run one command line; returns its exit code."""
    console = console or Console(argv)
    try:
        report = run(argv, console)
        console.deliver(report)
        return report.exit
    except Failure as error:
        failure = error
    except KeyboardInterrupt:
        failure = console.ended("interrupted")
    except BaseException as error:
        from traceback import extract_tb

        # only the line is reported: the text of the error could quote a secret
        lines = [at.lineno for at in extract_tb(error.__traceback__) if at.filename == __file__]
        bug = f"this is a bug in cacheforge-ops {__version__} (line {lines[-1] if lines else 0})"
        failure = console.ended("failed", f"{bug}: please report it at {DEFAULT_BASE_URL}; ")
    console.fail(failure)
    return failure.exit


def start() -> NoReturn:
    """Run as a script. Exits without Python's clean-up, which could wait for a full pipe."""
    import signal

    if sys.stdout is not None:
        # a buffer, because PYTHONUNBUFFERED=1 ignores short writes: half a key would count as
        # printed; backslashes, because a name in Japanese must not fail on an ASCII terminal
        out, errors = sys.stdout, "backslashreplace"
        sys.stdout = open(out.fileno(), "w", -1, out.encoding, errors, closefd=False)  # noqa: SIM115
    console = Console(sys.argv)
    clock = console.clock

    def stop(number: int, frame: object) -> None:
        clock.stopped_at = clock.stopped_at or clock.now()
        # A second one raises, because standard output may block; two within a second are one.
        clock.raise_if_stopped(0 if console.is_asking else 1)

    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, console.wake)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, stop)
    try:
        code = main(sys.argv[1:], console)
    except KeyboardInterrupt:  # a second signal, while the failure was being printed
        code = EXIT_CODES["interrupted"][0]
    os._exit(code)


if __name__ == "__main__":
    start()
