"""Waiting for credit: every way out of a wait, on a clock that jumps."""

from __future__ import annotations

import json
import signal
import time
import unittest
from collections.abc import Mapping
from typing import Any, Callable
from unittest import mock

from support import (
    BILLING,
    NOISE,
    POSIX,
    TOPUP,
    Fault,
    JumpingClock,
    OverlappingTest,
    Request,
    Result,
    Sandbox,
    SandboxTest,
    billing,
    call_on,
    next_words,
    outcome,
    reply,
    side_by_side,
)

MICROUSD_PER_USD = 1_000_000


class Clocked(SandboxTest):
    """A sandbox in which things happen when so many seconds of waiting have passed."""

    balance_usd = "0"

    def wait(self, *argv: str, events: Mapping[Any, Callable[[], object]] | None = None) -> Result:
        """Call ops.py on a clock where only waiting takes time. `checked_s` is when it checked."""
        self.clock = JumpingClock(events)
        self.checked_s: list[float] = []
        record = self.box.record

        def recorded(seen: Request) -> None:
            if seen.call == BILLING:
                self.checked_s.append(self.clock.passed_s)
            record(seen)

        with mock.patch.object(self.box, "record", recorded):
            return call_on(self.clock, *argv, **self.box.env)

    def assert_passed(self, seconds: float) -> None:
        """So much time has passed, and no more, but for the last check's own."""
        last_check_s = min(1.0, seconds / 10)
        self.assertLessEqual(self.clock.passed_s, seconds + 0.001)
        self.assertGreaterEqual(self.clock.passed_s, seconds - last_check_s - 0.001)

    def pay(self) -> None:
        """Somebody pays ten dollars."""
        self.box.account.credit("paid", 10 * MICROUSD_PER_USD)

    def zero(self) -> Fault:
        """What the service says of an account without credit."""
        return reply(billing(0))


class BalanceWait(Clocked):
    def test_it_ends_soon_after_credit_lands(self) -> None:
        result = self.wait("balance", "--wait", "--json", events={30: self.pay})
        self.assertEqual((result.exit, result.json["balance_usd"]), (0, "10.00"))
        self.assertIsNone(result.json["next"])
        self.assertTrue(30 <= self.clock.passed_s <= 42.5, self.clock.slept)

    def test_with_a_least_balance_it_waits_for_that(self) -> None:
        self.pay()
        for least, usd in (("15", "20.00"), ("30", "30.00")):  # the second time exactly that
            result = self.wait("balance", "--wait", "--min", least, "--json", events={9: self.pay})
            self.assertEqual((result.exit, result.json["balance_usd"]), (0, usd))
            self.assertLess(self.clock.passed_s, 30)  # it does not wait to its end

    def test_its_seconds_are_exact_and_the_default_is_100(self) -> None:
        for line, seconds in (
            *(("balance --wait", 100), ("topup --wait", 100), ("topup --wait 20", 20)),
            *(("balance --wait 1", 1), ("balance --wait 7.5", 7.5), ("topup --wait 7.5", 7.5)),
            ("balance --wait 400 --timeout 5", 400),
        ):
            result = self.wait(*line.split(), "--json")
            self.assertEqual(result.exit, 4)
            self.assert_passed(seconds)
            words = next_words(json.loads(result.out.splitlines()[-1])["next"])
            self.assertEqual(words, ["balance", "--wait"])

    def test_failed_checks_do_not_make_it_longer(self) -> None:
        self.box.add_faults(BILLING, self.zero(), *[Fault.reply(503, {})] * 99)
        self.wait("balance", "--wait", "20")
        self.assert_passed(20)

    def test_credit_that_lands_just_before_the_end_is_seen(self) -> None:
        for seconds in (3, 20, 100):
            self.box.account.ledger.clear()
            just_before = seconds - min(1.0, seconds / 10) - 0.1
            result = self.wait("balance", "--wait", f"{seconds}", events={just_before: self.pay})
            self.assertEqual(result.exit, 0)

    def test_checks_are_rare_and_later_rarer_and_spread(self) -> None:
        self.wait("balance", "--wait", "400")
        gaps_s = [later - sooner for sooner, later in zip(self.checked_s, self.checked_s[1:])][:-1]
        self.assertTrue(all(3 <= gap_s <= 15 for gap_s in gaps_s), gaps_s)
        self.assertGreater(sum(gaps_s[-10:]), sum(gaps_s[:10]))
        self.assertGreater(len({round(gap_s, 3) for gap_s in gaps_s[-10:]}), 3)

    def test_retry_after_is_obeyed(self) -> None:
        for status in (429, 503):
            busy = Fault.reply(status, {}, {"Retry-After": "90"})
            self.box.add_faults(BILLING, self.zero(), busy)
            result = self.wait("balance", "--wait", "200", events={60: self.pay})
            self.assertEqual(result.exit, 0)
            busy_s, next_s = self.checked_s[1:3]
            self.assertGreaterEqual(next_s - busy_s, 90)
            self.box.account.ledger.clear()


class FailingChecks(Clocked):
    FAULTS: tuple[tuple[Fault, int], ...] = (
        *((reply({}, 500), 5), (reply({}, 404), 1), (reply({}, 402), 4), (reply({}), 1)),
        *((reply({}, 503), 5), (Fault(end="reset"), 5), (reply({}, 429), 5)),
        *((reply(b"<p>no</p>"), 1), (reply({"error": "slow"}, 403, Retry_After="1"), 5)),
    )

    def test_a_first_check_that_fails_does_not_end_it(self) -> None:
        for fault, _ in self.FAULTS:
            with self.subTest(fault=fault.raw[:40]):
                self.box.account.ledger.clear()
                self.script(BILLING, *[fault] * 3)
                result = self.wait("balance", "--wait", "--json", events={9: self.pay})
                self.assertEqual((result.exit, result.json["funded"]), (0, True), result)

    def test_if_no_check_succeeded_it_ends_like_the_last(self) -> None:
        for fault, code in self.FAULTS:
            with self.subTest(fault=fault.raw[:40]):
                self.script(BILLING, *[fault] * 99)
                result = self.wait("balance", "--wait", "20", "--json")
                self.assertEqual((result.exit, result.out), (code, ""), result)
                self.assertGreater(self.clock.passed_s, 15)
                self.script(BILLING, *[fault] * 99)
                result = self.wait("topup", "--wait", "20", "--json")
                self.assertEqual((result.exit, len(self.box.account.links)), (4, 1), result)
                self.box.account.links.clear()
                self.assertIn("payment_url", json.loads(result.out.splitlines()[0]))
                self.assertNotRegex(result.out + result.err, r'safe|"error":|ops\.py topup')
                self.assertLessEqual(self.clock.passed_s, 20.001)

    def test_the_last_error_is_told(self) -> None:
        for fault, _ in self.FAULTS:
            self.script(BILLING, self.zero(), *[fault] * 99)
            result = self.wait("balance", "--wait", "20", "--json")
            self.assertEqual((result.exit, result.json["balance_usd"]), (4, "0.00"), result)
            self.assertTrue(result.json["last_error"])
        self.script(BILLING)
        self.assertIsNone(self.wait("balance", "--wait", "5", "--json").json["last_error"])

    def test_a_jump_past_the_end_is_followed_by_one_more_check(self) -> None:
        for line in ("balance --wait 30", "topup --wait 30", "balance --wait 30 --min 5"):
            for paid in (True, False):
                with self.subTest(line=line, paid=paid):
                    self.box.account.ledger.clear()

                    def stop(paid: bool = paid) -> None:
                        self.clock.slept.append(500)  # the process slept, the clock did not
                        if paid:
                            self.pay()

                    result = self.wait(*line.split(), events={4: stop})
                    self.assertEqual(result.exit, 0 if paid else 4, result)
                    self.assertNotRegex(result.out + result.err, r"[\s(]-\d")

    def test_a_refused_key_ends_it_at_once(self) -> None:
        for command, before in (("balance", []), ("balance", [self.zero()]), ("topup", [])):
            with self.subTest(command=command, before=before):
                looked = [self.zero()] if command == "topup" else before
                self.script(BILLING, *looked, *[reply({}, 401)] * 99)
                result = self.wait(command, "--wait", "--json")
                self.assertEqual(result.exit, 3, result)
                self.assertLess(self.clock.passed_s, 10)
                self.assertEqual("payment_url" in result.out, command == "topup")


class TopupWait(Clocked):
    def links(self, result: Result) -> list[str]:
        """The links that were made, which have to be those that were shown."""
        made = [self.box.url + f"/pay/{token}" for token in self.box.account.links]
        for link in made:
            self.assertIn(link, result.out)
        return made

    def test_where_there_was_credit_the_next_step_waits_for_this_payment_alone(self) -> None:
        self.box.account.credit("opening", 1_500_000)
        for argv in (("topup",), ("topup", "--wait", "5")):
            result = self.wait(*argv, "--json")
            words = next_words(json.loads(result.out.splitlines()[-1])["next"])
            self.assertEqual(self.wait(*words[:2], "3", *words[2:]).exit, 4)
            self.assertEqual(self.wait(*words, events={5: self.pay}).exit, 0)


class Processes(Clocked, OverlappingTest):
    """Real processes, time and signals."""

    def takes(self, least_s: float, most_s: float, box: Sandbox, *argv: str) -> Result:
        """Run ops.py; it must take this long at least, and at most since its first request."""
        began = time.monotonic()
        child = self.start_ops(*argv, **box.env)
        self.assertTrue(box.wait_for(BILLING))
        asked = time.monotonic()
        result = outcome(child)
        self.assertGreaterEqual(time.monotonic() - began, least_s)
        self.assertLess(time.monotonic() - asked, most_s)
        return result

    def test_one_check_takes_at_most_the_timeout(self) -> None:
        self.script(BILLING, Fault(end="hang"), reply(billing(7)))
        argv = ("balance", "--wait", "9", "--timeout", "1", "--json")
        result = self.takes(3, 8.5, self.box, *argv)  # which leaves time for a pause
        self.assertEqual((result.exit, result.json["balance_usd"]), (0, "7.00"), result)

    def test_a_service_that_hangs_does_not_make_it_longer(self) -> None:
        hang = Fault(end="hang")

        def check(box: Sandbox, line: str, exit_code: int, *before: Fault) -> None:
            box.add_faults(BILLING, *before, *[hang] * 9)
            result = self.takes(1.8, 3.8, box, *line.split())
            self.assertEqual((result.exit, "/pay/" in result.out), (exit_code, exit_code == 4))

        side_by_side(check, ("balance --wait 2", 5), ("topup --wait 2", 4, self.zero()))

    def test_its_seconds_count_from_the_start(self) -> None:
        self.delay(TOPUP, 2.4)
        result = self.takes(3.6, 6, self.box, "topup", "--wait", "4")
        self.assertEqual(result.exit, 4, result)

    @unittest.skipUnless(POSIX, "POSIX signals")
    def test_a_signal_leaves_the_link_and_names_the_command_that_goes_on(self) -> None:
        def check(box: Sandbox, number: int, *extra: str) -> None:
            child = self.start_ops("topup", "--wait", *extra, **box.env)
            assert child.stdout
            for line in child.stdout:
                if "/pay/" in line:
                    break
            child.send_signal(number)
            result = outcome(child)
            self.assertEqual(result.exit, 130, result)
            self.assertIn("balance --wait", result.err)
            self.assertNotRegex(result.err, f"{NOISE}|may have been")
            if extra:
                self.assertEqual(result.error["code"], "interrupted")

        json_cases = ((signal.SIGTERM, "--json"), (signal.SIGHUP, "--json"))
        side_by_side(check, (signal.SIGINT,), *json_cases)

    def test_the_link_arrives_while_the_wait_goes_on(self) -> None:
        child = self.start_ops("topup", "--wait", "2", "--json")
        assert child.stdout
        link = json.loads(child.stdout.readline())
        self.assertIsNone(child.poll())
        self.assertEqual(self.box.calls()[:2], [BILLING, TOPUP])
        self.box.account.pay(next(iter(self.box.account.links.values())))
        result = outcome(child)
        self.assertEqual(result.exit, 0, result)
        self.assertTrue(link["payment_url"].startswith(self.box.url))
        self.assertIs(result.json["credit_rose"], True)

    @unittest.skipUnless(POSIX, "POSIX signals")
    def test_a_process_that_was_stopped_past_the_end_sees_the_payment(self) -> None:
        child = self.start_ops("balance", "--wait", "2", "--json")
        self.assertTrue(self.box.wait_for(BILLING))
        child.send_signal(signal.SIGSTOP)
        self.pay()
        self.box.closing.wait(2.2)  # the end of the wait has to pass
        child.send_signal(signal.SIGCONT)
        result = outcome(child)
        self.assertEqual((result.exit, result.json["balance_usd"]), (0, "10.00"), result)
