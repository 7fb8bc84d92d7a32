#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = []
# ///
"""Run a CacheForge account: balance, top-ups, auto top-up, upstream, keys, info.

The file is read from top to bottom: a room uses only the rooms above it, and
data goes down the page once.

    argv -> arguments -> one account call -> a record -> a report -> text or JSON

    Outcomes   the exit codes: one class for each different next step
    Money      amounts in and out, in whole numbers with their unit
    Settings   the environment, variable by variable, in one value
    Replies    what may be shown of a text, and believed of an answer
    Wire       one exchange, and the one rule for repeating it
    Account    one short method for each endpoint: JSON in, a record out
    Views      a record as a report; a report as text or JSON
    Commands   one short function for each verb
    Parser     the command line, declared
    main       the only room that prints, reads the environment or exits

Standard library only. The key goes to the configured service and nowhere else;
a write is sent once; an outcome that is not known is called just that (exit 6).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` costs a tenth of a start; only the type checker needs it
    import http.client
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any, NoReturn, Protocol, TypedDict, TypeVar

    T = TypeVar("T")
    Json = dict[str, Any]
    Response = tuple[int, http.client.HTTPMessage, bytes]  # status, headers, the whole body
else:
    TypedDict = dict

__version__ = "2.0.0"

DEFAULT_BASE_URL = "https://app.anvil-ai.io"
DEFAULT_MAX_TOPUP_USD = 500
DEFAULT_TIMEOUT_S = 30.0


# ── Outcomes: what happened, as a type; its exit code says what to do next ──────


class Failure(Exception):
    """The command did not do what was asked; the message says why.

    `code` and `exit` belong to the class, one class for each different next step.
    In a `hint`, `{ops}` stands for the words that start this program.
    """

    code = "failed"
    exit = 1
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        http_status: int | None = None,
        request_id: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.http_status = http_status
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class Refused(Failure):
    """The service understood and said no: repeating will not help."""


class BadReply(Failure):
    """A read was answered with something that cannot be believed."""


class Usage(Failure):
    """The command line or a setting is wrong; nothing was sent."""

    code = "usage"
    exit = 2


class Unauthorized(Failure):
    """The key was refused."""

    code = "unauthorized"
    exit = 3


class PaymentRequired(Failure):
    """Credit is used up."""

    code = "payment_required"
    exit = 4


class Unreachable(Failure):
    """Nothing changed, and a repeat is safe: a read failed, or a write never left."""

    code = "unreachable"
    exit = 5
    retryable = True


class Uncertain(Failure):
    """A write was sent and nobody can say what became of it: look before repeating."""

    code = "uncertain"
    exit = 6


class Interrupted(Failure):
    """A signal ended the command."""

    code = "interrupted"
    exit = 130


# ── Money: whole numbers from end to end, the unit in every name ───────────────

CENTS_PER_USD = 100
MICROUSD_PER_CENT = 10_000
SMALLEST_AUTO_TOPUP_CENTS = 100


def cents_text(cents: int) -> str:
    """US cents as dollars for people: 1234 is `$12.34`, -5 is `-$0.05`."""
    dollars, rest = divmod(abs(cents), CENTS_PER_USD)
    return f"{'-' if cents < 0 else ''}${dollars:,}.{rest:02}"


def microusd_text(microusd: int) -> str:
    """Microdollars as dollars, rounded down: money that is not there is never shown."""
    return cents_text(microusd // MICROUSD_PER_CENT)


def microusd_exact(microusd: int) -> str:
    """Microdollars as an exact decimal of dollars with two to six decimals."""
    dollars, rest = divmod(abs(microusd), CENTS_PER_USD * MICROUSD_PER_CENT)
    decimals = f"{rest:06}".rstrip("0").ljust(2, "0")
    return f"{'-' if microusd < 0 else ''}{dollars}.{decimals}"


def read_cents(text: str, bare_unit: str, decimals: bool = False) -> int:
    """Read `10`, `10usd` or `1000c` as US cents; a bare number counts in `bare_unit`.

    With `decimals`, dollars may have two: `2.50`. Raises ValueError with a reason that
    does not repeat the text. Digits are ASCII digits only: `int` would also take
    `1_000`, ` 10 ` and Arabic-Indic ones.
    """
    if "$" in text:
        raise ValueError("leave out the dollar sign (shells eat it): write 10usd")
    match = re.fullmatch(r"([0-9]{1,15})(?:\.([0-9]{2}))?(usd|c)?", text, re.IGNORECASE)
    unit = (match[3] or bare_unit).lower() if match else ""
    if not match or (match[2] and not (decimals and unit == "usd")):
        example = "an amount such as 10, 2.50" if decimals else "a whole number such as 10, 10usd"
        raise ValueError(f"must be {example} or 1000c")
    return int(match[1]) if unit == "c" else int(match[1]) * CENTS_PER_USD + int(match[2] or 0)


# ── Settings: the environment, variable by variable, in one value ──────────────

URL_HINT = "It looks like https://HOST, with :PORT and /PATH if needed; no user name, ? or #."


class Url:
    """A plain web address, taken apart; one with anything surprising does not parse.

    Userinfo, white space, backslashes and control characters are not URL characters
    here, so that what we read is what every other parser reads.
    """

    PATTERN = (
        r"(?P<scheme>https?)://"
        r"(?P<host>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\])"
        r"(?::(?P<port>[0-9]{1,5}))?"
        r"(?P<rest>(?:[/?#][a-z0-9._~:/?#\[\]@!$&'()*+,;=%-]*)?)"
    )

    def __init__(self, text: str) -> None:
        """Raises ValueError for anything but http or https on a host and port."""
        match = re.fullmatch(self.PATTERN, text, re.IGNORECASE | re.ASCII)
        if not match:
            raise ValueError("not a plain http or https address")
        self.scheme = match["scheme"].lower()
        self.host = match["host"].lower()
        self.port = int(match["port"] or (443 if self.scheme == "https" else 80))
        self.rest = match["rest"]
        if not 1 <= self.port <= 65535:  # sockets would wrap 65536 + n around to n
            raise ValueError("the port is not between 1 and 65535")

    @property
    def authority(self) -> str:
        """The host, with the port where it is not the usual one."""
        usual = 443 if self.scheme == "https" else 80
        return self.host if self.port == usual else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether the address can only mean this machine."""
        return self.host in ("localhost", "[::1]") or bool(
            re.fullmatch(r"127(\.(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}", self.host)
        )


class Settings:
    """What the environment says, checked. Raises Usage, and quotes no value."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.allow_http = environ.get("CACHEFORGE_ALLOW_INSECURE_HTTP", "") == "1"
        self.base_url = self._base_url(environ.get("CACHEFORGE_BASE_URL", ""))
        self.base = Url(self.base_url)
        self.max_topup_cents = self._cap_cents(environ.get("CACHEFORGE_MAX_TOPUP_USD", ""))
        self.api_key = self._api_key(environ.get("CACHEFORGE_API_KEY", ""))

    @staticmethod
    def _api_key(value: str) -> str:
        key = value.strip()
        if not key:
            raise Usage(
                "CACHEFORGE_API_KEY is not set",
                hint="Set it to your CacheForge key: export CACHEFORGE_API_KEY=cf_..."
                ' (PowerShell: $env:CACHEFORGE_API_KEY = "cf_...")',
            )
        if not is_secret_token(key):
            raise Usage(
                "CACHEFORGE_API_KEY holds a character that no key has"
                " (white space, a control or a non-ASCII character)",
                hint="Copy the key again, on one line.",
            )
        return key

    def _base_url(self, value: str) -> str:
        url = check_service_url(
            value.strip() or DEFAULT_BASE_URL, "CACHEFORGE_BASE_URL", self.allow_http
        )
        path = re.sub(r"/+$", "", url.rest)
        path = re.sub(r"/+v1$", "", path)
        return f"{url.scheme}://{url.authority}{path}"

    @staticmethod
    def _cap_cents(value: str) -> int:
        value = value.strip() or str(DEFAULT_MAX_TOPUP_USD)
        if not re.fullmatch("[0-9]{1,9}", value):
            raise Usage("CACHEFORGE_MAX_TOPUP_USD must be a number of whole dollars, such as 500")
        return int(value) * CENTS_PER_USD

    def mask_key(self) -> str:
        """Enough of the key to tell two apart, and no more."""
        head = re.match(r"(?:cfk?_)?", self.api_key)
        tail = self.api_key[-4:] if len(self.api_key) >= 16 else ""
        return f"{head[0] if head else ''}...{tail}"


def is_secret_token(text: str) -> bool:
    """Whether `text` can be sent as a credential: visible ASCII, no spaces.

    Python would send a folded header or a latin-1 key without a word.
    """
    return bool(re.fullmatch(r"[\x21-\x7e]{1,4096}", text))


def check_service_url(text: str, name: str, allow_http: bool) -> Url:
    """The address of a service, called `name` in what Usage says if it is refused."""
    try:
        url = Url(text)
    except ValueError as error:
        raise Usage(f"{name} is {error}", hint=URL_HINT) from None
    if "?" in url.rest or "#" in url.rest:
        raise Usage(f"{name} has a query or a fragment", hint=URL_HINT)
    if url.scheme == "http" and not (url.is_loopback or allow_http):
        raise Usage(
            f"{name} is plain http: the key would cross the network unencrypted",
            hint="Use https, or set CACHEFORGE_ALLOW_INSECURE_HTTP=1 on a network of your own.",
        )
    return url


# ── Replies: what may be shown of a text, and believed of an answer ────────────

MAX_TEXT_CHARS = 300
MAX_LINK_CHARS = 4096
MAX_INTEGER = 2**63 - 1
REQUEST_ID_HEADERS = ("x-request-id", "request-id", "x-correlation-id", "cf-ray")


def clean(text: str) -> str:
    """Text from the service, safe to show: one line, no control over the terminal.

    Removes escape sequences, controls, lone surrogates, and the invisible characters
    that reorder text or smuggle it past a reader (bidi, zero width, tags, and variation
    selectors but for the single one that an emoji may have).
    """
    if text.isascii() and text.isprintable():
        return text
    text = re.sub(r"(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?", "", text)
    text = re.sub(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|\x1b[ -/]*[0-~]?", "", text)
    text = re.sub(r"[\t-\r\x85\u2028\u2029]+", " ", text)
    return re.sub(
        "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
        "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]|[\ufe00-\ufe0f]{2,}",
        "",
        text,
    ).strip()


def shorten(text: str, limit_chars: int = MAX_TEXT_CHARS) -> str:
    """At most `limit_chars` characters, the cut marked."""
    return text if len(text) <= limit_chars else text[: limit_chars - 3] + "..."


def hide(text: str, secrets: Sequence[str]) -> str:
    """The text without any secret, also when the service sends one back encoded."""
    for secret in secrets:
        text = text.replace(secret, "<hidden>")
    plain = text
    if "%" in plain or "\\" in plain:
        plain = re.sub(r"\\u00([0-9a-f]{2})", r"%\1", plain, flags=re.IGNORECASE)
        plain = re.sub(r"\\(.)", r"\1", plain)
        plain = re.sub("%([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), plain, flags=re.IGNORECASE)
    return "<hidden>" if any(secret in plain for secret in secrets) else text


def parse_json(body: bytes) -> object:
    """The JSON in a body. Raises ValueError for anything that strict JSON is not:
    NaN, a name given twice (whose amount would count?), or no JSON at all."""
    import json

    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise ValueError("a name stands twice")
        return fields

    try:
        text = body.decode().removeprefix("\ufeff")
        return json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def error_text(body: bytes) -> str:
    """What an error body says, in any of the shapes in use; empty if it is not JSON."""
    try:
        value = parse_json(body)
    except ValueError:
        return ""
    for _ in range(2):
        if isinstance(value, dict):
            names = ("error", "message", "detail", "title")
            value = next((value[name] for name in names if value.get(name)), "")
    return value if isinstance(value, str) else ""


def classify(status: int, is_write: bool) -> tuple[type[Failure], str, str]:
    """The error that an HTTP status other than 2xx stands for: class, words, hint."""
    if status in (401, 403):
        hint = "Check CACHEFORGE_API_KEY: is it whole, current, and of the right account?"
        return Unauthorized, "the service refused the API key", hint
    if status == 402:
        return PaymentRequired, "credit is used up", "{ops} topup --amount 10"
    if status == 429:
        return Unreachable, "the service asks for fewer calls", "Wait a little, then repeat."
    if 300 <= status < 400:
        hint = "Set CACHEFORGE_BASE_URL to the final address of the service."
        return Refused, "the service answered with a redirect, and none is followed", hint
    if 400 <= status < 500:
        return Refused, "the service refused the request", ""
    if is_write:
        return Uncertain, "the write was sent, but the service failed to say what it did", ""
    if status >= 500:
        return Unreachable, "the service is failing", "Wait a little, then repeat."
    return BadReply, "the service's answer has a status that means nothing here", ""


class Reply:
    """A JSON object from the service. Each field is asked for by name and type:
    there are no defaults, `True` is no integer, and nothing is invented."""

    __slots__ = ("_answer", "_fields", "_name")

    def __init__(self, value: object, answer: Answer, name: str = "") -> None:
        self._answer = answer
        self._name = name
        if not isinstance(value, dict):
            raise answer.doubt(f"{name or 'it'} is not an object")
        self._fields = value

    def maybe(self, name: str, kind: type[T]) -> T | None:
        """The field, or None where it is absent or null."""
        value: T | None = self._fields.get(name)
        if value is None or type(value) is kind:  # isinstance lets True pass as an integer
            return value
        raise self._answer.doubt(f"{self._path(name)} has the wrong type")

    def need(self, name: str, kind: type[T]) -> T:
        """The field, which must be there."""
        return self._there(name, self.maybe(name, kind))

    def maybe_integer(self, name: str) -> int | None:
        """An integer of at most 64 bits, or None."""
        value = self.maybe(name, int)
        if value is not None and abs(value) > MAX_INTEGER:
            raise self._answer.doubt(f"{self._path(name)} is out of range")
        return value

    def integer(self, name: str) -> int:
        """An integer of at most 64 bits."""
        return self._there(name, self.maybe_integer(name))

    def maybe_text(self, name: str) -> str | None:
        """Text fit to be shown, or None where there is none."""
        value = self._fields.get(name)
        if value is None or type(value) is not str:  # most of a long list: one call less
            return self.maybe(name, str)
        return self._answer.show(value).strip() or None

    def text(self, name: str) -> str:
        """Text fit to be shown, and not empty."""
        return self._there(name, self.maybe_text(name), "is missing or empty")

    def token(self, name: str, unlike: str) -> str:
        """A new key, to the letter: visible ASCII, and not just `unlike` sent back."""
        value = self.need(name, str)
        if not is_secret_token(value) or value == unlike:
            raise self._answer.doubt(f"{self._path(name)} is not a key")
        return value

    def link(self, name: str, allow_loopback: bool) -> tuple[str, Url]:
        """A web address to the letter: https, or loopback where that is allowed."""
        value = self.need(name, str)
        try:
            if len(value) > MAX_LINK_CHARS or not self._answer.is_plain(value):
                raise ValueError("not a usable link")
            url = Url(value)
        except ValueError:
            raise self._answer.doubt(f"{self._path(name)} is not a plain web link") from None
        if url.scheme != "https" and not (allow_loopback and url.is_loopback):
            raise self._answer.doubt(f"{self._path(name)} is not an https link")
        return value, url

    def child(self, name: str) -> Reply:
        """The object in a field."""
        return Reply(self.need(name, dict), self._answer, self._path(name))

    def children(self, name: str) -> list[Reply]:
        """The objects in a list."""
        path = self._path(name)
        return [Reply(item, self._answer, path) for item in self.need(name, list)]

    def _there(self, name: str, value: T | None, or_else: str = "is missing") -> T:
        if value is None:
            raise self._answer.doubt(f"{self._path(name)} {or_else}")
        return value

    def _path(self, name: str) -> str:
        return f"{self._name}.{name}" if self._name else name


def is_harmless(body: bytes, secrets: Sequence[str]) -> bool:
    """Whether no string in a JSON body needs cleaning or hiding, seen at one glance: a
    list of 100,000 keys would otherwise be looked through letter by letter."""
    plain = body.isascii() and not any(mark in body for mark in (b"\\", b"%", b"\x7f"))
    return plain and not any(secret.encode() in body for secret in secrets)


class Answer:
    """One HTTP response, whole, and how much of it is believed.

    Nonsense after a read is BadReply; after a write it is Uncertain, because the write
    may well have been carried out.
    """

    def __init__(
        self,
        response: Response,
        is_write: bool,
        secrets: Sequence[str],
    ) -> None:
        self.status, self._headers, self._body = response
        self._is_write = is_write
        self._secrets = secrets
        self._is_harmless = is_harmless(self._body, secrets)
        ids = (self._headers.get(name) for name in REQUEST_ID_HEADERS)
        found = next(filter(None, ids), None)
        self.request_id = self._safe(found, 100) if found else None

    def show(self, text: str) -> str:
        """Text of the body as it may be shown: cleaned, secrets hidden, bounded."""
        if self._is_harmless and len(text) <= MAX_TEXT_CHARS:
            return text
        return self._safe(text, MAX_TEXT_CHARS)

    def is_plain(self, text: str) -> bool:
        """Whether the text could be shown as it is, to the letter and at any length."""
        return hide(clean(text), self._secrets) == text

    def doubt(self, why: str) -> Failure:
        """The error to raise where this answer cannot be believed."""
        return self._failure(
            Uncertain if self._is_write else BadReply,
            f"the service's answer cannot be used: {why}",
        )

    def reply(self, empty_ok: bool) -> Reply:
        """The JSON object in a 2xx; with `empty_ok` an empty body is one without fields.

        Raises the error of `classify` for any other status, and `doubt` for a 2xx
        without an object.
        """
        if not 200 <= self.status < 300:
            kind, words, hint = classify(self.status, self._is_write)
            said = self.show(error_text(self._body))
            message = f"{words} (HTTP {self.status}{': ' if said else ''}{said})"
            raise self._failure(kind, message, hint)
        if empty_ok and not self._body:
            return Reply({}, self)
        try:
            return Reply(parse_json(self._body), self)
        except ValueError:
            kind_of_body = self._safe(self._headers.get_content_type(), 100)
            size = len(self._body)
            raise self.doubt(f"it is not JSON ({kind_of_body}, {size} bytes)") from None

    def _safe(self, text: str, limit_chars: int) -> str:
        return shorten(hide(clean(text), self._secrets), limit_chars)

    def _failure(self, kind: type[Failure], message: str, hint: str = "") -> Failure:
        return kind(
            message,
            hint=hint,
            http_status=self.status,
            request_id=self.request_id,
            retry_after_s=read_retry_after_s(self._headers.get("Retry-After", "")),
        )


def read_retry_after_s(value: str) -> int | None:
    """What a `Retry-After` asks for, in seconds; None where it says nothing usable."""
    if re.fullmatch("[0-9]{1,9}", value.strip()):
        return int(value)
    from email.utils import mktime_tz, parsedate_tz

    try:
        date = parsedate_tz(value)
        wait_s = mktime_tz(date) - time.time() if date else -1.0
    except (ValueError, OverflowError, OSError):
        return None
    return int(wait_s) + 1 if wait_s >= 0 else None


# ── Wire: one exchange, and the one rule for repeating it ──────────────────────
# (urllib's opener follows redirects with the key in hand, opens file: and ftp:, and
# cannot tell a write that never left from one that did; http.client under it can.)

MAX_BODY_BYTES = 32 * 1024 * 1024
READ_ATTEMPTS = 3
POLL_TIMEOUT_S = 10.0
REPEATABLE_STATUSES = (429, 502, 503, 504)


def read_response(response: http.client.HTTPResponse) -> Response:
    """Status, headers and body, to the end. Raises IncompleteRead if that came early."""
    from http.client import HTTPException, IncompleteRead

    blocks: list[bytes] = []
    size = 0
    while size <= MAX_BODY_BYTES:  # in blocks: a length of 10^14 must not be allocated
        block = response.read(65536)
        if not block:
            break
        blocks.append(block)
        size += len(block)
    else:
        raise HTTPException("body too large")
    unframed = response.length is None and not response.chunked
    if response.length or (unframed and size == 0):  # read(n) says nothing of a cut body
        raise IncompleteRead(b"")
    return response.status, response.headers, b"".join(blocks)


class Exchange:
    """One request on one connection, in a thread that can be left behind.

    A socket's timeout bounds each `recv`, so a server that drips a byte at a time
    never trips it, and nothing bounds the name lookup. Joining a daemon thread with
    a timeout bounds all of it, and needs no signal, so it works on Windows too. The
    gate makes leaving exact: once left, a request that is not yet sent never will be.
    """

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | None,
    ) -> None:
        import threading

        self._connection = connection
        self._request = (method, target, body, headers)
        self._gate = threading.Lock()
        self._left = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.sent = False
        self.response: Response | None = None
        self.error: BaseException | None = None

    def run(self, seconds: float) -> None:
        """Do it, for `seconds` at the most; then `sent`, `response` and `error` tell."""
        if seconds <= 0:
            return
        end = time.monotonic() + seconds
        try:
            self._thread.start()
            while self._thread.is_alive() and time.monotonic() < end:
                # short joins: on Windows a join cannot be interrupted by Ctrl-C
                self._thread.join(max(0.0, min(0.25, end - time.monotonic())))
        finally:
            with self._gate:
                self._left = True

    def _run(self) -> None:
        try:
            self._connection.connect()
            with self._gate:
                if self._left:
                    return
                self.sent = True
            method, target, body, headers = self._request
            self._connection.request(method, target, body, headers)
            with self._connection.getresponse() as response:
                self.response = read_response(response)
        except BaseException as error:
            self.error = error
        finally:
            self._connection.close()


def strict_response() -> type[http.client.HTTPResponse]:
    """A response class for which a line that does not end is a lost connection:
    http.client takes a reply that is cut off inside its headers for a whole one."""
    import io
    from http.client import HTTPResponse, IncompleteRead

    class WholeLines(io.BufferedReader):
        def readline(self, size: int | None = -1, /) -> bytes:
            line = super().readline(size)
            if line.endswith(b"\n") or len(line) == size:  # too long: http.client's to refuse
                return line
            raise IncompleteRead(line)

    class StrictResponse(HTTPResponse):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.fp = WholeLines(self.fp.detach())

    return StrictResponse


class Proxy:
    """Where `HTTPS_PROXY` and its kin, or the system's settings, send us."""

    def __init__(self, text: str) -> None:
        """Raises Usage, without repeating the text: it may hold a password."""
        from base64 import b64encode
        from urllib.parse import unquote

        credentials, _, rest = text.rpartition("@")
        credentials = credentials.partition("://")[2] or credentials
        try:
            url = Url(rest if "://" in rest else f"http://{rest}")
        except ValueError:
            raise Usage("the proxy setting is not an http://HOST:PORT address") from None
        self.host = url.host.strip("[]")
        self.port = url.port
        self.name = f"{url.host}:{url.port}"
        self.headers: dict[str, str] = {}
        if credentials:
            token = b64encode(unquote(credentials).encode()).decode("ascii")
            self.headers["Proxy-Authorization"] = f"Basic {token}"


def find_proxy(base: Url) -> Proxy | None:
    """The proxy on the way to `base`; never one for this machine itself, where it
    would be handed the key in clear text."""
    if base.is_loopback:
        return None
    from urllib.request import getproxies, proxy_bypass  # as everywhere, system settings too

    text = getproxies().get(base.scheme)
    return Proxy(text) if text and not proxy_bypass(base.authority) else None


def open_connection(base: Url, proxy: Proxy | None, timeout_s: float) -> http.client.HTTPConnection:
    """A connection to the service, not yet opened. Certificates are always verified."""
    from http.client import HTTPConnection, HTTPSConnection

    host = base.host.strip("[]")
    near_host, near_port = (proxy.host, proxy.port) if proxy else (host, base.port)
    connection: HTTPConnection
    if base.scheme == "https":
        from ssl import create_default_context

        connection = HTTPSConnection(
            near_host, near_port, timeout=timeout_s, context=create_default_context()
        )
        if proxy:
            connection.set_tunnel(host, base.port, headers=proxy.headers)
    else:
        connection = HTTPConnection(near_host, near_port, timeout=timeout_s)
    connection.response_class = strict_response()
    return connection


def explain(error: BaseException | None, where: str, timeout_s: float) -> str:
    """Why there is no answer, in our words: exception texts may quote what was sent."""
    if error is None or type(error).__name__ in ("TimeoutError", "timeout"):  # 3.9's own name
        return f"no complete answer from {where} within {timeout_s:g} s"
    if type(error).__name__ == "SSLCertVerificationError":
        why = getattr(error, "verify_message", "") or "it cannot be verified"
        return f"the certificate of {where} is not accepted: {clean(str(why))}"
    if isinstance(error, OSError) and error.strerror:
        return f"no connection to {where}: {clean(error.strerror)}"
    return f"the connection to {where} broke before the answer was complete"


CERTIFICATE_HINT = (
    "If a company or private authority signed it, point SSL_CERT_FILE at that authority's"
    " PEM file (python.org's Python on macOS: run Install Certificates.command first;"
    " Python 3.13 and later also refuse certificates that break X.509 rules)."
)


def retry_delay_s(attempt: int, asked_s: int | None) -> float:
    """Seconds before the next try of a read: what the service asked for, or else about
    1 s, then 2 s, from so wide a range that many clients spread out."""
    import random

    if asked_s is not None:
        return float(asked_s)
    return random.uniform(0.5, 1.5) * (1 << attempt)


class Rehearsed(Exception):
    """The write at which a dry run stopped."""

    def __init__(self, method: str, url: str, body: Json | None) -> None:
        self.method = method
        self.url = url
        self.body = body


class Wire:
    """Requests to one service with one key, within one budget of seconds.

    `wrote` says whether a write has been sent: from then on, an end that the service
    has not told is uncertain.
    """

    def __init__(
        self,
        settings: Settings,
        secrets: Sequence[str],
        timeout_s: float,
        trace: Callable[[str], None],
        sleep: Callable[[float], None],
    ) -> None:
        self._base_url = settings.base_url
        self._base = settings.base
        self._secrets = secrets
        self._headers = {
            "Authorization": f"Bearer {settings.api_key}",
            "Accept": "application/json",
            "User-Agent": f"cacheforge-ops/{__version__}",
            "Connection": "close",
        }
        self._timeout_s = timeout_s
        self._left_s = timeout_s
        self._trace = trace
        self._sleep = sleep
        self.wrote = False

    def request(
        self, method: str, path: str, body: Json | None = None, empty_ok: bool = False
    ) -> Reply:
        """One account call. A GET is tried up to three times while that can help;
        anything else is sent once.

        Raises what `Answer.reply` raises, Unreachable if nothing came of it, or Uncertain
        if a write was sent and its answer lost.
        """
        attempt = 0
        while True:
            try:
                return self._send_once(method, path, body, empty_ok)
            except Unreachable as error:
                attempt += 1
                repeat = method == "GET" and attempt < READ_ATTEMPTS and error.retryable
                if not repeat or error.http_status not in (None, *REPEATABLE_STATUSES):
                    raise
                pause_s = retry_delay_s(attempt - 1, error.retry_after_s)
                if pause_s >= self._left_s:
                    raise
                self._sleep(pause_s)
                self._left_s -= pause_s

    def poll(self, method: str, path: str) -> Reply:
        """One look of many: a single try, on a small budget of its own."""
        self._left_s = self._timeout_s = POLL_TIMEOUT_S
        return self._send_once(method, path, None, False)

    def rehearse(
        self, method: str, path: str, body: Json | None = None, empty_ok: bool = False
    ) -> Reply:
        """A read goes through; a write is not sent but raised, as Rehearsed."""
        if method == "GET":
            return self.request(method, path)
        raise Rehearsed(method, self._base_url + path, body)

    def _send_once(self, method: str, path: str, body: Json | None, empty_ok: bool) -> Reply:
        is_write = method != "GET"
        exchange, where = self._exchange(method, path, body)
        began = time.monotonic()
        try:
            exchange.run(self._left_s)
        finally:
            took_s = time.monotonic() - began
            self._left_s -= took_s
            self.wrote = self.wrote or (is_write and exchange.sent)
        if exchange.response is None:
            self._tell(method, path, "no answer", took_s, None)
            raise self._no_answer(exchange, where, is_write)
        answer = Answer(exchange.response, is_write, self._secrets)
        self._tell(method, path, str(answer.status), took_s, answer.request_id)
        return answer.reply(empty_ok)

    def _tell(self, method: str, path: str, what: str, took_s: float, name: str | None) -> None:
        self._trace(f"{method} {path}: {what}, {took_s * 1000:.0f} ms, id {name or '-'}")

    def _exchange(self, method: str, path: str, body: Json | None) -> tuple[Exchange, str]:
        import json

        proxy = find_proxy(self._base)
        connection = open_connection(self._base, proxy, max(self._left_s, 0.001))
        headers = dict(self._headers)
        content = None
        if body is not None:
            content = json.dumps(body).encode("ascii")
            headers["Content-Type"] = "application/json"
        target = self._base.rest + path
        where = self._base.authority
        if proxy:
            where = f"{where} through the proxy {proxy.name}"
            if self._base.scheme == "http":
                target = f"http://{self._base.authority}{target}"
                headers.update(proxy.headers)
        return Exchange(connection, method, target, headers, content), where

    def _no_answer(self, exchange: Exchange, where: str, is_write: bool) -> Failure:
        from http.client import HTTPException, IncompleteRead

        error = exchange.error
        why = explain(error, where, self._timeout_s)
        if exchange.sent and is_write:
            return Uncertain(f"the write was sent and its answer lost: {why}")
        cut_short = isinstance(error, (IncompleteRead, OSError))
        if exchange.sent and isinstance(error, (HTTPException, MemoryError)) and not cut_short:
            return BadReply(f"{where} answers with something that is not HTTP, or too much of it")
        failure = Unreachable(why, hint="Nothing was changed: it is safe to repeat.")
        if type(error).__name__ == "SSLCertVerificationError":
            failure.retryable = False
            failure.hint = CERTIFICATE_HINT
        return failure


# ── Account: one short method for each endpoint, JSON in, a record out ─────────


class AutoTopup(TypedDict):
    """The rule by which the service charges the saved card by itself."""

    enabled: bool
    threshold_cents: int | None
    amount_cents: int | None


class Billing(TypedDict):
    """Credit, and what refills it."""

    balance_microusd: int
    auto_topup: AutoTopup
    card_saved: bool


class PaymentLink(TypedDict):
    """A link that a person pays; making one charges nothing."""

    amount_usd: int
    method: str
    payment_url: str
    payment_host: str


class Upstream(TypedDict):
    """The provider that calls are forwarded to."""

    configured: bool
    kind: str | None
    base_url: str | None


class Key(TypedDict):
    """An API key, without its secret. `in_use` is None where nobody can tell."""

    id: str
    prefix: str | None
    label: str | None
    created_at: str | None
    last_used_at: str | None
    revoked_at: str | None
    in_use: bool | None


class NewKey(TypedDict):
    """An API key with its secret, which the service shows this once."""

    id: str | None
    prefix: str | None
    api_key: str


class Tenant(TypedDict):
    """Whose account it is."""

    id: str
    name: str | None
    status: str
    upstream_configured: bool | None
    active_keys: int | None


class Account:
    """The account behind one key. Every method may raise what `Wire.request` does."""

    def __init__(self, request: Callable[..., Reply], api_key: str, on_loopback: bool) -> None:
        self._request = request
        self._api_key = api_key
        self._on_loopback = on_loopback

    def billing(self) -> Billing:
        """The balance in microdollars, the auto top-up rule in cents, the card."""
        billing = self._request("GET", "/v1/account/billing").child("billing")
        enabled = billing.need("autoTopupEnabled", bool)
        cents = billing.integer if enabled else billing.maybe_integer
        return Billing(
            balance_microusd=billing.integer("creditBalanceMicrousd"),
            auto_topup=AutoTopup(
                enabled=enabled,
                threshold_cents=cents("autoTopupThresholdCents"),
                amount_cents=cents("autoTopupAmountCents"),
            ),
            card_saved=billing.need("defaultPaymentMethodSet", bool),
        )

    def make_payment_link(self, amount_usd: int, method: str) -> PaymentLink:
        """A link to pay `amount_usd` whole dollars by `stripe` (card) or `crypto`."""
        body = {"amountUsd": amount_usd, "method": method}
        reply = self._request("POST", "/v1/account/billing/topup", body)
        link, url = reply.link("paymentUrl", allow_loopback=self._on_loopback)
        return PaymentLink(
            amount_usd=amount_usd, method=method, payment_url=link, payment_host=url.authority
        )

    def set_auto_topup(self, rule: AutoTopup) -> Billing:
        """Store a rule; the billing state as it is stored after that.

        Raises Uncertain if what is stored is not what was asked for.
        """
        body: Json = {"enabled": rule["enabled"]}
        if rule["enabled"]:
            body["thresholdCents"] = rule["threshold_cents"]
            body["amountCents"] = rule["amount_cents"]
        self._request("PATCH", "/v1/account/billing/auto-topup", body)
        stored = read_back(self.billing)
        same = stored["auto_topup"] == rule
        if not (same or (not rule["enabled"] and not stored["auto_topup"]["enabled"])):
            raise Uncertain("the service accepted the rule, but what it stores differs")
        return stored

    def upstream(self) -> Upstream:
        """The provider as it is set; the service never shows the provider's key."""
        reply = self._request("GET", "/v1/account/upstream")
        if not reply.need("configured", bool):
            return Upstream(configured=False, kind=None, base_url=None)
        upstream = reply.child("upstream")
        return Upstream(
            configured=True,
            kind=upstream.text("kind"),
            base_url=upstream.maybe_text("baseUrl"),
        )

    def set_upstream(
        self, kind: str | None, base_url: str | None, provider_key: str | None
    ) -> Upstream:
        """Store the parts that are given; the provider as it is stored after that.

        Raises Uncertain if what is stored is not what was asked for.
        """
        parts = {"kind": kind, "baseUrl": base_url, "apiKey": provider_key}
        body = {name: value for name, value in parts.items() if value is not None}
        self._request("POST", "/v1/account/upstream", body)
        stored = read_back(self.upstream)
        kept = stored["configured"] and kind in (None, stored["kind"])
        if base_url is not None:
            kept = kept and (stored["base_url"] or "").rstrip("/") == base_url.rstrip("/")
        if not kept:
            raise Uncertain("the service accepted the provider, but what it stores differs")
        return stored

    def keys(self) -> list[Key]:
        """All keys that the service lists, in its order."""
        items = self._request("GET", "/v1/account/keys").children("keys")
        return [self._key(item) for item in items]

    def _key(self, item: Reply) -> Key:
        prefix = item.maybe_text("prefix")
        return Key(
            id=item.text("id"),
            prefix=prefix,
            label=item.maybe_text("label"),
            created_at=item.maybe_text("createdAt"),
            last_used_at=item.maybe_text("lastUsedAt"),
            revoked_at=item.maybe_text("revokedAt"),
            in_use=is_prefix_of(prefix, self._api_key),
        )

    def create_key(self) -> NewKey:
        """A new key. Its secret is in this answer and never again."""
        reply = self._request("POST", "/v1/account/keys", {})
        return NewKey(
            api_key=reply.token("apiKey", unlike=self._api_key),
            id=reply.maybe_text("id"),
            prefix=reply.maybe_text("prefix"),
        )

    def revoke_key(self, key_id: str) -> None:
        """End a key for good. `key_id` has passed `is_key_id`."""
        self._request("POST", f"/v1/account/keys/{key_id}/revoke", {}, empty_ok=True)

    def tenant(self) -> Tenant:
        """Whose account the key belongs to."""
        tenant = self._request("GET", "/v1/account/info").child("tenant")
        return Tenant(
            id=tenant.text("id"),
            name=tenant.maybe_text("name"),
            status=tenant.text("status"),
            upstream_configured=tenant.maybe("upstreamConfigured", bool),
            active_keys=tenant.maybe_integer("activeKeys"),
        )


def read_back(read: Callable[[], T]) -> T:
    """The state after a write. Raises Uncertain where it cannot be read: the write
    was accepted, but nothing shows what it did."""
    try:
        return read()
    except Failure as error:
        raise Uncertain(
            f"the service accepted the change, but it cannot be read back: {error.message}",
            http_status=error.http_status,
            request_id=error.request_id,
        ) from None


def is_prefix_of(prefix: str | None, api_key: str) -> bool | None:
    """Whether a listed prefix, perhaps masked as `cf_ab12...`, is that of `api_key`;
    None where it is too short to tell one key from another."""
    shown = (prefix or "").rstrip(".*\u2026")
    return api_key.startswith(shown) if len(shown) > len("cfk_") else None


def is_key_id(text: str) -> bool:
    """Whether `text` can stand in a path as it is, and mean only itself there."""
    return bool(re.fullmatch(r"[A-Za-z0-9_~:@=+.-]{1,200}", text)) and text.strip(".") != ""


# ── Views: a record as a report, a report as text or JSON ──────────────────────


class Report:
    """What one step of a command has to say.

    `data` is the JSON object; in it and in text, `next` is a command line without
    the program's name. Of the text, `secret` comes first and alone (a key must not be
    lost to a failing decoration), then `rows`, each a label and a value, then `lines`.
    `if_lost` is what to say if this report cannot be delivered.
    """

    def __init__(
        self,
        data: Json,
        *,
        rows: Sequence[tuple[str, str]] = (),
        lines: Sequence[str] = (),
        good: bool | None = None,
        secret: str = "",
        if_lost: str = "",
        exit: int = 0,
    ) -> None:
        self.data = data
        self.rows = list(rows)
        self.lines = list(lines)
        self.good = good
        self.secret = secret
        self.if_lost = if_lost
        self.exit = exit

    def as_json(self, program: str) -> str:
        """One line of compact ASCII JSON."""
        data = self.data
        if data.get("next"):
            data = {**data, "next": f"{program} {data['next']}"}
        return to_json(data)

    def as_text(self, program: str, color: bool) -> str:
        """Aligned lines, all but the secret; in colour the first value is the state."""
        width = max((len(label) for label, _ in self.rows), default=0) + 3
        lines = [f"{label:{width}}{value}" for label, value in self.rows]
        if color and self.rows:
            tint = "" if self.good is None else ";32" if self.good else ";31"
            label, value = self.rows[0]
            lines[0] = f"{label:{width}}\x1b[1{tint}m{value}\x1b[0m"
        lines.extend(self.lines)
        if self.data.get("next"):
            lines.append(f"Next: {program} {self.data['next']}")
        return "".join(line + "\n" for line in lines)


def to_json(data: Json) -> str:
    """Compact ASCII JSON on one line."""
    import json

    return json.dumps(data, separators=(",", ":"))


def yes_no(flag: bool | None) -> str:
    """A flag in words."""
    return "unknown" if flag is None else "yes" if flag else "no"


def rule_text(rule: AutoTopup) -> str:
    """An auto top-up rule in words."""
    if not rule["enabled"]:
        return "off"
    amount = cents_text(rule["amount_cents"] or 0)
    return f"add {amount} when below {cents_text(rule['threshold_cents'] or 0)}"


def balance_data(billing: Billing) -> Json:
    """The fields that every answer about money carries."""
    return {
        "balance_microusd": billing["balance_microusd"],
        "balance_usd": microusd_exact(billing["balance_microusd"]),
    }


def balance_report(
    billing: Billing, *, enough: bool, next: str | None, extra: Json | None = None
) -> Report:
    """Balance, rule and card. `enough` is whether it is what was asked for: exit 0 or 4."""
    funded = billing["balance_microusd"] > 0
    return Report(
        {
            **balance_data(billing),
            "funded": funded,
            "auto_topup": billing["auto_topup"],
            "card_saved": billing["card_saved"],
            **(extra or {}),
            "next": next,
        },
        rows=[
            ("Balance", microusd_text(billing["balance_microusd"])),
            ("Auto top-up", rule_text(billing["auto_topup"])),
            ("Saved card", yes_no(billing["card_saved"])),
        ],
        good=enough and funded,
        exit=0 if enough else PaymentRequired.exit,
    )


def payment_report(link: PaymentLink) -> Report:
    """A payment link, in a sentence to hand to the payer and alone on its line."""
    means = {"stripe": "by card", "crypto": "in crypto"}.get(link["method"], link["method"])
    sentence = (
        f"Pay {cents_text(link['amount_usd'] * CENTS_PER_USD)} {means} for CacheForge credit"
        f" at {link['payment_host']}; nothing is charged until you pay:"
    )
    data = {**link, "message": f"{sentence} {link['payment_url']}", "next": "balance --wait"}
    return Report(data, lines=[sentence, link["payment_url"]])


def auto_topup_report(billing: Billing, just_enabled: bool = False) -> Report:
    """The rule, what it authorises, and whether it charges the card right now."""
    rule = billing["auto_topup"]
    threshold_microusd = (rule["threshold_cents"] or 0) * MICROUSD_PER_CENT
    charges_now = rule["enabled"] and billing["balance_microusd"] < threshold_microusd
    data = {
        "auto_topup": rule,
        **balance_data(billing),
        "card_saved": billing["card_saved"],
        "charges_now": charges_now,
    }
    lines = []
    if just_enabled:
        data["message"] = (
            f"The service may now charge the saved card {cents_text(rule['amount_cents'] or 0)}"
            f" each time the balance falls below {cents_text(rule['threshold_cents'] or 0)}."
        )
        lines.append(data["message"])
    if charges_now:
        lines.append("The balance is below that already: expect a charge now.")
    return Report(
        data,
        rows=[
            ("Auto top-up", rule_text(rule)),
            ("Balance", microusd_text(billing["balance_microusd"])),
            ("Saved card", yes_no(billing["card_saved"])),
        ],
        lines=lines,
    )


def upstream_report(upstream: Upstream, just_set: bool = False) -> Report:
    """The provider, without its key."""
    rows = [("Upstream", upstream["kind"] or "not configured")]
    if upstream["base_url"]:
        rows.append(("Base URL", upstream["base_url"]))
    lines = ["Set, and read back; the service shows no provider's key."] if just_set else []
    return Report({**upstream}, rows=rows, lines=lines, good=upstream["configured"])


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns aligned by what a terminal shows: wide characters count two."""
    plain = all(all(map(str.isascii, row)) for row in rows)
    width_of = len if plain else display_width
    widths = [max(map(width_of, column)) for column in zip(*rows)]
    if plain:
        line = "  ".join(f"{{:{width}}}" for width in widths)
        return [line.format(*row).rstrip() for row in rows]
    return [
        "  ".join(
            cell + " " * (width - width_of(cell)) for cell, width in zip(row, widths)
        ).rstrip()
        for row in rows
    ]


def display_width(text: str) -> int:
    """Terminal columns that `text` takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def key_state(key: Key) -> str:
    """Whether a key still works, and whether it is the one that works here."""
    if key["revoked_at"]:
        return f"revoked {key['revoked_at'][:10]}"
    return "active, in use here" if key["in_use"] else "active"


def keys_report(keys: list[Key]) -> Report:
    """All keys, a line each."""
    heading = ("ID", "Prefix", "Created", "State", "Label")
    cells = [
        (
            key["id"],
            key["prefix"] or "-",
            (key["created_at"] or "-")[:16].replace("T", " "),
            key_state(key),
            key["label"] or "",
        )
        for key in keys
    ]
    return Report({"keys": keys}, lines=table([heading, *cells]) if keys else ["No API keys."])


def new_key_report(key: NewKey) -> Report:
    """A new key: its secret first and alone, then what it is."""
    name = key_words(key["id"] or key["prefix"] or "", key["prefix"])
    return Report(
        {**key},
        secret=key["api_key"],
        lines=[f"New key{' ' if name else ''}{name}: store it now, it is not shown again."],
        if_lost=lost_key_hint(key),
    )


def lost_key_hint(key: NewKey) -> str:
    """What to do about a key that was made and whose secret nobody has."""
    if key["id"]:
        return f"{{ops}} keys --revoke {key['id']} --yes"
    which = f"the one with the prefix {key['prefix']}" if key["prefix"] else "the newest one"
    return f"Find {which} with {{ops}} keys and revoke it: nobody has its secret."


def saved_key_report(key: NewKey, path: str) -> Report:
    """A new key that went into a file: which one, and where; never its secret."""
    name = key["id"] or key["prefix"] or "New key"
    shown_path = clean(path)
    return Report(
        {"id": key["id"], "prefix": key["prefix"], "saved_to": path},
        rows=[("New key", key_words(name, key["prefix"])), ("Saved to", shown_path)],
        if_lost=f"The new key is safe in {shown_path}.",
    )


def revoked_report(key: Key, already: bool) -> Report:
    """Which key is gone."""
    revoked = {"id": key["id"], "prefix": key["prefix"], "label": key["label"]}
    word = "Already revoked" if already else "Revoked"
    return Report({"revoked": revoked}, lines=[f"{word}: {key_name(key)}"])


def key_name(key: Key) -> str:
    """A key in words, for questions and answers about it."""
    return key_words(key["id"], key["prefix"], key["label"])


def key_words(name: str, *details: str | None) -> str:
    """A name, with what else is known of it in brackets."""
    known = ", ".join(detail for detail in details if detail and detail != name)
    return f"{name} ({known})" if known else name


def tenant_report(tenant: Tenant, base_url: str, masked_key: str) -> Report:
    """The tenant, and what this program is set to."""
    keys = tenant["active_keys"]
    upstream = tenant["upstream_configured"]
    upstream_text = {None: "unknown", True: "configured", False: "not configured"}[upstream]
    return Report(
        {"tenant": tenant, "base_url": base_url, "api_key": masked_key},
        rows=[
            ("Tenant", key_words(tenant["id"], tenant["name"])),
            ("Status", tenant["status"]),
            ("Upstream", upstream_text),
            ("Active keys", "unknown" if keys is None else str(keys)),
            ("Service", base_url),
            ("API key", masked_key),
        ],
    )


def rehearsal_report(rehearsed: Rehearsed) -> Report:
    """The request that a dry run would have sent, without the provider's key."""
    body = rehearsed.body
    if body and "apiKey" in body:
        body = {**body, "apiKey": "<hidden>"}
    return Report(
        {"dry_run": {"method": rehearsed.method, "url": rehearsed.url, "body": body}},
        lines=[
            f"Would send {rehearsed.method} {rehearsed.url}",
            to_json(body or {}),
            "Dry run: nothing was sent.",
        ],
    )


# ── Commands: one short function for each verb, yielding reports ────────────────

DEFAULT_TOPUP_USD = 10
DEFAULT_THRESHOLD_CENTS = 200
DEFAULT_AUTO_TOPUP_CENTS = 1000
DEFAULT_WAIT_S = 100.0  # under the 120 s at which common agent shells cut a command off
OPENAI_BASE_URL = "https://api.openai.com"
KEY_OWNERS = {"sk-or-": "openrouter", "sk-ant-": "anthropic"}
STILL_VALID = "The payment link stays valid."

if TYPE_CHECKING:
    Command = Callable[["Session", argparse.Namespace], Iterator[Report]]

    class KeyFile(Protocol):
        """A file of its own for a new key."""

        path: str

        def keep(self, text: str) -> None: ...
        def discard(self) -> None: ...

    class World(Protocol):
        """What a command may ask of the world outside; main has the real one."""

        def getenv(self, name: str) -> str: ...
        def read_secret(self) -> str: ...
        def add_secret(self, secret: str) -> None: ...
        def ask(self, question: str) -> bool | None: ...
        def note(self, line: str) -> None: ...
        def countdown(self, seconds_left: float) -> None: ...
        def now(self) -> float: ...
        def sleep(self, seconds: float) -> None: ...
        def new_file(self, path: str) -> KeyFile: ...


class Session:
    """What a command works with: the account, the same account for one quick look of
    many, the settings, and the world. `if_stopped` is what to say if a signal comes."""

    def __init__(
        self, account: Account, lookout: Account, settings: Settings, world: World
    ) -> None:
        self.account = account
        self.lookout = lookout
        self.settings = settings
        self.world = world
        self.if_stopped = ""


def show_balance(session: Session, args: argparse.Namespace) -> Iterator[Report]:
    """`balance`, perhaps with `--min` or `--wait`"""
    least_microusd = 1 if args.min_cents is None else args.min_cents * MICROUSD_PER_CENT
    billing = session.account.billing()
    enough = billing["balance_microusd"] >= least_microusd
    if not enough and args.wait_s:
        again = wait_command(args.min_cents)
        session.if_stopped = f"To go on waiting: {{ops}} {again}"
        billing, enough = wait_for_credit(
            session, args.wait_s, billing, lambda _, b: b["balance_microusd"] >= least_microusd
        )
        yield balance_report(billing, enough=enough, next=None if enough else again)
        return
    if args.wait_s:
        session.world.note("Credit is there already; --min USD waits for more.")
    short_microusd = least_microusd - billing["balance_microusd"]
    next_step = None if enough else f"topup --amount {enough_usd(short_microusd)}"
    required = args.min_cents is not None
    report = balance_report(billing, enough=enough or not required, next=next_step)
    if required and not enough:
        report.rows.append(("Short by", microusd_text(short_microusd + MICROUSD_PER_CENT - 1)))
    yield report


def enough_usd(microusd: int) -> int:
    """The whole dollars of a top-up that covers this, no less than the usual smallest."""
    usd = -(-microusd // (CENTS_PER_USD * MICROUSD_PER_CENT))
    return max(DEFAULT_TOPUP_USD, usd)


def make_topup(session: Session, args: argparse.Namespace) -> Iterator[Report]:
    """`topup`, perhaps with `--wait`"""
    amount_usd = args.amount_cents // CENTS_PER_USD
    hint = f"topup counts in whole dollars: {amount_usd} is {cents_text(args.amount_cents)}."
    if amount_usd <= session.settings.max_topup_cents:
        hint += f" For {cents_text(amount_usd)} write --amount {amount_usd}c."
    check_cap(args.amount_cents, session.settings, hint)
    before = session.account.billing() if args.wait_s else None
    report = payment_report(session.account.make_payment_link(amount_usd, args.method))
    if before is None:
        yield report
        return
    had_cents = before["balance_microusd"] // MICROUSD_PER_CENT
    again = wait_command(None if before["balance_microusd"] <= 0 else had_cents + 1)
    report.data["next"] = None  # the next step is being taken: waiting
    yield report
    session.if_stopped = f"{STILL_VALID} To go on waiting: {{ops}} {again}"
    after, paid = wait_for_credit(
        session, args.wait_s, before, lambda a, b: b["balance_microusd"] > a["balance_microusd"]
    )
    next_step = None if paid else again
    landed = balance_report(after, enough=paid, next=next_step, extra={"paid": paid})
    landed.lines = [] if paid else [f"Not paid yet. {STILL_VALID}"]
    yield landed


def wait_command(min_cents: int | None) -> str:
    """The command that goes on waiting, for any credit or for so many cents."""
    if min_cents is None:
        return "balance --wait"
    dollars, cents = divmod(min_cents, CENTS_PER_USD)
    return f"balance --wait --min {dollars}.{cents:02}"


def poll_gap_s(waited_s: float, looks: int) -> float:
    """Seconds to the next look: soon after a link was made, then easing off. The ranges
    are wide so that agents who began together do not look together."""
    import random

    if looks == 0:
        return random.uniform(2, 7)
    return random.uniform(4, 10) if waited_s < 60 else random.uniform(8, 14)


def wait_end_s(wait_s: float) -> float:
    """When the last look comes: up to a tenth later than asked, 10 s at the most, so
    that agents who began together do not end together."""
    import random

    return wait_s + random.uniform(0, min(wait_s / 10, 10))


def wait_for_credit(
    session: Session, wait_s: float, first: Billing, landed: Callable[[Billing, Billing], bool]
) -> tuple[Billing, bool]:
    """Look at the balance until `landed(one look, the next)`; the last look, and whether.

    A look that fails is tolerated, and one that is told to slow down (429) doubles the
    gap. Raises Unauthorized, PaymentRequired or Refused at once, and the last look's
    error if no look succeeded at all.
    """
    world = session.world
    world.note(f"Waiting up to {wait_s:g} s for credit; it is safe to stop.")
    began = world.now()
    end = began + wait_end_s(wait_s)
    billing, looks, slower = first, 0, 1
    answered, failure = False, None
    while world.now() < end:
        gap_s = poll_gap_s(world.now() - began, looks) * slower
        pause(world, min(gap_s, end - world.now()), end)
        looks += 1
        before = billing
        try:
            billing = session.lookout.billing()
        except (Unreachable, BadReply) as error:
            if failure is None:
                world.note(f"No usable answer, still waiting: {error.message}")
            failure = error
            slower = 2 if error.http_status == 429 else 1
            continue
        answered, failure, slower = True, None, 1
        if landed(before, billing):
            return billing, True
    if failure and not answered:
        failure.hint = session.if_stopped
        raise failure
    return billing, False


def pause(world: World, seconds: float, end: float) -> None:
    """Sleep in steps of a second, so that a terminal can show the time left."""
    until = world.now() + seconds
    while world.now() < until:
        world.countdown(end - world.now())
        world.sleep(min(1.0, until - world.now()))


def check_cap(cents: int, settings: Settings, hint: str) -> None:
    """Raises Usage for an amount over the cap, with a hint at the slip that is likely."""
    cap_cents = settings.max_topup_cents
    if cents > cap_cents:
        raise Usage(
            f"{cents_text(cents)} is over the cap of {cents_text(cap_cents)} for one amount"
            " (CACHEFORGE_MAX_TOPUP_USD, the user's to change)",
            hint=hint,
        )


def show_auto_topup(session: Session, args: argparse.Namespace) -> Iterator[Report]:
    """`auto-topup`"""
    forbid(args, ("threshold_cents", "amount_cents"), "--enable")
    forbid(args, ("dry_run",), "--enable or --disable")
    yield auto_topup_report(session.account.billing())


def enable_auto_topup(session: Session, args: argparse.Namespace) -> Iterator[Report]:
    """`auto-topup --enable`"""
    threshold_cents = args.threshold_cents or DEFAULT_THRESHOLD_CENTS
    amount_cents = args.amount_cents or DEFAULT_AUTO_TOPUP_CENTS
    for cents in (threshold_cents, amount_cents):
        hint = f"auto-topup counts in cents: {cents} is {cents_text(cents)}."
        check_cap(cents, session.settings, hint)
    rule = AutoTopup(enabled=True, threshold_cents=threshold_cents, amount_cents=amount_cents)
    yield auto_topup_report(session.account.set_auto_topup(rule), just_enabled=True)


def disable_auto_topup(session: Session, args: argparse.Namespace) -> Iterator[Report]:
    """`auto-topup --disable`"""
    forbid(args, ("threshold_cents", "amount_cents"), "--enable")
    rule = AutoTopup(enabled=False, threshold_cents=None, amount_cents=None)
    yield auto_topup_report(session.account.set_auto_topup(rule))


def forbid(args: argparse.Namespace, names: Sequence[str], needed: str) -> None:
    """Raises Usage where an option was given that only means something with `needed`."""
    for name in names:
        if getattr(args, name) not in (None, False):
            option = "--" + name.replace("_cents", "").replace("_", "-")
            raise Usage(f"{option} only goes with {needed}; nothing was sent")


def show_upstream(session: Session, args: argparse.Namespace) -> Iterator[Report]:
    """`upstream`"""
    forbid(args, ("kind", "base_url", "api_key", "api_key_env", "dry_run"), "--set")
    yield upstream_report(session.account.upstream())


def set_upstream(session: Session, args: argparse.Namespace) -> Iterator[Report]:
    """`upstream --set`"""
    kind, base_url = args.kind, args.base_url
    key = read_provider_key(session, args)
    if not (kind or base_url or key):
        raise Usage("upstream --set needs --kind, --base-url or the provider's key")
    check_key_owner(key, kind)
    if kind == "openai":  # the API knows the alias only as a custom provider
        kind, base_url = "custom", base_url or OPENAI_BASE_URL
    if kind == "custom" and not base_url:
        raise Usage("--kind custom needs --base-url, the address of the provider")
    if base_url:
        check_service_url(base_url, "--base-url", session.settings.allow_http)
    if args.kind == "openai":
        session.world.note(f"note: openai is set as custom, with {base_url}")
    yield upstream_report(session.account.set_upstream(kind, base_url, key), just_set=True)


def read_provider_key(session: Session, args: argparse.Namespace) -> str | None:
    """The provider's key from wherever the command line says it is; None if nowhere."""
    if args.api_key_env is not None:
        source = "the variable that --api-key-env names"
        key = session.world.getenv(args.api_key_env)
    elif args.api_key == "-":
        source = "the line on standard input"
        key = session.world.read_secret()
    elif args.api_key is not None:
        source = "--api-key"
        key = args.api_key
        session.world.note(
            "note: a key on the command line can be seen in ps and stays in the shell's"
            " history; --api-key-env NAME or --api-key - keep it out"
        )
    else:
        return None
    key = key.strip()
    if not is_secret_token(key):
        raise Usage(f"{source} holds no key: it must be one word of visible ASCII characters")
    if key == session.settings.api_key:
        raise Usage(f"{source} holds the CacheForge key, which is not for the provider")
    session.world.add_secret(key)
    return key


def check_key_owner(key: str | None, kind: str | None) -> None:
    """Raises Usage for a key that by its prefix is another provider's."""
    for prefix, owner in KEY_OWNERS.items():
        if key and key.startswith(prefix) and kind not in (None, "custom", owner):
            raise Usage(
                f"that key is {owner}'s by its prefix, but --kind is {kind}; it was not sent"
            )


def list_keys(session: Session, args: argparse.Namespace) -> Iterator[Report]:
    """`keys`"""
    forbid(args, ("yes", "force"), "--revoke")
    forbid(args, ("save",), "--create")
    forbid(args, ("dry_run",), "--create or --revoke")
    yield keys_report(session.account.keys())


def create_key(session: Session, args: argparse.Namespace) -> Iterator[Report]:
    """`keys --create`, perhaps with `--save`"""
    forbid(args, ("yes", "force"), "--revoke")
    if args.save is None or args.dry_run:
        yield new_key_report(session.account.create_key())
        return
    file = session.world.new_file(args.save)  # first: an unwritable path must cost nothing
    try:
        key = session.account.create_key()
        session.if_stopped = lost_key_hint(key)
        try:
            file.keep(key["api_key"])
        except OSError as error:
            why = f"a key was made, but it could not be saved: {error.strerror}"
            raise Uncertain(why) from None
    except BaseException:
        file.discard()
        raise
    yield saved_key_report(key, file.path)


def revoke_key(session: Session, args: argparse.Namespace) -> Iterator[Report]:
    """`keys --revoke KEY_ID`: looked up first, to say which key dies."""
    forbid(args, ("save",), "--create")
    keys = session.account.keys()
    key = next((key for key in keys if key["id"] == args.key_id), None)
    if key is None:
        raise Usage("no key has that id; nothing was revoked", hint="{ops} keys")
    if key["revoked_at"]:
        yield revoked_report(key, already=True)
        return
    if key["in_use"] and not args.force:
        raise Usage(
            f"{key_name(key)} is the key that this command runs on; nothing was revoked",
            hint="Set CACHEFORGE_API_KEY to another key first, or add --force.",
        )
    if not (args.yes or args.dry_run):
        confirm(session, f"Revoke {key_name(key)} for good?")
    session.account.revoke_key(key["id"])
    yield revoked_report(key, already=False)


def confirm(session: Session, question: str) -> None:
    """Raises Usage unless a person says yes."""
    answer = session.world.ask(question)
    if answer is None:
        raise Usage(f"{question} Nobody can be asked here", hint="Add --yes to mean it.")
    if not answer:
        raise Usage("not confirmed: nothing was sent")


def show_info(session: Session, args: argparse.Namespace) -> Iterator[Report]:
    """`info`"""
    settings = session.settings
    yield tenant_report(session.account.tenant(), settings.base_url, settings.mask_key())


# What shows whether a write was carried out when its result is not known, and what a
# repeat risks. Each can be pasted into a shell as it stands.
IF_UNCERTAIN: dict[Command, str] = {
    make_topup: "{ops} balance  # an unpaid link costs nothing: topup can be run again",
    enable_auto_topup: "{ops} auto-topup  # shows the rule; setting it again is safe",
    disable_auto_topup: "{ops} auto-topup  # shows the rule; disabling again is safe",
    set_upstream: "{ops} upstream  # shows what is stored; setting it again is safe",
    create_key: "{ops} keys  # if it shows a new key, nobody has its secret: to be revoked"
    " before another is made",
    revoke_key: "{ops} keys  # shows whether it is gone; revoking again is safe",
}


# ── Parser: the command line, declared ─────────────────────────────────────────

KINDS = ("openrouter", "anthropic", "custom", "openai")
METHODS = ("stripe", "crypto")

if TYPE_CHECKING:
    Subcommands = argparse._SubParsersAction["Parser"]


class Parser(argparse.ArgumentParser):
    """argparse with the options that every command takes, raising Usage, and never
    repeating what was typed: a mistyped secret would land in a log."""

    def __init__(self, **shape: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=plain_help, **shape)
        common = self.add_argument_group(
            "common options, before or after the command",
            # no defaults here: those after the command would undo what stood before it
            argument_default=argparse.SUPPRESS,
        )
        common.add_argument("--json", action="store_true", help="one JSON object a line")
        common.add_argument(
            "--timeout",
            type=duration,
            dest="timeout_s",
            metavar="SECONDS",
            help="the most to spend on the network in all (default 30)",
        )
        common.add_argument("--verbose", action="store_true", help="a line per exchange on stderr")

    def error(self, message: str) -> NoReturn:
        """Raise Usage with what argparse says, up to where it quotes."""
        told = re.split("[\"']", message)[0].rstrip(" :")  # argparse quotes values, we do not
        if told.endswith("COMMAND: invalid choice"):
            told = "unknown command"
        raise Usage(told, hint=f"See {{ops}}{self.prog[len('ops.py') :]} --help")


def plain_help(prog: str) -> argparse.HelpFormatter:
    """Help of one width everywhere; argparse would load shutil to measure the terminal,
    for every option that is declared."""
    return argparse.RawDescriptionHelpFormatter(prog, width=78)


def one_of(*choices: str) -> Callable[[str], str]:
    """An option's type: one of a few words. (`choices=` would repeat a wrong one.)"""

    def read(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}")
        return text

    return read


def read_amount(text: str, bare_unit: str) -> int:
    """`read_cents` for argparse: more than nothing."""
    try:
        cents = read_cents(text, bare_unit)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if cents == 0:
        raise argparse.ArgumentTypeError("must be more than 0 (an unquoted $10 reaches us as 0)")
    return cents


def whole_dollars(text: str) -> int:
    """An option's type: whole dollars, as cents."""
    cents = read_amount(text, "usd")
    if cents % CENTS_PER_USD:
        raise argparse.ArgumentTypeError("must be whole dollars, such as 10 or 1000c")
    return cents


def auto_topup_cents(text: str) -> int:
    """An option's type: cents, at least 100: less is a slip, dollars meant."""
    cents = read_amount(text, "c")
    if cents < SMALLEST_AUTO_TOPUP_CENTS:
        raise argparse.ArgumentTypeError(
            f"counts in cents, at least 100: {cents} would be {cents_text(cents)};"
            f" for dollars write {cents}usd"
        )
    return cents


def min_dollars(text: str) -> int:
    """An option's type: dollars with up to two decimals, as cents; 0 is fine."""
    try:
        return read_cents(text, "usd", decimals=True)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def duration(text: str) -> float:
    """An option's type: a duration."""
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", text) or float(text) == 0:
        raise argparse.ArgumentTypeError("must be a number of seconds above 0")
    return float(text)


def key_identifier(text: str) -> str:
    """An option's type: the id of a key."""
    if not is_key_id(text):
        raise argparse.ArgumentTypeError("must be a key id as `keys` lists it")
    return text


class RevokeAction(argparse.Action):
    """`--revoke KEY_ID` chooses the verb and carries its object."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        """Note the verb and the key's id."""
        namespace.run = revoke_key
        namespace.key_id = values


def add_command(
    commands: Subcommands, name: str, run: Command, what: str, *examples: str
) -> Parser:
    """Declare a command, and the verb that it is without a flag; its parser."""
    lines = "".join(f"\n  ops.py {name} {example}".rstrip() for example in examples)
    parser = commands.add_parser(
        name, help=what, description=f"{what}.", epilog=f"examples:{lines}"
    )
    parser.set_defaults(run=run, command=name)
    return parser


def add_balance(commands: Subcommands) -> None:
    """Declare `balance`."""
    parser = add_command(
        commands,
        "balance",
        show_balance,
        "show the balance, the auto top-up rule, the saved card",
        "",
        "--min 2.50",
        "--wait",
        "--wait 30 --min 5",
    )
    parser.add_argument(
        "--min",
        type=min_dollars,
        dest="min_cents",
        metavar="USD",
        help="exit 4 if the balance is below this many dollars, such as 2.50",
    )
    add_wait(parser, "look until the balance is above 0, or at --min; else exit 4")


def add_topup(commands: Subcommands) -> None:
    """Declare `topup`."""
    parser = add_command(
        commands,
        "topup",
        make_topup,
        "make a link that a person pays; it charges nothing by itself",
        "--amount 10",
        "--amount 25 --method crypto",
        "--amount 10 --wait",
    )
    parser.add_argument(
        "--amount",
        type=whole_dollars,
        dest="amount_cents",
        metavar="USD",
        default=DEFAULT_TOPUP_USD * CENTS_PER_USD,
        help="whole dollars, such as 25, 25usd or 2500c (default 10; see the cap in --help)",
    )
    parser.add_argument(
        "--method",
        type=one_of(*METHODS),
        metavar="METHOD",
        default="stripe",
        help="stripe (card) or crypto (default stripe)",
    )
    add_wait(parser, "print the link, then look until credit lands; else exit 4")
    add_dry_run(parser)


def add_auto_topup(commands: Subcommands) -> None:
    """Declare `auto-topup`."""
    parser = add_command(
        commands,
        "auto-topup",
        show_auto_topup,
        "show or set the rule that charges the saved card by itself",
        "",
        "--enable --threshold 200 --amount 1000",
        "--enable --threshold 2usd --amount 10usd --dry-run",
        "--disable",
    )
    switch = parser.add_mutually_exclusive_group()
    switch.add_argument(
        "--enable", action="store_const", dest="run", const=enable_auto_topup, help="set the rule"
    )
    switch.add_argument(
        "--disable", action="store_const", dest="run", const=disable_auto_topup, help="end it"
    )
    parser.add_argument(
        "--threshold",
        type=auto_topup_cents,
        dest="threshold_cents",
        metavar="CENTS",
        help="charge when the balance falls below this: cents, or 2usd (default 200)",
    )
    parser.add_argument(
        "--amount",
        type=auto_topup_cents,
        dest="amount_cents",
        metavar="CENTS",
        help="charge this much at a time: cents, or 10usd (default 1000)",
    )
    add_dry_run(parser)


def add_upstream(commands: Subcommands) -> None:
    """Declare `upstream`."""
    parser = add_command(
        commands,
        "upstream",
        show_upstream,
        "show or set the provider that calls are forwarded to",
        "",
        "--set --kind openrouter --api-key-env OPENROUTER_API_KEY",
        "--set --kind openrouter --api-key sk-or-...",
        "--set --kind custom --base-url https://llm.example.com",
    )
    parser.add_argument(
        "--set", action="store_const", dest="run", const=set_upstream, help="set what is given"
    )
    parser.add_argument(
        "--kind", type=one_of(*KINDS), metavar="KIND", help=f"the provider: {', '.join(KINDS)}"
    )
    parser.add_argument("--base-url", metavar="URL", help="its address")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--api-key", metavar="KEY", help="its key; - reads a line of standard input (safer)"
    )
    source.add_argument(
        "--api-key-env",
        metavar="NAME",
        help="its key, from the environment variable NAME (safer)",
    )
    add_dry_run(parser)


def add_keys(commands: Subcommands) -> None:
    """Declare `keys`."""
    parser = add_command(
        commands,
        "keys",
        list_keys,
        "list, make or revoke API keys",
        "",
        "--create --save new.key",
        "--create",
        "--revoke KEY_ID --yes",
    )
    verb = parser.add_mutually_exclusive_group()
    verb.add_argument(
        "--create",
        action="store_const",
        dest="run",
        const=create_key,
        help="make a key; it is shown this once",
    )
    verb.add_argument(
        "--revoke",
        action=RevokeAction,
        type=key_identifier,
        metavar="KEY_ID",
        help="end a key for good",
    )
    parser.add_argument(
        "--save",
        metavar="FILE",
        help="with --create: write the key to a new FILE that only you can read, and do not"
        " show it (on Windows, FILE has the permissions of its folder)",
    )
    parser.add_argument("--yes", action="store_true", help="with --revoke: do not ask")
    parser.add_argument("--force", action="store_true", help="with --revoke: even the key in use")
    add_dry_run(parser)


def add_info(commands: Subcommands) -> None:
    """Declare `info`."""
    what = "show the tenant, and what this program is set to"
    add_command(commands, "info", show_info, what, "")


def add_wait(parser: Parser, help: str) -> None:
    """Declare `--wait`."""
    parser.add_argument(
        "--wait",
        type=duration,
        nargs="?",
        const=DEFAULT_WAIT_S,
        dest="wait_s",
        metavar="SECONDS",
        help=f"{help} (default {DEFAULT_WAIT_S:g} s)",
    )


def add_dry_run(parser: Parser) -> None:
    """Declare `--dry-run`."""
    parser.add_argument(
        "--dry-run", action="store_true", help="show the request, and send no write"
    )


EPILOG = """\
exit codes:
  0 done   1 refused, or a nonsense answer: repeating will not help
  2 bad command line or setting, nothing was sent   3 the API key was refused
  4 payment required, below --min, or --wait ran out
  5 no answer, nothing changed: safe to repeat
  6 uncertain: a write was sent and its outcome is unknown: look, then decide
  130 interrupted

environment:
  CACHEFORGE_API_KEY              the account's key (required)
  CACHEFORGE_BASE_URL             the service (default https://app.anvil-ai.io)
  CACHEFORGE_MAX_TOPUP_USD        cap for topup and auto-topup, whole dollars (default 500)
  CACHEFORGE_ALLOW_INSECURE_HTTP  1 to allow plain http beyond this machine
  HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE, NO_COLOR, FORCE_COLOR as everywhere
"""


def build_parser() -> Parser:
    """The whole command line. Each verb is named by its function, as `run`."""
    parser = Parser(
        prog="ops.py",
        description="Run a CacheForge account: balance, top-ups, provider and API keys.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"cacheforge-ops {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, prog=parser.prog)
    for add in (add_balance, add_topup, add_auto_topup, add_upstream, add_keys, add_info):
        add(commands)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line as a namespace. Raises Usage."""
    defaults = argparse.Namespace(verbose=False, dry_run=False, timeout_s=DEFAULT_TIMEOUT_S)
    args, unknown = build_parser().parse_known_args(argv, defaults)
    if unknown:
        place = f" (word {argv.index(unknown[0]) + 1})" if unknown[0] in argv else ""
        raise Usage(f"unknown argument{place}", hint=f"See {{ops}} {args.command} --help")
    return args


# ── main: the only room that prints, reads the environment or exits ────────────


class Undelivered(Exception):
    """Standard output did not take a report."""


class PrivateFile:
    """A new file for a key, 0600, never over an existing one or through a symlink."""

    def __init__(self, path: str) -> None:
        """Raises Usage where it cannot be made."""
        import stat

        self.path = path
        try:
            # O_EXCL refuses whatever is there already, a dangling symlink included
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(path, flags, 0o600)
            # on Windows, NUL opens as if it were new, and would swallow the key
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                os.close(self._descriptor)
                raise ValueError("a device")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "not a file name"
            raise Usage(f"--save: the file cannot be made ({why}); nothing was sent") from None

    def keep(self, text: str) -> None:
        """Write the text and see it to the disk. Raises OSError."""
        line = (text + "\n").encode("ascii")
        while line:
            line = line[os.write(self._descriptor, line) :]
        os.fsync(self._descriptor)
        os.close(self._descriptor)

    def discard(self) -> None:
        """Remove the file again."""
        try:
            os.close(self._descriptor)  # first: Windows removes no file that is open
        except OSError:
            pass
        try:
            os.unlink(self.path)
        except OSError:
            pass


class Console:
    """The world outside: standard output for results, standard error for everything
    else, standard input, the environment, the clock and new files."""

    def __init__(self, as_json: bool, program: str, environ: Mapping[str, str]) -> None:
        self._as_json = as_json
        self._program = program
        self._environ = environ
        self._color = wants_color(environ)
        self._live = False
        self.secrets: list[str] = []
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a name in Japanese must not end in a crash
                stream.reconfigure(errors="backslashreplace")

    def deliver(self, report: Report) -> None:
        """Print a report, flushed. Raises Undelivered."""
        self._end_live()
        try:
            if self._as_json:
                self._write(report.as_json(self._program) + "\n")
                return
            if report.secret:
                self._write(report.secret + "\n")
            self._write(report.as_text(self._program, self._color))
        except (OSError, ValueError) as error:
            raise Undelivered(getattr(error, "strerror", None) or "it is closed") from None

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def fail(self, error: Failure) -> None:
        """Print an error as two lines or one JSON object."""
        # the second belt: text of the service is hidden when it is read, our own words need
        # it only for what could be a key, lest a key called "key" blots them out
        secrets = [secret for secret in self.secrets if len(secret) >= 8]
        hint = hide(error.hint.replace("{ops}", self._program), secrets)
        message = hide(error.message, secrets)
        if self._as_json:
            fields = {
                "code": error.code,
                "message": message,
                "exit": error.exit,
                "http_status": error.http_status,
                "request_id": error.request_id,
                "retryable": error.retryable,
                "retry_after_seconds": error.retry_after_s,
                "hint": hint or None,
            }
            self.note(to_json({"error": fields}))
            return
        request = f" [request {error.request_id}]" if error.request_id else ""
        self.note(f"{error.code}: {message}{request}")
        if hint:
            self.note(("Next: " if error.hint.startswith("{ops}") else "") + hint)

    def note(self, line: str) -> None:
        """A line on standard error; if that is gone, so is the line."""
        self._end_live()
        self._write_error(line + "\n")

    def countdown(self, seconds_left: float) -> None:
        """The time left of a wait, on a terminal in one line that changes."""
        if sys.stderr is not None and sys.stderr.isatty():
            self._live = True
            self._write_error(f"\rwaiting, {max(0.0, seconds_left):.0f} s left ")

    def _end_live(self) -> None:
        if self._live:
            self._live = False
            self._write_error("\n")

    @staticmethod
    def _write_error(text: str) -> None:
        try:
            if sys.stderr is not None:  # print(file=None) would fall back to stdout
                sys.stderr.write(text)
                sys.stderr.flush()
        except (OSError, ValueError):
            pass

    @staticmethod
    def _has_person() -> bool:
        # both: Windows also calls NUL a terminal, and a question has to be seen
        return all(stream and stream.isatty() for stream in (sys.stdin, sys.stderr))

    def ask(self, question: str) -> bool | None:
        """Ask a person on the terminal; None where there is none."""
        if not self._has_person():
            return None
        self._write_error(f"{question} [y/N] ")
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def read_secret(self) -> str:
        """One line of standard input; from a terminal, without an echo. Empty if there is
        none, or nobody to type it."""
        if self._has_person():
            from getpass import getpass

            return getpass("Provider's key: ")
        if sys.stdin is None or sys.stdin.isatty():  # never with an echo
            return ""
        try:
            return sys.stdin.readline(8192)
        except ValueError:  # not text
            return ""

    def getenv(self, name: str) -> str:
        """An environment variable; empty if it is not set."""
        return self._environ.get(name, "")

    def add_secret(self, secret: str) -> None:
        """From now on, hide this as well."""
        self.secrets.append(secret)

    def new_file(self, path: str) -> PrivateFile:
        """A new file for a key. Raises Usage."""
        return PrivateFile(path)

    def now(self) -> float:
        """Seconds on a clock that only goes forward."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)


def wants_color(environ: Mapping[str, str]) -> bool:
    """The usual rules: NO_COLOR wins, FORCE_COLOR insists, else a capable terminal."""
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    capable = environ.get("TERM") != "dumb" and os.name != "nt"
    return capable and sys.stdout is not None and sys.stdout.isatty()


def check_stdout() -> None:
    """Raises Usage where nothing could be delivered: better before a key is made."""
    if sys.stdout is None or sys.stdout.closed:
        raise Usage("standard output is closed: nothing could be shown, so nothing was sent")
    import select
    import stat

    try:
        descriptor = sys.stdout.fileno()
        is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except (OSError, ValueError):
        return  # not a descriptor: a test's buffer, say
    if is_pipe and hasattr(select, "poll"):  # macOS cannot poll devices, Windows nothing
        poll = select.poll()
        poll.register(descriptor, 0)  # asks for nothing but trouble
        if poll.poll(0):
            raise Usage("nobody reads standard output, so nothing was sent")


def this_program() -> str:
    """The words that start this program, as they can be pasted into a shell."""
    python = "python" if os.name == "nt" else "python3"
    path = sys.argv[0]
    if not re.fullmatch(r"[A-Za-z0-9_./\\:~-]+", path):
        import shlex

        path = f'"{path}"' if os.name == "nt" else shlex.quote(path)
    return f"{python} {path}"


def carry_out(args: argparse.Namespace, console: Console, environ: Mapping[str, str]) -> int:
    """Carry out one parsed command; its exit code. Raises Failure."""
    settings = Settings(environ)
    console.add_secret(settings.api_key)
    check_stdout()
    trace = console.note if args.verbose else lambda line: None
    wire = Wire(settings, console.secrets, args.timeout_s, trace, console.sleep)
    request = wire.rehearse if args.dry_run else wire.request
    account = Account(request, settings.api_key, settings.base.is_loopback)
    lookout = Account(wire.poll, settings.api_key, settings.base.is_loopback)
    session = Session(account, lookout, settings, console)
    exit_code = 0
    try:
        for report in args.run(session, args):
            session.if_stopped = report.if_lost
            console.deliver(report)
            wire.wrote = False  # the result has arrived: nothing is in doubt any more
            exit_code = report.exit
    except Rehearsed as rehearsed:
        console.deliver(rehearsal_report(rehearsed))
    except BaseException as error:
        in_doubt = IF_UNCERTAIN.get(args.run, "") if wire.wrote else ""
        raise as_failure(error, wire.wrote, session.if_stopped or in_doubt) from None
    return exit_code


def as_failure(error: BaseException, wrote: bool, hint: str) -> Failure:
    """What to report of anything that ended a command early. `wrote` is whether a write
    may have been carried out whose result nobody has seen; `hint` is what to do then."""
    if isinstance(error, Uncertain):
        error.hint = error.hint or hint
    if isinstance(error, Failure):
        return error
    if isinstance(error, KeyboardInterrupt):
        what = "the write may have been carried out" if wrote else "nothing is left half done"
        return Interrupted(f"interrupted; {what}", hint=hint)
    kind = Uncertain if wrote else Failure
    if isinstance(error, Undelivered):
        done = "it is done, but " if wrote else ""
        message = f"{done}standard output did not take the result: {error}"
        return kind(message, hint=hint)
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    line = trace.tb_lineno if trace else 0  # no text of the exception: it may quote a secret
    message = f"a mistake in this program: {type(error).__name__} at line {line}"
    return kind(message, hint=hint or "Please report it.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    console = Console("--json" in argv, this_program(), os.environ)
    try:
        return carry_out(parse(argv), console, os.environ)
    except SystemExit:  # --help and --version; all else that argparse ends is Usage
        return 0
    except Failure as error:
        console.fail(error)
        return error.exit
    except BaseException as error:
        failure = as_failure(error, False, "")
        console.fail(failure)
        return failure.exit


def start() -> NoReturn:
    """Run as a script: SIGTERM counts as Ctrl-C, and the process leaves at once.

    Everything is flushed by then; what an ordinary exit would add is waiting for, or
    choking on, a thread that is left behind and a pipe that nobody reads.
    """
    import gc
    import signal

    gc.set_threshold(100_000)  # what lives for 60 ms need not be swept; a long wait is

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        code = main()
    except KeyboardInterrupt:  # a second one, while the first was being told
        code = Interrupted.exit
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            code = code or Failure.exit
    os._exit(code)


if __name__ == "__main__":
    start()
