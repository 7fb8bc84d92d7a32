#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = []
# ///
"""Manage a CacheForge account: balance, top-ups, auto top-up, provider, API keys.

One file, standard library only. Read it from top to bottom: a section uses only the sections
above it, except for the Console of the last section, which is passed in.

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
    main       the only section that prints, reads the environment, or exits

A record is a plain dict with our own field names; most reports print it as it is. The key is sent
to the configured service only, and a write is sent once.
"""

from __future__ import annotations

import gc

gc.set_threshold(200_000)  # garbage collection during the imports costs 2 ms of each start

import errno
import os
import re
import sys
import time
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter

TYPE_CHECKING = False  # importing `typing` takes 3 ms, and only type checkers need it
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from email.message import Message
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

EXIT_CODES = {  # name: exit code, whether repeating can help, meaning (as `--help` prints it)
    "ok": (0, False, "done"),
    "failed": (1, False, "refused, unusable response, or stored differently: do not repeat"),
    "usage": (2, False, "wrong command line or setting, or not confirmed: nothing was changed"),
    "unauthorized": (3, False, "the service refused the API key"),
    "payment_required": (4, False, "no credit, less than --min, or still unpaid after --wait"),
    "unreachable": (5, True, "no usable response: repeating is safe"),
    "uncertain": (6, False, "a key may have been created, but its secret was lost: run `keys`"),
    "interrupted": (130, False, "Ctrl-C, SIGTERM or SIGHUP: the message says whether to repeat"),
}


class Failure(Exception):
    """Why a command did not do what was asked. `code` is a name in EXIT_CODES, `hint` a sentence,
    `next` a command line for this program, `response` the Exchange that caused it."""

    def __init__(
        self, code: str, message: str, hint: str = "", next: str = "", response: Any = None
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.hint, self.next = code, message, hint, next
        self.exit, self.retryable, _ = EXIT_CODES[code]
        self.response = response


class Lost(Failure):
    """A write was sent, but its response, or the key in it, was lost on the way."""


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
    """An amount from the command line: `10`, `10usd`, `1000c` or, with `decimals`, `2.50`."""

    def __init__(self, text: str, unit: str, decimals: bool = False) -> None:
        """`unit` (usd or c) is the unit of a bare number. Raises Failure (usage)."""
        if "$" in text:
            raise Failure("usage", "leave out the $, which shells replace: write 10usd")
        # by pattern, because int() also accepts `1_000`, ` 10 ` and the digits of other scripts
        match = re.fullmatch(r"([0-9]{1,15})(?:\.([0-9]{1,2}))?(usd|c)?", text, re.IGNORECASE)
        bare_unit, unit = unit, (match[3] or unit).lower() if match else unit
        if not match or (match[2] and not (decimals and unit == "usd")):
            example = "1000" if bare_unit == "c" else "2.50" if decimals else "10"
            raise Failure("usage", f"an amount looks like {example}, 10usd or 1000c")
        self.number, self.bare_unit = int(match[1]), "" if match[3] else bare_unit
        decimal_cents = int((match[2] or "").ljust(2, "0"))
        self.cents = self.number if unit == "c" else self.number * CENTS_PER_USD + decimal_cents


# ── Settings: the environment, URLs, and the check that every key has to pass

DEFAULT_BASE_URL = "https://app.anvil-ai.io"
DEFAULT_MAX_TOPUP_USD = "500"
SMALLEST_TOPUP_CENTS = 1000  # the service's usual minimum
HOST = r"(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
LOOPBACK = r"localhost|::1|127(\.(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}"
USER = r"(?:[a-z0-9._~!$&'()*+,;=-]|%[0-9a-f]{2})+"
PROXY = rf"(?:http://)?(?:{USER}:{USER}@)?({HOST})/?"
KEY_MISTAKES = (  # what is set by mistake in place of a key
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
        port = url.port
    except ValueError:
        raise ValueError("its host or port is not valid") from None
    if not re.fullmatch("[!-~]+", text):
        raise ValueError("it has a space or a non-ASCII character")
    if url.scheme not in ("http", "https"):
        raise ValueError("it does not begin with https://")
    if "@" in url.netloc:
        raise ValueError("it has a user name")
    if not re.fullmatch(HOST, url.netloc, re.IGNORECASE) or port == 0:
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
    why = next((why for pattern, why in KEY_MISTAKES if re.fullmatch(pattern, key, re.DOTALL)), "")
    owner = next((owner for prefix, owner in refused.items() if key.startswith(prefix)), "")
    if why or owner:
        raise Failure("usage", f"{source} {why or f'holds a key for {owner}'}", hint)


class Settings:
    """What the environment says, checked. Raises Failure (usage), which quotes no value."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = {name: value.strip() for name, value in environ.items()}
        read = self.environ.get
        self.allow_http = read("CACHEFORGE_ALLOW_INSECURE_HTTP") == "1"
        base_url = read("CACHEFORGE_BASE_URL") or DEFAULT_BASE_URL
        url = check_url(base_url, "CACHEFORGE_BASE_URL", allow_http=True)
        self.is_loopback = bool(re.fullmatch(LOOPBACK, url.hostname or ""))
        check_url(base_url, "CACHEFORGE_BASE_URL", self.allow_http or self.is_loopback)
        # people also set a URL that ends in /v1
        path = re.sub("/+v1$", "", url.path.rstrip("/")).rstrip("/")
        self.scheme, self.host, self.hostname = url.scheme, url.netloc.lower(), url.hostname
        self.base_url = f"{self.scheme}://{self.host}{path}"
        limit_usd = read("CACHEFORGE_MAX_TOPUP_USD") or DEFAULT_MAX_TOPUP_USD
        if not re.fullmatch("[0-9]{1,9}", limit_usd):
            raise Failure("usage", "CACHEFORGE_MAX_TOPUP_USD must be a whole number of dollars")
        self.max_topup_cents = int(limit_usd) * CENTS_PER_USD
        self.certificates = read("SSL_CERT_FILE")
        self.api_key = read("CACHEFORGE_API_KEY") or ""
        hint = (
            "Set it to your CacheForge key: export CACHEFORGE_API_KEY=cf_..."
            ' (PowerShell: $env:CACHEFORGE_API_KEY = "cf_...")'
        )
        check_key(self.api_key, "CACHEFORGE_API_KEY", {"sk-": "another service"}, hint)
        self.secrets = [self.api_key]  # never shown; a provider's key and a new key join it

    def mask_key(self) -> str:
        """The account's key, masked: enough to tell two keys apart."""
        head = next(filter(self.api_key.startswith, ("cf_", "cfk_")), "")
        return f"{head}...{self.api_key[-4:] if len(self.api_key) >= 16 else ''}"

    def topup_command(self, short_microusd: int = 0) -> str | None:
        """The top-up that covers this, at least the usual minimum; None if it is over the limit."""
        short_usd = -(-short_microusd // MICROUSD_PER_USD)
        amount_usd = max(SMALLEST_TOPUP_CENTS // CENTS_PER_USD, short_usd)
        is_allowed = amount_usd * CENTS_PER_USD <= self.max_topup_cents
        return f"topup --amount {amount_usd}" if is_allowed else None


# ── Text: untrusted text made safe to print; fields of JSON

MAX_TEXT_CHARS = 300
REASON_NAMES = "error message detail error_description title errors msg reason"
SECRET_BLOCK_CHARS = 16  # text with so many consecutive characters of a secret is redacted
ESCAPES = r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
INVISIBLE = (  # characters without a shape that str.isprintable() accepts
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def clean(text: str) -> str:
    """Untrusted text on one line, without control characters or invisible characters."""
    if not (text.isascii() and text.isprintable()):
        text = re.sub(r"\s+", " ", re.sub(f"{ESCAPES}|{INVISIBLE}", "", text))
        text = "".join(filter(str.isprintable, text))
    return text.strip()


def shares_block(text: str, secret: str) -> bool:
    """Whether the text has 16 consecutive characters of the secret."""
    if len(text) < SECRET_BLOCK_CHARS:
        return False  # as most ids and labels; this speeds up long lists of keys
    starts = range(len(text) - SECRET_BLOCK_CHARS + 1)
    return any(text[start : start + SECRET_BLOCK_CHARS] in secret for start in starts)


def redact(text: str, secrets: Sequence[str]) -> str:
    """The text without secrets, even if one is cut short. Secrets of fewer than 8 characters are
    left in, because ordinary words could contain them."""
    for secret in secrets:
        if 8 <= len(secret) < SECRET_BLOCK_CHARS:
            text = text.replace(secret, "<hidden>")
        if shares_block(text, secret):
            words = text.split(" ")
            text = " ".join("<hidden>" if shares_block(word, secret) else word for word in words)
    return text


def printable(text: str, secrets: Sequence[str]) -> str:
    """Untrusted text, safe to print: one short line, no control characters, no secrets."""
    text = redact(clean(text[: 10 * MAX_TEXT_CHARS]), secrets)
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


def reason(value: object, depth: int = 5) -> str:
    """What the JSON of an error says, in any of the common shapes; empty if it says nothing."""
    if isinstance(value, str):
        return "" if value.lstrip().startswith("<") else value  # no HTML
    if not depth:
        return ""
    if isinstance(value, dict):
        found = (reason(value.get(name), depth - 1) for name in REASON_NAMES.split())
        told = next(filter(None, found), "")
        is_nested = depth < 5  # its names may be those of fields, as in {"amount": "too small"}
        return told or (reason(list(value.values()), depth - 1) if is_nested else "")
    if isinstance(value, list):
        return "; ".join(filter(None, (reason(item, depth - 1) for item in value[:3])))
    return ""


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
RETRIED_STATUSES = (None, 403, 429, 502, 503, 504)  # None: no response; 403: a rate limit only
URL_HINT = "Check CACHEFORGE_BASE_URL."
CERTIFICATE_HINT = (
    "If a private authority signed it, set SSL_CERT_FILE to the PEM file of that authority. With"
    " Python from python.org on macOS, run Install Certificates.command first."
)


class Clock:
    """The time, and whether a signal has come."""

    # all that the signal handler sets: if it raised, it could interrupt the printing of a new key
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
    """Seconds before the next attempt: 0.5 to 1, then 1 to 2, but at least Retry-After."""
    return max(jitter(0.5, 1.0) * attempt, asked_s or 0)


def find_proxy(settings: Settings) -> tuple[str, str]:
    """The proxy setting that applies, and the name of its variable; both empty if none applies."""
    from urllib.request import getproxies, proxy_bypass

    proxy = getproxies().get(settings.scheme, "").strip()
    # never for this machine, which a proxy cannot reach; and it would see a key sent by http
    if not proxy or settings.is_loopback or proxy_bypass(settings.host):
        return "", ""
    names = (f"{settings.scheme}_proxy", f"{settings.scheme}_proxy".upper())
    source = next(filter(settings.environ.get, names), "the system's proxy setting")
    match = re.fullmatch(PROXY, proxy, re.IGNORECASE)
    try:  # with other forms, urllib may send the password to the wrong host
        split_url(f"http://{match[1] if match else ''}")
    except ValueError:
        hint = "Percent-encode special characters in USER and PASSWORD: write @ as %40."
        hint = hint if "@" in proxy else ""
        message = f"{source} is not http://[USER:PASSWORD@]HOST[:PORT]"
        raise Failure("usage", message, hint) from None
    return proxy, source


def make_opener(exchange: Exchange, context: Any) -> OpenerDirector:
    """An opener for http and https only, which follows no redirect and accepts any status."""
    import socket
    from http import client
    from urllib.request import AbstractHTTPHandler, OpenerDirector, ProxyHandler

    options = {"context": context} if context else {}

    class Response(client.HTTPResponse):
        def begin(self) -> None:
            super().begin()
            while 102 <= self.status < 200:  # an interim response; http.client skips only 100
                self.headers = None  # type: ignore[assignment]  # or begin() does nothing
                super().begin()

    def connect_tcp(address: Any, timeout: float, source: Any) -> socket.socket:
        # each address of the host has this timeout, so that a silent one leaves time for the next
        sock = socket.create_connection(address, min(CONNECT_TIMEOUT_S, timeout / 4), source)
        sock.settimeout(timeout)
        return sock

    class Connection(client.HTTPSConnection if context else client.HTTPConnection):  # type: ignore[misc]
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


def load_certificates(file: str | None) -> Any:
    """What https connections are verified with. Raises Failure (usage)."""
    try:
        import ssl

        context = ssl.create_default_context()
    except ImportError:
        raise Failure("usage", "this Python was built without ssl, which https needs") from None
    except ssl.SSLError:
        raise Failure("usage", "Python cannot load the certificates of this system") from None
    except OSError:
        raise Failure("usage", "SSLKEYLOGFILE names a file that cannot be written") from None
    try:
        if file:  # loaded already, but without an error if it holds no certificate
            context.load_verify_locations(file)
    except OSError:
        problem = "SSL_CERT_FILE does not name a readable file with certificates"
        raise Failure("usage", problem) from None
    return context


class Exchange:
    """One request and its response, in a thread that can be abandoned.

    A socket's timeout limits each `recv`, but neither the whole response nor the name lookup;
    waiting for a thread with a timeout limits everything. Thread and caller compete for one lock:
    the thread takes it before it sends the first byte, the caller when it gives up. So the lock
    tells whether the request was sent.
    """

    status: int | None = None
    headers: Message | None = None
    value: Any = None  # the JSON of the body
    sent = False  # whether at least a part of the request was sent
    error: BaseException | None = TimeoutError()  # unless the thread sets another, or none
    request_id: str | None = None

    def __init__(self, call: Call, settings: Settings, clock: Clock) -> None:
        import threading
        from urllib.request import Request

        self.secrets = settings.secrets
        method, path, body = call
        headers = {
            "Authorization": f"Bearer {settings.api_key}",
            "Accept": "application/json",
            "User-Agent": f"cacheforge-ops/{__version__}",
        }
        self._request = Request(settings.base_url + path, None, headers, method=method)  # noqa: S310
        self.is_read, self.body = method == "GET", bytearray()
        if not self.is_read:
            self._request.data = to_json(body).encode("ascii")
            self._request.add_header("Content-Type", "application/json")
        self.proxy, self.proxy_name = find_proxy(settings)
        context = load_certificates(settings.certificates) if settings.scheme == "https" else None
        self._opener = make_opener(self, context)
        self._clock, self._lock = clock, threading.Lock()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def run(self, seconds: float) -> None:
        """Carry it out within so many seconds. Raises KeyboardInterrupt."""
        self._clock.raise_if_stopped()
        self._timeout_s = max(0.001, seconds)
        end = self._clock.now() + seconds
        try:
            try:
                self._thread.start()
            except RuntimeError:  # the system starts no more threads
                self._work()
            while self._thread.is_alive() and self._clock.now() < end:
                is_sent_write = self._lock.locked() and not self.is_read
                self._clock.raise_if_stopped(GRACE_S if is_sent_write else 0)
                self._thread.join(max(0.0, min(0.1, end - self._clock.now())))
        finally:
            self.sent = not self._lock.acquire(blocking=False)
        if self.value is None:  # perhaps the body is complete, but the connection not closed
            self.value = parse_json(bytes(self.body))

    def begin_to_send(self) -> None:
        """Called by the thread once the connection is made. Raises OSError if it is too late."""
        if self._clock.stopped_at is not None or not self._lock.acquire(blocking=False):
            raise OSError

    def _work(self) -> None:
        try:
            with self._opener.open(self._request, timeout=self._timeout_s) as response:
                self.status, self.headers = response.status, response.headers
                self._read(response)
                self.error = None
        except KeyboardInterrupt:  # if there is no thread
            raise
        except BaseException as error:  # the reason of a URLError is what went wrong
            cause = getattr(error, "reason", None)
            self.error = cause if isinstance(cause, BaseException) else error

    def _read(self, response: HTTPResponse) -> None:
        """Read the body. A JSON object that parses is complete, whatever Content-Length says."""
        length, response.length = response.length, None  # or http.client stops there
        open_braces = 0  # if balanced, parse; at each block, a long list would take too much time
        while self.value is None and len(self.body) <= MAX_BODY_BYTES:
            is_object = re.match(rb"[\s\xef\xbb\xbf]*\{", self.body)
            is_full = length is not None and len(self.body) >= length
            if is_object and (is_full or open_braces == 0):
                self.value = parse_json(bytes(self.body))
            if self.value is not None or (is_full and not is_object):
                break
            block = response.read1(65536)
            if not block:
                break
            self.body += block
            open_braces += block.count(b"{") - block.count(b"}")
        if self.value is None and len(self.body) < max(1, min(length or 0, MAX_BODY_BYTES)):
            raise ConnectionError  # an empty response counts as cut short, too

    def header(self, *names: str) -> str:
        """The first of these headers that the response has; empty if it has none."""
        found = (self.headers.get(name) for name in names) if self.headers else ()
        return next(filter(None, found), "").strip()

    @property
    def is_ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= (self.status or 0) < 300

    @property
    def is_cut(self) -> bool:
        """Whether a 2xx response is empty or incomplete, which counts as no response."""
        return self.is_ok and self.error is not None and self.value is None

    @property
    def retry_after_s(self) -> int | None:
        """The seconds of Retry-After; None for a date, or without that header."""
        text = self.header("Retry-After")
        return int(text) if re.fullmatch("[0-9]{1,9}", text) else None

    def reason(self) -> str:
        """The reason of a refusal, in JSON or plain text, but not HTML or broken JSON."""
        if self.is_ok and not says_no(self.value):
            return ""
        if self.value is not None:
            return reason(self.value)
        text = self.body.decode("utf-8", "replace").strip("\ufeff \t\r\n")
        is_html = "html" in self.header("Content-Type").lower()
        return "" if is_html or text[:1] in ("<", "{", "[") else text


def explain_error(exchange: Exchange, host: str) -> tuple[str, str, str]:
    """Why there is no response: the code, message and hint of the failure."""
    # the text of the exception is not shown, because it may quote a secret
    error, kind = exchange.error, type(exchange.error).__name__
    where, hint = host, URL_HINT
    if exchange.proxy:
        where += " through the proxy " + re.split("[/@]", exchange.proxy.rstrip("/"))[-1]
        if not exchange.sent and "SSL" not in kind:
            hint = f"Check {exchange.proxy_name}."
    tunnel = re.match("Tunnel connection failed: ([0-9]{3})", str(error))
    reason = printable(
        str(getattr(error, "verify_message", getattr(error, "strerror", "")) or ""), ()
    )
    if kind == "SSLCertVerificationError":
        return "failed", f"the certificate of {host} is not accepted: {reason}", CERTIFICATE_HINT
    if tunnel:
        code = "usage" if tunnel[1] == "407" else "unreachable"
        return code, f"no connection to {where}: the proxy refused it (HTTP {tunnel[1]})", hint
    if kind in ("TimeoutError", "timeout"):  # the latter in Python 3.9
        return "unreachable", f"no complete response from {where} in time", hint
    if "SSL" in kind:
        return "unreachable", f"the TLS connection to {where} failed", hint
    if not isinstance(error, OSError) and kind != "IncompleteRead":
        return "failed", f"{where} sent something that is not HTTP", hint
    if reason and not exchange.sent:
        return "unreachable", f"no connection to {where}: {reason}", hint
    return "unreachable", f"the connection to {where} broke before the response was complete", hint


def explain_status(exchange: Exchange) -> tuple[str, str, str]:
    """What a useless response means by its status: the code, message and hint of the failure."""
    status, is_json = exchange.status or 0, isinstance(exchange.value, dict)
    if exchange.is_ok and not says_no(exchange.value):
        if len(exchange.body) > MAX_BODY_BYTES:
            return "failed", "the service sent more than 4 MiB", URL_HINT
        kind = printable(exchange.header("Content-Type") or "no content type", exchange.secrets)
        return "failed", f"the service sent no JSON object ({kind})", URL_HINT
    if status == 429 or (status == 403 and exchange.header("Retry-After")):
        return "unreachable", "the service is limiting the rate of requests", ""
    if status == 401 or (status == 403 and is_json):
        words = "refused" if status == 401 else "does not allow this with"
        return "unauthorized", f"the service {words} the API key", "Check CACHEFORGE_API_KEY."
    if status == 402:
        return "payment_required", "the service requires payment: the credit is used up", ""
    if status == 407:
        return "usage", "the proxy requires a user name and a password", "Check the proxy setting."
    if 300 <= status < 400:
        return "failed", "the service sent a redirect, which is not followed", URL_HINT
    if status == 408 or not 200 <= status < 500:
        return "unreachable", "the service failed", ""
    is_wrong_path = status in (404, 405) and exchange.is_read
    hint = URL_HINT if is_wrong_path or not is_json else ""
    return "failed", "the service refused the request", hint


class Http:
    """Requests to one service with one key, within `timeout_s` seconds in total."""

    last: Exchange | None = None

    def __init__(self, settings: Settings, console: Console, timeout_s: float) -> None:
        self.settings, self.console, self.clock = settings, console, console.clock
        self.timeout_s = self.left_s = timeout_s

    def read(self, path: str, limit_s: float = NO_LIMIT_S, attempts: int = READ_ATTEMPTS) -> Json:
        """The JSON object that a GET returns, tried again if that can help. Raises Failure."""
        kept_s = max(0.0, self.left_s - limit_s)  # for what comes after this read
        for attempt in range(1, attempts + 1):
            exchange = self._exchange(("GET", path, {}), self.left_s - kept_s)
            if exchange.is_ok and isinstance(exchange.value, dict):
                return exchange.value
            failure = self._failure(exchange)
            delay_s = retry_delay_s(attempt, exchange.retry_after_s)
            is_retried = exchange.is_cut or exchange.status in RETRIED_STATUSES
            is_last = attempt == attempts or self.left_s - delay_s <= kept_s
            if is_last or not (failure.retryable and is_retried):
                break
            self.sleep(delay_s)
        raise failure

    def write(self, write: Call, if_lost: Failure, field: str = "") -> Any:
        """Send a write once; returns the JSON of a 2xx response, None if that is not JSON.

        `if_lost` is the failure to report if the outcome stays unknown; until the result is
        delivered, also if a signal or a fault ends the command. `field` is the link or key without
        which the response is useless. Raises Lost if the outcome is unknown, and Failure if the
        service refused the request or nothing was sent.
        """
        kept_s = min(5.0, self.timeout_s / 4)  # for reading back what was stored
        exchange = self._exchange(write, self.left_s - kept_s, if_lost)
        status, value = exchange.status or 0, exchange.value
        # 303 means that the request was carried out, 408 that its outcome is unknown
        is_refused = 300 <= status < 500 and status not in (303, 408)
        if exchange.is_ok:
            is_refused = says_no(value) and not (get(value, field, str) or "").strip()
            if not is_refused and (isinstance(value, dict) or not field):
                return value
        failure = self._failure(exchange)
        if is_refused or not exchange.sent:
            self.console.if_stopped = None
            raise failure
        message = f"the request was sent, but its outcome is unknown: {failure.message}"
        raise Lost(if_lost.code, f"{message}; {if_lost.message}", "", if_lost.next, exchange)

    def sleep(self, seconds: float) -> None:
        """Sleep, as a part of the time that this command has."""
        self.clock.sleep(seconds)
        self.left_s -= seconds

    def _exchange(self, call: Call, seconds: float, if_lost: Failure | None = None) -> Exchange:
        exchange, began = Exchange(call, self.settings, self.clock), self.clock.now()
        self.last = exchange
        try:
            exchange.run(seconds)
        finally:
            took_s = self.clock.now() - began
            self.left_s -= took_s
            if exchange.sent and if_lost:
                self.console.if_stopped = if_lost
        secrets, new_key = self.settings.secrets, get(exchange.value, "apiKey", str)
        if new_key:  # a secret from now on, which the request id could repeat
            secrets.append(new_key.strip())
        found = exchange.header("x-request-id", "request-id", "x-correlation-id", "cf-ray")
        exchange.request_id = printable(found, secrets)[:100] or None
        if self.console.verbose:
            status, request_id = exchange.status or "no response", exchange.request_id or "-"
            line = f"{call[0]} {call[1]}: {status}, {took_s * 1000:.0f} ms, id {request_id}"
            self.console.note(line)
        return exchange

    def _failure(self, exchange: Exchange) -> Failure:
        """What to report for a response that is not what was asked for, or for none."""
        settings, next_step = self.settings, ""
        if exchange.status is None or exchange.is_cut:
            return Failure(*explain_error(exchange, settings.host), response=exchange)
        code, words, hint = explain_status(exchange)
        if code == "payment_required" and exchange.is_read:
            next_step = settings.topup_command() or ""
        if code == "unauthorized":
            words += f" {settings.mask_key()} at {settings.host}"
        elif exchange.retry_after_s and not next_step:
            hint = f"Wait {exchange.retry_after_s} s before you repeat it."
        said = printable(exchange.reason(), settings.secrets)
        message = f"{words} (HTTP {exchange.status}{': ' if said else ''}{said})"
        return Failure(code, message, hint, next_step, exchange)


# ── Account: one method for each endpoint, JSON in, a record out

BILLING = "/v1/account/billing"
UPSTREAM = "/v1/account/upstream"
KEYS = "/v1/account/keys"
POSSIBLE_MATCH_CHARS = 4  # a prefix that shares fewer with our key says nothing
CERTAIN_MATCH_CHARS = 8
LINK_LOST = "a payment link may have been created, but it was not shown; repeating is safe"
KEY_LOST = "a key may have been created, but its secret was lost"


class Account:
    """The account behind one key. Each method raises what `Http.read` or `Http.write` raises."""

    def __init__(self, http: Http) -> None:
        self.http, self.settings, self.console = http, http.settings, http.console

    def _texts(self, fields: object, **names: str) -> Json:
        """Optional text fields, safe to print; None if missing, empty or of another type."""
        secrets, texts = self.settings.secrets, {}
        for name, wire_name in names.items():
            text = get(fields, wire_name, str)
            texts[name] = printable(text, secrets) or None if text else None
        return texts

    def _need(self, response: Json, fields: object, name: str, kind: type[T]) -> T:
        """A required field. Raises Failure, with the reason that the service gives."""
        value = get(fields, name, kind)
        if value is None:
            message = f"the response cannot be used: {name} is missing or not valid"
            message += self._said(response)
            raise Failure("failed", message, URL_HINT, response=self.http.last)
        return value

    def _said(self, response: Json) -> str:
        """What the service says about a response that cannot be used, in parentheses."""
        said = printable(reason(response), self.settings.secrets)
        return f" ({said})" if said else ""

    def billing(self, limit_s: float = NO_LIMIT_S, attempts: int = READ_ATTEMPTS) -> Json:
        """The balance, which is required, and the auto top-up rule."""
        response = self.http.read(BILLING, limit_s, attempts)
        billing = self._need(response, response, "billing", dict)
        self._need(response, billing, "creditBalanceMicrousd", int)
        return billing_record(billing)

    def create_link(self, write: Call) -> tuple[str, str]:
        """Create a payment link; returns it and its host."""
        response = self.http.write(write, Failure("unreachable", LINK_LOST), "paymentUrl")
        link = self._need(response, response, "paymentUrl", str).strip()
        try:
            url = split_url(link)
            is_own_http = self.settings.scheme == "http" and url.hostname == self.settings.hostname
            if url.scheme == "http" and not is_own_http:
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
        configured = self._need(response, response, "configured", bool)
        upstream = get(response, "upstream", dict) if configured else None
        return {"configured": configured, **self._texts(upstream, kind="kind", base_url="baseUrl")}

    def keys(self, limit_s: float = NO_LIMIT_S) -> list[Json]:
        """All API keys in the service's order, without items that have neither id nor prefix."""
        response = self.http.read(KEYS, limit_s)
        items = self._need(response, response, "keys", list)
        items = [item for item in items if get(item, "id", str) or get(item, "prefix", str)]
        times = {"created_at": "createdAt", "last_used_at": "lastUsedAt", "revoked_at": "revokedAt"}
        keys = []
        for item in items:
            key = self._texts(item, id="id", prefix="prefix", label="label", **times)
            key["revoked"] = is_revoked(item)
            keys.append(key)
        mark_key_in_use(keys, [get(item, "prefix", str) or "" for item in items], self.settings)
        return keys

    def create_key(self, write: Call) -> Json:
        """Create a key. Its secret is in this response only."""
        response = self.http.write(write, Failure("uncertain", KEY_LOST, next="keys"), "apiKey")
        secret = (get(response, "apiKey", str) or "").strip()
        if not re.fullmatch("[!-~]+", secret) or secret == self.settings.api_key:
            message = f"the response has no new key{self._said(response)}; {KEY_LOST}"
            raise Lost("uncertain", message, next="keys", response=self.http.last)
        return {**self._texts(response, id="id", prefix="prefix"), "api_key": secret}

    def tenant(self) -> Json:
        """Whose account the key belongs to."""
        response = self.http.read("/v1/account/info")
        tenant = self._need(response, response, "tenant", dict)
        record = self._texts(tenant, id="id", name="name", status="status")
        record["upstream_configured"] = get(tenant, "upstreamConfigured", bool)
        record["active_keys"] = get(tenant, "activeKeys", int)
        return record

    def times_to_read(self) -> Iterator[int]:
        """Up to three reads, a second apart, because a replica may return the old value first."""
        yield 1
        for count in (2, 3):
            if self.http.left_s > 1:
                self.http.sleep(1)
                yield count


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
    flag, date = get(item, "revoked", bool), item.get("revokedAt")
    is_date = isinstance(date, str) and re.match("[0-9]{4}-", date)
    if isinstance(date, str) and (not date or date.startswith("0001-")):
        date = None  # as some services write "no time"
    if flag is not None:
        return flag if flag or date is None else None
    if date is None:
        return False if "revokedAt" in item else None
    return True if is_date or isinstance(date, (int, float)) else None


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
            ends_there = not text[shared_chars : shared_chars + 1].isalnum() or text in own
            live.append((key, shared_chars, ends_there))
    most = max([POSSIBLE_MATCH_CHARS, *(shared_chars for _, shared_chars, _ in live)])
    found = [(key, chars) for key, chars, ends_there in live if chars == most or ends_there]
    found = found or [(key, chars) for key, chars, _ in live]
    is_sure = len(found) == 1 and found[0][1] >= CERTAIN_MATCH_CHARS
    for key, _ in found:
        key["in_use"] = True if is_sure else None


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
    of cells, and all rows of a report are aligned. With empty data (the help) the text is printed
    even with `--json`; without data (None) nothing is printed."""

    def __init__(self, data: Json | None, *lines: str | tuple[str, ...], code: str = "ok") -> None:
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
    if rule["threshold_cents"] is None or rule["amount_cents"] is None:
        return "on, amounts unknown"
    return f"add {usd_text(rule['amount_cents'])} when below {usd_text(rule['threshold_cents'])}"


def billing_rows(billing: Json) -> list[tuple[str, str]]:
    """The rows of a billing record."""
    return [
        ("Balance", balance_text(billing["balance_microusd"])),
        ("Auto top-up", rule_text(billing["auto_topup"])),
        ("Saved card", {True: "yes", False: "no", None: "unknown"}[billing["card_saved"]]),
    ]


def rise_text(before: Json | None, after: Json) -> str:
    """How far the balance has risen, in words; empty if it has not, or if that is unknown."""
    if before is None or after["balance_microusd"] is None:
        return ""
    rise_microusd = after["balance_microusd"] - before["balance_microusd"]
    rise = balance_text(rise_microusd) if rise_microusd >= MICROUSD_PER_CENT else "less than $0.01"
    return f"The balance rose by {rise}." if rise_microusd > 0 else ""


def link_report(cents: int, method: str, link: str, host: str, next: str | None) -> Report:
    """A payment link, with a sentence for the payer."""
    sentence = (
        f"Pay {usd_text(cents)} {PAYMENT_METHODS[method]} for CacheForge credit at {host}."
        " Nothing is charged until you pay:"
    )
    data = {
        "amount_usd": cents // CENTS_PER_USD,
        "method": method,
        "payment_url": link,
        "payment_host": host,
        "message": f"{sentence} {link}",
        "next": next,
    }
    return Report(data, sentence, link)


def charges_now(billing: Json) -> bool | None:
    """Whether the rule charges the saved card at once; None if that is unknown."""
    rule, balance_microusd = billing["auto_topup"], billing["balance_microusd"]
    is_below = None
    if rule["threshold_cents"] is not None and balance_microusd is not None:
        is_below = balance_microusd < rule["threshold_cents"] * MICROUSD_PER_CENT
    facts = (rule["enabled"], billing["card_saved"], is_below)
    return False if False in facts else None if None in facts else True


def charge_text(billing: Json) -> str:
    """What the rule will charge, in words; empty if it is off or its amounts are unknown."""
    rule = billing["auto_topup"]
    if not rule["enabled"] or rule["threshold_cents"] is None or rule["amount_cents"] is None:
        return ""
    if billing["card_saved"] is False:
        return "No card is saved, so nothing can be charged."
    amount, threshold = usd_text(rule["amount_cents"]), usd_text(rule["threshold_cents"])
    card = "the saved card" if billing["card_saved"] else "a saved card"
    text = f"The service charges {card} {amount} each time the balance falls below {threshold}"
    text += ", until you run auto-topup --disable."
    if charges_now(billing):
        text += f" The balance is already below {threshold}: expect a charge of {amount} at once."
    return text


def auto_topup_report(billing: Json, before: Json | None = None) -> Report:
    """The rule and what it will charge, and how far the balance has risen since `before`."""
    message = f"{charge_text(billing)} {rise_text(before, billing)}".strip()
    data = {**billing, "charges_now": charges_now(billing), "message": message or None}
    del data["funded"]
    balance, auto_topup, card = billing_rows(billing)
    return Report(data, auto_topup, balance, card, message)


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
        if key["revoked"] and key["revoked_at"]:
            state = f"revoked {key['revoked_at'][:10]}"
        elif key["in_use"]:
            state = "in use here"
        times = (key[name] or "-" for name in ("created_at", "last_used_at"))
        times = (time[:16].replace("T", " ") for time in times)
        rows.append((key["id"] or "-", key["prefix"] or "-", *times, state, key["label"] or "-"))
    return Report({"keys": keys}, *(rows if keys else ["No API keys."]))


def key_name(key: Json) -> str:
    """A key in words: its id, and what else is known of it."""
    details = ", ".join(filter(None, (key["prefix"], key.get("label"))))
    return (key["id"] or "a key without an id") + (f" ({details})" if details else "")


def revoked_report(key: Json, confirmed: bool) -> Report:
    """Which key was revoked, and whether the list of keys shows it."""
    words = f"{key_name(key)} {'was already' if key['revoked'] else 'is'} revoked"
    if not confirmed:
        words = (
            f"The service accepted it, but the list of keys does not confirm it: {key_name(key)}"
        )
    revoked = {name: key[name] for name in ("id", "prefix", "label")}
    data = {"revoked": revoked, "already": bool(key["revoked"]), "confirmed": confirmed}
    return Report(data, words)


def dry_run_report(write: Call, settings: Settings, message: str = "") -> Report:
    """The request that would be sent, with secrets redacted, and its consequences."""
    method, path, body = write
    texts = {name: value for name, value in body.items() if isinstance(value, str)}
    body = {**body, **{name: redact(text, settings.secrets) for name, text in texts.items()}}
    if "apiKey" in body:
        body["apiKey"] = "<hidden>"
    url = redact(settings.base_url + path, settings.secrets)
    data = {"dry_run": {"method": method, "url": url, "body": body}, "message": message or None}
    return Report(data, f"Not sent, because of --dry-run: {method} {url}", to_json(body), message)


# ── Commands: one function for each thing that the command line can ask for

CHANGE_LOST = "the change may have been stored; repeating is safe"
DEFAULT_WAIT_S = 100.0  # common agent shells end a command after 120 s
CHECK_S = 10.0
LAST_CHECK_S = 0.8


class OptionalRead:
    """A `with` block in which a read may fail: any failure except a refused key is ignored."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        return isinstance(error, Failure) and error.code != "unauthorized"


def show_balance(account: Account, args: Namespace) -> Report:
    """`balance`, perhaps with `--min` or `--wait`."""
    least_microusd = args.min.cents * MICROUSD_PER_CENT if args.min else 1
    if args.wait is None:
        billing, again = account.billing(), None
    else:
        billing, failure = wait_for_balance(account, args, least_microusd)
        if billing["balance_microusd"] is None:
            raise failure or AssertionError
        del billing["credit_rose"]
        again = wait_command(args.min.cents if args.min else None)
    short_microusd = max(0, least_microusd - billing["balance_microusd"])
    rows = billing_rows(billing)
    if args.min:
        billing.update(enough=not short_microusd, short_microusd=short_microusd)
        if short_microusd:
            rows.append(("Missing", usd_text(-(-short_microusd // MICROUSD_PER_CENT))))
    next_step = again or account.settings.topup_command(short_microusd)
    billing["next"] = next_step if short_microusd else None
    is_unmet = short_microusd and (args.min or args.wait is not None)
    return Report(billing, *rows, code="payment_required" if is_unmet else "ok")


def wait_command(min_cents: int | None) -> str:
    """The command that waits for any credit, or for at least so many cents."""
    least = "" if min_cents is None else f" --min {exact_usd(min_cents * MICROUSD_PER_CENT)}"
    return f"balance --wait{least}"


def poll_gap_s(waited_s: float) -> float:
    """Seconds until the next check of a wait: about 5, after a minute about 10."""
    return (5 if waited_s < 60 else 10) * jitter(0.8, 1.2)


def wait_for_balance(
    account: Account, args: Namespace, least_microusd: int | None
) -> tuple[Json, Failure | None]:
    """Check the balance until it is at least so much (None: until it rises) or the time is up.
    Returns the last record, and why the last check failed. Raises Failure for a refused key."""
    console, clock = account.console, account.console.clock
    end = console.began + args.wait
    last_check = end - min(LAST_CHECK_S, args.wait / 10)  # early enough for its response
    billing, failure, is_reached, is_told = billing_record({}), None, False, False
    while True:
        # one check even after the end: if the computer slept, the payment may have arrived
        is_last, asked_s = clock.now() >= last_check, 0
        account.http.left_s = min(CHECK_S, args.timeout, max(LAST_CHECK_S, end - clock.now()))
        try:
            billing, failure = account.billing(attempts=1), None
            if least_microusd is None:
                least_microusd = billing["balance_microusd"] + 1
            is_reached = billing["balance_microusd"] >= least_microusd
        except Failure as error:
            if error.code == "unauthorized":
                raise
            failure = error
            asked_s = (error.response and error.response.retry_after_s) or 0
        left_s = max(0.0, end - clock.now())
        if is_reached or is_last:
            break
        if asked_s > left_s:
            console.note(f"The service wants no request for {asked_s} s: no more checks.")
            break
        if not is_told and left_s > 1:
            console.note(f"Waiting up to {args.wait:g} s for the balance to rise.")
            is_told = True
        gap_s = max(poll_gap_s(args.wait - left_s), asked_s)
        clock.sleep(max(0.0, min(gap_s, last_check - clock.now())))
    if not is_reached:
        clock.sleep(left_s)
        why = f" The last check failed: {failure.message}." if failure else ""
        advice = "Ask the payer before you wait again."
        if billing["balance_microusd"] is None:
            console.note("Every check of the balance failed: nobody knows whether it was paid.")
        else:
            console.note(f"Not paid: the balance is still too low.{why} {advice}")
    billing.update(last_error=failure and failure.message, credit_rose=is_reached)
    return billing, failure


def make_topup(account: Account, args: Namespace) -> Report:
    """`topup`, perhaps with `--wait`."""
    console, cents, before = account.console, args.amount.cents, None
    check_amount("--amount", args.amount, account.settings)
    body = {"amountUsd": cents // CENTS_PER_USD, "method": args.method}
    write: Call = ("POST", f"{BILLING}/topup", body)
    if args.dry_run:
        text = "Nothing is charged until someone pays the link."
        return dry_run_report(write, account.settings, text)
    with OptionalRead():
        before = account.billing(args.timeout / 3)
    try:
        link, host = account.create_link(write)
    except Failure as failure:
        if failure.code == "failed" and not failure.hint and cents < SMALLEST_TOPUP_CENTS:
            failure.hint = f"You asked for {usd_text(cents)}. The smallest top-up is usually $10."
            failure.next = account.settings.topup_command() or ""
        raise
    again = after_payment(before, cents)
    if args.wait is None:
        return link_report(cents, args.method, link, host, again)
    console.deliver(link_report(cents, args.method, link, host, None))
    printed = "the payment link was printed; repeating creates another"
    console.if_stopped = Failure("failed", printed, next=again)
    least_microusd = before["balance_microusd"] + 1 if before else None
    billing, _ = wait_for_balance(account, args, least_microusd)
    is_paid = billing["credit_rose"]
    billing["next"] = None if is_paid else again
    code = "ok" if is_paid else "payment_required"
    return Report(billing, rise_text(before, billing), *billing_rows(billing), code=code)


def after_payment(before: Json | None, cents: int) -> str:
    """The command that shows whether a payment of so many cents has arrived."""
    before_microusd = before["balance_microusd"] if before else None
    if before_microusd is None or before_microusd + cents * MICROUSD_PER_CENT <= 0:
        # a wait could end at once (because of earlier credit), or never (the balance stays below 0)
        return "balance"
    return wait_command(before_microusd // MICROUSD_PER_CENT + 1 if before_microusd > 0 else None)


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
    settings, before, text = account.settings, None, "The service stops charging the saved card."
    rule, body = {"enabled": args.enable}, {"enabled": args.enable}
    if args.enable:
        check_amount("--threshold", args.threshold, settings)
        check_amount("--amount", args.amount, settings)
        threshold_cents, amount_cents = args.threshold.cents, args.amount.cents
        rule.update(threshold_cents=threshold_cents, amount_cents=amount_cents)
        body.update(thresholdCents=threshold_cents, amountCents=amount_cents)
        with OptionalRead():
            before = account.billing(args.timeout / 3)
        planned = {**(before or billing_record({})), "auto_topup": rule}
        effect = "No card is saved: the service will refuse this."
        if planned["card_saved"] is not False:
            effect = charge_text(planned)
        balance = balance_text(planned["balance_microusd"])
        text = f"The rule: {rule_text(rule)}. The balance: {balance}. {effect}"
    write = ("PATCH", f"{BILLING}/auto-topup", body)
    if args.dry_run:
        return dry_run_report(write, settings, text)
    reads = (account.billing() for _ in account.times_to_read())
    stored, held, lost = change(account, write, {"auto_topup": rule}, reads)
    judge(held, lost, f"the stored rule is: {rule_text(stored['auto_topup'])}")
    return auto_topup_report(stored, before)


def change(
    account: Account, write: Call, asked: Json, reads: Iterable[Json]
) -> tuple[Json, bool | None, Lost | None]:
    """Send a change, and read what is stored until it is what was asked for. Returns what is
    stored, whether it is what was asked for (None: it does not say), and the failure if the
    response was lost. Raises Failure if the service refused it, or if nothing can be read."""
    stored: Json = {}
    lost = None
    try:
        account.http.write(write, Failure("unreachable", CHANGE_LOST))
    except Lost as failure:
        if "apiKey" in write[2]:  # which cannot be read back
            raise
        lost = failure
    try:
        for stored in reads:
            if holds(asked, stored) is not False:
                break
    except Failure as failure:
        if lost:
            raise lost from None
        message = f"the change was not refused, but reading it back failed: {failure.message}"
        message += "; repeating is safe"
        raise Failure("unreachable", message, failure.hint, response=failure.response) from None
    return stored, holds(asked, stored), lost


def judge(held: bool | None, lost: Lost | None, words: str) -> None:
    """Raises Failure unless a change is stored. `words` say what is stored instead."""
    accepted = "the service did not refuse the change, but"
    if lost and not held:
        message = lost.message + (f" ({words})" if held is False else "")
        raise Failure("unreachable", message, response=lost.response)
    if held is None:
        message = f"{accepted} does not say what is stored; repeating is safe"
        raise Failure("unreachable", message)
    if not held:
        hint = "It may need a moment: look again in a minute before you repeat the change."
        raise Failure("failed", f"{accepted} {words}", hint)


def set_upstream(account: Account, args: Namespace) -> Report:
    """`upstream --set`."""
    kind, base_url = args.kind, args.base_url
    if kind == "openai":  # the service knows it as a custom provider
        kind, base_url = "custom", base_url or "https://api.openai.com"
    if kind == "custom" and base_url is None:
        raise Failure("usage", "--kind custom needs --base-url, the address of the provider")
    if base_url is not None:
        check_url(base_url, "--base-url", account.settings.allow_http)
    key = read_provider_key(account, args)
    if args.kind == "openai":
        account.console.note(f"openai is stored as custom with {base_url}")
    fields = {"kind": kind, "baseUrl": base_url, "apiKey": key}
    body = {name: value for name, value in fields.items() if value is not None}
    if not body:
        raise Failure("usage", "upstream --set needs --kind, --base-url or the provider's key")
    write = ("POST", UPSTREAM, body)
    if args.dry_run:
        text = "Every later call through CacheForge goes to this provider."
        return dry_run_report(write, account.settings, text)
    fields = {"configured": True, "kind": kind, "base_url": base_url}
    asked = {name: value for name, value in fields.items() if value is not None}
    reads = (account.upstream() for _ in account.times_to_read())
    stored, held, lost = change(account, write, asked, reads)
    words = " ".join(filter(None, (stored["kind"], stored["base_url"]))) or "unknown"
    judge(held, lost, f"the stored provider is: {words}")
    unseen = "" if key is None else ", except the key, which the service never returns"
    return upstream_report(stored, f"Saved and verified{unseen}.")


def read_provider_key(account: Account, args: Namespace) -> str | None:
    """The provider's key from where the command line says; None if it does not name one."""
    if args.api_key is not None and args.api_key_env is not None:
        raise Failure("usage", "--api-key and --api-key-env cannot be used together")
    if args.api_key_env is not None:
        source = "the variable that --api-key-env names"
        name = args.api_key_env.upper() if os.name == "nt" else args.api_key_env
        key = account.settings.environ.get(name, "")
    elif args.api_key is None:
        return None
    elif args.api_key == "-":
        source, key = "the key on standard input", account.console.read_secret()
    else:
        source, key = "--api-key", args.api_key.strip()
        account.console.note(
            "A key on the command line can be seen in ps and in the shell's history;"
            " --api-key-env NAME and --api-key - avoid that."
        )
    refused = {"cf_": "CacheForge", "cfk_": "CacheForge"}
    if args.kind == "anthropic":
        refused["sk-or-"] = "OpenRouter"
    if args.kind == "openrouter":
        refused["sk-ant-"] = "Anthropic"
    check_key(key, source, refused)
    account.settings.secrets.append(key)
    return key


def create_key(account: Account, args: Namespace) -> Report:
    """`keys --create`, perhaps with `--save`."""
    console, before, file, key = account.console, None, None, None
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
        if file is None:
            words = f"Store this new key now: it is not shown again. It is listed as {name}."
            # printed here, because lost_key() has to say what happened if that fails
            console.deliver(Report(key, key["api_key"], words))
            return Report(None)
        console.save(file, key.pop("api_key"))
    except BaseException as error:
        if file is not None:
            console.discard(file)
        if isinstance(error, Lost):
            raise lost_key(account, before, key, error) from None
        raise
    console.if_stopped = Failure("failed", "the new key is saved in the file")
    path = printable(args.save, account.settings.secrets)
    return Report({**key, "saved_to": path}, f"The new key {name} is saved to {path}")


def lost_key(account: Account, before: list[Json] | None, key: Json | None, lost: Lost) -> Failure:
    """What to report if the secret of a new key was lost: also which key it is, as the response
    says, or what is new in the list of keys."""
    found = "the list of keys could not be compared with the one before"
    hint = "If a key is listed that nobody created on purpose, revoke it."
    if key is not None:
        found = f"the key that was created is {key_name(key)}"
    elif before is not None:
        known = {(key["id"], key["prefix"]) for key in before}
        with OptionalRead():
            listed = account.keys()
            new = [key_name(key) for key in listed if (key["id"], key["prefix"]) not in known]
            found = "the list of keys shows no new key"
            if new:
                found = f"new in the list of keys: {', '.join(new[:3])}"
                hint = "If nobody else created it, revoke it before you create another."
    return Failure("uncertain", f"{lost.message}; {found}", hint, "keys", lost.response)


def find_key(account: Account, args: Namespace) -> tuple[Json, str]:
    """The key that `--revoke` names, and why revoking it needs `--force`; empty if it does not."""
    key_id = args.revoke
    if printable(key_id, account.settings.secrets) != key_id or "<hidden>" in key_id:
        message = "--revoke needs the id of a key, as keys lists it; nothing was revoked"
        raise Failure("usage", message, next="keys")
    found = [key for key in account.keys(args.timeout / 3) if key["id"] == key_id]
    if not found:
        key = {"id": key_id, "prefix": None, "label": None, "revoked": None, "in_use": None}
        return key, "No listed key has this id: check it. It may be the key in use."
    # ids may look the same when printed: then take the one that may be in use
    key = min(found, key=lambda key: (key["revoked"] is True, key["in_use"] is False))
    if key["in_use"] is False:
        return key, ""
    may = "is" if key["in_use"] else "may be"
    return key, f"{key_name(key)} {may} the key in use here: whatever uses it stops working."


def revoke_key(account: Account, args: Namespace) -> Report:
    """`keys --revoke KEY_ID`. The key is looked up first, so that the question can name it."""
    console, is_sure = account.console, args.yes or args.dry_run
    if not is_sure and not console.has_person():
        message = "--revoke needs --yes if there is nobody to ask; nothing was revoked"
        raise Failure("usage", message)
    key, warning = find_key(account, args)
    name, is_listed = key_name(key), "created_at" in key
    if key["revoked"] and not args.force and not args.dry_run:
        return revoked_report(key, confirmed=True)
    if warning and not args.force:
        hint = "--force revokes it anyway; only the user should decide that."
        raise Failure("usage", f"nothing was revoked. {warning}", hint, "keys")
    write = revoke_write(args.revoke)
    if args.dry_run:
        text = warning or f"{name} stops working for good."
        if key["revoked"] and not args.force:
            text = f"{name} is revoked already: without --force nothing is sent."
        return dry_run_report(write, account.settings, text)
    if not is_sure and not console.ask(f"{warning} Revoke {name} for good?".strip()):
        raise Failure("usage", "not confirmed; nothing was revoked")
    # the list cannot confirm that an unlisted key is revoked
    states = (key_state(account, key) for _ in (account.times_to_read() if is_listed else ()))
    _, held, lost = change(account, write, {"revoked": True}, states)
    if lost or held is False:
        judge(held, lost, "the list shows the key as not revoked")
    return revoked_report(key, confirmed=bool(held))


def key_state(account: Account, key: Json) -> Json:
    """How the key is listed after it was revoked; a key that is gone counts as revoked."""
    revoked = {"revoked": True}
    try:
        listed = account.keys()
    except Failure as failure:
        if failure.code == "unauthorized" and key["in_use"] is not False:
            return revoked  # it was the key that this program uses
        raise
    return next((item for item in listed if item["id"] == key["id"]), revoked)


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

RUN = {  # a command, perhaps with the option that decides what it does, and its function
    "balance": show_balance,
    "topup": make_topup,
    "auto-topup": lambda account, args: auto_topup_report(account.billing()),
    "auto-topup --enable": set_auto_topup,
    "auto-topup --disable": set_auto_topup,
    "upstream": lambda account, args: upstream_report(account.upstream()),
    "upstream --set": set_upstream,
    "keys": lambda account, args: keys_report(account.keys()),
    "keys --create": create_key,
    "keys --revoke": revoke_key,
    "info": show_info,
}
COMMANDS = {  # what a command does, and an example
    "balance": ("show the balance, the auto top-up rule, and the saved card", "--min 2.50"),
    "topup": ("create a payment link; nothing is charged until someone pays it", "--amount 10"),
    "auto-topup": (
        "show or set the rule that charges the saved card automatically",
        "--enable --threshold 200 --amount 1000 --dry-run",
    ),
    "upstream": (
        "show or set the provider that calls are forwarded to",
        "--set --kind openrouter --api-key-env OPENROUTER_API_KEY",
    ),
    "keys": ("list, create or revoke API keys", "--create --save new.key"),
    "info": ("show the tenant and the settings of this program", "--json"),
}
KINDS = ("openrouter", "anthropic", "custom", "openai")
DRY_RUN = "print the request and its consequences, but do not send it"
WAIT = f"(default {DEFAULT_WAIT_S:g} s); exit 4 if unpaid"
OPTIONS = (  # command (empty: all), option and value, the options it goes with, default, help
    ("balance", "--min DOLLARS", "", "", "exit 4 if the balance is below this, such as 2.50"),
    ("balance", "--wait [SECONDS]", "", "", f"check until the balance is above 0, or --min {WAIT}"),
    (
        "topup",
        "--amount USD",
        "",
        "10",
        "whole dollars, or 2500c (default 10, usually the minimum)",
    ),
    ("topup", "--method METHOD", "", "stripe", "stripe or card, or crypto (default stripe)"),
    ("topup", "--wait [SECONDS]", "", "", f"print the link, check until it is paid {WAIT}"),
    ("topup", "--dry-run", "", "", DRY_RUN),
    ("auto-topup", "--enable", "", "", "charge the saved card when the balance is low"),
    ("auto-topup", "--disable", "", "", "stop charging the card"),
    ("auto-topup", "--threshold CENTS", "--enable", "200", "cents, or 2usd (default 200)"),
    ("auto-topup", "--amount CENTS", "--enable", "1000", "cents, or 10usd (default 1000)"),
    ("auto-topup", "--dry-run", "--enable or --disable", "", DRY_RUN),
    ("upstream", "--set", "", "", "store the provider that the other options describe"),
    ("upstream", "--kind KIND", "--set", "", f"one of {', '.join(KINDS)}"),
    ("upstream", "--base-url URL", "--set", "", "the provider's address"),
    ("upstream", "--api-key KEY", "--set", "", "the provider's key; - reads it from stdin"),
    ("upstream", "--api-key-env NAME", "--set", "", "the variable that holds the provider's key"),
    ("upstream", "--dry-run", "--set", "", DRY_RUN),
    ("keys", "--create", "", "", "create a key, which is shown once"),
    ("keys", "--save FILE", "--create", "", "write the key to a new private file, do not show it"),
    ("keys", "--revoke KEY_ID", "", "", "revoke a key for good"),
    ("keys", "--yes", "--revoke", "", "do not ask"),
    ("keys", "--force", "--revoke", "", "revoke it even if it is, or may be, the key in use"),
    ("keys", "--dry-run", "--create or --revoke", "", DRY_RUN),
    ("", "--help", "", "", "show this help and exit"),
    ("", "--version", "", "", "show the version and exit"),
    ("", "--json", "", "", "print JSON objects, one per line"),
    ("", "--verbose", "", "", "print a line for each HTTP request to stderr"),
    ("", "--timeout SECONDS", "", "30", "give up after SECONDS in total (default 30)"),
)
EPILOG = f"""\
examples:
  ops.py balance
  ops.py topup --amount 10 --wait
  ops.py keys --create --save new.key

exit codes:
{"".join(f"  {code:<4} {meaning}{chr(10)}" for code, _, meaning in EXIT_CODES.values())}
environment:
  CACHEFORGE_API_KEY              the account's key (required)
  CACHEFORGE_BASE_URL             the service (default {DEFAULT_BASE_URL})
  CACHEFORGE_MAX_TOPUP_USD        the limit for topup and auto-topup, whole dollars
                                  (default {DEFAULT_MAX_TOPUP_USD}; 0 forbids both)
  CACHEFORGE_ALLOW_INSECURE_HTTP  1 allows plain http to other machines
  HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE  as in other programs
"""


class Parser(ArgumentParser):
    """A parser that prints nothing, and never repeats what was typed: it may be a secret."""

    def __init__(self, **options: Any) -> None:
        # of a fixed width: to measure the terminal, argparse would import shutil
        formatter = lambda prog: RawDescriptionHelpFormatter(prog, width=80)  # noqa: E731
        super().__init__(allow_abbrev=False, add_help=False, formatter_class=formatter, **options)
        self.color = False  # Python 3.14 colours the help by default
        self._optionals.title = "options"  # Python 3.9 says "optional arguments"

    def option(self, spec: str, help: str) -> None:
        """Declare an option such as `--wait [SECONDS]`. Its value is read later, by `choose`."""
        flag, _, value = spec.partition(" ")
        # a default would undo what stood before the command
        options: Json = {"help": help, "default": SUPPRESS, "action": "store_true"}
        if value:
            options.update(action="store", metavar=value.strip("[]"))
        if value.startswith("["):
            options.update(nargs="?", const=f"{DEFAULT_WAIT_S:g}")
        short = {"--help": ["-h"], "--version": ["-V"]}.get(flag, [])
        self.add_argument(*short, flag, **options)

    def error(self, message: str) -> NoReturn:
        """Raise Failure (usage) in our own words, because argparse quotes what was typed."""
        option = re.match("argument (?:.*/)?([^:]+): (expected|ignored)", message)
        if option and option[2] == "expected":
            flag = option[1]
            self.fail(f"{flag} needs a value; if that begins with -, write {flag}=VALUE")
        if option:
            self.fail(f"{option[1]} takes no value")
        typed = re.search("invalid choice: '(.*?)'", message)
        self.fail("unknown command", typed[1] if typed else "", COMMANDS)

    def fail(self, message: str, typed: str = "", known: Iterable[str] = ()) -> NoReturn:
        """Raise Failure (usage) with the usage, and the known word closest to what was typed."""
        from difflib import get_close_matches

        near = get_close_matches(typed.lower(), list(known), 1)
        message += f"; did you mean {near[0]}?" if near else ""
        command = self.prog.partition(" ")[2]
        usage = self.format_usage().strip().replace("usage:", "Usage:")
        raise Failure("usage", message, usage, f"{command} --help".strip())


def read_value(kind: str, text: str) -> Any:
    """The value of an option, by the name that the help gives it. Raises Failure (usage)."""
    if kind == "METHOD" and text == "card":  # what people call it
        return "stripe"
    choices = {"METHOD": tuple(PAYMENT_METHODS), "KIND": KINDS}.get(kind, (text,))
    if text not in choices:
        raise Failure("usage", f"write one of {', '.join(choices)}")
    # an id of dots would be another path
    if not text or (kind == "KEY_ID" and not (text.isprintable() and text.strip("."))):
        raise Failure("usage", "the value is empty or not valid")
    if kind == "SECONDS":
        if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", text) or float(text) == 0:
            raise Failure("usage", "write a number of seconds, such as 30")
        return float(text)
    if kind not in ("DOLLARS", "USD", "CENTS"):
        return text
    amount = Amount(text, "c" if kind == "CENTS" else "usd", decimals=kind != "USD")
    if kind == "USD" and not amount.cents:
        raise Failure("usage", "write more than 0 (shells turn an unquoted $10 into 0)")
    if kind == "USD" and amount.cents % CENTS_PER_USD:
        raise Failure("usage", "write whole dollars")
    return amount


def options_of(command: str) -> list[tuple[str, str, str, str, str]]:
    """The rows of OPTIONS that a command takes; without a command, those that all take."""
    return [option for option in OPTIONS if option[0] in ("", command)]


def build_parsers(argv: Sequence[str]) -> dict[str, Parser]:
    """The parsers of all commands, and under an empty name that of the whole command line.

    Declaring an option is slow, so only the commands that occur in argv get theirs.
    """
    about = "Manage a CacheForge account: balance, top-ups, auto top-up, provider, API keys."
    usage = "ops.py COMMAND [options]"
    main_parser = Parser(prog="ops.py", usage=usage, description=about, epilog=EPILOG)
    group = main_parser.add_subparsers(metavar="COMMAND", dest="command", prog="ops.py")
    parsers = {"": main_parser}
    for name, (words, example) in COMMANDS.items():
        parser = parsers[name] = group.add_parser(name, help=words)
        flags = [f"[{option[1]}]" for option in OPTIONS if option[0] == name]
        parser.usage = " ".join([parser.prog, *flags])
        parser.description = f"{words[0].upper()}{words[1:]}."
        parser.epilog = f"examples:\n  {parser.prog} {example}\n"
    parsers["help"] = group.add_parser("help", usage="ops.py help [COMMAND]")
    words = "the command to explain"
    parsers["help"].add_argument("topic", nargs="?", default="", metavar="COMMAND", help=words)
    for name in parsers:
        for _, spec, needs, _, words in options_of(name) if name in ("", *argv) else ():
            parsers[name].option(spec, f"with {needs}: {words}" if needs else words)
    return parsers


def parse(argv: Sequence[str]) -> Namespace | Report:
    """The command line, with the function to call as `run`; or the help or version, to print."""
    parsers = build_parsers(argv)
    args, unknown = parsers[""].parse_known_args(argv)
    command = args.command or ""
    parser = parsers[command]
    if "version" in args:
        return Report({"version": __version__}, f"cacheforge-ops {__version__}")
    if "help" in args or command == "help":
        topic = args.topic if command == "help" else command
        if topic not in parsers:
            parser.fail("unknown command", topic, COMMANDS)
        return Report({}, parsers[topic].format_help().rstrip())
    if not command and not unknown:
        raise Failure("usage", "a command is missing", parser.format_help().rstrip())
    if unknown:
        what = f"word; {command or 'this'} takes only options"
        what = "option" if unknown[0].startswith("-") else what
        known = [option[1].partition(" ")[0] for option in options_of(command)]
        parser.fail(f"unknown {what}", unknown[0].partition("=")[0], known)
    args.run = RUN[f"{command} {choose(parser, args)}".strip()]
    if args.timeout < 1:
        parser.fail("--timeout must be at least 1")
    return args


def choose(parser: Parser, args: Namespace) -> str:
    """The option that decides what the command does, or an empty string. Reads all values."""
    typed = {}
    for _, spec, needs, default, _ in options_of(args.command):
        flag, _, kind = spec.partition(" ")
        name = flag[2:].replace("-", "_")
        if name in args:
            typed[flag] = needs
        value: Any = getattr(args, name, default or None) if kind else name in args
        try:
            if kind and value is not None:
                value = read_value(kind.strip("[]"), value)
        except Failure as failure:
            parser.fail(f"{flag}: {failure.message}")
        setattr(args, name, value)
    deciding = [flag for flag in typed if f"{args.command} {flag}" in RUN] or [""]
    if len(deciding) > 1:
        parser.fail(f"{deciding[0]} and {deciding[1]} cannot be used together")
    for flag, needs in typed.items():
        if needs and deciding[0] not in needs.split(" or "):
            parser.fail(f"{flag} can only be used with {needs}")
    return deciding[0]


# ── main: the only section that prints, reads the environment, or exits


class Console:
    """The world outside: results go to standard output, everything else to standard error."""

    is_asking = False  # a person; then the first signal interrupts at once
    verbose = False
    if_stopped: Failure | None = None  # what to report if the command ends early
    secrets: Sequence[str] = ()

    def __init__(self, argv: Sequence[str]) -> None:
        self.as_json = "--json" in argv  # before parsing, whose errors are JSON, too
        self.clock = Clock()
        self.began = self.clock.now()

    def deliver(self, report: Report) -> None:
        """Print a report. Raises Lost if standard output does not take it."""
        data, text = report.data, report.as_text()
        if data is None:
            return
        if "next" in data:
            next_step = self._command(data["next"])
            data = {**data, "next": next_step}
            text += f"Next: {next_step}\n" if next_step else ""
        try:
            sys.stdout.write(to_json(data) + "\n" if self.as_json and data else text)
            sys.stdout.flush()
        except (OSError, ValueError, AttributeError) as error:  # None if it was closed at the start
            message = f"the result could not be written to standard output ({explain_io(error)})"
            if self.if_stopped:
                message += f"; {self.if_stopped.message}"
            raise Lost("failed", message) from None
        self.if_stopped = None

    def fail(self, failure: Failure) -> None:
        """Print a failure as a few lines or one JSON object."""
        response, next_step = failure.response, self._command(failure.next)
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
        lines = [f"{failure.code}: {message}{request}", hint]
        lines += [f"Next: {next_step}"] if next_step else []
        text = "\n".join(filter(None, lines))
        self._write_error(to_json({"error": error}) if self.as_json else text)

    def note(self, line: str) -> None:
        """Print a line to standard error."""
        line = redact(line, self.secrets)
        self._write_error(to_json({"note": line}) if self.as_json else line)

    @staticmethod
    def _write_error(text: str, end: str = "\n") -> None:
        try:
            if sys.stderr is not None:  # print() would fall back to standard output
                sys.stderr.write(f"{text}{end}")
                sys.stderr.flush()
        except (OSError, ValueError):  # without standard error the result still counts
            pass

    @staticmethod
    def _command(words: str | None) -> str | None:
        """A command line of this program that can be pasted into a shell."""
        if not words:
            return None
        path, is_windows = sys.argv[0], os.name == "nt"
        if not re.fullmatch(r"[A-Za-z0-9_./\\:~-]+" if is_windows else "[A-Za-z0-9_./:-]+", path):
            from shlex import quote

            path = f'"{path}"' if is_windows else quote(path)
        return f"{'python' if is_windows else 'python3'} {path} {words}"

    def has_person(self) -> bool:
        """Whether a person can be asked. Windows calls NUL a terminal, so both must be one."""
        return not self.as_json and all(s and s.isatty() for s in (sys.stdin, sys.stderr))

    def ask(self, question: str) -> bool:
        """Ask the person at the terminal; True for yes."""
        self._write_error(f"{question} [y/N] ", end="")
        return self._read_line().strip().lower() in ("y", "yes")

    def read_secret(self) -> str:
        """One line of standard input; a terminal is asked, without an echo."""
        is_terminal = sys.stdin is not None and sys.stdin.isatty()
        if is_terminal and not self.has_person():
            raise Failure("usage", "--api-key - cannot ask for the key here: pipe it in")
        return self._read_line(hidden=is_terminal).strip()

    def _read_line(self, hidden: bool = False) -> str:
        self.is_asking = True
        self.wake_every(0.1)
        try:
            self.clock.raise_if_stopped()
            if hidden:
                from getpass import getpass

                return getpass("Provider's key: ")
            return sys.stdin.readline() if sys.stdin else ""
        except (OSError, EOFError, ValueError):  # nothing was typed, or it is not text
            return ""
        finally:
            self.wake_every(0)
            self.is_asking = False

    def wake_every(self, seconds: float) -> None:
        """Interrupt a blocking call every so many seconds; 0 ends it. Otherwise a signal that comes
        just before the call would be noticed only after it."""
        import signal

        if sys.platform != "win32" and signal.getsignal(signal.SIGALRM) is ignore:
            signal.setitimer(signal.ITIMER_REAL, seconds, seconds)

    @staticmethod
    def create_file(path: str) -> TextIO:
        """Open a new private file. Raises Failure (usage) if its path exists or cannot be made."""
        try:
            file = open(  # noqa: SIM115
                path, "x", encoding="ascii", opener=lambda name, flags: os.open(name, flags, 0o600)
            )
            if not os.path.isfile(path):  # Windows opens NUL, which would swallow the key
                file.close()
                raise ValueError
        except (OSError, ValueError) as error:
            message = (
                f"--save: the file cannot be created ({explain_io(error)}); no key was created"
            )
            raise Failure("usage", message) from None
        return file

    @staticmethod
    def save(file: TextIO, text: str) -> None:
        """Write a line to a file, down to the disk, and close it. Raises Lost if that fails."""
        try:
            with file:
                file.write(f"{text}\n")
                file.flush()
                try:
                    os.fsync(file.fileno())
                except KeyboardInterrupt:  # a second signal; but the key is in the file
                    pass
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # on some file systems
                        raise
        except OSError as error:
            message = f"the new key could not be written to the file ({explain_io(error)})"
            raise Lost("failed", message) from None

    @staticmethod
    def discard(file: TextIO) -> None:
        """Close and remove a file that did not get its key."""
        from contextlib import suppress

        with suppress(OSError):
            file.close()
        with suppress(OSError):
            os.unlink(file.name)


def explain_io(error: Exception) -> str:
    """Why a stream or a file failed."""
    return getattr(error, "strerror", None) or "it is closed, or not a file"


def run(argv: Sequence[str], console: Console) -> Report:
    """Carry out one command line. Raises Failure."""
    args = parse(argv)
    if isinstance(args, Report):
        return args
    settings = Settings(os.environ)
    if sys.stdout is None or sys.stdout.closed:
        raise Failure("usage", "standard output is closed; nothing was sent")
    for name, value in settings.environ.items():  # urllib and OpenSSL read these
        if re.fullmatch("(https?|no)_proxy|ssl_cert_file", name, re.IGNORECASE):
            os.environ[name] = value
    console.verbose, console.secrets = args.verbose, settings.secrets
    report: Report = args.run(Account(Http(settings, console, args.timeout)), args)
    return report


def as_failure(error: BaseException, if_stopped: Failure | None) -> Failure:
    """What to report for anything that ended a command early."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, KeyboardInterrupt):
        about = if_stopped or Failure("unreachable", "nothing was changed; repeating is safe")
        failure = Failure("interrupted", about.message, next=about.next)
        failure.retryable = about.retryable
        return failure
    # only the line is reported: the text of the error could quote a secret
    trace, line = error.__traceback__, 0
    while trace:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == __file__ else line
        trace = trace.tb_next
    about = if_stopped or Failure("failed", "nothing was changed")
    message = f"this is a bug in cacheforge-ops {__version__} (line {line}); {about.message}"
    return Failure(about.code, message, f"Please report it at {DEFAULT_BASE_URL}.", about.next)


def main(argv: Sequence[str], console: Console | None = None) -> int:
    """Run one command line; returns its exit code."""
    console = console or Console(argv)
    try:
        report = run(argv, console)
        console.deliver(report)
        return report.exit
    except BaseException as error:
        failure = as_failure(error, console.if_stopped)
        console.fail(failure)
        return failure.exit


def ignore(number: int, frame: object) -> None:
    """Handle a signal that is only to interrupt a blocking call."""


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
        is_first = clock.stopped_at is None
        clock.stopped_at = clock.stopped_at or time.monotonic()
        # a second signal interrupts what blocks, such as standard output; two at once are one
        if console.is_asking or (not is_first and time.monotonic() > clock.stopped_at + 1):
            raise KeyboardInterrupt

    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, ignore)
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
