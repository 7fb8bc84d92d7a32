"""Waiting for credit: every way out of it, on a clock that jumps."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
import unittest
from typing import Any
from unittest import mock

from support import OPS, PATIENCE_S, Fault, Result, Sandbox, SandboxTest, call_ops, ops, start

BILLING = "GET /v1/account/billing"


class Least(SandboxTest):
    """`balance --min`"""

    def test_enough_exits_0(self) -> None:
        for least in ("0", "12.34", "12", "1234c", "12.34usd"):
            self.assertIsNone(self.ok("balance", "--min", least, "--json").json["next"])

    def test_below_exits_4_and_still_prints_the_balance(self) -> None:
        for least in ("12.35", "13", "1235c"):
            result = self.ops("balance", "--min", least)
            self.assertEqual((result.exit, result.err), (4, ""))
            self.assertIn("$12.34", result.out)
            self.assertIn("Next: ", result.out)
        self.assertNotIn("Short by", self.ok("balance", "--min", "12.34").out)

    def test_what_is_missing_is_told_and_the_next_step_covers_it(self) -> None:
        for least, short, usd in (
            ("12.35", "$0.01", 10),
            ("23", "$10.66", 11),
            ("40", "$27.66", 28),
        ):
            result = self.ops("balance", "--min", least)
            self.assertIn(f"Short by      {short}\n", result.out)
            self.assertTrue(result.out.endswith(f"topup --amount {usd}\n"), result.out)

    def test_the_comparison_is_exact_to_the_microdollar(self) -> None:
        self.box.books.credit("a sliver", -1)
        self.assertEqual(self.ops("balance", "--min", "12.34").exit, 4)
        result = self.ops("balance", "--min", "12.35")
        self.assertIn("Short by      $0.02\n", result.out)  # a cent would not do

    def test_a_top_up_covers_it_in_whole_dollars(self) -> None:
        for microusd, usd in ((1, 10), (10_000_000, 10), (10_000_001, 11), (20_000_000, 20)):
            self.assertEqual(ops.enough_usd(microusd), usd)


class Clocked(SandboxTest):
    """A sandbox in which things happen when so many seconds of waiting have passed."""

    balance_usd = "0"

    def wait(self, *argv: str, events: dict[float, Any] | None = None, **env: str) -> Result:
        """Call ops.py; each event is called once its second has been slept."""
        due = sorted((events or {}).items())
        self.slept: list[float] = []

        def sleep(console: Any, seconds: float) -> None:
            console.slept_s += seconds
            self.slept.append(seconds)
            while due and sum(self.slept) >= due[0][0]:
                due.pop(0)[1]()

        with mock.patch("support.QuickConsole.sleep", sleep):
            return call_ops(*argv, **{**self.box.env, **env})

    def wait_by_fives(self, *argv: str) -> Result:
        """The same without any chance: a look every 5 s, and the last one on time."""
        gap_s = mock.patch.object(ops, "poll_gap_s", return_value=5.0)
        clock = mock.patch("support.QuickConsole.now", lambda console: 1000 + console.slept_s)
        with gap_s as asked, clock, mock.patch.object(ops, "wait_end_s", float):
            result = self.wait(*argv)
        self.assertEqual([call.args for call in asked.call_args_list[:2]], [(0.0, 0), (5.0, 1)])
        return result

    def pay(self) -> None:
        """Somebody pays ten dollars."""
        self.box.books.credit("paid", 10_000_000)

    def looks(self) -> int:
        """How often the balance was asked for."""
        return self.box.calls().count(BILLING)


class BalanceWait(Clocked):
    def test_it_ends_when_credit_lands(self) -> None:
        result = self.wait("balance", "--wait", "--json", events={30: self.pay})
        self.assertEqual(result.exit, 0)
        self.assertEqual(result.json["balance_usd"], "10.00")
        self.assertIsNone(result.json["next"])
        self.assertLess(sum(self.slept), 30 + 10.5)

    def test_it_says_so_when_waiting_starts_and_never_a_line_per_look(self) -> None:
        result = self.wait("balance", "--wait", events={90: self.pay})
        self.assertGreater(self.looks(), 5)
        self.assertEqual(len(result.err.splitlines()), 1, result.err)

    def test_with_credit_there_it_does_not_wait(self) -> None:
        self.pay()
        result = self.wait("balance", "--wait")
        self.assertEqual((result.exit, self.slept), (0, []))
        self.assertIn("there already; --min", result.err)

    def test_with_a_least_balance_it_waits_for_that(self) -> None:
        self.pay()
        result = self.wait("balance", "--wait", "--min", "15", "--json", events={10: self.pay})
        self.assertEqual((result.exit, result.json["balance_usd"]), (0, "20.00"))
        result = self.wait("balance", "--wait", "--min", "30", "--json", events={10: self.pay})
        self.assertEqual((result.exit, result.json["balance_usd"]), (0, "30.00"))

    def test_when_time_runs_out_it_exits_4_and_names_the_command_that_goes_on(self) -> None:
        result = self.wait("balance", "--wait", "20", "--min", "2.50", "--json")
        self.assertEqual(result.exit, 4)
        self.assertEqual(result.json["next"], f"python3 {OPS} balance --wait --min 2.50")
        self.assertTrue(20 <= sum(self.slept) <= 22.1, self.slept)

    def test_its_default_is_under_the_cut_off_of_agent_shells(self) -> None:
        self.wait("balance", "--wait")
        self.assertTrue(100 <= sum(self.slept) < 115)

    def test_credit_that_lands_just_before_the_end_is_seen(self) -> None:
        self.assertEqual(self.wait("balance", "--wait", "3", events={2.9: self.pay}).exit, 0)

    def test_looks_are_rare_enough(self) -> None:
        self.wait("balance", "--wait", "400")
        gaps = 400 / (self.looks() - 1)
        self.assertGreater(gaps, 8)

    def test_failed_looks_are_tolerated_and_told_once(self) -> None:
        bad = [Fault.reply(503, {}), Fault.reply(200, b"<html>"), Fault(end="reset")]
        self.box.script(BILLING, Fault.reply(200, self.billing()), *bad)
        result = self.wait("balance", "--wait", events={60: self.pay})
        self.assertEqual(result.exit, 0)
        self.assertEqual(result.err.count("still waiting"), 1)

    def test_after_a_failed_look_the_next_ones_count(self) -> None:
        for status in (429, 503):
            self.box.script(BILLING, Fault.reply(200, self.billing()), Fault.reply(status, {}))
            result = self.wait_by_fives("balance", "--wait", "60")
            self.assertEqual((result.exit, len(result.err.splitlines())), (4, 2), result)
            self.assertEqual(self.looks(), 1 + 60 // 5 - (status == 429))
            del self.box.requests[:]

    def test_a_look_has_a_budget_of_its_own(self) -> None:
        paid = self.billing()
        paid["billing"]["creditBalanceMicrousd"] = 5
        late = Fault.reply(200, paid)
        late.drip_s = 0.6 / len(late.raw)
        self.box.script(BILLING, Fault.reply(200, self.billing()), late)
        result = self.wait("balance", "--wait", "60", "--timeout", "0.5")
        self.assertEqual((result.exit, self.looks()), (0, 2), result)

    def test_the_time_left_is_told_second_by_second(self) -> None:
        told: list[float] = []
        count = mock.patch("support.QuickConsole.countdown", lambda _, left_s: told.append(left_s))
        with count:
            self.wait_by_fives("balance", "--wait", "30")
        self.assertEqual(told, [float(left_s) for left_s in range(30, 0, -1)])

    def test_one_look_that_shows_no_credit_is_enough_to_call_it_unpaid(self) -> None:
        unpaid = Fault.reply(200, self.billing())
        self.box.script(BILLING, unpaid, unpaid, *[Fault.reply(503, {})] * 50)
        self.assertEqual(self.wait_by_fives("balance", "--wait", "60").exit, 4)

    def test_nothing_but_failed_looks_is_not_called_unpaid(self) -> None:
        self.box.script(BILLING, Fault.reply(200, self.billing()), *[Fault.reply(503, {})] * 50)
        result = self.wait("balance", "--wait")
        self.assertEqual((result.exit, result.out), (5, ""))
        self.assertIn("balance --wait", result.err.splitlines()[-1])

    def test_a_refused_key_ends_it_at_once(self) -> None:
        for status in (401, 403):
            self.box.script(BILLING, Fault.reply(200, self.billing()), Fault.reply(status, {}))
            self.assertEqual(self.wait("balance", "--wait").exit, 3)
            self.assertLess(sum(self.slept), 11)

    def test_429_doubles_the_gap(self) -> None:
        replies = [Fault.reply(429, {})] * 200
        self.box.script(BILLING, Fault.reply(200, self.billing()), *replies)
        self.wait_by_fives("balance", "--wait", "60")
        # at the start, at 5, 15, 25 ... 55, and at the end
        self.assertEqual(self.looks(), 1 + 6 + 1)

    def billing(self) -> Any:
        return self.box.service.billing(None)


class TopupWait(Clocked):
    def test_the_link_is_printed_before_the_first_look(self) -> None:
        seen: list[str] = []

        def peek() -> None:
            written: Any = sys.stdout.buffer
            seen.append(written.getvalue().decode())

        self.wait("topup", "--wait", "--json", events={0.1: peek})
        self.assertIn("payment_url", seen[0])
        self.assertEqual(self.box.calls()[:2], [BILLING, "POST /v1/account/billing/topup"])

    def test_the_second_line_says_that_it_is_paid(self) -> None:
        result = self.wait("topup", "--wait", "--json", events={20: self.pay})
        self.assertEqual(result.exit, 0)
        link, landed = (json.loads(line) for line in result.out.splitlines())
        self.assertIsNone(link["next"])
        self.assertIs(landed["paid"], True)
        self.assertEqual(landed["balance_usd"], "10.00")

    def test_unpaid_exits_4_says_the_link_stays_valid_and_how_to_go_on(self) -> None:
        result = self.wait("topup", "--wait", "30")
        self.assertEqual(result.exit, 4)
        self.assertIn("stays valid", result.out)
        self.assertEqual(result.out.splitlines()[-1], f"Next: python3 {OPS} balance --wait")
        self.assertEqual(len(self.box.books.links), 1)

    def test_on_an_account_with_credit_only_a_rise_counts(self) -> None:
        self.box.books.credit("opening", 1_500_000)
        result = self.wait("topup", "--wait", "30", "--json")
        self.assertEqual(result.exit, 4)
        last = json.loads(result.out.splitlines()[-1])
        self.assertIs(last["paid"], False)
        self.assertEqual(last["next"], f"python3 {OPS} balance --wait --min 1.51")
        for microusd, least in ((10_000, " --min 1.52"), (-5_000_000, "")):
            self.box.books.credit("since then", microusd)
            result = self.wait("topup", "--wait", "30")
            self.assertTrue(result.out.endswith(f" balance --wait{least}\n"), result.out)

    def test_spending_is_not_taken_for_a_payment(self) -> None:
        self.box.books.credit("opening", 20_000_000)

        def spend() -> None:
            self.box.books.credit("a batch", -5_000_000)

        result = self.wait("topup", "--wait", "30", events={5: spend, 15: spend})
        self.assertEqual(result.exit, 4, result)

    def test_a_rise_counts_even_while_other_calls_spend(self) -> None:
        self.box.books.credit("opening", 20_000_000)

        def spend() -> None:
            self.box.books.credit("a batch", -18_000_000)

        result = self.wait("topup", "--wait", events={10: spend, 40: self.pay})
        self.assertEqual(result.exit, 0)

    def test_exactly_one_link_is_made(self) -> None:
        self.wait("topup", "--wait", "60")
        self.assertEqual(len(self.box.writes), 1)


class Stopped(unittest.TestCase):
    """Real processes, real signals, a real terminal's worth of patience."""

    @unittest.skipIf(os.name == "nt", "POSIX signals")
    def test_ctrl_c_says_that_the_link_stays_valid_and_which_command_goes_on(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(signal=number), Sandbox("0") as box:
                child = start(sys.executable, str(OPS), "topup", "--wait", **box.env)
                assert child.stdout and child.stderr
                self.assertIn("Waiting", child.stderr.readline())
                child.send_signal(number)
                out, err = child.communicate(timeout=PATIENCE_S)
                self.assertEqual(child.returncode, 130)
                self.assertIn("/pay/", out)
                self.assertIn("stays valid", err)
                self.assertIn("balance --wait", err)
                self.assertIn("nothing is left half done", err)
                self.assertNotIn("Traceback", err)

    def test_the_link_arrives_while_the_wait_goes_on(self) -> None:
        with Sandbox("0") as box:
            argv = ("topup", "--wait", "1", "--json")
            child = start(sys.executable, str(OPS), *argv, **box.env)
            assert child.stdout
            link = json.loads(child.stdout.readline())
            self.assertIsNone(child.poll())
            box.books.pay(next(iter(box.books.links.values())))
            out, _ = child.communicate(timeout=PATIENCE_S)
        self.assertEqual(child.returncode, 0)
        self.assertTrue(link["payment_url"].startswith(box.url))
        self.assertIs(json.loads(out)["paid"], True)


class Schedule(unittest.TestCase):
    def test_the_real_console_really_waits(self) -> None:
        console = ops.Console(False, "ops.py", {})
        began = console.now()
        console.sleep(0.05)
        self.assertGreaterEqual(console.now() - began, 0.04)

    def test_the_ends_of_waits_spread_out_over_a_tenth_and_ten_seconds_at_most(self) -> None:
        for wait_s, most_s in ((50, 55), (400, 410)):
            ends_s = [ops.wait_end_s(wait_s) for _ in range(400)]
            self.assertTrue(wait_s <= min(ends_s) < wait_s + 0.5)
            self.assertTrue(most_s - 0.3 < max(ends_s) <= most_s)

    def test_gaps_ease_off_and_spread_out_over_their_whole_range(self) -> None:
        for waited_s, looks, least_s, most_s in (
            (0, 0, 2, 7),
            (30, 3, 4, 10),
            (59, 3, 4, 10),
            (60, 9, 8, 14),
            (61, 9, 8, 14),
        ):
            gaps_s = [ops.poll_gap_s(waited_s, looks) for _ in range(400)]
            self.assertTrue(least_s <= min(gaps_s) < least_s + 0.5, waited_s)
            self.assertTrue(most_s - 0.5 < max(gaps_s) <= most_s, waited_s)

    def test_the_second_try_of_a_read_is_spread_and_the_third_comes_later(self) -> None:
        for _ in range(200):
            self.assertTrue(0.5 <= ops.retry_delay_s(0, None) <= 1.5)
            self.assertTrue(1 <= ops.retry_delay_s(1, None) <= 3)
        first = [ops.retry_delay_s(0, None) for _ in range(200)]
        self.assertTrue(min(first) < 0.75 and max(first) > 1.25)
        self.assertEqual(ops.retry_delay_s(0, 7), 7)

    def test_the_end_is_never_early_and_never_much_later(self) -> None:
        for wait_s in (1.0, 100.0, 5000.0):
            for _ in range(100):
                self.assertTrue(wait_s <= ops.wait_end_s(wait_s) <= wait_s + min(10, wait_s / 10))


class Countdown(unittest.TestCase):
    def test_a_terminal_gets_one_live_line_that_is_ended_before_anything_else(self) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        terminal = Terminal()
        with mock.patch.object(sys, "stderr", terminal):
            console = ops.Console(False, "ops", {})
            for left in (3, 2, 1):
                console.countdown(left)
            console.note("done")
        self.assertEqual(terminal.getvalue().count("\n"), 2)
        self.assertTrue(terminal.getvalue().endswith("1 s left \ndone\n"))


class Interrupting(SandboxTest):
    def test_a_thread_of_ours_is_not_what_keeps_a_process_alive(self) -> None:
        self.box.script(BILLING, Fault(end="hang"))
        began = time.monotonic()
        result = self.process("balance", "--timeout", "0.5")
        self.assertEqual(result.exit, 5)
        self.assertLess(time.monotonic() - began, 10)
