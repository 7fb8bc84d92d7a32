"""Real networks: deadlines, redirects, TLS, proxies, ports."""

from __future__ import annotations

import base64
import contextlib
import queue
import socket
import ssl
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

from support import DEFAULT_KEY, PATIENCE_S, Fault, Result, Sandbox, call_ops, ops, run_ops
from test_faults import BILLING, COMMANDS, GOOD, THEIRS, WRITES, http, moved

CERTIFICATES = Path(__file__).parent / "certificates"
AUTHORITY = str(CERTIFICATES / "authority.pem")
TIMEOUT_S = 0.5


def server_context(name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / name)
    return context


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[str]:
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

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            done.set()
            thread.join()


def run_at(url: str, *argv: str, **env: str) -> Result:
    return call_ops(*argv, CACHEFORGE_API_KEY=DEFAULT_KEY, CACHEFORGE_BASE_URL=url, **env)


class Deadline(unittest.TestCase):
    """One deadline for everything, whatever drips: `--timeout 1` means about a second."""

    def test_every_command_against_every_way_to_dawdle(self) -> None:
        drip = 0.05
        length = f"HTTP/1.1 200 OK\nContent-Length: {len(GOOD)}\n\n"
        ways = {
            "hang": Fault(end="hang"),
            "drip_in_the_status_line": Fault(b"HTTP/1.1 200 " + b"x" * 9999, drip_s=drip),
            "drip_in_a_header": Fault(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9999, drip_s=drip),
            "drip_in_the_body": Fault(http(length).raw + b" " * 9999, drip_s=drip),
            "hang_in_the_body": Fault(http(length).raw + b"{", end="hang"),
            "flood_of_100_continue": Fault(b"HTTP/1.1 100 Continue\r\n\r\n" * 999, drip_s=0.001),
        }

        def check(name: str, way: str) -> tuple[str, str, Result, float, list[str]]:
            argv, call = COMMANDS[name]
            with Sandbox() as box:
                box.books.card_saved = True
                box.service.create_key({})
                box.script(call, *[ways[way]] * 3)
                began = time.monotonic()
                env = {**box.env, "THEIRS": THEIRS}
                result = run_ops(*argv, "--timeout", f"{TIMEOUT_S:g}", **env)
                return name, way, result, time.monotonic() - began, box.calls()

        jobs = [(name, way) for name in ("balance", *WRITES) for way in ways]
        with ThreadPoolExecutor(12) as pool:
            for name, way, result, took_s, calls in pool.map(lambda job: check(*job), jobs):
                with self.subTest(name=name, way=way):
                    call = COMMANDS[name][1]
                    self.assertEqual(result.exit, 6 if name in WRITES else 5, result)
                    self.assertEqual(result.out, "")
                    self.assertIn("within 0.5 s", result.err)
                    self.assertLess(took_s, TIMEOUT_S + 4)  # starts of 12 processes on 2 cores
                    self.assertEqual(calls.count(call), 1)

    def test_a_server_that_never_shakes_hands(self) -> None:
        def serve(connection: socket.socket) -> None:
            connection.recv(65536)
            threading.Event().wait(30)

        with listening(serve) as url:
            began = time.monotonic()
            result = run_at(url.replace("http", "https"), "topup", "--timeout", "0.5")
        self.assertEqual(result.exit, 5, result)
        self.assertIn("safe to repeat", result.err)
        self.assertLess(time.monotonic() - began, 5)

    def test_the_deadline_is_shared_by_all_tries_of_a_read(self) -> None:
        with Sandbox() as box:
            box.script(BILLING, *[Fault.reply(503, {}, {"Retry-After": "1"})] * 3)
            began = time.monotonic()
            result = run_ops("balance", "--timeout", "1.5", **box.env)
            self.assertEqual(result.exit, 5)
            self.assertLess(time.monotonic() - began, 5)
            self.assertEqual(len(box.requests), 2)

    def test_what_one_try_takes_the_next_does_not_have(self) -> None:
        slow = [Fault.reply(503, {}, {"Retry-After": "0"}), Fault.reply(200, GOOD)]
        for fault in slow:
            fault.drip_s = 0.5 / len(fault.raw)
        with Sandbox() as box:
            box.script(BILLING, *slow)
            result = call_ops("balance", "--timeout", "0.8", **box.env)
        self.assertEqual((result.exit, len(box.requests)), (5, 2), result)

    def test_a_write_that_was_given_up_is_not_sent_later(self) -> None:
        given_up, sent = threading.Event(), queue.Queue[bytes]()

        def serve(connection: socket.socket) -> None:
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

        with listening(serve) as url:
            env = {"HTTPS_PROXY": url, "SSL_CERT_FILE": AUTHORITY}
            result = run_at("https://service.test", "topup", "--timeout", "0.3", **env)
            self.assertEqual(result.exit, 5, result)  # nothing was changed: that is a promise
            given_up.set()
            self.assertEqual(sent.get(timeout=PATIENCE_S), b"")

    def test_without_a_second_left_nothing_is_begun(self) -> None:
        calls: list[str] = []
        connection = mock.Mock(connect=lambda: calls.append("connect"))
        before = set(threading.enumerate())
        ops.Exchange(connection, "POST", "/", {}, None).run(0)
        for thread in set(threading.enumerate()) - before:
            thread.join(PATIENCE_S)
        self.assertEqual(calls, [])

    def test_it_is_safe_to_repeat_what_took_too_long(self) -> None:
        with Sandbox() as box:
            box.script(BILLING, Fault(end="hang"))
            error = call_ops("balance", "--timeout", "0.3", "--json", **box.env).error
        self.assertIs(error["retryable"], True)
        self.assertIn("safe to repeat", error["hint"])

    def test_the_pauses_between_the_tries_of_a_read_grow(self) -> None:
        with Sandbox() as box:
            box.script(BILLING, *[Fault(end="reset")] * 3)
            pauses: list[float] = []
            with mock.patch(
                "support.QuickConsole.sleep", lambda _, pause_s: pauses.append(pause_s)
            ):
                self.assertEqual(call_ops("balance", **box.env).exit, 5)
        self.assertEqual(len(pauses), 2)
        self.assertTrue(0.5 <= pauses[0] <= 1.5 and 1 <= pauses[1] <= 3, pauses)


class Connections(unittest.TestCase):
    def test_nobody_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        for argv in (("balance",), ("topup",)):
            result = run_at(f"http://127.0.0.1:{port}", *argv, "--verbose")
            self.assertEqual((result.exit, result.out), (5, ""))
            self.assertRegex(result.err, r"/v1/account/\S+: no answer, \d+ ms, id -\n")
            self.assertIn("safe to repeat", result.err)
            self.assertRegex(result.err, rf"no connection to 127\.0\.0\.1:{port}: \w+")

    def test_a_server_that_accepts_and_closes(self) -> None:
        for linger in (False, True):

            def serve(connection: socket.socket, linger: bool = linger) -> None:
                if linger:
                    option = b"\x01\0\0\0\0\0\0\0"
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)

            with self.subTest(linger=linger), listening(serve) as url:
                self.assertEqual(run_at(url, "balance").exit, 5)
                self.assertIn(run_at(url, "topup").exit, (5, 6))

    def test_a_name_that_does_not_exist(self) -> None:
        result = run_at("https://no-such-host.invalid", "topup", "--timeout", "5")
        self.assertEqual((result.exit, result.out), (5, ""))
        self.assertIn("no-such-host.invalid", result.err)

    def test_a_port_that_would_wrap_around_is_refused(self) -> None:
        with Sandbox() as box:
            port = int(box.url.rsplit(":", 1)[1]) + 65536
            result = run_at(f"http://127.0.0.1:{port}", "balance")
            self.assertEqual((result.exit, box.requests), (2, []))


class Redirects(unittest.TestCase):
    def test_another_origin_never_hears_of_us(self) -> None:
        with Sandbox() as box, Sandbox() as other:
            for name in ("balance", "topup", "keys_create", "auto_topup_enable"):
                argv, call = COMMANDS[name]
                for status in (301, 302, 303, 307, 308):
                    with self.subTest(name=name, status=status):
                        before = len(box.requests)
                        box.script(call, moved(status, other.url + call.split()[1]))
                        result = call_ops(*argv, **box.env)
                        self.assertEqual((result.exit, result.out), (1, ""))
                        self.assertIn("CACHEFORGE_BASE_URL", result.err)
                        self.assertEqual(len(box.requests) - before, 1)
            self.assertEqual(other.requests, [])


class Tls(unittest.TestCase):
    def run_tls(self, name: str, *argv: str, **env: str) -> tuple[Result, Sandbox]:
        with Sandbox(tls=server_context(name)) as box:
            return call_ops(*argv, **box.env, **env), box

    def test_a_private_authority_works_through_ssl_cert_file(self) -> None:
        result, _ = self.run_tls("good.pem", "balance", SSL_CERT_FILE=AUTHORITY)
        self.assertEqual((result.exit, result.err), (0, ""), result)

    def test_certificates_that_do_not_verify_are_refused_with_the_fix(self) -> None:
        for name, trusted, why in (
            ("good.pem", False, "unable to"),
            ("self-signed.pem", True, "self.signed"),
            ("expired.pem", True, "expired"),
            ("wrong-host.pem", True, "[Mm]ismatch"),
        ):
            for argv in (("balance",), ("keys", "--create")):
                with self.subTest(name=name, argv=argv):
                    env = {"SSL_CERT_FILE": AUTHORITY} if trusted else {}
                    result, box = self.run_tls(name, *argv, **env)
                    self.assertEqual((result.exit, result.out), (5, ""), result)
                    self.assertIn("SSL_CERT_FILE", result.err)
                    self.assertRegex(result.err, f"certificate of .* is not accepted: .*{why}")
                    self.assertIn("Install Certificates.command", result.err)
                    self.assertNotRegex(result.err, "(?i)disable|insecure|skip")
                    self.assertEqual(box.requests, [])

    def test_a_certificate_that_does_not_verify_is_not_worth_a_repeat(self) -> None:
        error = self.run_tls("good.pem", "balance", "--json")[0].error
        self.assertIs(error["retryable"], False)

    def test_plain_http_on_a_tls_port_and_the_other_way_round(self) -> None:
        with Sandbox() as box:
            result = run_at(box.url.replace("http", "https"), "topup")
            self.assertEqual((result.exit, result.out), (5, ""))
        with Sandbox(tls=server_context("good.pem")) as box:
            result = run_at(box.url.replace("https", "http"), "balance")
            self.assertIn(result.exit, (1, 5))
            self.assertEqual(box.requests, [])


class Proxy:
    """A CONNECT proxy that leads everything to one port, and keeps what it was told."""

    def __init__(self, target_port: int, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        self._target = ("127.0.0.1", target_port)
        self._answer = answer
        self.heard = b""

    def serve(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(65536)
            if not head:
                return
        self.heard += head
        if not head.startswith(b"CONNECT"):
            with socket.create_connection(self._target) as upstream:
                upstream.sendall(head)
                self._pump(upstream, client)
            return
        client.sendall(self._answer)
        with socket.create_connection(self._target) as upstream:
            back = threading.Thread(target=self._pump, args=(upstream, client), daemon=True)
            back.start()
            self._pump(client, upstream, keep=True)
            back.join(5)

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

    @contextlib.contextmanager
    def proxied(self, **kinds: bytes) -> Iterator[tuple[Sandbox, Proxy, str]]:
        with Sandbox(tls=server_context("good.pem")) as box:
            proxy = Proxy(int(box.url.rsplit(":", 1)[1]), **kinds)
            with listening(proxy.serve) as url:
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

    def test_a_proxy_without_a_scheme_and_with_a_password(self) -> None:
        with self.proxied() as (box, proxy, url):
            address = url.replace("http://", "me:p%40ss@")
            env = {"HTTPS_PROXY": address, "SSL_CERT_FILE": AUTHORITY}
            result = run_at(self.service, "balance", "--verbose", **env)
            self.assertEqual(result.exit, 0, result)
            token = base64.b64encode(b"me:p@ss")
            self.assertIn(b"Proxy-Authorization: Basic " + token, proxy.heard)
            self.assertNotIn("p%40ss", result.err)
            self.assertNotIn("Proxy-Authorization", box.requests[0].headers)

    def test_a_proxy_that_refuses_is_named_and_nothing_is_sent(self) -> None:
        refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"
        with self.proxied(answer=refusal) as (box, _, url):
            result = run_at(self.service, "topup", HTTPS_PROXY=url, SSL_CERT_FILE=AUTHORITY)
            self.assertEqual((result.exit, result.out), (5, ""), result)
            self.assertIn(url[len("http://") :], result.err)
            self.assertEqual(box.requests, [])

    def test_a_dead_proxy_is_named(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        for argv in (("balance",), ("keys", "--create")):
            env = {"HTTPS_PROXY": f"http://me:Sup3rS3cret@127.0.0.1:{port}"}
            result = run_at(self.service, *argv, **env)
            self.assertEqual((result.exit, result.out), (5, ""))
            self.assertIn(f"proxy 127.0.0.1:{port}", result.err)
            self.assertNotIn("Sup3rS3cret", result.err)

    def test_a_proxy_setting_that_makes_no_sense_exits_2_and_is_not_repeated(self) -> None:
        for value in ("socks5://Sup3rS3cret:1080", "http://a:Sup3rS3cret@:99999", "::"):
            result = run_at(self.service, "balance", HTTPS_PROXY=value)
            self.assertEqual((result.exit, result.out), (2, ""), result)
            self.assertNotIn("Sup3rS3cret", result.err)

    def test_loopback_never_goes_through_a_proxy(self) -> None:
        with Sandbox() as box, self.proxied() as (_, proxy, url):
            every = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY")
            env = dict.fromkeys(every, url)
            result = call_ops("balance", **box.env, **env)
            self.assertEqual((result.exit, len(box.requests)), (0, 1), result)
            self.assertEqual(proxy.heard, b"")

    def test_no_proxy_is_honoured(self) -> None:
        with self.proxied() as (_, proxy, url):
            env = {"HTTPS_PROXY": url, "NO_PROXY": "example.com,.invalid"}
            result = run_at("https://no-such-host.invalid", "balance", **env)
            self.assertEqual((result.exit, proxy.heard), (5, b""), result)

    def test_plain_http_that_was_allowed_goes_through_an_http_proxy(self) -> None:
        with Sandbox() as box:
            proxy = Proxy(int(box.url.rsplit(":", 1)[1]))
            with listening(proxy.serve) as url:
                address = url.replace("http://", "http://me:secret@")
                env = {"HTTP_PROXY": address, "CACHEFORGE_ALLOW_INSECURE_HTTP": "1"}
                result = run_at("http://service.test", "balance", **env)
            self.assertEqual(result.exit, 0, result)
            token = base64.b64encode(b"me:secret")
            self.assertIn(b"Proxy-Authorization: Basic " + token, proxy.heard)
            self.assertTrue(proxy.heard.startswith(b"GET http://service.test/v1/account/billing "))


if __name__ == "__main__":
    unittest.main()
