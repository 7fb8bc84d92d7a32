"""Real networks: deadlines, redirects, TLS, proxies, addresses."""

from __future__ import annotations

import base64
import contextlib
import gc
import queue
import socket
import ssl
import threading
import time
import unittest
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

from support import (
    BILLING,
    COMMANDS,
    DEFAULT_KEY,
    GOOD,
    PATIENCE_S,
    THEIRS,
    TOPUP,
    WRITES,
    Fault,
    JumpingClock,
    Result,
    Sandbox,
    SandboxTest,
    call_on,
    call_ops,
    http,
    ops,
    run_ops,
)

CERTIFICATES = Path(__file__).parent / "certificates"
AUTHORITY = str(CERTIFICATES / "authority.pem")


def server_context(name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / name)
    return context


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket], None], host: str = "127.0.0.1") -> Iterator[str]:
    """A raw server on loopback, a thread per connection; its base URL."""
    done = threading.Event()

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            serve(connection)

    def accept() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        listener.settimeout(0.05)
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        shown = f"[{host}]" if ":" in host else host
        try:
            yield f"http://{shown}:{listener.getsockname()[1]}"
        finally:
            done.set()
            thread.join()


def run_at(url: str, *argv: str, **env: str) -> Result:
    return call_ops(*argv, CACHEFORGE_API_KEY=DEFAULT_KEY, CACHEFORGE_BASE_URL=url, **env)


class Deadline(SandboxTest):
    """One deadline for everything, whatever hangs or drips."""

    def test_every_command_ends_in_time_whatever_dawdles(self) -> None:
        drip, timeout_s = 0.05, 2
        length = f"HTTP/1.1 200 OK\nContent-Length: {len(GOOD)}\n\n"
        ways = {
            "hang": Fault(end="hang"),
            "drip_in_the_status_line": Fault(b"HTTP/1.1 200 " + b"x" * 9999, drip_s=drip),
            "drip_in_a_header": Fault(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9999, drip_s=drip),
            "drip_in_the_body": Fault(http(length).raw + b" " * 9999, drip_s=drip),
            "hang_in_the_body": Fault(http(length).raw + b"{", end="hang"),
            "flood_of_100_continue": Fault(b"HTTP/1.1 100 Continue\r\n\r\n" * 999, drip_s=0.001),
        }

        def check(job: tuple[str, str]) -> tuple[Result, float, list[str]]:
            argv, call = COMMANDS[job[0]]
            with Sandbox() as box:
                box.books.card_saved = True
                box.service.create_key({})
                box.script(call, *[ways[job[1]]] * 3)
                child = pool.submit(
                    run_ops, *argv, "--timeout", f"{timeout_s}", **box.env, THEIRS=THEIRS
                )
                box.wait_for(call)  # the start of a process is not what is timed
                began = time.monotonic()
                return child.result(), time.monotonic() - began, box.calls()

        jobs = [("balance", way) for way in ways] + [("topup", "drip_in_the_body")]
        jobs += [(name, "hang") for name in WRITES]
        with ThreadPoolExecutor(16) as pool, ThreadPoolExecutor(16) as checkers:
            for (name, way), (result, took_s, calls) in zip(jobs, checkers.map(check, jobs)):
                with self.subTest(name=name, way=way):
                    self.assertEqual(result.exit, 6 if name == "keys_create" else 5, result)
                    self.assertEqual(result.out, "")
                    self.assertLess(took_s, timeout_s * 1.45)  # not once and a half
                    self.assertEqual(calls.count(COMMANDS[name][1]), 1)

    def test_the_deadline_is_shared_by_all_tries_of_a_read(self) -> None:
        for timeout, tries in (("0.9", 1), ("1.5", 2), ("2.5", 3)):
            del self.box.requests[:]
            self.box.script(BILLING, *[Fault.reply(503, {}, {"Retry-After": "1"})] * 3)
            result = call_on(JumpingClock(), "balance", "--timeout", timeout, **self.box.env)
            self.assertEqual((result.exit, len(self.box.requests)), (5, tries))
            self.box.script_nothing()

    def test_a_server_that_never_shakes_hands(self) -> None:
        over = threading.Event()
        self.addCleanup(over.set)

        def serve(connection: socket.socket) -> None:
            over.wait(PATIENCE_S)

        with listening(serve) as url:
            began = time.monotonic()
            result = run_at(url.replace("http", "https"), "balance", "--timeout", "2")
        self.assertEqual(result.exit, 5, result)
        self.assertLess(time.monotonic() - began, 3.8)  # not twice, even on a busy machine

    def test_a_slow_look_does_not_cost_the_link_that_is_made_after_it(self) -> None:
        self.box.script(BILLING, Fault(end="hang"))
        began = time.monotonic()
        result = call_on(ops.Clock(), "topup", "--timeout", "3", **self.box.env)
        self.assertLess(time.monotonic() - began, 2.5)
        (token,) = self.box.books.links
        self.assertIn(f"{self.box.url}/pay/{token}", result.out.splitlines(), result)

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


class Connections(SandboxTest):
    def test_a_name_that_does_not_exist(self) -> None:
        result = run_at("https://no-such-host.invalid", "topup", "--timeout", "5")
        self.assertEqual((result.exit, result.out), (5, ""))
        self.assertIn("no-such-host.invalid", result.err)

    def test_an_ipv6_address_is_an_address(self) -> None:
        def serve(connection: socket.socket) -> None:
            heard.append(connection.recv(65536))
            connection.sendall(Fault.reply(200, GOOD).raw)

        heard: list[bytes] = []
        skip_without_ipv6(self)
        with listening(serve, "::1") as url:
            self.assertEqual(run_at(url, "balance").exit, 0)
        self.assertIn(f"\r\nhost: {url[7:]}\r\n".encode(), heard[0].lower())


def skip_without_ipv6(test: unittest.TestCase) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        test.skipTest("this machine has no IPv6 loopback")


class Tls(unittest.TestCase):
    def run_tls(self, name: str, *argv: str, **env: str) -> tuple[Result, Sandbox]:
        with Sandbox(tls=server_context(name)) as box:
            return call_ops(*argv, **box.env, **env), box

    def test_certificates_that_do_not_verify_are_refused_with_the_fix(self) -> None:
        for name, trusted in (
            *(("good.pem", False), ("self-signed.pem", True)),
            *(("expired.pem", True), ("wrong-host.pem", True)),
        ):
            for argv in (("balance",), ("keys", "--create")):
                with self.subTest(name=name, argv=argv):
                    env = {"SSL_CERT_FILE": AUTHORITY} if trusted else {}
                    result, box = self.run_tls(name, *argv, **env)
                    self.assertEqual((result.exit, result.out), (5, ""), result)
                    self.assertIn("SSL_CERT_FILE", result.err)
                    self.assertNotRegex(result.err, "(?i)disable|insecure|skip")
                    self.assertEqual(box.requests, [])

    def test_a_certificate_that_does_not_verify_is_not_tried_again(self) -> None:
        for argv in (("balance",), ("topup",)):
            error = self.run_tls("self-signed.pem", *argv, "--json")[0].error
            self.assertIs(error["retryable"], False)

    def test_a_wrong_setting_exits_2_and_is_named(self) -> None:
        for name in ("SSLKEYLOGFILE", "SSL_CERT_FILE"):
            env = {"SSL_CERT_FILE": AUTHORITY, name: str(CERTIFICATES / "no" / "such" / "file")}
            result, box = self.run_tls("good.pem", "balance", **env)
            self.assertEqual((result.exit, result.out, box.requests), (2, "", []), result)
            self.assertIn(name, result.err)

    def test_plain_http_on_a_tls_port_and_the_other_way_round_hints_at_the_setting(self) -> None:
        for tls, command in ((None, "balance"), (None, "topup"), ("good.pem", "balance")):
            with Sandbox(tls=server_context(tls) if tls else None) as box:
                scheme, _, place = box.url.partition("://")
                result = run_at(f"{'http' if tls else 'https'}://{place}", command)
                self.assertEqual((result.exit, result.out, box.requests), (5, "", []), scheme)
                self.assertIn("CACHEFORGE_BASE_URL", result.err)


class Proxy:
    """A proxy that leads everything to one port, and keeps what it was told."""

    def __init__(self, target_port: int, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        self._target = ("127.0.0.1", target_port)
        self._answer = answer
        self.heard = b""

    def serve(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            block = client.recv(65536)
            head += block
            self.heard += block
            if not block:
                return
        tunnel = head.startswith(b"CONNECT")
        with socket.create_connection(self._target) as upstream:
            if tunnel:
                client.sendall(self._answer)
            else:
                upstream.sendall(head)
            back = threading.Thread(target=self._pump, args=(upstream, client), daemon=True)
            back.start()
            self._pump(client, upstream, keep=True)
            back.join(PATIENCE_S)

    def _pump(self, source: socket.socket, sink: socket.socket, keep: bool = False) -> None:
        with contextlib.suppress(OSError):
            while True:
                block = source.recv(65536)
                if not block:
                    break
                if keep:
                    self.heard += block
                sink.sendall(block)
            sink.shutdown(socket.SHUT_WR)


class Proxies(unittest.TestCase):
    service = "https://service.test"
    nowhere = "https://no-such-host.invalid:8443"

    @contextlib.contextmanager
    def proxied(
        self, host: str = "127.0.0.1", **answer: bytes
    ) -> Iterator[tuple[Sandbox, Proxy, str]]:
        with Sandbox(tls=server_context("good.pem")) as box:
            proxy = Proxy(int(box.url.rsplit(":", 1)[1]), **answer)
            with listening(proxy.serve, host) as url:
                yield box, proxy, url

    def test_https_goes_through_a_tunnel_and_the_proxy_sees_no_key(self) -> None:
        for variable in ("HTTPS_PROXY", "https_proxy"):
            with self.subTest(variable=variable), self.proxied() as (box, proxy, url):
                env = {variable: url, "SSL_CERT_FILE": AUTHORITY}
                result = run_at(self.service, "balance", **env)
                self.assertEqual((result.exit, result.err), (0, ""), result)
                self.assertEqual(len(box.requests), 1)
                self.assertTrue(proxy.heard.startswith(b"CONNECT service.test:443 "))
                self.assertNotIn(DEFAULT_KEY.encode(), proxy.heard)
                self.assertNotIn(b"Authorization", proxy.heard.split(b"\r\n\r\n")[0])

    def test_a_proxy_may_have_an_ipv6_address(self) -> None:
        skip_without_ipv6(self)
        with self.proxied("::1") as (_, proxy, url):
            result = run_at(self.service, "balance", HTTPS_PROXY=url, SSL_CERT_FILE=AUTHORITY)
            self.assertEqual(result.exit, 0, result)
            self.assertTrue(proxy.heard.startswith(b"CONNECT service.test:443 "))

    def test_an_ipv6_service_is_never_asked_for_without_its_brackets(self) -> None:
        with self.proxied() as (_, proxy, url):
            result = run_at("https://[2001:db8::1]", "balance", HTTPS_PROXY=url)
            self.assertNotEqual(result.exit, 0)
            self.assertNotIn(b"CONNECT 2001", proxy.heard)

    def test_a_password_goes_to_the_proxy_alone(self) -> None:
        with self.proxied() as (box, proxy, url):
            address = url.replace("http://", "me:p%40ss@")
            env = {"HTTPS_PROXY": address, "SSL_CERT_FILE": AUTHORITY}
            result = run_at(self.service, "balance", "--verbose", **env)
            self.assertEqual(result.exit, 0, result)
            token = base64.b64encode(b"me:p@ss")
            self.assertIn(b"proxy-authorization: basic " + token.lower(), proxy.heard.lower())
            self.assertNotIn("p%40ss", result.err)
            self.assertNotIn("Proxy-Authorization", box.requests[0].headers)

    def test_a_proxy_that_refuses_us_is_asked_once_and_told_as_what_it_is(self) -> None:
        refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
        for command in ("balance", "topup"):
            with self.proxied(answer=refusal) as (box, proxy, url):
                env = {"HTTPS_PROXY": url, "SSL_CERT_FILE": AUTHORITY}
                result = run_at(self.service, command, **env)
                with warnings.catch_warnings():  # http.client of 3.9 forgets to close its response
                    warnings.simplefilter("ignore", ResourceWarning)
                    gc.collect()
                self.assertEqual((result.exit, result.out, box.requests), (2, "", []), result)
                self.assertRegex(result.err, "407|(?i:proxy.*(authenti|password))")
                if command == "balance":
                    self.assertEqual(proxy.heard.count(b"CONNECT"), 1)

    def test_an_https_proxy_would_get_its_password_in_clear_and_exits_2_unheard(self) -> None:
        with self.proxied() as (_, proxy, url):
            address = url.replace("http://", "https://me:Sup3rS3cret@")
            for command in ("balance", "topup"):
                env = {"HTTPS_PROXY": address, "SSL_CERT_FILE": AUTHORITY}
                result = run_at(self.service, command, **env)
                self.assertEqual((result.exit, result.out, proxy.heard), (2, "", b""), result)
                self.assertNotIn("Sup3rS3cret", result.err)

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
                self.assertEqual((result.exit, proxy.heard != b""), (5, used), result)
                self.assertEqual("through the proxy" in result.err, used, result)

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

    def test_a_remote_service_cannot_send_a_payer_to_this_machine(self) -> None:
        with self.proxied() as (box, _, url):
            env = {"HTTPS_PROXY": url, "SSL_CERT_FILE": AUTHORITY}
            box.script(TOPUP, Fault.reply(200, {"paymentUrl": "http://127.0.0.1:1/pay"}))
            result = run_at(self.service, "topup", **env)
            self.assertEqual((result.exit, result.out), (5, ""), result)
