"""Enough credit, and waiting for it: every way out of a wait, on a clock that jumps."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import unittest
from collections.abc import Mapping
from typing import Any, Callable
from unittest import mock

from support import (
    BILLING,
    OPS,
    PATIENCE_S,
    TOPUP,
    Fault,
    JumpingClock,
    Result,
    Sandbox,
    SandboxTest,
    Seen,
    call_on,
    next_words,
    ops,
    side_by_side,
)

MICROUSD_PER_USD = 1_000_000


class Clocked(SandboxTest):
    """A sandbox in which things happen when so many seconds of waiting have passed."""

    balance_usd = "0"

    def wait(self, *argv: str, events: Mapping[Any, Callable[[], object]] | None = None) -> Result:
        """Call ops.py on a clock where only waiting takes time. `looked_s` is when it looked."""
        self.clock = JumpingClock(events)
        self.looked_s: list[float] = []
        record = self.box.record

        def recorded(seen: Seen) -> None:
            if seen.call == BILLING:
                self.looked_s.append(self.clock.passed_s)
            record(seen)

        with mock.patch.object(self.box, "record", recorded):
            return call_on(self.clock, *argv, **self.box.env)

    def assert_passed(self, seconds: float) -> None:
        """So much time has passed, and no more, but for the last look's own."""
        last_look_s = min(1.0, seconds / 10)
        self.assertLessEqual(self.clock.passed_s, seconds + 0.001)
        self.assertGreaterEqual(self.clock.passed_s, seconds - last_look_s - 0.001)

    def pay(self) -> None:
        """Somebody pays ten dollars."""
        self.box.books.credit("paid", 10 * MICROUSD_PER_USD)

    def spend(self) -> None:
        """Other calls use five dollars up."""
        self.box.books.credit("a batch", -5 * MICROUSD_PER_USD)

    def honest(self) -> Fault:
        """What the service would say now."""
        return Fault.reply(200, self.box.service.billing(None))


class BalanceWait(Clocked):
    def test_it_ends_soon_after_credit_lands(self) -> None:
        result = self.wait("balance", "--wait", "--json", events={30: self.pay})
        self.assertEqual((result.exit, result.json["balance_usd"]), (0, "10.00"))
        self.assertIsNone(result.json["next"])
        self.assertTrue(30 <= self.clock.passed_s <= 42.5, self.clock.slept)

    def test_with_a_least_balance_it_waits_for_that(self) -> None:
        self.pay()
        for least, usd in (("15", "20.00"), ("30", "30.00")):
            result = self.wait("balance", "--wait", "--min", least, "--json", events={9: self.pay})
            self.assertEqual((result.exit, result.json["balance_usd"]), (0, usd))

    def test_exactly_the_least_balance_is_enough(self) -> None:
        self.pay()
        result = self.wait("balance", "--wait", "--min", "20", events={9: self.pay})
        self.assertEqual(result.exit, 0)
        self.assertLess(self.clock.passed_s, 25)

    def test_its_seconds_are_exact_and_the_default_is_100(self) -> None:
        for seconds, argv in (
            *((100, ()), (20, ("20",)), (1, ("1",)), (7.5, ("7.5",))),
            (400, ("400", "--timeout", "5")),
        ):
            result = self.wait("balance", "--wait", *argv, "--json")
            self.assertEqual(result.exit, 4)
            self.assert_passed(seconds)
            self.assertEqual(next_words(result.json["next"])[:2], ["balance", "--wait"])

    def test_failed_looks_do_not_make_it_longer(self) -> None:
        self.box.script(BILLING, self.honest(), *[Fault.reply(503, {})] * 99)
        self.wait("balance", "--wait", "20")
        self.assert_passed(20)

    def test_credit_that_lands_just_before_the_end_is_seen(self) -> None:
        for seconds in (3, 20, 100):
            self.box.books.ledger.clear()
            just_before = seconds - min(1.0, seconds / 10) - 0.1
            result = self.wait("balance", "--wait", f"{seconds}", events={just_before: self.pay})
            self.assertEqual(result.exit, 0)

    def test_looks_are_rare_and_later_rarer_and_spread(self) -> None:
        self.wait("balance", "--wait", "400")
        gaps_s = [later - sooner for sooner, later in zip(self.looked_s, self.looked_s[1:])][:-1]
        self.assertTrue(all(3 <= gap_s <= 15 for gap_s in gaps_s), gaps_s)
        self.assertGreater(sum(gaps_s[-10:]), sum(gaps_s[:10]))
        self.assertGreater(len({round(gap_s, 3) for gap_s in gaps_s[-10:]}), 3)

    def test_a_long_wait_does_not_say_a_line_per_look(self) -> None:
        bad = [Fault.reply(503, {}), Fault.reply(200, b"<html>"), Fault(end="reset")] * 2
        self.box.script(BILLING, self.honest(), *bad)
        result = self.wait("balance", "--wait", "200", events={150: self.pay})
        self.assertEqual(result.exit, 0)
        self.assertLess(len(result.err.splitlines()), 4, result.err)

    def test_retry_after_is_obeyed(self) -> None:
        for status in (429, 503):
            busy = Fault.reply(status, {}, {"Retry-After": "90"})
            self.box.script(BILLING, self.honest(), busy)
            result = self.wait("balance", "--wait", "200", events={60: self.pay})
            self.assertEqual(result.exit, 0)
            busy_s, next_s = self.looked_s[1:3]
            self.assertGreaterEqual(next_s - busy_s, 90)
            self.box.books.ledger.clear()

    def test_a_refused_key_ends_it_at_once(self) -> None:
        self.box.script(BILLING, self.honest(), Fault.reply(401, {"error": "no"}))
        self.assertEqual(self.wait("balance", "--wait").exit, 3)
        self.assertLess(self.clock.passed_s, 15)

    def test_a_service_that_hangs_does_not_make_it_longer(self) -> None:
        self.box.script(BILLING, *[Fault(end="hang")] * 9)
        began = time.monotonic()
        result = call_on(ops.Clock(), "balance", "--wait", "1", **self.box.env)
        self.assertTrue(0.9 <= time.monotonic() - began < 1.9)
        self.assertEqual((result.exit, result.out), (5, ""))


class TopupWait(Clocked):
    def links(self, result: Result) -> list[str]:
        """The links that were made, which have to be those that were shown."""
        made = [self.box.url + f"/pay/{token}" for token in self.box.books.links]
        for link in made:
            self.assertIn(link, result.out)
        return made

    def test_the_link_is_printed_before_the_first_wait(self) -> None:
        seen: list[str] = []

        def peek() -> None:
            written: Any = sys.stdout.buffer
            seen.append(written.getvalue().decode())

        self.wait("topup", "--wait", "--json", events={0.1: peek})
        self.assertIn("payment_url", json.loads(seen[0]))
        self.assertEqual(self.box.calls()[:2], [BILLING, TOPUP])

    def test_unpaid_exits_4_exactly_on_time_with_one_link(self) -> None:
        result = self.wait("topup", "--wait", "30", "--json")
        self.assertEqual((result.exit, len(self.links(result))), (4, 1))
        self.assert_passed(30)

    def test_where_there_was_credit_the_next_step_waits_for_this_payment_alone(self) -> None:
        self.box.books.credit("opening", 1_500_000)
        for argv in (("topup",), ("topup", "--wait", "5")):
            result = self.wait(*argv, "--json")
            words = next_words(json.loads(result.out.splitlines()[-1])["next"])
            self.assertEqual(self.wait(*words[:2], "3", *words[2:]).exit, 4)
            self.assertEqual(self.wait(*words, events={5: self.pay}).exit, 0)

    def test_spending_is_no_payment_and_hides_none(self) -> None:
        self.box.books.credit("opening", 20 * MICROUSD_PER_USD)
        result = self.wait("topup", "--wait", "30", events={5: self.spend, 15: self.spend})
        self.assertEqual(result.exit, 4, result)
        events = {10: self.spend, 11: self.spend, 60: self.pay}
        self.assertEqual(self.wait("topup", "--wait", events=events).exit, 0)

    def test_troubles_after_the_link_are_notes_and_it_ends_in_4(self) -> None:
        for fault in (
            *(Fault.reply(status, {"error": "no"}) for status in (400, 402, 404, 429, 500, 503)),
            *(Fault.reply(401, {}), Fault.reply(200, b"<html>"), Fault(), Fault(end="reset")),
            Fault.reply(503, {}, {"Retry-After": "31536000"}),
        ):
            for extra in ((), ("--json",)):
                with self.subTest(fault=fault.raw[:30], extra=extra):
                    self.box.books.links.clear()
                    self.box.script(BILLING, self.honest(), *[fault] * 99)
                    result = self.wait("topup", "--wait", "30", *extra)
                    self.box.script_nothing()
                    self.assertEqual((result.exit, len(self.links(result))), (4, 1), result)
                    self.assertNotIn("safe to repeat", result.out + result.err)
                    self.assertNotRegex(result.out + result.err, r"ops\.py'? topup")
                    self.assertLess(self.clock.passed_s, 30.001)
                    notes = [json.loads(line) for line in result.err.splitlines() if extra]
                    self.assertNotIn("error", [name for note in notes for name in note])

    def test_troubles_that_pass_do_not_hide_a_payment(self) -> None:
        for fault in (Fault.reply(503, {}), Fault.reply(200, b"<html>"), Fault(end="reset")):
            self.box.script(BILLING, self.honest(), fault, fault)
            self.assertEqual(self.wait("topup", "--wait", events={25: self.pay}).exit, 0)

    def test_a_service_that_hangs_after_the_link_does_not_make_it_longer(self) -> None:
        self.box.script(BILLING, self.honest(), *[Fault(end="hang")] * 9)
        began = time.monotonic()
        result = call_on(ops.Clock(), "topup", "--wait", "1", **self.box.env)
        self.assertTrue(0.9 <= time.monotonic() - began < 1.9)
        self.assertEqual((result.exit, len(self.links(result))), (4, 1), result)


class Processes(SandboxTest):
    """Real processes and signals."""

    balance_usd = "0"

    @unittest.skipIf(os.name == "nt", "POSIX signals")
    def test_a_signal_leaves_the_link_and_names_the_command_that_goes_on(self) -> None:
        def check(box: Sandbox, number: int, *extra: str) -> None:
            child = self.start(sys.executable, str(OPS), "topup", "--wait", *extra, **box.env)
            assert child.stdout
            for line in child.stdout:
                if "/pay/" in line:
                    break
            child.send_signal(number)
            _, err = child.communicate(timeout=PATIENCE_S)
            self.assertEqual(child.returncode, 130, err)
            self.assertIn("balance --wait", err)
            self.assertNotRegex(err, "Traceback|may have been|Exception ignored")
            if extra:
                error = json.loads(err.splitlines()[-1])["error"]
                self.assertEqual(error["code"], "interrupted")

        json_cases = ((signal.SIGTERM, "--json"), (signal.SIGHUP, "--json"))
        side_by_side(check, (signal.SIGINT,), *json_cases)

    def test_the_link_arrives_while_the_wait_goes_on(self) -> None:
        child = self.start(sys.executable, str(OPS), "topup", "--wait", "2", "--json")
        assert child.stdout
        link = json.loads(child.stdout.readline())
        self.assertIsNone(child.poll())
        self.box.books.pay(next(iter(self.box.books.links.values())))
        out, _ = child.communicate(timeout=PATIENCE_S)
        self.assertEqual(child.returncode, 0)
        self.assertTrue(link["payment_url"].startswith(self.box.url))
        self.assertIs(json.loads(out)["credit_rose"], True)
