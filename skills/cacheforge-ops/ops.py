#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = []
# ///
"""Run a CacheForge account: balance, top-ups, auto top-up, upstream, keys, info.

The file is read from top to bottom: a room uses only the rooms above it.

    argv -> arguments -> read, write, read back -> a record -> a report -> text or JSON -> stdout

    Outcomes   the exit codes: one error class for each different next step
    Money      amounts in and out, in whole numbers with their unit
    Settings   the environment, variable by variable, in one value
    Replies    what is shown of a text, and what is evidence in an answer
    Wire       one exchange, and the one rule for repeating it
    Account    one short method for each endpoint: JSON in, a record out
    Views      a record as a report; a report as text or JSON
    Commands   one short function for each verb
    Parser     the command line, declared as data
    main       the only room that prints, reads the environment or exits

A record is the JSON object that a command prints. Standard library only. The key goes to
the configured service and nowhere else, and a write is sent once.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
import time
from functools import lru_cache, partial

TYPE_CHECKING = False
if TYPE_CHECKING:  # as type checkers take it; to import `typing` costs a tenth of a start
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from email.message import Message
    from http.client import HTTPResponse
    from threading import Lock
    from typing import Any, NoReturn, TypeVar
    from urllib.request import OpenerDirector, Request

    T = TypeVar("T")
    Json = dict[str, Any]
    Row = tuple[str, str]

__version__ = "2.0.0"

DEFAULT_BASE_URL = "https://app.anvil-ai.io"
DEFAULT_MAX_TOPUP_USD = 500
DEFAULT_TIMEOUT_S = 30.0

if sys.version_info < (3, 9):  # noqa: UP036
    sys.stderr.write("cacheforge-ops needs Python 3.9 or later\n")
    sys.exit(2)


# ── Outcomes: what happened, as a type; its exit code says what to do next


class Failure(Exception):
    """The command did not do what was asked: the service refused, answered nonsense, or
    stores something else. `hint` is a sentence, `next` a command line for this program."""

    code, exit, retryable = "failed", 1, False
    http_status: int | None = None
    request_id: str | None = None
    retry_after_seconds: int | None = None

    def __init__(self, message: str, hint: str = "", next: str | None = None) -> None:
        super().__init__(message)
        self.message, self.hint, self.next = message, hint, next

    def after(self, other: Failure | None) -> Failure:
        """This failure, with what the service said of the one that it follows."""
        if other:
            self.http_status, self.request_id = other.http_status, other.request_id
            self.retry_after_seconds = other.retry_after_seconds
        return self


class Usage(Failure):
    """The command line or a setting is wrong; nothing was sent."""

    code, exit = "usage", 2


class Unauthorized(Failure):
    """The key was refused."""

    code, exit = "unauthorized", 3


class PaymentRequired(Failure):
    """Credit is used up."""

    code, exit = "payment_required", 4


class Unreachable(Failure):
    """No usable answer; it is safe to repeat the command."""

    code, exit, retryable = "unreachable", 5, True


class Lost(Unreachable):
    """A write was sent, and no answer says what became of it."""


class Uncertain(Failure):
    """A key may have been made whose secret nobody has."""

    code, exit = "uncertain", 6


class Interrupted(Failure):
    """A signal ended the command."""

    code, exit = "interrupted", 130


BadValue = argparse.ArgumentTypeError  # the value of an option; argparse tells its reason


class Page(Exception):
    """What is printed instead of a result: help, the version, the write of a dry run."""

    def __init__(self, text: str, data: Json) -> None:
        super().__init__(text)
        self.text, self.data = text, data


# ── Money: whole numbers from end to end, the unit in every name

CENTS_PER_USD = 100
MICROUSD_PER_CENT = 10_000
MICROUSD_PER_USD = 1_000_000


def cents_text(cents: int) -> str:
    """US cents as dollars for people: 1234 is `$12.34`, -5 is `-$0.05`."""
    dollars, rest = divmod(abs(cents), CENTS_PER_USD)
    return f"{'-' if cents < 0 else ''}${dollars:,}.{rest:02}"


def microusd_text(microusd: int | None) -> str:
    """Microdollars as dollars, rounded down: money that is not there is never shown."""
    return "unknown" if microusd is None else cents_text(microusd // MICROUSD_PER_CENT)


def microusd_exact(microusd: int) -> str:
    """Microdollars as an exact decimal of dollars with two to six decimals."""
    dollars, rest = divmod(abs(microusd), MICROUSD_PER_USD)
    decimals = f"{rest:06}".rstrip("0").ljust(2, "0")
    return f"{'-' if microusd < 0 else ''}{dollars}.{decimals}"


def read_cents(text: str, bare_unit: str, decimals: bool = False) -> int:
    """Read `10`, `10usd`, `1000c` or, with `decimals`, `2.5` as US cents; a bare number counts
    in `bare_unit`. Raises BadValue with a reason that does not repeat the text."""
    if "$" in text:
        raise BadValue("leave out the dollar sign (shells eat it): write 10usd")
    # by pattern, since `int` would also take `1_000`, ` 10 ` and digits of other scripts
    match = re.fullmatch(r"([0-9]{1,15})(?:\.([0-9]{1,2}))?(usd|c)?", text, re.IGNORECASE)
    unit = (match[3] or bare_unit).lower() if match else ""
    if not match or (match[2] and not (decimals and unit == "usd")):
        example = "an amount such as 10, 2.50" if decimals else "a whole number such as 10, 10usd"
        raise BadValue(f"must be {example} or 1000c")
    if unit == "c":
        return int(match[1])
    return int(match[1]) * CENTS_PER_USD + int((match[2] or "").ljust(2, "0"))


# ── Settings: the environment, variable by variable, in one value


def percent_encode(text: str, pattern: str) -> str:
    """The text with each character that `pattern` matches as it is written in a URL."""

    def encode(match: re.Match[str]) -> str:
        return "%" + match[0].encode("utf-8", "surrogatepass").hex("%").upper()

    return re.sub(pattern, encode, text)


class Url:
    """A web address, taken apart. One with a user name, white space, a backslash or a control
    character does not parse: programs differ on what its host is."""

    PATTERN = (
        r"(https?)://([^\s/?#@:\\\[\]]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?"
        r"((?:[/?#][^\x00-\x20\x7f-\x9f\\]*)?)"
    )

    def __init__(self, text: str) -> None:
        """Raises ValueError for anything but http or https on a host and port."""
        match = re.fullmatch(self.PATTERN, text, re.IGNORECASE)
        host = match[2].lower() if match else ""
        if not host.isascii():
            spelled = host.encode("idna")
            if spelled.decode("idna") != host:  # some letters become others: a different host
                raise ValueError("not a plain host name")
            host = spelled.decode("ascii")
        if not match or not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|\[.+\]", host):
            raise ValueError("not a plain http or https address")
        self.scheme = match[1].lower()
        usual_port = 443 if self.scheme == "https" else 80
        port = int(match[3] or usual_port)
        if not 1 <= port <= 65535:  # sockets would wrap 65536 + n around to n
            raise ValueError("no address: a port is between 1 and 65535")
        self.host = host
        self.authority = host if port == usual_port else f"{host}:{port}"
        self.rest = percent_encode(match[4], "[^!-~]")
        self.text = f"{self.scheme}://{self.authority}{self.rest}"
        here = r"localhost|\[::1\]|127(\.(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}"
        self.is_loopback = bool(re.fullmatch(here, host))


def check_url(text: str, name: str, allow_http: bool, loopback_http: bool = False) -> Url:
    """The address of a service, called `name` in what Usage says if it is refused."""
    try:
        url = Url(text)
        if "?" in url.rest or "#" in url.rest:
            raise ValueError("an address with a query or a fragment")
    except ValueError as error:
        why = "not a host name" if isinstance(error, UnicodeError) else str(error)
        hint = "It looks like https://HOST, with :PORT and /PATH if needed; no user name, ? or #."
        raise Usage(f"{name} is {why}", hint) from None
    if url.scheme == "http" and not (allow_http or (loopback_http and url.is_loopback)):
        hint = "Use https, or set CACHEFORGE_ALLOW_INSECURE_HTTP=1 on a network of your own."
        raise Usage(f"{name} is plain http: a key would cross the network unencrypted", hint)
    return url


def is_secret_token(text: str) -> bool:
    """Whether `text` is visible ASCII without spaces. Python would send any other key, too."""
    return bool(re.fullmatch(r"[\x21-\x7e]{1,4096}", text))


class Settings:
    """What the environment says, checked. Raises Usage, and quotes no value."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.allow_http = environ.get("CACHEFORGE_ALLOW_INSECURE_HTTP") == "1"
        base = environ.get("CACHEFORGE_BASE_URL", "").strip() or DEFAULT_BASE_URL
        url = check_url(base, "CACHEFORGE_BASE_URL", self.allow_http, loopback_http=True)
        self.base = Url(re.sub(r"/+v1$", "", url.text.rstrip("/")).rstrip("/"))
        cap = environ.get("CACHEFORGE_MAX_TOPUP_USD", "").strip() or str(DEFAULT_MAX_TOPUP_USD)
        if not re.fullmatch("[0-9]{1,9}", cap):
            raise Usage("CACHEFORGE_MAX_TOPUP_USD must be a number of whole dollars, such as 500")
        self.max_topup_cents = int(cap) * CENTS_PER_USD
        certificates = environ.get("SSL_CERT_FILE")
        if certificates and not os.path.exists(certificates):  # Python would not say so
            raise Usage("SSL_CERT_FILE names a file that is not there")
        self.api_key = environ.get("CACHEFORGE_API_KEY", "").strip()
        self.secrets = [self.api_key]  # what is never shown; others join it
        hint = (
            "Set it to your CacheForge key: export CACHEFORGE_API_KEY=cf_..."
            ' (PowerShell: $env:CACHEFORGE_API_KEY = "cf_...")'
        )
        for pattern, why in (
            ("", "is not set"),
            ("['\"`].*|.*['\"`]", "has quotation marks in it"),
            ("cfk?_[.\u2026]*", "holds the placeholder of the examples"),
            ("sk-.*", "holds a key of another provider"),
            (".*[^!-~].*|.{4097,}", "holds a character that no key has (a space, a control)"),
        ):
            if re.fullmatch(pattern, self.api_key, re.DOTALL):
                raise Usage(f"CACHEFORGE_API_KEY {why}", hint)

    def mask_key(self) -> str:
        """Enough of the key to tell two apart, and no more."""
        head = next(filter(self.api_key.startswith, ("cf_", "cfk_")), "")
        return f"{head}...{self.api_key[-4:] if len(self.api_key) >= 16 else ''}"


# ── Replies: what is shown of a text, and what is evidence in an answer

MAX_TEXT_CHARS = 300
ESCAPES = re.compile(r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?")
SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # can carry hidden text
PLAUSIBLE = re.compile("https?://.+|cfk?_[A-Za-z0-9_-]{8,}")  # a link, or a new key
ADDRESS_HINT = "Check that CACHEFORGE_BASE_URL is the address of the service."


def hide(text: str, secrets: Sequence[str]) -> str:
    """The text without any secret, also when the service sends one back encoded."""
    for secret in secrets:
        text = text.replace(secret, "<hidden>")
    if "%" not in text and "\\" not in text:
        return text
    plain = re.sub(r"\\u00([0-9a-f]{2})", r"%\1", text, flags=re.IGNORECASE)
    plain = re.sub(r"\\(.)", r"\1", plain)
    plain = re.sub("%([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), plain, flags=re.IGNORECASE)
    return "<hidden>" if any(secret in plain for secret in secrets) else text


def show(text: str, secrets: Sequence[str]) -> str:
    """Text from outside as anybody may see it: a short line without escapes or secrets."""
    if not (text.isascii() and text.isprintable()):
        text = re.sub(r"\s+", " ", SELECTORS.sub("", ESCAPES.sub("", text)))
        text = "".join(filter(str.isprintable, text))
    text = hide(text.strip(), secrets)
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 3] + "..."


def parse_json(body: bytes) -> Any:
    """The JSON in a body; None where there is none. What strict JSON does not allow (NaN, a name
    given twice, thousands of digits) becomes None, an error only where the field is needed."""
    import json

    def fits(digits: str) -> bool:  # into 64 bits
        return len(digits) <= 20 and -(2**63) <= int(digits) < 2**63

    def once(pairs: list[tuple[str, object]]) -> Json:
        fields: Json = {}
        for name, value in pairs:
            fields[name] = None if name in fields else value
        return fields

    try:
        return json.loads(
            body.decode("utf-8", "replace").lstrip("\ufeff"),
            strict=False,
            parse_int=lambda digits: int(digits) if fits(digits) else None,
            parse_constant=lambda name: None,
            object_pairs_hook=once,
        )
    except (ValueError, RecursionError):
        return None


def to_json(value: Json, compact: bool = False) -> str:
    """ASCII JSON on one line."""
    import json

    return json.dumps(value, separators=(",", ":") if compact else None)


def get(fields: object, name: str, kind: type[T]) -> T | None:
    """The field of an object; None where it is absent, or not of this very type."""
    value = fields.get(name) if isinstance(fields, dict) else None
    return value if type(value) is kind else None  # isinstance takes True for an integer


def need(fields: object, name: str, kind: type[T]) -> T:
    """The field that is evidence. Raises Failure where it is absent or of another type."""
    value = get(fields, name, kind)
    if value is None:
        raise Failure(f"the service's answer cannot be used: {name} is missing or of a wrong type")
    return value


def reason(value: object, depth: int = 4) -> str:
    """What an error says of itself, in any of the shapes in use; empty if nothing."""
    if isinstance(value, list) and depth:
        return "; ".join(filter(None, (reason(item, depth - 1) for item in value[:3])))
    if isinstance(value, dict) and depth:
        names = ("error", "message", "detail", "title", "errors", "msg")
        return next(filter(None, (reason(value.get(name), depth - 1) for name in names)), "")
    return value if isinstance(value, str) else ""


def classify(status: int, is_json: bool, is_write: bool) -> tuple[type[Failure], str, str]:
    """The error that a status other than 2xx stands for: class, words, hint."""
    if status == 401 or (status == 403 and is_json):  # one of HTML comes from a firewall
        hint = "Check CACHEFORGE_API_KEY: is it whole, current, and of the right account?"
        return Unauthorized, "the service refused the API key", hint
    if status == 402:
        return PaymentRequired, "credit is used up", ""
    if status == 407:
        return Usage, "the proxy wants a user name and password", "Check HTTPS_PROXY."
    if status == 429:
        return Unreachable, "the service asks for fewer requests", ""
    if 300 <= status < 400:
        return Failure, "the service answered with a redirect, and none is followed", ADDRESS_HINT
    if 400 <= status < 500 and status != 408:  # which may come after the deed
        wrong_place = status in (404, 405) or not is_json
        return Failure, "the service refused the request", ADDRESS_HINT if wrong_place else ""
    if is_write:
        return Lost, "the service failed to say what became of the request", ""
    if status >= 500 or status == 408:
        return Unreachable, "the service is failing", ""
    return Failure, "the service's answer has a status that means nothing here", ""


class Answer:
    """One whole HTTP response, and how much of it is believed."""

    def __init__(self, status: int, headers: Message, body: bytes, secrets: Sequence[str]) -> None:
        self.status, self._headers, self._body, self._secrets = status, headers, body, secrets
        self._is_ok = 200 <= status < 300
        names = ("x-request-id", "request-id", "x-correlation-id", "cf-ray")
        found = next(filter(None, map(headers.get, names)), "")
        # an id that looks like a key may be the new one, which is no secret yet
        self.request_id = None if "cf_" in found else show(found, secrets)[:100] or None

    def value(self, evidence: str, is_write: bool) -> Any:
        """The JSON value of a 2xx; None where a write was answered with something else. A link or
        a new key in the field called `evidence` makes any answer good, whatever else it says;
        outside 2xx it has to look like one. Raises Failure for a 2xx that says no, or that
        answers a read with no JSON; for other statuses what `classify` says."""
        value = parse_json(self._body)
        if value is None and evidence:  # broken JSON, in which it may stand all the same
            found = re.search(f'"{evidence}"\\s*:\\s*"([!-~]+?)"', self._body.decode("latin-1"))
            value = found and {evidence: found[1]}
        told = (get(value, evidence, str) or "").strip() if evidence else ""
        if told and (self._is_ok or (PLAUSIBLE.fullmatch(told) and told not in self._secrets)):
            return value
        is_json = isinstance(value, dict)
        if not self._is_ok:
            raise self._error(value, *classify(self.status, is_json, is_write))
        if get(value, "ok", bool) is False or (is_json and value.get("error")):
            raise self._error(value, Failure, "the service refused the request", "")
        if not is_json and not is_write:
            kind = show(self._headers.get_content_type(), self._secrets)
            what = f"it is no JSON object ({kind}, {len(self._body)} bytes)"
            raise Failure(f"the service's answer cannot be used: {what}", ADDRESS_HINT)
        return value

    def _error(self, value: object, kind: type[Failure], words: str, hint: str) -> Failure:
        text = self._body.decode("utf-8", "replace").strip()
        is_page = "html" in self._headers.get_content_type() or text.startswith("<")
        if value is not None or is_page:
            text = reason(value)
        said = show(text, self._secrets)
        error = kind(f"{words} (HTTP {self.status}{': ' if said else ''}{said})", hint)
        error.http_status, error.request_id = self.status, self.request_id
        after = (self._headers.get("Retry-After") or "").strip()
        if re.fullmatch("[0-9]{1,9}", after):
            error.retry_after_seconds = int(after)
        if error.retryable:
            wait = f"{error.retry_after_seconds} s" if error.retry_after_seconds else "a little"
            error.hint = f"Wait {wait}, then repeat."
        return error


# ── Wire: one exchange, and the one rule for repeating it

MAX_BODY_BYTES = 32 * 1024 * 1024
READ_ATTEMPTS = 3
GRACE_S = 1.0
REPEATABLE_STATUSES = (None, 429, 502, 503, 504)  # None: no answer at all


class Clock:
    """Time, and whether a signal has asked the program to stop. Its handler only notes that here,
    and the loops that wait look: an exception could hit any line, the delivery of a key too."""

    stopped_at: float | None = None
    is_asking = False  # a person, who may take any time: the one place to be interrupted

    def now(self) -> float:
        """Seconds on a clock that only goes forward."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let time pass, in steps short enough to see a signal."""
        end = self.now() + seconds
        while self.now() < end:
            self.check()
            time.sleep(max(0.0, min(0.2, end - self.now())))

    def in_grace(self) -> bool:
        """Whether a signal came so lately that a write which was sent may still be answered."""
        return self.stopped_at is not None and self.now() < self.stopped_at + GRACE_S

    def check(self) -> None:
        """Raises KeyboardInterrupt once a signal has come."""
        if self.stopped_at is not None:
            raise KeyboardInterrupt


def jitter(least: float, most: float) -> float:
    """A random number between the two, so that many clients spread out."""
    return least + (most - least) * int.from_bytes(os.urandom(2), "big") / 65535


def retry_delay_s(attempt: int, asked_s: int | None) -> float:
    """Seconds before the next try of a read: as the service asks, or about 1, then 2."""
    return float(asked_s) if asked_s is not None else jitter(0.5, 1.5) * attempt


def read_body(response: HTTPResponse) -> bytes:
    """The body to its end. Raises IncompleteRead if that came early."""
    from http.client import IncompleteRead

    body = bytearray()  # read in blocks, since a length of 10^14 must not be allocated
    for block in iter(partial(response.read, 65536), b""):
        body += block
        if len(body) > MAX_BODY_BYTES:  # too much to be JSON of ours, but an answer
            return bytes(body)
    is_framed = response.length is not None or response.chunked
    is_cut = bool(response.length) or not (is_framed or body)
    if is_cut:  # of which read(n) says nothing
        raise IncompleteRead(b"")
    return bytes(body)


def find_proxy(base: Url) -> str:
    """The proxy on the way to `base`, or nothing. Raises Usage without repeating the setting."""
    from urllib.request import getproxies, proxy_bypass

    # never one for this machine itself: it would be handed the key in clear
    text = "" if base.is_loopback else getproxies().get(base.scheme, "")
    if not text or proxy_bypass(base.authority):
        return ""
    match = re.fullmatch(r"(?:(.*?)://)?(?:(.*)@)?([^@/]*)/?", text)
    scheme, user, address = match.groups() if match else ("", "", "")
    try:
        Url(f"http://{address}")
    except ValueError:
        raise Usage("the proxy setting is not an http://HOST:PORT address") from None
    if (scheme or "http").lower() != "http":
        raise Usage("the proxy setting is not http: its password would be sent unencrypted")
    if user is not None and not re.fullmatch(".+:.+", user):  # urllib would leave both out
        raise Usage("the proxy setting has a user name without a password")
    if base.host.startswith("[") and sys.version_info < (3, 13):
        raise Usage("an IPv6 address behind a proxy needs Python 3.13 or later")
    return text


def make_opener(base: Url, proxy: str, gate: Lock) -> OpenerDirector:
    """An opener of http and https alone: it follows no redirect, opens no file, lets every status
    through, and verifies certificates. Raises Usage where their file cannot be used."""
    import io
    import ssl
    from http.client import HTTPConnection, HTTPResponse, HTTPSConnection, IncompleteRead
    from urllib.request import AbstractHTTPHandler, OpenerDirector, ProxyHandler

    class WholeLines(io.BufferedReader):
        def readline(self, size: int | None = -1) -> bytes:
            line = super().readline(size)
            if line.endswith(b"\n") or len(line) == size:  # too long: http.client's to refuse
                return line
            raise IncompleteRead(line)  # http.client takes headers that are cut for complete

    class WholeResponse(HTTPResponse):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.fp = WholeLines(self.fp.detach())

    class Connection(HTTPConnection):
        response_class = WholeResponse

        def connect(self) -> None:
            super().connect()
            if not gate.acquire(blocking=False):
                raise OSError

    class SecureConnection(Connection, HTTPSConnection):
        pass

    try:
        context = ssl.create_default_context() if base.scheme == "https" else None
    except OSError:
        raise Usage("SSL_CERT_FILE or SSLKEYLOGFILE names a file that cannot be used") from None

    class Handler(AbstractHTTPHandler):  # urllib's for https loads certificates for http, too
        http_request = https_request = AbstractHTTPHandler.do_request_

        def http_open(self, request: Request) -> HTTPResponse:
            return self.do_open(Connection, request)

        def https_open(self, request: Request) -> HTTPResponse:
            return self.do_open(SecureConnection, request, context=context)

    opener = OpenerDirector()
    opener.add_handler(Handler())
    if proxy:
        opener.add_handler(ProxyHandler({base.scheme: proxy}))
    return opener


class Exchange:
    """One request and its answer, in a thread that can be left behind. A socket's timeout bounds
    each `recv`, not the whole, and no name lookup; joining a thread with a timeout bounds it
    all. Whoever takes the gate first decides: the thread then sends, or the caller leaves and
    nothing is ever sent."""

    response: tuple[int, Message, bytes] | None = None
    error: BaseException | None = None

    def __init__(self, base: Url, proxy: str, request: Request) -> None:
        import threading

        self._gate = threading.Lock()
        self._opener, self._request = make_opener(base, proxy, self._gate), request
        self._thread = threading.Thread(target=self._work, daemon=True)

    def run(self, seconds: float, clock: Clock) -> float:
        """Do it, for `seconds` at the most; how many it took. What happened, the fields tell."""
        began = clock.now()
        try:
            self._thread.start()
            while self._thread.is_alive() and clock.now() < began + seconds:
                if not (self._request.data and self._gate.locked() and clock.in_grace()):
                    clock.check()
                self._thread.join(max(0.0, min(0.1, began + seconds - clock.now())))
        finally:
            self.sent = not self._gate.acquire(blocking=False)
        return clock.now() - began

    def _work(self) -> None:
        try:
            with self._opener.open(self._request, timeout=600) as response:
                self.response = response.status, response.headers, read_body(response)
        except BaseException as error:  # URLError has what went wrong as its reason
            why = getattr(error, "reason", None)
            self.error = why if isinstance(why, BaseException) else error


def explain(error: BaseException | None, where: str, seconds: float) -> Failure:
    """Why there is no answer, in our words: an exception's text may quote what was sent."""
    kind = type(error).__name__
    if error is None or kind in ("TimeoutError", "timeout"):  # 3.9's own name
        words = f"no complete answer from {where} within {round(seconds, 1):g} s"
        return Unreachable(words, ADDRESS_HINT)
    if kind == "SSLCertVerificationError":
        why = show(str(getattr(error, "verify_message", "")), ()) or "it cannot be verified"
        failure = Unreachable(
            f"the certificate of {where} is not accepted: {why}",
            "If a company or private authority signed it, point SSL_CERT_FILE at that authority's"
            " PEM file (python.org's Python on macOS: run Install Certificates.command first;"
            " Python 3.13 and later also refuse certificates that break X.509 rules).",
        )
        failure.retryable = False
        return failure
    if "SSL" in kind:
        return Unreachable(f"{where} does not speak TLS as https needs it", ADDRESS_HINT)
    tunnel = re.match("Tunnel connection failed: ([0-9]{3})", str(error))
    if tunnel:
        words = f"the proxy refused the way to {where} (HTTP {tunnel[1]})"
        return Usage(words, "Check HTTPS_PROXY.") if tunnel[1] == "407" else Unreachable(words)
    if isinstance(error, OSError) and error.strerror:
        return Unreachable(f"no connection to {where}: {show(error.strerror, ())}", ADDRESS_HINT)
    if isinstance(error, OSError) or kind == "IncompleteRead":
        words = f"the connection to {where} broke before the answer was complete"
        return Unreachable(words, ADDRESS_HINT)
    return Failure(f"{where} answers with something that is not HTTP, or too much", ADDRESS_HINT)


class Wire:
    """Requests to one service with one key, within one budget of seconds. A quarter of it,
    5 s at the most, is kept back from a write, for the read after it."""

    dry_run = False
    trace: Callable[[str], object] = len  # does nothing visible, until it is set

    def __init__(self, settings: Settings, timeout_s: float, clock: Clock) -> None:
        self._base, self._secrets, self._clock = settings.base, settings.secrets, clock
        self._left_s, self._kept_s = timeout_s, min(5.0, timeout_s / 4)
        self._headers = {
            "Authorization": f"Bearer {settings.api_key}",
            "Accept": "application/json",
            "User-agent": f"cacheforge-ops/{__version__}",
        }

    def request(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        evidence: str = "",
        within_s: float | None = None,
    ) -> Any:
        """The JSON value that the service answers with; for `evidence` see `Answer.value`. A read
        is tried up to three times while that can help; with `within_s` it is one look of many,
        tried once within so many seconds. A write is sent once. Raises Failure: for a read
        without an answer Unreachable, for a write that was sent without one Lost."""
        tries = READ_ATTEMPTS if body is None and within_s is None else 1
        if body is not None:
            if self.dry_run:
                raise self._rehearsal(method, path, body)
            within_s = self._left_s - self._kept_s
            if within_s < self._kept_s:
                hint = "It is safe to repeat; --timeout SECONDS allows it more time."
                raise Unreachable("too little time is left for a write: it was not sent", hint)
        attempt = 1
        while True:
            seconds = self._left_s if within_s is None else within_s
            try:
                return self._send(method, path, body, seconds).value(evidence, body is not None)
            except Unreachable as error:
                pause_s = retry_delay_s(attempt, error.retry_after_seconds)
                hopeless = error.http_status not in REPEATABLE_STATUSES or not error.retryable
                if attempt == tries or hopeless or pause_s >= self._left_s:
                    raise
                self._clock.sleep(pause_s)
                self._left_s -= pause_s
                attempt += 1

    def _rehearsal(self, method: str, path: str, body: Json) -> Page:
        shown = dict(body)
        for name, value in body.items():
            if isinstance(value, str):
                shown[name] = "<hidden>" if name == "apiKey" else hide(value, self._secrets)
        url = hide(self._base.text + path, self._secrets)
        write = {"method": method, "url": url, "body": shown}
        text = f"Would send {method} {url}\n{to_json(shown)}"
        end = "Dry run: it was not sent, and nothing was changed."
        return Page(f"{text}\n{end}", {"dry_run": write})

    def _send(self, method: str, path: str, body: Json | None, seconds: float) -> Answer:
        from urllib.request import Request

        proxy, url = find_proxy(self._base), self._base.text + path
        request = Request(url, None, self._headers, method=method)  # noqa: S310
        if body is not None:
            request.data = to_json(body).encode("ascii")
            request.add_header("Content-type", "application/json")
        exchange = Exchange(self._base, proxy, request)
        took_s = exchange.run(seconds, self._clock)
        self._left_s -= took_s
        answer = Answer(*exchange.response, self._secrets) if exchange.response else None
        status, request_id = (answer.status, answer.request_id) if answer else ("no answer", None)
        line = f"{method} {path}: {status}, {took_s * 1000:.0f} ms, id {request_id or '-'}"
        self.trace(show(line, self._secrets))
        if answer:
            return answer
        where = self._base.authority
        if proxy:
            where += " through the proxy " + re.split("[/@]", proxy.rstrip("/"))[-1]
        failure = explain(exchange.error, where, seconds)
        if exchange.sent and body is not None:
            raise Lost(f"the request was sent, and its answer lost: {failure.message}")
        raise failure


# ── Account: one short method for each endpoint, JSON in, a record out


@lru_cache
def camel(name: str) -> str:
    """The service's spelling of a name: `createdAt` for `created_at`."""
    return re.sub("_(.)", lambda match: match[1].upper(), name)


class Account:
    """The account behind one key. Every method may raise what `Wire.request` does. A record holds
    text that anybody may see; what is compared is the service's own."""

    def __init__(self, request: Callable[..., Any], settings: Settings) -> None:
        self._request, self.settings, self._secrets = request, settings, settings.secrets

    def _texts(self, fields: object, *names: str) -> Json:
        record: Json = {}
        for name in names:
            text = get(fields, camel(name), str) or ""
            is_never = text.startswith("0001-01-01")  # as a service in Go may write no time
            record[name] = None if is_never else show(text, self._secrets) or None
        return record

    def billing(self, within_s: float | None = None) -> Json:
        """Credit, and what refills it. The balance is evidence, the rest may be None."""
        reply = self._request("GET", "/v1/account/billing", within_s=within_s)
        billing = need(reply, "billing", dict)
        need(billing, "creditBalanceMicrousd", int)
        return billing_record(billing)

    def make_payment_link(self, amount_usd: int, method: str) -> Json:
        """A link to pay whole dollars by `stripe` (card) or `crypto`. Raises Lost without one."""
        body = {"amountUsd": amount_usd, "method": method}
        reply = self._request("POST", "/v1/account/billing/topup", body, evidence="paymentUrl")
        link = (get(reply, "paymentUrl", str) or "").strip()
        try:
            url = Url(link)
            link = link if link.isascii() else url.text
            on_loopback = url.is_loopback and self.settings.base.is_loopback
            is_safe = (url.scheme == "https" or on_loopback) and len(link) <= 4096
        except ValueError:
            is_safe = False
        if not is_safe or hide(link, self._secrets) != link:
            raise Lost("the service's answer holds no payment link that is safe to open")
        asked = {"amount_usd": amount_usd, "method": method}
        return {**asked, "payment_url": link, "payment_host": url.authority}

    def set_auto_topup(self, rule: Json) -> None:
        """Send a rule, in cents, to be stored."""
        body = {camel(name): value for name, value in rule.items()}
        self._request("PATCH", "/v1/account/billing/auto-topup", body)

    def upstream(self) -> Json:
        """The provider as it is stored; its key is never shown."""
        reply = self._request("GET", "/v1/account/upstream")
        configured = need(reply, "configured", bool)
        upstream = get(reply, "upstream", dict) if configured else None
        return {"configured": configured, **self._texts(upstream, "kind", "base_url")}

    def set_upstream(self, parts: Json) -> None:
        """Send the parts that are given to be stored: of `kind`, `base_url`, `api_key`."""
        body = {camel(name): value for name, value in parts.items() if value is not None}
        self._request("POST", "/v1/account/upstream", body)

    def list_keys(self, within_s: float | None = None) -> list[tuple[str | None, Json]]:
        """All keys in the service's order: each with its exact id, and as a record."""
        reply = self._request("GET", "/v1/account/keys", within_s=within_s)
        items = need(reply, "keys", list)
        return [(get(item, "id", str) or None, self._key(item)) for item in items]

    def _key(self, item: object) -> Json:
        times = ("created_at", "last_used_at", "revoked_at")
        key = self._texts(item, "id", "prefix", "label", *times)
        fields = item if isinstance(item, dict) else {}
        is_told = type(fields.get("revoked")) is bool
        is_told = is_told or isinstance(fields.get("revokedAt", 0), (str, type(None)))
        revoked = key["revoked_at"] is not None or get(item, "revoked", bool) is True
        key["revoked"] = revoked if revoked or is_told else None
        key["in_use"] = is_own(get(item, "prefix", str) or "", self.settings.api_key)
        return key

    def create_key(self) -> Json:
        """A new key. Its secret is in this answer and never again; Lost without one."""
        reply = self._request("POST", "/v1/account/keys", {}, evidence="apiKey")
        api_key = (get(reply, "apiKey", str) or "").strip()
        if not is_secret_token(api_key) or api_key == self.settings.api_key:
            raise Lost("the service's answer holds no new key")
        self._secrets.append(api_key)
        return {**self._texts(reply, "id", "prefix"), "api_key": api_key}

    def revoke_key(self, key_id: str) -> None:
        """End the key of this exact id for good."""
        segment = percent_encode(key_id, "[^A-Za-z0-9_.~-]")
        self._request("POST", f"/v1/account/keys/{segment}/revoke", {})

    def tenant(self) -> Json:
        """Whose account the key belongs to; any part may be None."""
        tenant = need(self._request("GET", "/v1/account/info"), "tenant", dict)
        record = self._texts(tenant, "id", "name", "status")
        record["upstream_configured"] = get(tenant, "upstreamConfigured", bool)
        record["active_keys"] = get(tenant, "activeKeys", int)
        return record


def billing_record(billing: Json) -> Json:
    """The state of the credit; without fields, the record of one that is not known."""
    balance_microusd = get(billing, "creditBalanceMicrousd", int)
    return {
        "balance_microusd": balance_microusd,
        "balance_usd": None if balance_microusd is None else microusd_exact(balance_microusd),
        "funded": None if balance_microusd is None else balance_microusd > 0,
        "auto_topup": {
            "enabled": get(billing, "autoTopupEnabled", bool),
            "threshold_cents": get(billing, "autoTopupThresholdCents", int),
            "amount_cents": get(billing, "autoTopupAmountCents", int),
        },
        "card_saved": get(billing, "defaultPaymentMethodSet", bool),
    }


def is_own(prefix: str, api_key: str) -> bool | None:
    """Whether a listed prefix, perhaps masked as `cf_ab...wxyz`, is that of `api_key`; None where
    that can neither be told nor ruled out. It is ruled out by a visible character that differs."""
    shown, key = prefix.strip().casefold(), api_key.casefold()
    if key.startswith(shown):
        return True if len(shown) >= 8 else None
    if not shown.startswith(("cf_", "cfk_")):
        return None
    head, *rest = re.split(r"[^0-9a-z_-]+", shown)
    if rest and key.startswith(head):
        return key.endswith(rest[-1]) and (True if len(head + rest[-1]) >= 8 else None)
    return None if key.startswith(shown[:8]) else False  # masked in a way of its own, perhaps


# ── Views: a record as a report, a report as text or JSON

MEANS = {"stripe": "by card", "crypto": "in crypto"}


class Report:
    """What a command has to say. `data` is the JSON object; its `next` is a command line for
    this program. The text is `head`, `rows` of a label and a value each (the first is the
    state: green if `good`, red if not), and `lines`."""

    head, exit = "", 0
    good: bool | None = None

    def __init__(self, data: Json, rows: Sequence[Row] = (), lines: Sequence[str] = ()) -> None:
        self.data, self.rows, self.lines = data, rows, lines

    def as_text(self, next_step: str, color: bool) -> str:
        """Aligned lines."""
        width = max((len(label) for label, _ in self.rows), default=0) + 3
        rows = [f"{label:{width}}{value}" for label, value in self.rows]
        if color and rows:
            tint = {None: "", True: ";32", False: ";31"}[self.good]
            rows[0] = f"{rows[0][:width]}\x1b[1{tint}m{rows[0][width:]}\x1b[0m"
        lines = [self.head, *rows, *self.lines, next_step and f"Next: {next_step}"]
        return "".join(f"{line}\n" for line in lines if line)


def in_words(flag: bool | None, yes: str = "yes", no: str = "no") -> str:
    """A flag that may be unknown."""
    return "unknown" if flag is None else yes if flag else no


def rule_text(rule: Json) -> str:
    """An auto top-up rule in words."""
    threshold_cents, amount_cents = rule["threshold_cents"], rule["amount_cents"]
    if not rule["enabled"] or threshold_cents is None or amount_cents is None:
        return in_words(rule["enabled"], "on, with unknown amounts", "off")
    return f"add {cents_text(amount_cents)} when below {cents_text(threshold_cents)}"


def balance_rows(billing: Json) -> list[Row]:
    """Balance, rule and card."""
    return [
        ("Balance", microusd_text(billing["balance_microusd"])),
        ("Auto top-up", rule_text(billing["auto_topup"])),
        ("Saved card", in_words(billing["card_saved"])),
    ]


def balance_report(billing: Json, enough: bool, extra: Json, rise: str, *lines: str) -> Report:
    """The balance, what is `extra` about it, and whether it is `enough`: exit 0 or 4."""
    rows = balance_rows(billing)
    if extra.get("short_microusd"):
        rows.append(("Short by", microusd_text(extra["short_microusd"] + MICROUSD_PER_CENT - 1)))
    report = Report({**billing, **extra}, rows, lines)
    report.head, report.good = rise, enough and billing["funded"]
    report.exit = 0 if enough else PaymentRequired.exit
    return report


def payment_report(link: Json, next: str | None) -> Report:
    """A payment link, in a sentence to hand to the payer and alone on its line."""
    sentence = (
        f"Pay {cents_text(link['amount_usd'] * CENTS_PER_USD)} {MEANS[link['method']]} for"
        f" CacheForge credit at {link['payment_host']}; nothing is charged until you pay:"
    )
    data = {**link, "message": f"{sentence} {link['payment_url']}", "next": next}
    return Report(data, lines=[sentence, link["payment_url"]])


def auto_topup_report(billing: Json, just_enabled: bool = False) -> Report:
    """The rule, what it authorises, and whether it charges the card right now."""
    rule, data = billing["auto_topup"], {**billing, "message": None}
    del data["funded"]
    below = billing["balance_microusd"] < (rule["threshold_cents"] or 0) * MICROUSD_PER_CENT
    facts = (rule["enabled"], billing["card_saved"], below)
    data["charges_now"] = False if False in facts else None if None in facts else True
    if just_enabled:
        data["message"] = (
            f"The service may now charge the saved card {cents_text(rule['amount_cents'])}"
            f" each time the balance falls below {cents_text(rule['threshold_cents'])}, until"
            " auto-topup --disable."
        )
    now = "The balance is below that already: expect a charge now." if data["charges_now"] else ""
    balance, auto_topup, card = balance_rows(billing)
    return Report(data, [auto_topup, balance, card], [data["message"] or "", now])


def upstream_report(upstream: Json, *lines: str) -> Report:
    """The provider, without its key."""
    name = upstream["kind"] or "unknown" if upstream["configured"] else "not configured"
    address = [("Base URL", upstream["base_url"])] if upstream["base_url"] else []
    report = Report(upstream, [("Upstream", name), *address], lines)
    report.good = upstream["configured"]
    return report


def keys_report(listed: list[tuple[str | None, Json]]) -> Report:
    """All keys, a line each."""
    keys = [key for _, key in listed]
    rows = [("ID", "Prefix", "Created", "State", "Label")]
    for key in keys:
        state = "active, in use here" if key["in_use"] else "active"
        if key["revoked"]:
            state = f"revoked {(key['revoked_at'] or '')[:10]}".rstrip()
        created = (key["created_at"] or "-")[:16].replace("T", " ")
        rows.append((key["id"] or "-", key["prefix"] or "-", created, state, key["label"] or ""))
    widths = [max(map(len, column)) for column in zip(*rows)]
    line = "  ".join(f"{{:{width}}}" for width in widths)
    lines = [line.format(*row).rstrip() for row in rows] if keys else ["No API keys."]
    return Report({"keys": keys}, lines=lines)


def new_key_report(key: Json, saved_to: str | None) -> Report:
    """A new key: its secret alone on the first line, or the file that it went into."""
    name = with_details("New key", key["id"], key["prefix"])
    if saved_to is None:
        sentence = f"{name}: store it now, it is not shown again."
        return Report(key, lines=[key["api_key"], sentence])
    data = {"id": key["id"], "prefix": key["prefix"], "saved_to": saved_to}
    return Report(data, lines=[f"{name}: saved to {saved_to}"])


def revoked_report(key: Json, confirmed: bool) -> Report:
    """Which key is gone."""
    again = "; it had been revoked before" if key["revoked"] else ""
    doubt = "" if confirmed else "The service accepted it, but its list of keys does not tell."
    revoked = {name: key[name] for name in ("id", "prefix", "label")}
    data = {"revoked": revoked, "already": bool(key["revoked"]), "confirmed": confirmed}
    return Report(data, lines=[f"Revoked: {key_name(key)}{again}", doubt])


def key_name(key: Json) -> str:
    """A key in words, for questions and answers about it."""
    return with_details(key["id"] or "a key without an id", key["prefix"], key.get("label"))


def with_details(name: str, *details: str | None) -> str:
    """A name, with what else is known of it in brackets."""
    known = ", ".join(detail for detail in details if detail and detail != name)
    return f"{name} ({known})" if known else name


def tenant_report(tenant: Json, settings: Settings) -> Report:
    """The tenant, and what this program is set to."""
    keys, url, api_key = tenant["active_keys"], settings.base.text, settings.mask_key()
    rows = [
        ("Tenant", with_details(tenant["id"] or "unknown", tenant["name"])),
        ("Status", tenant["status"] or "unknown"),
        ("Upstream", in_words(tenant["upstream_configured"], "configured", "not configured")),
        ("Active keys", "unknown" if keys is None else str(keys)),
        ("Service", url),
        ("API key", api_key),
    ]
    return Report({"tenant": tenant, "base_url": url, "api_key": api_key}, rows)


# ── Commands: one short function for each verb

DEFAULT_TOPUP_CENTS = 1000  # the smallest that the service accepts, typically
DEFAULT_THRESHOLD_CENTS = 200
DEFAULT_AUTO_TOPUP_CENTS = 1000
DEFAULT_WAIT_S = 100.0  # under the 120 s at which common agent shells cut a command off
LOOK_S = 10.0
SAFE = "It is safe to repeat."
STILL_VALID = "The payment link stays valid."


def show_balance(account: Account, args: argparse.Namespace, console: Console) -> Report:
    """`balance`, perhaps with `--min` or `--wait`"""
    began = console.clock.now()
    least_microusd = 1 if args.min is None else args.min * MICROUSD_PER_CENT
    again = wait_command(args.min)
    first = billing = account.billing()
    if args.wait and billing["balance_microusd"] < least_microusd:
        console.on_stop.next = again
        for look in looks(account, console, args.wait, began):
            if isinstance(look, Unauthorized):
                raise look
            billing = billing if isinstance(look, Failure) else look
            if billing["balance_microusd"] >= least_microusd:
                break
    elif args.wait and args.min is None:
        console.note("Credit is there already; --min USD waits for more.")
    short_microusd = max(0, least_microusd - billing["balance_microusd"])
    extra: Json = {"next": None}
    if args.min is not None:
        extra = {"enough": not short_microusd, "short_microusd": short_microusd, **extra}
    if short_microusd:
        extra["next"] = again if args.wait else topup_command(account.settings, short_microusd)
    enough = not (short_microusd and (args.wait or args.min is not None))
    return balance_report(billing, enough, extra, risen(first, billing))


def topup_command(settings: Settings, short_microusd: int) -> str | None:
    """The top-up that covers this, no less than the usual smallest; None over the cap."""
    amount_usd = max(DEFAULT_TOPUP_CENTS // CENTS_PER_USD, -(-short_microusd // MICROUSD_PER_USD))
    fits = amount_usd * CENTS_PER_USD <= settings.max_topup_cents
    return f"topup --amount {amount_usd}" if fits else None


def wait_command(min_cents: int | None) -> str:
    """The command that waits for any credit, or for so many cents."""
    least = "" if min_cents is None else f" --min {microusd_exact(min_cents * MICROUSD_PER_CENT)}"
    return f"balance --wait{least}"


def risen(before: Json | None, after: Json) -> str:
    """How far the credit has risen, in words; empty if it has not."""
    rise_microusd = after["balance_microusd"] - before["balance_microusd"] if before else 0
    if rise_microusd < MICROUSD_PER_CENT:
        return "Credit rose by less than a cent." if rise_microusd > 0 else ""
    return f"Credit rose by {microusd_text(rise_microusd)}."


def make_topup(account: Account, args: argparse.Namespace, console: Console) -> Report:
    """`topup`, perhaps with `--wait`"""
    cents = args.amount or DEFAULT_TOPUP_CENTS
    amount_usd = cents // CENTS_PER_USD
    mistaken_cents = amount_usd
    meant = f"; if cents were meant, write {mistaken_cents}c ({cents_text(mistaken_cents)})"
    slip = "" if amount_usd % CENTS_PER_USD else meant
    check_cap(cents, account.settings, f"topup counts in whole dollars{slip}.")
    before = look_first(account.billing, args)
    unseen = "nobody can pay a link that nobody has seen; it is safe to repeat"
    console.on_stop = Unreachable(unseen)
    try:
        link = account.make_payment_link(amount_usd, args.method or "stripe")
    except Lost as error:
        error.message += f"; {unseen}"
        raise
    except Failure as error:
        if cents < DEFAULT_TOPUP_CENTS and error.code == "failed" and not error.hint:
            error.hint = f"{cents_text(cents)} was asked for; the smallest is typically $10."
            error.next = topup_command(account.settings, 0)
        raise
    again = next_look(before, cents)
    if not args.wait:
        return payment_report(link, again)
    console.deliver(payment_report(link, None), Failure("the payment link stays valid", next=again))
    now, rise, trouble = before, "", None
    for look in looks(account, console, args.wait, console.clock.now()):
        trouble = look.message if isinstance(look, Failure) else None
        if not isinstance(look, Failure):
            now, rise = look, risen(now, look)
        if rise:
            break
    extra = {"credit_rose": bool(rise), "trouble": trouble, "next": None if rise else again}
    late = "" if rise else f"Credit has not risen yet. {STILL_VALID}"
    return balance_report(now or billing_record({}), bool(rise), extra, rise, late)


def look_first(read: Callable[..., T], args: argparse.Namespace) -> T | None:
    """What is there before a write, if one quick look shows it; only a refused key stops it."""
    try:
        return read(within_s=args.timeout / 3)
    except Unauthorized:
        raise
    except Failure:
        return None


def next_look(before: Json | None, asked_cents: int) -> str:
    """The command that shows that a payment of so many cents has arrived."""
    if before is None:  # a wait could end at once, with credit that was there before
        return "balance"
    had_microusd = before["balance_microusd"]
    if had_microusd > 0:
        return wait_command(had_microusd // MICROUSD_PER_CENT + 1)
    return "balance --wait" if had_microusd + asked_cents * MICROUSD_PER_CENT > 0 else "balance"


def poll_gap_s(waited_s: float) -> float:
    """Seconds to the next look of a wait: about 5, after a minute about 10."""
    return (5 if waited_s < 60 else 10) * jitter(0.8, 1.2)


def looks(
    account: Account, console: Console, wait_s: float, began: float
) -> Iterator[Json | Failure]:
    """Looks at the balance, or why one failed, until `wait_s` after `began`."""
    clock = console.clock
    due, end = began, began + wait_s
    last_look = end - min(1.0, wait_s / 10)  # so as to be answered in time
    console.note(f"Waiting up to {wait_s:g} s for credit; it is safe to stop.")
    asked_s, told = 0, False
    while due < last_look:
        gap_s = poll_gap_s(clock.now() - began)
        due = clock.now() + asked_s if asked_s > gap_s else min(clock.now() + gap_s, last_look)
        while clock.now() < min(due, end):
            console.countdown(end - clock.now())
            clock.sleep(max(0.0, min(1.0, due - clock.now(), end - clock.now())))
        if due >= end:
            return
        try:
            yield account.billing(within_s=min(LOOK_S, end - clock.now()))
            asked_s = 0
        except Failure as error:
            yield error
            if not told:
                console.note(f"A look failed, still waiting: {error.message}")
            asked_s, told = error.retry_after_seconds or 0, True


def check_cap(cents: int, settings: Settings, slip: str) -> None:
    """Raises Usage for an amount over the cap; `slip` names the mistake that is likely."""
    if cents > settings.max_topup_cents:
        over = f"{cents_text(cents)} is over the cap of {cents_text(settings.max_topup_cents)}"
        whose = "CACHEFORGE_MAX_TOPUP_USD, the user's to change"
        raise Usage(f"{over} for one amount ({whose}); nothing was sent", slip)


def change(
    send: Callable[[], object],
    look: Callable[[], Any],
    holds: Callable[[Any], bool | None],
    as_text: Callable[[Any], str],
    is_visible: bool = True,
    may_be_silent: bool = False,
) -> tuple[Any, bool]:
    """Send a write once, then judge it by what is stored: returns that, and whether it `holds`
    what was asked for (None: nothing tells). Raises Failure where something else is stored
    after an answer; Unreachable where nothing tells, unless it `may_be_silent`, and after a
    lost answer unless all that was sent `is_visible` and stored."""
    lost = state = held = None
    try:
        send()
    except Lost as error:
        lost = error
    try:
        state = look()
        held = holds(state)
    except Failure:
        pass
    if held and (is_visible or not lost):
        return state, True
    if held is None and may_be_silent and not lost:
        return state, False
    said = lost.message if lost else "the service accepted it"
    if held is not False:
        raise Unreachable(f"{said}, and nothing shows what is stored", SAFE).after(lost)
    said += f", but what is stored is: {as_text(state)}"
    raise (Unreachable(said, SAFE) if lost else Failure(said)).after(lost)


def matches(asked: Json, stored: Json) -> bool | None:
    """Whether all that was asked for is stored; None where the service does not say."""
    told = [(stored[name], value) for name, value in asked.items() if value is not None]
    if any(found not in (None, value) for found, value in told):
        return False
    return None if any(found is None for found, _ in told) else True


def set_auto_topup(account: Account, args: argparse.Namespace, console: Console) -> Report:
    """`auto-topup --enable` or `--disable`"""
    amounts: Json = {}
    if args.enable:
        amounts["threshold_cents"] = args.threshold or DEFAULT_THRESHOLD_CENTS
        amounts["amount_cents"] = args.amount or DEFAULT_AUTO_TOPUP_CENTS
    for cents in amounts.values():
        slip = f"auto-topup counts in cents: {cents} is {cents_text(cents)}."
        check_cap(cents, account.settings, slip)
    rule = {"enabled": args.enable, **amounts}
    console.on_stop = Unreachable("the rule may be stored; it is safe to repeat")
    stored, _ = change(
        lambda: account.set_auto_topup(rule),
        account.billing,
        lambda stored: matches(rule, stored["auto_topup"]),
        lambda stored: f"auto top-up {rule_text(stored['auto_topup'])}",
    )
    return auto_topup_report(stored, just_enabled=args.enable)


def set_upstream(account: Account, args: argparse.Namespace, console: Console) -> Report:
    """`upstream --set`"""
    kind, base_url = args.kind, args.base_url
    key = read_provider_key(account, args, console)
    if kind is None and base_url is None and key is None:
        raise Usage("upstream --set needs --kind, --base-url or the provider's key")
    if kind == "openai":  # the API knows the alias only as a custom provider
        kind, base_url = "custom", base_url or "https://api.openai.com"
        console.note(f"openai is set as custom, with {base_url}")
    if kind == "custom" and base_url is None:
        raise Usage("--kind custom needs --base-url, the address of the provider")
    if base_url is not None:
        check_url(base_url, "--base-url", account.settings.allow_http)
        if len(base_url) > MAX_TEXT_CHARS:  # it could not be compared with what is stored
            raise Usage(f"--base-url is longer than {MAX_TEXT_CHARS} characters")
    asked = {"configured": True, "kind": kind, "base_url": base_url and plain_url(base_url)}
    console.on_stop = Unreachable("the provider may be stored; it is safe to repeat")
    stored, _ = change(
        lambda: account.set_upstream({"kind": kind, "base_url": base_url, "api_key": key}),
        account.upstream,
        lambda stored: matches(asked, {**stored, "base_url": plain_url(stored["base_url"])}),
        lambda stored: with_details(stored["kind"] or "no known provider", stored["base_url"]),
        is_visible=key is None,
    )
    unread = "" if key is None else ", but for the provider's key: the service never shows it"
    return upstream_report(stored, f"Set, and read back{unread}.")


def plain_url(text: str | None) -> str | None:
    """An address in one spelling of many: small letters, no usual port, no slash at its end."""
    try:
        return Url(text or "").text.rstrip("/")
    except ValueError:
        return text


def read_provider_key(account: Account, args: argparse.Namespace, console: Console) -> str | None:
    """The provider's key from wherever the command line says it is; None if nowhere."""
    if args.api_key is not None and args.api_key_env is not None:
        raise Usage("--api-key and --api-key-env exclude each other")
    if args.api_key_env is not None:
        source, key = "the variable of --api-key-env", console.environ.get(args.api_key_env, "")
    elif args.api_key is None:
        return None
    elif args.api_key == "-":
        source, key = "standard input", console.read_secret()
    else:
        source, key = "--api-key", args.api_key
        risk = "A key on the command line can be seen in ps and stays in the shell's history"
        console.note(f"{risk}; --api-key-env NAME or --api-key - keep it out.")
    key = key.strip()
    if not is_secret_token(key):
        raise Usage(f"{source} holds no key: it must be one word of visible ASCII characters")
    if key == account.settings.api_key:
        raise Usage(f"{source} holds the CacheForge key, which is not for the provider")
    for prefix, owner in (("sk-or-", "openrouter"), ("sk-ant-", "anthropic")):
        if key.startswith(prefix) and args.kind not in (None, "custom", owner):
            words = f"by its prefix, {source} holds a key of {owner}, not of {args.kind}"
            raise Usage(f"{words}; it was not sent")
    if len(key) >= 8:  # a shorter one would be hidden in every other word
        account.settings.secrets.append(key)
    return key


def create_key(account: Account, args: argparse.Namespace, console: Console) -> Report:
    """`keys --create`, perhaps with `--save`"""
    if args.save is None:
        return new_key_report(make_key(account, args, console), None)
    with console.new_file(args.save) as file:  # first: an unwritable path must cost nothing
        key = make_key(account, args, console)
        file.keep(key["api_key"])
    console.on_stop = Failure(f"the new key is safe in {args.save}")
    return new_key_report(key, args.save)


def make_key(account: Account, args: argparse.Namespace, console: Console) -> Json:
    """A new key, which from here on is in nobody's hands. Raises Uncertain if it was lost."""
    before = look_first(account.list_keys, args)
    console.on_stop = Uncertain("a key may have been made whose secret nobody has", "", "keys")
    try:
        key = account.create_key()
    except Lost as error:
        raise lost_key(account, before, error).after(error) from None
    unseen = f"{key_name(key)} was made, and nobody has its secret"
    console.on_stop = Uncertain(unseen, next=revoke_command(key["id"], before))
    return key


def revoke_command(key_id: str | None, listed: list[Any] | None) -> str:
    """The command that revokes a new key; the list, where its id is more than a plain word. It
    has `--force` where the list does not rule out that a key is the own one."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}", key_id or ""):
        return "keys"
    is_told = listed is not None and all(key["in_use"] is not None for _, key in listed)
    return f"keys --revoke {key_id} --yes{'' if is_told else ' --force'}"


def lost_key(account: Account, before: list[Any] | None, lost: Lost) -> Uncertain:
    """What to say of a key that was lost: what the list has now that it did not have before."""
    hint = "If the list shows a new key, nobody has its secret: revoke it before making another."
    try:
        listed = None if before is None else account.list_keys()
    except Failure:
        listed = None
    if before is None or listed is None:
        return Uncertain(f"{lost.message}; the list of keys does not tell", hint, "keys")
    known = {key_id for key_id, _ in before}
    new = [key for key_id, key in listed if key_id not in known]
    if not new:
        return Uncertain(f"{lost.message}; no new key is listed", hint, "keys")
    words = f"{lost.message}; new in the list: {' and '.join(map(key_name, new[:3]))}"
    next_step = revoke_command(new[0]["id"], listed) if len(new) == 1 else "keys"
    hint = "Unless somebody else made it just now, nobody has its secret: revoke it."
    return Uncertain(words, hint, next_step)


def revoke_key(account: Account, args: argparse.Namespace, console: Console) -> Report:
    """`keys --revoke KEY_ID`: looked up first, to say which key dies."""
    is_sure = args.yes or args.dry_run
    if not (is_sure or console.has_person()):
        raise Usage("--revoke needs --yes where nobody can be asked; nothing was sent")
    listed = account.list_keys()
    alike = [pair for pair in listed if pair[1]["id"] == args.revoke]
    found = [pair for pair in listed if pair[0] == args.revoke] or alike
    if not found or len({key_id for key_id, _ in found}) > 1:  # some only look the same
        raise Usage("no key has that id; nothing was revoked", next="keys")
    found.sort(key=lambda pair: pair[1]["in_use"] is False)  # an own one first
    key_id, key = found[0]
    if key["in_use"] is not False and not args.force:
        may = "is" if key["in_use"] else "may be"
        words = f"{key_name(key)} {may} the key that this command runs on; nothing was revoked"
        raise Usage(words, "Run it with another key in CACHEFORGE_API_KEY, or add --force.")
    if not (is_sure or console.ask(f"Revoke {key_name(key)} for good?")):
        raise Usage("not confirmed; nothing was revoked")

    def look() -> list[Any]:
        try:
            return [key["revoked"] for id, key in account.list_keys() if id == key_id]
        except Unauthorized:
            if key["in_use"]:  # the key that this command runs on is gone
                return []
            raise

    console.on_stop = Unreachable("the key may be revoked; it is safe to repeat")
    _, confirmed = change(
        lambda: account.revoke_key(key_id or ""),
        look,
        lambda found: None if None in found else all(found),  # gone is as good as marked
        lambda _: "the key is still active",
        may_be_silent=True,
    )
    return revoked_report(key, confirmed)


# ── Parser: the command line, declared as data

if TYPE_CHECKING:
    Verbs = dict[str, Callable[[Account, argparse.Namespace, "Console"], Report]]
    Option = tuple[str, str, str]  # the flag and what its value is, its verbs, its help

DRY_RUN = "show the write that would be sent, and do not send it"
COMMON: list[Option] = [
    ("--json", "", "one JSON object a line"),
    ("--timeout SECONDS", "", "the most to spend on the network in all (default 30)"),
    ("--verbose", "", "a line per exchange on stderr"),
]


class Command:
    """What a command does, the function of each verb, examples, options (a verb is one)."""

    def __init__(self, what: str, verbs: Verbs, examples: list[str], *options: Option) -> None:
        self.what, self.verbs, self.examples, self.options = what, verbs, examples, options


COMMANDS = {
    "balance": Command(
        "show the balance, the auto top-up rule, the saved card",
        {"": show_balance},
        ["", "--min 2.50", "--wait", "--wait 30 --min 5"],
        ("--min DOLLARS", "", "exit 4 if the balance is below it, such as 2.50"),
        ("--wait [SECONDS]", "", "look until the balance is above 0, or at --min; else exit 4"),
    ),
    "topup": Command(
        "make a link that a person pays; it charges nothing by itself",
        {"": make_topup},
        ["--amount 10", "--amount 25 --method crypto", "--amount 10 --wait"],
        ("--amount USD", "", "whole dollars: 25, 25usd or 2500c (default 10: typically the least)"),
        ("--method METHOD", "", "stripe (card) or crypto (default stripe)"),
        ("--wait [SECONDS]", "", "print the link, then look until credit rises; else exit 4"),
        ("--dry-run", "", DRY_RUN),
    ),
    "auto-topup": Command(
        "show or set the rule that charges the saved card by itself",
        {
            "": lambda account, *_: auto_topup_report(account.billing()),
            "--enable": set_auto_topup,
            "--disable": set_auto_topup,
        },
        ["", "--enable --threshold 200 --amount 10usd --dry-run", "--disable"],
        ("--enable", "", "set the rule"),
        ("--disable", "", "end it"),
        ("--threshold CENTS", "--enable", "charge below this: cents, or 2usd (default 200)"),
        ("--amount CENTS", "--enable", "charge so much: cents, or 10usd (default 1000)"),
        ("--dry-run", "--enable or --disable", DRY_RUN),
    ),
    "upstream": Command(
        "show or set the provider that calls are forwarded to",
        {"": lambda account, *_: upstream_report(account.upstream()), "--set": set_upstream},
        [
            "",
            "--set --kind openrouter --api-key-env OPENROUTER_API_KEY",
            "--set --kind custom --base-url https://llm.example.com",
        ],
        ("--set", "", "set what is given"),
        ("--kind KIND", "--set", "the provider: openrouter, anthropic, custom or openai"),
        ("--base-url URL", "--set", "its address"),
        ("--api-key KEY", "--set", "its key; - reads a line of standard input (safer)"),
        ("--api-key-env NAME", "--set", "its key, from the variable NAME (safer)"),
        ("--dry-run", "--set", DRY_RUN),
    ),
    "keys": Command(
        "list, make or revoke API keys",
        {
            "": lambda account, *_: keys_report(account.list_keys()),
            "--create": create_key,
            "--revoke": revoke_key,
        },
        ["", "--create --save new.key", "--create", "--revoke KEY_ID --yes"],
        ("--create", "", "make a key; it is shown this once"),
        ("--revoke KEY_ID", "", "end a key for good"),
        ("--save FILE", "--create", "write the key to a new private FILE, and do not show it"),
        ("--yes", "--revoke", "do not ask"),
        ("--force", "--revoke", "even the key in use"),
        ("--dry-run", "--create or --revoke", DRY_RUN),
    ),
    "info": Command(
        "show the tenant, and what this program is set to",
        {"": lambda account, *_: tenant_report(account.tenant(), account.settings)},
        [""],
    ),
}
EPILOG = f"""\
examples:
  ops.py balance
  ops.py topup --amount 10 --wait
  ops.py keys --create --save new.key

exit codes:
  0    done
  1    refused, nonsense, or something else is stored: repeating will not help
  2    bad command line or setting; nothing was sent
  3    the API key was refused
  4    payment required, below --min, or --wait ran out
  5    no usable answer: safe to repeat
  6    a key may have been made whose secret nobody has: look first
  130  interrupted

environment:
  CACHEFORGE_API_KEY              the account's key (required)
  CACHEFORGE_BASE_URL             the service (default {DEFAULT_BASE_URL})
  CACHEFORGE_MAX_TOPUP_USD        cap for topup and auto-topup, in whole dollars
                                  (default {DEFAULT_MAX_TOPUP_USD})
  CACHEFORGE_ALLOW_INSECURE_HTTP  1 to allow plain http beyond this machine
  HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE, NO_COLOR as everywhere
"""


def read_value(kind: str, text: str) -> Any:
    """The value of an option, by what its help calls it: amounts as cents. Raises BadValue."""
    choices = {"METHOD": list(MEANS), "KIND": ["openrouter", "anthropic", "custom", "openai"]}
    if text not in choices.get(kind, [text]):
        raise BadValue(f"must be one of {', '.join(choices[kind])}")
    if kind == "SECONDS":
        if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", text) or float(text) == 0:
            raise BadValue("must be seconds, more than 0 and less than 100000")
        return float(text)
    if kind not in ("DOLLARS", "USD", "CENTS"):
        return text
    cents = read_cents(text, "c" if kind == "CENTS" else "usd", decimals=kind == "DOLLARS")
    if kind == "USD" and (cents == 0 or cents % CENTS_PER_USD):
        raise BadValue("must be whole dollars, more than 0 (an unquoted $10 reaches us as 0)")
    if kind == "CENTS" and cents < 100:  # a slip: dollars were meant
        meant = f"; for {cents_text(cents * CENTS_PER_USD)} write {cents}usd" if cents else ""
        raise BadValue(f"counts in cents, at least 100: {cents} is {cents_text(cents)}{meant}")
    return cents


class Parser(argparse.ArgumentParser):
    """argparse that prints nothing, and never repeats what was typed: it may be a secret."""

    def __init__(self, **shape: Any) -> None:
        # of one width everywhere; argparse would load shutil to measure the terminal
        helps = partial(argparse.RawDescriptionHelpFormatter, width=78)
        super().__init__(allow_abbrev=False, formatter_class=helps, **shape)
        self.color = False  # 3.14 would colour the help by rules of its own
        self._optionals.title = "options"  # as all but 3.9 call them

    def add_options(self, options: Sequence[Option], **shape: Any) -> None:
        """Declare options."""
        for words, only, help in options:
            flag, _, kind = words.partition(" ")
            what: Json = {"help": f"with {only}: {help}" if only else help, **shape}
            if not kind:
                self.add_argument(flag, action="store_true", **what)
                continue
            if kind[0] == "[":
                what.update(nargs="?", const=DEFAULT_WAIT_S)
                what["help"] += f" (default {DEFAULT_WAIT_S:g} s)"
            kind = kind.strip("[]")
            self.add_argument(flag, type=partial(read_value, kind), metavar=kind, **what)

    def print_help(self, file: Any = None) -> NoReturn:
        """Raise Page."""
        raise Page(self.format_help().rstrip("\n"), {})

    def error(self, message: str) -> NoReturn:
        """Raise Usage with what argparse says, up to where it quotes."""
        unknown = re.match("argument COMMAND: invalid choice: '(.*?)'", message)
        if unknown:
            from difflib import get_close_matches

            near = get_close_matches(unknown[1].lower(), COMMANDS, 1)
            words = f"unknown command; did you mean {near[0]}?" if near else "unknown command"
            raise Usage(words, f"The commands are {', '.join(COMMANDS)}.", "--help")
        # argparse quotes values, we do not
        said = re.split("[\"']", message)[0].rstrip(" :").removeprefix("argument ")
        raise Usage(said, next=f"{self.prog[len('ops.py ') :]} --help".strip())


def build_parser() -> Parser:
    """The whole command line, from COMMANDS."""
    about = "Run a CacheForge account: balance, top-ups, provider and API keys."
    usage = "ops.py COMMAND [options]"
    parser = Parser(prog="ops.py", usage=usage, description=about, epilog=EPILOG)
    parser.add_argument("-V", "--version", action="store_true", help="show the version and exit")
    parser.add_options(COMMON, default=argparse.SUPPRESS)
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", prog=parser.prog)
    for name, command in COMMANDS.items():
        lines = [f"  ops.py {name} {words}".rstrip() for words in command.examples]
        shape: Json = {"help": command.what, "description": f"{command.what}."}
        shape["epilog"] = "\n".join(["examples:", *lines])
        subparser = commands.add_parser(name, usage=f"ops.py {name} [options]", **shape)
        subparser.add_options(command.options)
        # without defaults, which would undo what stood before the command
        subparser.add_options(COMMON, default=argparse.SUPPRESS)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line as a namespace, with its function as `run`. Raises Usage or Page."""
    parser = build_parser()
    defaults = {"verbose": False, "dry_run": False, "wait": None, "timeout": DEFAULT_TIMEOUT_S}
    args, unknown = parser.parse_known_args(argv, argparse.Namespace(**defaults))
    if args.version:
        raise Page(f"cacheforge-ops {__version__}", {"version": __version__})
    if unknown:
        what = "option" if unknown[0].startswith("-") else "word"
        words = f"unknown {what} on the command line"
        raise Usage(words, next=f"{args.command or ''} --help".strip())
    if not args.command:
        raise Usage("a command is missing", parser.format_help())
    command = COMMANDS[args.command]
    flags = [(words.partition(" ")[0], only) for words, only, _ in command.options]
    values = [getattr(args, flag[2:].replace("-", "_")) for flag, _ in flags]
    given = [flag for flag, value in zip(flags, values) if value is not None and value is not False]
    chosen = [flag for flag, _ in given if flag in command.verbs] or [""]
    if len(chosen) > 1:
        raise Usage(f"{chosen[0]} and {chosen[1]} exclude each other; nothing was sent")
    for flag, only in given:
        if only and chosen[0] not in only.split(" or "):
            raise Usage(f"{flag} only goes with {only}; nothing was sent")
    args.run = command.verbs[chosen[0]]
    return args


# ── main: the only room that prints, reads the environment or exits


class Undelivered(Exception):
    """Standard output, or a file, did not take what it was given; the text says so."""


def nothing_changed() -> Failure:
    """What to say of an early end before anything was sent that changes something."""
    failure = Failure("nothing was changed; it is safe to repeat")
    failure.retryable = True
    return failure


class PrivateFile:
    """A new file for a key, 0600, never over an existing one or through a symlink; a context
    that removes it again if it ends with an exception. Raises Usage where it cannot be made."""

    def __init__(self, path: str) -> None:
        import stat

        self._path = path
        try:
            if path == "-" or not path.isprintable():
                raise ValueError
            # O_EXCL refuses whatever is there already, a dangling symlink included
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(path, flags, 0o600)
            self._status = os.fstat(self._descriptor)
            # on Windows, NUL opens as if it were new, and would swallow the key
            if not stat.S_ISREG(self._status.st_mode):
                os.close(self._descriptor)
                raise ValueError
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "not a plain file name"
            raise Usage(f"--save: the file cannot be made ({why}); nothing was sent") from None

    def keep(self, text: str) -> None:
        """Write the text and see it to the disk. Raises Undelivered."""
        line = f"{text}\n".encode("ascii")
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
            os.fsync(self._descriptor)
        except OSError as error:
            # it may be written, on a file system that cannot be asked to hurry
            if line or error.errno not in (errno.EINVAL, errno.ENOTSUP):
                why = f"the file did not take the key ({error.strerror})"
                raise Undelivered(why) from None
        if not self._is_there():
            raise Undelivered("the file was removed or replaced")

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.lstat(self._path), self._status)
        except OSError:
            return False

    def __enter__(self) -> PrivateFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            os.close(self._descriptor)  # first: Windows removes no file that is open
            if kind and self._is_there():
                os.unlink(self._path)
        except OSError:
            pass


class Console:
    """The world outside: results go to standard output, all else to standard error. `on_stop` is
    what to say, and the exit code, if the command ends early from here on."""

    new_file = PrivateFile
    _countdown_s: int | None = None  # what stands on the terminal

    def __init__(self, argv: Sequence[str]) -> None:
        self.as_json, self.environ, self.clock = "--json" in argv, os.environ, Clock()
        self.on_stop = nothing_changed()
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a name in Japanese must not end in a crash
                stream.reconfigure(errors="backslashreplace")

    def deliver(self, report: Report, then: Failure | None = None) -> None:
        """Print a report; from then on, `on_stop` is `then`. Raises Undelivered."""
        data, next_step = report.data, self._command(report.data.get("next"))
        mute = self.environ.get("NO_COLOR") or self.environ.get("TERM") == "dumb"
        data = {**data, "next": next_step} if "next" in data else data
        self._write_error("")
        try:
            color = not mute and os.name != "nt" and sys.stdout.isatty()
            sys.stdout.write(self._line(data, report.as_text(next_step or "", color)))
            sys.stdout.flush()
        except (OSError, ValueError, AttributeError) as error:  # it is None where it was closed
            why = getattr(error, "strerror", None) or "it is closed"
            raise Undelivered(f"standard output did not take the result ({why})") from None
        self.on_stop = then or self.on_stop

    def fail(self, error: Failure) -> None:
        """Print an error as a few lines or one JSON object."""
        next_step = self._command(error.next)
        names = ("code", "message", "exit", "http_status", "request_id", "retryable")
        fields = {name: getattr(error, name) for name in (*names, "retry_after_seconds")}
        fields.update(hint=error.hint or None, next=next_step)
        request = f" [request {error.request_id}]" if error.request_id else ""
        last = next_step and f"Next: {next_step}"
        lines = (f"{error.code}: {error.message}{request}", error.hint, last)
        text = "".join(f"{line}\n" for line in lines if line)
        self._write_error(self._line({"error": fields}, text))

    def _line(self, data: Json, text: str) -> str:
        return to_json(data, compact=True) + "\n" if self.as_json and data else text

    @staticmethod
    def _command(words: str | None) -> str | None:
        """A command line of this program, as it can be pasted into a shell."""
        if not words:
            return None
        path = sys.argv[0]
        if not re.fullmatch(r"[A-Za-z0-9_./\\:~-]+", path):
            from shlex import quote

            path = f'"{path}"' if os.name == "nt" else quote(path)
        return f"{'python' if os.name == 'nt' else 'python3'} {path} {words}"

    def note(self, line: str) -> None:
        """A line on standard error; if that is gone, so is the line."""
        self._write_error(self._line({"note": line}, f"{line}\n"))

    def countdown(self, seconds_left: float) -> None:
        """The time left of a wait, on a terminal in one line that changes."""
        left_s = -int(-seconds_left // 1)
        if left_s != self._countdown_s and not self.as_json and sys.stderr and sys.stderr.isatty():
            self._countdown_s = None
            self._write_error(f"\rwaiting, {left_s} s left ")
            self._countdown_s = left_s

    def _write_error(self, text: str) -> None:
        if self._countdown_s is not None:
            self._countdown_s, text = None, f"\n{text}"
        try:
            if sys.stderr is not None:  # print(file=None) would fall back to stdout
                sys.stderr.write(text)
                sys.stderr.flush()
        except (OSError, ValueError):
            pass

    def has_person(self) -> bool:
        """Whether somebody can be asked: both are terminals (Windows also calls NUL one)."""
        return not self.as_json and all(s and s.isatty() for s in (sys.stdin, sys.stderr))

    def ask(self, question: str) -> bool:
        """Ask the person at the terminal."""
        self._write_error(f"{question} [y/N] ")
        return self._read(sys.stdin.readline).strip().lower() in ("y", "yes")

    def read_secret(self) -> str:
        """One line of standard input, from a terminal without an echo; empty if there is none."""
        if self.has_person():
            from getpass import getpass

            return self._read(lambda: getpass("Provider's key: "))
        if sys.stdin is None or sys.stdin.isatty():  # never with an echo
            return ""
        return self._read(lambda: sys.stdin.readline(8192))

    def _read(self, read: Callable[[], str]) -> str:
        self.clock.is_asking = True
        try:
            self.clock.check()
            return read()
        except (OSError, EOFError, ValueError):  # not text, or nothing at all
            return ""
        except KeyboardInterrupt:
            self._write_error("\n")
            raise
        finally:
            self.clock.is_asking = False


def carry_out(argv: Sequence[str], console: Console) -> Report:
    """Carry out one command line. Raises Failure or Page."""
    args = parse(argv)
    settings = Settings(console.environ)
    if sys.stdout is None or sys.stdout.closed:
        raise Usage("standard output is closed: nothing could be shown, so nothing was sent")
    is_wait = args.command == "balance" and args.wait  # its first look is a part of the wait
    timeout_s = min(args.timeout, args.wait) if is_wait else args.timeout
    wire = Wire(settings, timeout_s, console.clock)
    wire.dry_run, wire.trace = args.dry_run, console.note if args.verbose else len
    run: Callable[..., Report] = args.run
    try:
        return run(Account(wire.request, settings), args, console)
    except PaymentRequired as error:
        error.next = None if args.command == "topup" else topup_command(settings, 0)
        raise


def as_failure(error: BaseException, on_stop: Failure) -> Failure:
    """What to report of anything that ended a command early."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, KeyboardInterrupt):
        interrupted = Interrupted(on_stop.message, on_stop.hint, on_stop.next)
        interrupted.retryable = on_stop.retryable
        return interrupted
    if isinstance(error, Undelivered):
        why = str(error)
    else:
        trace, line = error.__traceback__, 0  # not the text of the error: it may quote a secret
        while trace:
            line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == __file__ else line
            trace = trace.tb_next
        why = f"a mistake in this program (cacheforge-ops {__version__}, line {line})"
        on_stop.hint = f"Please report this line at {DEFAULT_BASE_URL}."
    on_stop.message = f"{why}; {on_stop.message}"
    return on_stop


def main(argv: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Run one command line; its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    console = console or Console(argv)
    try:
        try:
            report = carry_out(argv, console)
        except Page as page:
            console.on_stop = nothing_changed()
            report = Report(page.data, lines=[page.text])
        console.deliver(report)
        return report.exit
    except BaseException as error:
        failure = as_failure(error, console.on_stop)
        console.fail(failure)
        return failure.exit


def start() -> NoReturn:
    """Run as a script, and leave at once: an ordinary exit would choke on a pipe that nobody
    reads. A signal leaves its mark on the clock; one more, a second later, ends the process."""
    import signal

    console = Console(sys.argv)
    clock = console.clock

    def stop(number: int, frame: object) -> None:
        clock.stopped_at = clock.stopped_at or time.monotonic()
        if time.monotonic() - clock.stopped_at > 1:
            try:
                console.fail(as_failure(KeyboardInterrupt(), console.on_stop))
            finally:
                os._exit(Interrupted.exit)
        if clock.is_asking:
            raise KeyboardInterrupt

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) is not signal.SIG_IGN:  # as the parent wants it
            signal.signal(number, stop)
    os._exit(main(console=console))


if __name__ == "__main__":
    start()
