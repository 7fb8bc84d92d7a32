"""Rules 1 to 3 of the contract: what is delivered, what is stored, and what is lost."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any, ClassVar

from support import (
    BILLING,
    CREATE,
    DEFAULT_KEY,
    KEYS,
    LINK,
    LINUX,
    NEW_KEY,
    POSIX,
    PROGRAM,
    SET_RULE,
    SET_THEIRS,
    SET_UPSTREAM,
    THEIRS,
    TOPUP,
    UPSTREAM,
    Fault,
    JumpingClock,
    SandboxTest,
    billing,
    call_on,
    http,
    next_words,
    reply,
    run,
)

TOPUP_BODY, KEY_BODY = {"paymentUrl": LINK}, {"apiKey": NEW_KEY, "id": "key_7"}
WANTED = (("topup", TOPUP, TOPUP_BODY, LINK), ("keys --create", CREATE, KEY_BODY, NEW_KEY))
BOTH = {**TOPUP_BODY, **KEY_BODY}
PAGE = f"<html><pre>{json.dumps(BOTH)}</pre></html>"
OK = "HTTP/1.1 200 OK\n"
ENABLE = ("auto-topup", "--enable")
TO_CUSTOM = ("upstream", "--set", "--kind", "custom", "--base-url", "https://x.example/api")


def broken(body: bytes) -> dict[str, Fault]:
    """The ways in which a response can go wrong around a JSON object that came whole."""
    chunk = b"%x\r\n%b\r\n" % (len(body), body)
    chunked = OK + "Transfer-Encoding: chunked\n\n"
    ways = {
        "length_one_too_few": http(OK + f"Content-Length: {len(body) - 1}\n\n", body),
        "length_one_too_many": http(OK + f"Content-Length: {len(body) + 1}\n\n", body),
        "length_of_100_terabytes": http(OK + "Content-Length: 100000000000000\n\n", body),
        "length_too_few_in_drips": Fault(
            http(OK + "Content-Length: 9\n\n", body).raw, drip_s=0.001
        ),
        "bytes_after_it": http(
            OK + f"Content-Length: {len(body)}\n\n", body + b"HTTP/1.1 408 \r\n"
        ),
        "length_of_words": http(OK + "Content-Length: some\n\n", body),
        "length_below_zero": http(OK + "Content-Length: -5\n\n", body),
        "no_length": http("HTTP/1.0 200\n\n", body),
        "a_trailer": http(chunked, chunk + b"0\r\nTrailer: x\r\n\r\n"),
        "no_last_chunk": http(chunked, chunk),
        "a_chunk_that_ends_early": http(chunked, chunk.replace(b"\r\n", b"0\r\n", 1)),
        "a_chunk_without_its_end": http(chunked, chunk[:-2]),
        "chunk_size_of_garbage": http(chunked, chunk + b"zz\r\n"),
        "text_html": reply(body, Content_Type="text/html"),
        "bom": reply(b"\xef\xbb\xbf" + body),
        "white_space": reply(b" \n" + body + b"\n\n"),
        "hang_after_it": http(OK + f"Content-Length: {len(body) + 9}\n\n", body, end="hang"),
        "hang_after_a_chunk": http(chunked, chunk, end="hang"),
        "a_brace_in_a_string": http(
            OK + f"Content-Length: {len(body) + 99}\n\n", body[:-1] + b', "note": "{"}'
        ),
    }
    if LINUX:  # elsewhere a reset discards what was received
        ways["reset_after_it"] = http(OK + "Content-Length: 9999\n\n", body, end="reset")
        ways["reset_after_a_chunk"] = http(chunked, chunk, end="reset")
        ways["reset_without_length"] = http(OK + "\n", body, end="reset")
    return ways


class Delivered(SandboxTest):
    def test_a_json_object_that_came_whole_is_complete(self) -> None:
        balance = ("balance", BILLING, billing(7), "Balance       $7.00")
        for line, call, body, value in (*WANTED, balance):
            for what, fault in broken(json.dumps(body).encode()).items():
                with self.subTest(command=line, response=what):
                    self.script(call, fault)
                    result = self.ops(*line.split(), "--timeout", "2")
                    self.assertEqual(result.exit, 0, result)
                    self.assertIn(value, result.out.splitlines())
                    self.assertEqual(self.box.calls().count(call), 1)

    def test_what_follows_a_json_object_is_not_waited_for(self) -> None:
        for line, call, body, value in WANTED:
            self.script(call, broken(json.dumps(body).encode())["hang_after_it"])
            began = time.monotonic()
            self.assertIn(value, self.ok(*line.split(), "--timeout", "30").out)
            self.assertLess(time.monotonic() - began, 10)

    def test_an_object_that_is_no_json_is_not_waited_on(self) -> None:
        for status, code in ((200, 1), (400, 1), (503, 5)):
            body = b'{"billing": oops}'
            fault = dataclasses.replace(reply(body, status), end="hang")
            self.script(BILLING, *[fault] * 3)
            began = time.monotonic()
            self.failure(code, "balance")
            self.assertLess(time.monotonic() - began, 10)

    @unittest.skipUnless(POSIX, "Windows does not count the CPU time of a child")
    def test_a_list_that_comes_row_by_row_costs_little_more(self) -> None:
        count = (
            "import os, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)"
        )
        counter = (sys.executable, "-c", f"{count}; print(os.times().children_user)")
        rows = [json.dumps({"id": f"k{n}", "prefix": f"cf_{n:08}"}).encode() for n in range(3000)]
        parts = [b'{"keys": [{}', *(b"," + row for row in rows), b"]}"]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))
        chunked = http(OK + "Transfer-Encoding: chunked\n\n", chunks)
        cpu_s = []
        for response in (reply(b"".join(parts)), chunked):
            self.script(KEYS, response)
            result = run(*counter, *PROGRAM, "keys", **self.box.env)
            cpu_s.append(float(result.out))
        self.assertLess(cpu_s[1], 3 * cpu_s[0] + 0.1)

    def test_whatever_else_is_odd_in_a_2xx_object(self) -> None:
        for line, call, body, value in WANTED:
            for beside in (
                *({"ok": False}, {"success": False, "message": "no"}, {"error": "no"}),
                *({"errors": ["no"]}, {"id": {"a": 1}, "prefix": 5, "message": [1]}),
            ):
                for status in (200, 201, 202, 299):
                    with self.subTest(command=line, beside=beside, status=status):
                        self.script(call, reply({**body, **beside}, status))
                        result = self.ops(*line.split())
                        self.assertEqual(result.exit, 0, result)
                        self.assertIn(value, result.out.splitlines())
            for odd in (b'"x": NaN', b'"x": 1, "x": 2', b'"id": 1, "id": [2]'):
                body_with_it = json.dumps(body).encode()[:-1] + b", " + odd + b"}"
                self.script(call, reply(body_with_it))
                self.assertIn(value, self.ops(*line.split()).out.splitlines(), odd)

    def test_nothing_is_taken_from_another_status_or_from_text_that_is_not_json(self) -> None:
        page = PAGE.encode()
        for response, topup_exit, create_exit in (
            *((reply(page, status), 1, 1) for status in (400, 404, 405, 409, 422)),
            *((reply(BOTH, status), 1, 1) for status in (301, 302, 304, 307, 400, 404, 409)),
            *((reply(BOTH, status), 5, 6) for status in (303, 408, 500, 502, 503, 600)),
            *((reply(BOTH, 401), 3, 3), (reply(BOTH, 403), 3, 3), (reply(BOTH, 402), 4, 4)),
            *((reply(BOTH, 429), 5, 5), (reply(page, 403), 1, 1), (reply(page, 500), 5, 6)),
            *((reply(BOTH, 403, Retry_After="9"), 5, 5), (reply(page, 403, Retry_After="9"), 5, 5)),
            *((reply(body), 5, 6) for body in (page, [BOTH], json.dumps(BOTH), 5, None, b"")),
            *((reply(json.dumps(BOTH).encode()[:-1]), 5, 6), (reply(page, 204), 5, 6)),
            *((reply(body), 1, 6) for body in ({"data": BOTH}, {"note": PAGE}, {}, {"a": [BOTH]})),
        ):
            for (line, call, _, value), code in zip(WANTED, (topup_exit, create_exit)):
                with self.subTest(command=line, response=response.raw[:200]):
                    self.script(call, response)
                    error = self.failure(code, *line.split(), "--timeout", "2")
                    self.assertNotIn(value, str(error))
                    self.assertEqual(self.sent(), [call])

    def test_a_saved_key_is_whole_and_without_a_key_no_file_is_left(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "key")
            argv = ("keys", "--create", "--save", str(path))
            for fault in (reply(PAGE.encode(), 404), reply(PAGE.encode()), Fault()):
                self.script(CREATE, fault)
                self.assertIn(self.ops(*argv).exit, (1, 6))
                self.assertFalse(path.exists())
            self.script(CREATE, broken(json.dumps(KEY_BODY).encode())["length_one_too_many"])
            result = self.ops(*argv, "--json")
            self.assertEqual((result.exit, path.read_text()), (0, f"{NEW_KEY}\n"), result)

    def test_links_that_are_unsafe_exit_1_with_one_request(self) -> None:
        links: tuple[Any, ...] = (
            *("http://pay.example.com/x", "https://p\xe4y.example/1", "https://u@pay.example.com/"),
            *("https://u:p@pay.example.com/", "javascript:alert(1)", "//pay.example.com/", "/pay"),
            *("https://", "https://pay.example.com\\@evil.example/", "https://a b/", "", None, 5),
            *("https://pay.example.com/\nNext: rm -rf", "https://pay.example.com/\x1b[31m", " "),
            *("https://evil.example\\.pay.example/", "https://a.b:99999/", "https://[::1/"),
            *("ftp://pay.example.com/", "HTTPS:/x", "pay.example.com/1", True, [], {"a": 1}),
            f"https://pay.example.com/?k={DEFAULT_KEY}",
        )
        for link in links:
            with self.subTest(link=link):
                self.script(TOPUP, reply({"paymentUrl": link}))
                self.assertNotIn(DEFAULT_KEY, str(self.failure(1, "topup")))
                self.assertEqual(self.sent(), [TOPUP])

    def test_other_links_are_shown_whole_on_a_line_of_their_own(self) -> None:
        for link in (
            "https://checkout.stripe.com/c/pay/cs_live_a1#fid=x%2Fy'!$&()*+,;=:@",
            *("https://pay.example.com:8443/" + "x" * 2000, "https://[2001:db8::1]/x"),
            *(f"{self.box.url}/pay/1", " https://pay.example.com/x\r\n"),
            "https://pay.example.com/a|b?c={d}",
        ):
            self.script(TOPUP, reply({"paymentUrl": link}))
            self.assertIn(link.strip(), self.ok("topup").out.splitlines())

    def test_a_key_that_is_not_one_exits_6(self) -> None:
        keys: tuple[Any, ...] = (None, "", " ", 5, True, [], {}, "a b", "cf_\xe4", "cf_\x1b[1m")
        for key in (*keys, DEFAULT_KEY):
            with self.subTest(key=key):
                self.script(CREATE, reply({"apiKey": key}))
                self.failure(6, "keys", "--create")
                self.assertEqual(self.sent(), [CREATE])
        self.script(CREATE, reply({"apiKey": f" {NEW_KEY}\n"}))
        self.assertEqual(self.ok("keys", "--create", "--json").json["api_key"], NEW_KEY)


class Reasons(SandboxTest):
    REASON = "the moon is full"
    SHAPES: tuple[Any, ...] = (
        *({"error": REASON}, {"error": {"message": REASON, "code": "x"}}),
        *({"errors": [REASON]}, {"errors": [{"message": REASON}]}, {"errors": {"a": [REASON]}}),
        *({"success": False, "message": REASON}, {"ok": False, "error": {"detail": REASON}}),
    )

    def test_a_refusal_counts_however_long_it_is(self) -> None:
        long = b" " * (5 * 1024 * 1024)
        for argv, call, status, code in (
            (("keys", "--create"), CREATE, 401, 3),
            (("topup",), TOPUP, 402, 4),
            (("balance",), BILLING, 503, 5),
        ):
            self.script(call, *[reply(long, status)] * 3)
            self.failure(code, *argv)

    def test_a_2xx_that_says_no_is_a_refusal_with_its_reason(self) -> None:
        disable = ("auto-topup", "--disable")
        for argv, call in (
            *((("topup",), TOPUP), (("keys", "--create"), CREATE)),
            *((TO_CUSTOM, SET_UPSTREAM), (disable, SET_RULE)),
        ):
            for body in self.SHAPES:
                with self.subTest(command=argv, body=body):
                    self.script(call, reply(body))
                    self.assertIn(self.REASON, self.failure(1, *argv)["words"])

    def test_the_reason_of_a_response_without_the_field_is_shown(self) -> None:
        for line, call in (("balance", BILLING), ("topup", TOPUP)):
            self.script(call, reply({"message": self.REASON}))
            self.assertIn(self.REASON, self.failure(1, line)["words"])

    def test_plain_text_is_a_reason_and_html_is_none(self) -> None:
        page = f"<html><p>{self.REASON}</p></html>".encode()
        for body, kind, is_shown in (
            *((self.REASON.encode(), "text/plain", True), (page, "text/html", False)),
            *((page, "text/plain", False), (self.REASON.encode(), "text/html", False)),
        ):
            with self.subTest(body=body, kind=kind):
                self.script(BILLING, reply(body, 400, Content_Type=kind))
                words = self.failure(1, "balance")["words"]
                self.assertIs(self.REASON in words, is_shown, words)

    def test_what_is_empty_says_no_such_thing(self) -> None:
        body: Any = {"error": None, "errors": [], "ok": True, "success": True}
        self.script(CREATE, reply(body))
        self.failure(6, "keys", "--create")
        self.box.service.set_upstream({"kind": "custom", "baseUrl": TO_CUSTOM[-1]})
        self.script(SET_UPSTREAM, reply(body))
        self.ok(*TO_CUSTOM)

    def test_a_rate_limit_is_no_refused_key(self) -> None:
        for body in ({"error": "slow down"}, b"<html>slow</html>"):
            self.script(BILLING, *[reply(body, 403, Retry_After="1")] * 3)
            self.assertEqual(self.failure(5, "balance")["retry_after_seconds"], 1)
            self.assertEqual(len(self.box.requests), 3)
            self.script(BILLING, reply(body, 403, Retry_After="1"))
            self.ok("balance")


class StoredSettings(SandboxTest):
    """Rule 2: the read after the write decides, and a replica may lag behind."""

    RULE_ON = billing(rule=(200, 1000))
    CUSTOM: ClassVar[Any] = {
        "configured": True,
        "upstream": {"kind": "custom", "baseUrl": TO_CUSTOM[-1]},
    }
    LOSSES = (Fault(), Fault(end="reset"), reply(b"<html>", 502))
    CASES: tuple[tuple[tuple[str, ...], str, str, Any, Any], ...] = (
        (ENABLE, SET_RULE, BILLING, billing(), RULE_ON),
        (("auto-topup", "--disable"), SET_RULE, BILLING, RULE_ON, billing()),
        (TO_CUSTOM, SET_UPSTREAM, UPSTREAM, {"configured": False, "upstream": None}, CUSTOM),
    )

    def change(self, case: Any, lost: bool, *stored: object, extra: tuple[str, ...] = ()) -> Any:
        """Run a change after which the service shows these states, one for each read."""
        argv, write, read, before, _ = case
        self.route(read, before)
        loss = self.LOSSES[len(stored) % len(self.LOSSES)]
        self.script(write, loss if lost else reply({"ok": True}))
        self.clock = JumpingClock()
        faults = [state if isinstance(state, Fault) else reply(state) for state in stored]
        with self.after_a_write(read, *faults):
            result = call_on(self.clock, *argv, *extra, "--json", **self.box.env)
        calls = self.box.calls()
        self.reads_after = calls[calls.index(write) :].count(read)
        self.assertEqual(self.sent(), [write])
        return result

    def test_a_value_that_differs_is_read_again_up_to_three_times(self) -> None:
        for case in self.CASES:
            old, new = case[3:]
            for lost in (False, True):
                for late in (0, 1, 2):
                    with self.subTest(command=case[0], lost=lost, late=late):
                        result = self.change(case, lost, *[old] * late, new)
                        self.assertEqual((result.exit, self.reads_after), (0, late + 1), result)
                        self.assertTrue(late * 0.7 <= self.clock.passed_s <= late * 2)
                with self.subTest(command=case[0], lost=lost, late="for ever"):
                    result = self.change(case, lost, *[old] * 9)
                    self.assertEqual((result.exit, self.reads_after), (5 if lost else 1, 3), result)
                    self.error_of(result)

    def test_what_cannot_be_read_back_exits_5(self) -> None:
        for case in self.CASES:
            for fault in (reply({}, 503), reply(b"<html>"), reply({}, 401), reply([]), Fault()):
                for lost in (False, True):
                    with self.subTest(command=case[0], fault=fault.raw[:40], lost=lost):
                        self.assertEqual(self.change(case, lost, *[fault] * 9).exit, 5)

    def test_what_is_stored_is_said_and_the_time_is_kept(self) -> None:
        other = billing(rule=(300, 4500))
        result = self.change(self.CASES[0], False, *[other] * 9, extra=("--timeout", "1"))
        self.assertEqual(result.exit, 1, result)
        self.assertRegex(self.error_of(result)["words"], r"\$45\b")
        self.assertLessEqual(self.clock.passed_s, 1)

    def test_an_address_has_no_case_before_its_path_and_no_final_slash(self) -> None:
        for kind, base_url, code in (
            ("Custom", "https://X.example/api/", 0),
            ("custom", "https://x.example/API", 1),
        ):
            stored = {"configured": True, "upstream": {"kind": kind, "baseUrl": base_url}}
            self.assertEqual(self.change(self.CASES[2], False, *[stored] * 9).exit, code)

    def test_an_address_that_is_shown_without_a_secret_is_compared_all_the_same(self) -> None:
        argv = ("upstream", "--set", "--kind", "custom", "--api-key", "ollama-local")
        for base_url in ("https://ollama-local.example/v1", "https://x.example/" + "p" * 300):
            self.ok(*argv, "--base-url", base_url)

    def test_a_read_that_fails_does_not_hide_what_was_read_before(self) -> None:
        self.script(SET_RULE, reply({"ok": True}))
        self.script(BILLING, reply(self.RULE_ON), *[reply({}, 503)] * 9)
        result = self.ops("auto-topup", "--disable")
        self.assertEqual(result.exit, 1, result)
        self.assertIn("the stored rule is: add", result.err)

    def test_a_provider_key_that_was_lost_is_not_proved_by_the_rest(self) -> None:
        for fault in (Fault(after=True), Fault(end="reset", after=True)):
            self.script(SET_UPSTREAM, fault)
            self.failure(5, *SET_THEIRS, THEIRS=THEIRS)
            self.assertEqual(self.box.account.upstream["kind"], "openrouter")


class LostKeys(SandboxTest):
    """Rule 3: only a new key can be uncertain, and the user decides which key to revoke."""

    def lost(self, fault: Fault) -> Any:
        """The error for a new key whose response is this."""
        self.script(CREATE, fault)
        error = self.failure(6, "keys", "--create")
        self.assertEqual(next_words(error["next"]), ["keys"])
        self.assertNotIn("--revoke", error["words"])
        self.assertEqual(self.sent(), [CREATE])
        return error

    def test_what_is_new_in_the_list_is_named_and_never_revoked_on_a_guess(self) -> None:
        made = [Fault(after=True), Fault(end="reset", after=True)]
        made += [Fault(http("HTTP/1.1 200 OK\nContent-Length: 9\n\n").raw + b"{", after=True)]
        for fault in (*made, Fault(), reply({}, 503)):
            before = len(self.box.account.keys)
            words = self.lost(fault)["words"]
            self.assertEqual(f"key_{before + 1}" in words, fault.after, words)
        make = self.box.service.routes[CREATE]
        self.box.service.routes[CREATE] = lambda body: make(make(body))
        words = self.lost(made[0])["words"]
        for key in self.box.account.keys[-2:]:
            self.assertIn(key.id, words)
        twin = {"prefix": "cf_live_"}  # as in a list that does not tell the id
        lists = iter(({"keys": [twin]}, {"keys": [twin, twin]}))
        self.box.service.routes[KEYS] = lambda _: next(lists)
        self.assertIn("a key without an id (cf_live_)", self.lost(Fault())["words"])

    def test_if_the_list_cannot_be_read_nothing_is_claimed(self) -> None:
        for fault in (reply({}, 400), reply(b"<html>"), Fault()):
            with self.after_a_write(KEYS, *[fault] * 3):
                words = self.lost(Fault(after=True))["words"]
            self.assertNotRegex(words, "key_[0-9]|no new key")

    def test_the_response_that_was_lost_is_kept(self) -> None:
        lost = reply({}, 503, X_Request_Id="req_0815", Retry_After="7")
        for argv, call, code in (
            *((("topup",), TOPUP, 5), (("keys", "--create"), CREATE, 6)),
            *((("auto-topup", "--enable"), SET_RULE, 5), (TO_CUSTOM, SET_UPSTREAM, 5)),
        ):
            self.script(call, lost)
            error = self.failure(code, *argv)
            found = (error["http_status"], error["request_id"], error["retry_after_seconds"])
            self.assertEqual(found, (503, "req_0815", 7), argv)

    def test_a_write_that_never_left_is_not_in_doubt(self) -> None:
        self.box.close()  # nobody listens there now
        for argv in (("keys", "--create"), ("topup",), ENABLE, TO_CUSTOM):
            self.assertNotIn("may have", self.failure(5, *argv, "--timeout", "2")["words"])


class Size(SandboxTest):
    def test_a_response_has_at_most_4_mib(self) -> None:
        for mib, fits in ((3.9, True), (4.1, False)):
            self.script(BILLING, *[reply({**billing(7), "pad": "x" * int(mib * 2**20)})] * 3)
            result = self.ops("balance")
            self.assertEqual((result.exit == 0, "$7.00" in result.out), (fits, fits), result.err)

    def test_a_list_of_nothing_costs_little(self) -> None:
        self.script(KEYS, reply(b'{"keys": [' + b"{}," * 300_000 + b"{}]}"))
        began = time.process_time()
        self.assertEqual(self.ok("keys").out, "No API keys.\n")
        self.assertLess(time.process_time() - began, 4)  # seconds; coverage triples the time
