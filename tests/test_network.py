"""Real networks: deadlines, addresses, interim responses, TLS, proxies."""

from __future__ import annotations

import base64
import contextlib
import gc
import queue
import socket
import threading
import time
import unittest
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from support import (
    AUTHORITY,
    BILLING,
    COMMANDS,
    CREATE,
    DEFAULT_KEY,
    GOOD,
    KEYS,
    LINK,
    LINUX,
    NEW_KEY,
    NOISE,
    PATIENCE_S,
    SET_RULE,
    THEIRS,
    TOPUP,
    Fault,
    JumpingClock,
    OverlappingTest,
    Proxy,
    Result,
    Sandbox,
    SandboxTest,
    billing,
    black_hole,
    call_on,
    call_ops,
    changed,
    http,
    listening,
    outcome,
    reply,
    run_changed,
    run_ops,
    server_context,
    side_by_side,
)

SERVICE = "https://service.test"
PASSWORD = "Sup3rS3cret0123456789"
# what stands after HTTPS_PROXY=, where @ is a proxy that would answer
WRONG_PROXIES = (
    *(f"https://me:{PASSWORD}@@", "https://@", "socks5://@", "socks4a://@", "ftp://@", "://@"),
    *(f"http://me:p@{PASSWORD}/w0rd@@", f"http://me:p@{PASSWORD}@@", f"http://{PASSWORD}@@"),
    *(f"http://me:{PASSWORD}/x@@", f"http://me:{PASSWORD}#x@@", f"http://me:{PASSWORD}?x@@"),
    *("http://@/path", "http://@?x=1", "http://@#x", "http://127.0.0.1:99999", "http://a:b:c"),
    *("http://127.0.0.1:0x50", "http://a b:80", "http://", "http:///", "//@", "http:@", "http:/@"),
    *("http://:8080", "http://me:pa ss@@", "http://@\\x", "http://[::1:80"),
)
NO_SSL = "sys.modules['ssl'] = sys.modules['_ssl'] = None"
BAD_STORE = """
import ssl
def load(*_, **__):
    raise ssl.SSLError("not enough data: cadata does not contain a certificate")
ssl.SSLContext.load_default_certs = load"""
NO_THREADS = """
def refuse(*_):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse"""
SLOW_NAME = """
def ask(*_, **__):
    with socket.socket() as resolver:
        resolver.connect(("127.0.0.1", PORT))
        resolver.recv(1)  # which does not come
socket.getaddrinfo = ask"""
TWO_ADDRESSES = """
resolve = socket.getaddrinfo
def both(host, *args, **kwargs):
    hosts = HOSTS if host == "localhost" else [host]
    return [row for one in hosts for row in resolve(one, *args, **kwargs)]
socket.getaddrinfo = both"""
DOUBT = "(?i)may have|uncertain"
READS_BEFORE_WRITES = (
    ("topup", BILLING, TOPUP),
    ("keys --create", KEYS, CREATE),
    ("auto-topup --enable", BILLING, SET_RULE),
)


def at(url: str) -> dict[str, str]:
    """The environment of a command against another address."""
    return {"CACHEFORGE_API_KEY": DEFAULT_KEY, "CACHEFORGE_BASE_URL": url}


def run_at(url: str, *argv: str, **env: str) -> Result:
    """Call a command against another address."""
    return call_ops(*argv, **{**at(url), **env})


class Processes(OverlappingTest):
    """What needs real time, or another Python."""

    def check_never_sent(self, result: Result) -> None:
        """Nothing was sent, and nothing else is claimed."""
        self.assertEqual((result.exit, result.out), (5, ""), result)
        self.assertNotRegex(self.error_of(result)["words"], DOUBT)

    def test_every_command_ends_in_time_whatever_is_slow(self) -> None:
        drip, timeout_s = 0.05, 3
        length = f"HTTP/1.1 200 OK\nContent-Length: {len(GOOD)}\n\n"
        ways = {
            "hang": Fault(end="hang"),
            "drip_in_the_status_line": Fault(b"HTTP/1.1 200 " + b"x" * 9999, drip_s=drip),
            "drip_in_a_header": Fault(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9999, drip_s=drip),
            "drip_in_the_body": Fault(http(length).raw + b" " * 9999, drip_s=drip),
            "hang_in_the_body": Fault(http(length).raw + b"{", end="hang"),
            "flood_of_100": Fault(b"HTTP/1.1 100 Continue\r\n\r\n" * 5000, drip_s=0.001),
            "flood_of_103": Fault(b"HTTP/1.1 103 Hints\r\n\r\n" * 5000, drip_s=0.001),
        }

        def check(job: tuple[str, str]) -> tuple[Result, float, list[str]]:
            argv, call = COMMANDS[job[0]]
            with Sandbox() as box:
                box.account.card_saved = True
                box.service.create_key({})
                box.add_faults(call, *[ways[job[1]]] * 3)
                child = pool.submit(
                    run_ops, *argv, "--timeout", f"{timeout_s}", **box.env, THEIRS=THEIRS
                )
                box.wait_for(call)  # the start of a process is not what is timed
                began = time.monotonic()
                return child.result(), time.monotonic() - began, box.calls()

        jobs = [("balance", way) for way in ways] + [("topup", "drip_in_the_body")]
        jobs += [(name, "hang") for name in ("auto_topup_enable", "keys_create", "keys_revoke")]
        with ThreadPoolExecutor(20) as pool, ThreadPoolExecutor(20) as checkers:
            for (name, way), (result, took_s, calls) in zip(jobs, checkers.map(check, jobs)):
                with self.subTest(name=name, way=way):
                    self.assertEqual(result.exit, 6 if name == "keys_create" else 5, result)
                    self.assertEqual(result.out, "")
                    self.assertLess(took_s, timeout_s * 1.45)  # not once and a half
                    self.assertEqual(calls.count(COMMANDS[name][1]), 1)

    def test_before_the_connection_is_made_nothing_was_sent(self) -> None:
        def check(_: Sandbox, change: str, address: str) -> None:
            asked, over = threading.Event(), threading.Event()

            def stay_silent(_: socket.socket) -> None:
                asked.set()
                over.wait(PATIENCE_S)

            with listening(stay_silent) as url:
                port = url.rpartition(":")[2]
                command = (*changed(change.replace("PORT", port)), "keys", "--create")
                env = at(address.replace("PORT", port))
                child = self.start(*command, "--timeout", "2", "--json", **env)
                self.assertTrue(asked.wait(PATIENCE_S))
                began = time.monotonic()
                self.check_never_sent(outcome(child))
                self.assertLess(time.monotonic() - began, 2 * 1.9)
                over.set()

        side_by_side(check, ("", "https://127.0.0.1:PORT"), (SLOW_NAME, SERVICE))

    def test_a_read_before_a_write_takes_a_third_of_the_time(self) -> None:
        def check(box: Sandbox, line: str, read: str, write: str) -> None:
            box.account.card_saved = True
            box.add_faults(read, Fault(end="hang"))
            result = run_ops(*line.split(), "--timeout", "3", **box.env)
            self.assertEqual(result.exit, 0, result)
            self.assertEqual([seen.call for seen in box.writes], [write])

        side_by_side(check, *READS_BEFORE_WRITES)

    @unittest.skipUnless(LINUX, "needs 127.0.0.2 and a queue of connections that drops")
    def test_each_address_of_a_name_gets_its_turn(self) -> None:
        port = int(self.box.url.rpartition(":")[2])
        url = f"http://localhost:{port}"
        good, silent = "127.0.0.1", "127.0.0.2"

        def call(line: str, *hosts: str) -> Result:
            change = TWO_ADDRESSES.replace("HOSTS", str(hosts))
            argv = (*line.split(), "--timeout", "4", "--json")
            return run_changed(change, *argv, **{**self.box.env, "CACHEFORGE_BASE_URL": url})

        jobs = [
            *(("balance", silent, good), ("balance", good, silent)),
            *(("keys --create", silent, good), ("keys --create", silent, silent)),
        ]
        with black_hole(silent, port), ThreadPoolExecutor(len(jobs)) as pool:
            *found, lost = pool.map(lambda job: call(*job), jobs)
        for result in found:
            self.assertEqual((result.exit, result.err), (0, ""), result)
        self.check_never_sent(lost)

    def test_without_a_thread_the_request_runs_all_the_same(self) -> None:
        for line in ("balance", "keys --create"):
            result = run_changed(NO_THREADS, *line.split(), **self.box.env)
            self.assertEqual((result.exit, result.err), (0, ""), result)
        self.box.add_faults(BILLING, reply({"error": "no"}, 404))
        self.assertEqual(run_changed(NO_THREADS, "balance", **self.box.env).exit, 1)

    def test_the_part_of_tls_that_failed_is_named(self) -> None:
        env = {"CACHEFORGE_API_KEY": DEFAULT_KEY, "CACHEFORGE_BASE_URL": "https://x.invalid"}
        for change, said in ((NO_SSL, "(?i)ssl|tls"), (BAD_STORE, "(?i)certificate")):
            result = run_changed(change, "keys", "--create", "--json", **env)
            self.assertEqual(result.exit, 2, result)
            self.assertRegex(result.error["message"], said)
            self.assertNotRegex(result.err, f"SSL_CERT_FILE|{NOISE}")
        self.assertEqual(run_changed(NO_SSL, "balance", **self.box.env).exit, 0)


class Deadline(SandboxTest):
    """One deadline for everything, and no more than it takes."""

    def test_the_deadline_is_shared_by_all_tries_of_a_read(self) -> None:
        for timeout, tries in (("1", 1), ("1.5", 2), ("3.5", 3)):
            self.script(BILLING, *[reply({}, 503, Retry_After="1")] * 3)
            result = call_on(JumpingClock(), "balance", "--timeout", timeout, **self.box.env)
            self.assertEqual((result.exit, len(self.box.requests)), (5, tries))

    def test_a_read_before_a_write_does_not_stop_it(self) -> None:
        self.save_card()
        for line, read, write in READS_BEFORE_WRITES:
            for fault in (reply({}, 500), reply({}, 404), reply({}, 402), reply(b"<p>"), Fault()):
                with self.subTest(line=line, fault=fault), self.until_a_write(read, fault):
                    result = self.ops(*line.split())
                    self.assertEqual((result.exit, self.sent()), (0, [write]), result)
            self.script(read, reply({}, 401))
            self.failure(3, *line.split())
            self.assertEqual(self.box.writes, [])

    def test_a_write_that_was_given_up_is_not_sent_later(self) -> None:
        given_up, sent = threading.Event(), queue.Queue[bytes]()
        self.addCleanup(given_up.set)
        looked = threading.Event()

        def serve(connection: socket.socket) -> None:
            if not looked.is_set():
                looked.set()
                proxy.serve(connection)
                return
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not given_up.wait(0.05):  # each byte is in time, the whole is not
                connection.sendall(b"x")
            connection.sendall(b"\r\n\r\n")
            with server_context("good.pem").wrap_socket(connection, server_side=True) as late:
                try:
                    sent.put(late.recv(65536))
                except OSError:  # closed without a word
                    sent.put(b"")

        with Sandbox(tls=server_context("good.pem")) as box, listening(serve) as url:
            proxy = Proxy(int(box.url.rsplit(":", 1)[1]))
            env = {"HTTPS_PROXY": url, "SSL_CERT_FILE": AUTHORITY}
            result = run_at("https://service.test", "topup", "--timeout", "2", **env)
            self.assertEqual((result.exit, box.calls()), (5, [BILLING]), result)
            given_up.set()
            self.assertEqual(sent.get(timeout=PATIENCE_S), b"")

    def test_a_brace_in_a_string_does_not_delay_the_end(self) -> None:
        body = b'{"billing": {"creditBalanceMicrousd": 1}, "note": "a { in a string"}'
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)

        def serve(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(head + body)
            connection.recv(1)  # the connection stays open until the client leaves

        with listening(serve) as url:
            began = time.monotonic()
            result = run_at(url, "balance", "--timeout", "20")
        self.assertEqual(result.exit, 0, result)
        self.assertLess(time.monotonic() - began, 10)


class Interim(SandboxTest):
    def test_interim_responses_are_skipped(self) -> None:
        hints = "HTTP/1.1 103 Early Hints\nLink: </a>\nContent-Length: 5\n"
        for heads in (
            *(["HTTP/1.1 102 Processing\n"], [hints], [hints] * 3),
            ["HTTP/1.1 100 Continue\n", hints, "HTTP/1.1 102 Processing\n"],
        ):
            first = http("".join(f"{head}\n" for head in heads)).raw
            for line, call, body, shown in (
                ("balance", BILLING, billing(7), "$7.00"),
                ("topup", TOPUP, {"paymentUrl": LINK}, LINK),
                ("keys --create", CREATE, {"apiKey": NEW_KEY}, NEW_KEY),
            ):
                with self.subTest(heads=heads, line=line):
                    self.script(call, Fault(first + reply(body).raw))
                    result = self.ops(*line.split())
                    self.assertEqual(result.exit, 0, result)
                    self.assertIn(shown, result.out)
                    self.script(call, *[Fault(first)] * (3 if call == BILLING else 1))
                    self.failure(6 if call == CREATE else 5, *line.split())
            self.script(TOPUP, Fault(first + reply({"error": "no"}, 400).raw))
            self.failure(1, "topup")


class Tls(unittest.TestCase):
    def run_tls(self, name: str, *argv: str, **env: str) -> Result:
        """Call a command against a service that has this certificate; no request may arrive."""
        with Sandbox(tls=server_context(name)) as box:
            result = call_ops(*argv, "--json", **box.env, **env)
            self.assertEqual((result.out, box.requests), ("", []), result)
            self.assertNotRegex(result.err, "(?i)disable|insecure|skip")
            return result

    def test_a_certificate_that_is_not_accepted_is_no_network_error(self) -> None:
        for name, trusted in (
            *(("good.pem", False), ("self-signed.pem", True)),
            *(("expired.pem", True), ("wrong-host.pem", True)),
        ):
            for argv in (("balance",), ("keys", "--create")):
                with self.subTest(name=name, argv=argv):
                    env = {"SSL_CERT_FILE": AUTHORITY} if trusted else {}
                    error = self.run_tls(name, *argv, **env).error
                    told = (error["code"], error["exit"], error["retryable"])
                    self.assertEqual(told, ("failed", 1, False))
                    self.assertIn("SSL_CERT_FILE", error["hint"])

    def test_a_wrong_setting_exits_2_and_is_named(self) -> None:
        with TemporaryDirectory() as folder:
            empty = Path(folder, "empty.pem")
            empty.write_text("no certificate")
            for path in (str(empty), str(Path(folder, "no", "file")), folder):
                result = self.run_tls("good.pem", "balance", SSL_CERT_FILE=path)
                self.assertEqual(result.exit, 2)
                self.assertIn("SSL_CERT_FILE", result.error["message"])
            env = {"SSL_CERT_FILE": AUTHORITY, "SSLKEYLOGFILE": str(Path(folder, "no", "file"))}
            result = self.run_tls("good.pem", "balance", **env)
            self.assertEqual(result.exit, 2)
            self.assertIn("SSLKEYLOGFILE", result.error["message"])

    def test_plain_http_on_a_tls_port_and_the_other_way_round_hints_at_the_setting(self) -> None:
        for tls, command in ((None, "balance"), (None, "topup"), ("good.pem", "balance")):
            with Sandbox(tls=server_context(tls) if tls else None) as box:
                scheme, _, place = box.url.partition("://")
                result = run_at(f"{'http' if tls else 'https'}://{place}", command)
                self.assertEqual((result.exit, result.out, box.requests), (5, "", []), scheme)
                self.assertIn("CACHEFORGE_BASE_URL", result.err)


class Proxies(unittest.TestCase):
    nowhere = "https://no-such-host.invalid:8443"

    @contextlib.contextmanager
    def proxied(self, *answer: bytes) -> Iterator[tuple[Sandbox, Proxy, str]]:
        with Sandbox(tls=server_context("good.pem")) as box:
            proxy = Proxy(int(box.url.rsplit(":", 1)[1]), *answer)
            with listening(proxy.serve) as url:
                yield box, proxy, url

    def at_service(self, *argv: str, **env: str) -> Result:
        """Call a command against a service that only a proxy can reach."""
        return run_at(SERVICE, *argv, "--timeout", "5", SSL_CERT_FILE=AUTHORITY, **env)

    def test_https_goes_through_a_tunnel_and_the_proxy_sees_no_key(self) -> None:
        forms = ("http://%s", "http://%s/", "%s/", "me:p%%40s%%2Fs@%s/", " http://%s\r")
        for variable, form in (*(("HTTPS_PROXY", form) for form in forms), ("https_proxy", "%s")):
            with self.subTest(form, variable=variable), self.proxied() as (box, proxy, url):
                result = self.at_service("balance", "--verbose", **{variable: form % url[7:]})
                self.assertEqual((result.exit, len(box.requests)), (0, 1), result)
                self.assertTrue(proxy.heard.startswith(b"CONNECT service.test:443 "))
                self.assertNotIn(DEFAULT_KEY.encode(), proxy.heard)
                head = proxy.heard.split(b"\r\n\r\n")[0].lower()
                self.assertNotIn(b"\r\nauthorization", head)
                token = b"proxy-authorization: basic " + base64.b64encode(b"me:p@s/s").lower()
                self.assertEqual(token in head, "me:" in form)
                self.assertNotIn("Proxy-Authorization", box.requests[0].headers)
                self.assertNotIn("p%40s", result.err)

    def test_a_setting_of_another_form_is_refused_by_name(self) -> None:
        with self.proxied() as (_, proxy, url):
            for form in WRONG_PROXIES:
                for variable in ("HTTPS_PROXY", "https_proxy"):
                    with self.subTest(form=form, variable=variable):
                        at = form.rfind("@")
                        setting = form if at < 0 else form[:at] + url[7:] + form[at + 1 :]
                        result = self.at_service("keys", "--create", **{variable: setting})
                        self.assertEqual((result.exit, result.out), (2, ""), result)
                        self.assertIn("HTTPS_PROXY", result.err.upper())
                        self.assertNotIn(PASSWORD, result.err)
                        self.assertEqual(proxy.heard, b"")
            env = {"HTTP_PROXY": f"socks5://{url[7:]}", "CACHEFORGE_ALLOW_INSECURE_HTTP": "1"}
            result = run_at("http://service.test", "balance", **env)
            self.assertEqual((result.exit, proxy.heard), (2, b""), result)
            self.assertIn("HTTP_PROXY", result.err.upper())

    def test_a_proxy_that_fails_is_the_one_that_is_named(self) -> None:
        with listening(lambda connection: None) as url:
            pass  # nobody listens there any more
        for variable in ("HTTPS_PROXY", "https_proxy"):
            result = self.at_service("keys", "--create", **{variable: url})
            self.assertEqual(result.exit, 5, result)
            self.assertIn("HTTPS_PROXY", result.err.upper())
            self.assertNotIn("CACHEFORGE_BASE_URL", result.err)
        for status, code in ((b"407 Proxy Authentication Required", 2), (b"502 Bad Gateway", 5)):
            for command in ("balance", "topup"):
                refusal = b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status
                with self.proxied(refusal) as (box, proxy, url):
                    setting = url.replace("http://", f"http://me:{PASSWORD}@")
                    result = self.at_service(command, HTTPS_PROXY=setting)
                with warnings.catch_warnings():  # http.client of 3.9 forgets to close its response
                    warnings.simplefilter("ignore", ResourceWarning)
                    gc.collect()
                self.assertEqual((result.exit, result.out, box.requests), (code, "", []), result)
                self.assertIn("HTTPS_PROXY", result.err)
                self.assertNotIn(PASSWORD, result.err)
                if command == "balance":
                    self.assertEqual(proxy.heard.count(b"CONNECT"), 1 if code == 2 else 3)

    def test_loopback_never_goes_through_a_proxy(self) -> None:
        with Sandbox() as box, self.proxied() as (_, proxy, url):
            every = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY")
            result = call_ops("balance", **box.env, **dict.fromkeys(every, url))
            self.assertEqual((result.exit, len(box.requests), proxy.heard), (0, 1, b""), result)

    def test_https_proxies_are_for_https_http_proxies_for_http_and_no_proxy_for_none(self) -> None:
        for url, used, env in (
            (self.nowhere, True, {"HTTPS_PROXY": "", "NO_PROXY": "no-such-host.invalid:9"}),
            (self.nowhere, False, {"HTTPS_PROXY": "", "NO_PROXY": "example.com,.invalid"}),
            (self.nowhere, False, {"HTTPS_PROXY": "", "NO_PROXY": "no-such-host.invalid:8443"}),
            (self.nowhere, False, {"HTTP_PROXY": ""}),
            ("http://no-such-host.invalid", False, {"HTTPS_PROXY": ""}),
        ):
            with self.subTest(url=url, env=env), self.proxied() as (_, proxy, address):
                settings = {name: value or address for name, value in env.items()}
                settings["CACHEFORGE_ALLOW_INSECURE_HTTP"] = "1"
                result = run_at(url, "balance", "--timeout", "5", **settings)
                # behind the proxy there is a certificate that nobody trusts
                found = (result.exit, proxy.heard != b"")
                self.assertEqual(found, (1, True) if used else (5, False), result)

    def test_plain_http_that_was_allowed_goes_through_an_http_proxy(self) -> None:
        with Sandbox() as box:
            proxy = Proxy(int(box.url.rsplit(":", 1)[1]))
            with listening(proxy.serve) as url:
                address = url.replace("http://", "http://me:secret@")
                env = {"HTTP_PROXY": address, "CACHEFORGE_ALLOW_INSECURE_HTTP": "1"}
                result = run_at("http://service.test", "balance", **env)
            self.assertEqual(result.exit, 0, result)
            token = base64.b64encode(b"me:secret")
            self.assertIn(b"proxy-authorization: basic " + token.lower(), proxy.heard.lower())
            self.assertTrue(proxy.heard.startswith(b"GET http://service.test/v1/account/billing "))

    def test_a_service_that_is_reached_by_https_cannot_send_a_payer_to_http(self) -> None:
        with self.proxied() as (box, _, url):
            for link in ("http://127.0.0.1:1/pay", "http://service.test/pay"):
                box.add_faults(TOPUP, reply({"paymentUrl": link}))
                result = self.at_service("topup", HTTPS_PROXY=url)
                self.assertEqual((result.exit, result.out), (1, ""), result)
