"""Break ops.py on purpose, once for each change below, and see that a test notices.

    bash .ci/run mutants               all changes
    python3 .ci/mutants.py [WORD]      the changes that have WORD in their name, text or test

A change is seen if its test fails with it. The run fails if a change is not seen, if its old
text does not stand exactly once in ops.py, or if its test does not pass on the unchanged file
(a test that is skipped or missing did not pass).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
OPS = Path("skills", "cacheforge-ops", "ops.py")
LIMIT_S = 100
LEFT_OUT = shutil.ignore_patterns(".git", "venv", "__pycache__", ".*_cache")
GAP = "\n...\n"  # between the places of one change


class Change(NamedTuple):
    """What a user would see, the text as it is, the text that breaks it, and the test that fails
    then: its id, or `page NAME` for a page of transcripts."""

    name: str
    old: str
    new: str
    test: str


DELIVERED = "test_delivery.Delivered."
NOT_TAKEN = DELIVERED + "test_nothing_is_taken_from_another_status_or_from_text_that_is_not_json"
COMPLETE = DELIVERED + "test_a_json_object_that_came_whole_is_complete"
WHATEVER_ELSE = DELIVERED + "test_whatever_else_is_odd_in_a_2xx_object"
UNSAFE_LINKS = DELIVERED + "test_links_that_are_unsafe_exit_1_with_one_request"
SAYS_NO = "test_delivery.Reasons.test_a_2xx_that_says_no_is_a_refusal_with_its_reason"
STORED = "test_delivery.StoredSettings."
READ_AGAIN = STORED + "test_a_value_that_differs_is_read_again_up_to_three_times"
LOST_KEYS = "test_delivery.LostKeys."
NAMED = LOST_KEYS + "test_what_is_new_in_the_list_is_named_and_never_revoked_on_a_guess"
EVERY_FAULT = "test_faults.EveryFault.test_every_command_ends_as_it_should_whatever_the_response"
FIELDS = (
    "test_faults.Fields.test_a_required_field_must_be_right_and_any_other_is_null_if_it_is_wrong"
)
RETRIES = "test_faults.Retries."
REQUESTS = "test_commands.Requests."
SENT = REQUESTS + "test_each_command_sends_its_requests_and_a_dry_run_all_but_the_write"
REFUSED_HERE = REQUESTS + "test_reads_send_one_request_and_a_refusal_here_sends_no_write"
SUGGESTIONS = "test_commands.Suggestions."
DEADLINE = "test_network.Deadline."
NETWORK = "test_network.Processes."
TLS = "test_network.Tls."
PROXIES = "test_network.Proxies."
GUARDED = "test_revoking.Guarded."
IN_USE = GUARDED + "test_which_key_is_in_use_and_that_it_is_not_revoked_without_force"
UNLISTED = GUARDED + "test_an_id_that_is_not_listed_needs_force_and_then_the_service_decides"
CONFIRMED = "test_revoking.Confirmed."
BALANCE_WAIT = "test_waiting.BalanceWait."
FAILING = "test_waiting.FailingChecks."
TOPUP_WAIT = "test_waiting.TopupWait."
ONLY_THIS_PAYMENT = TOPUP_WAIT + (
    "test_where_there_was_credit_the_next_step_waits_for_this_payment_alone"
)
ONE_CHECK = "test_settings.Keys."
JUNK = ONE_CHECK + "test_junk_is_refused_from_every_source"
FOREIGN = ONE_CHECK + "test_a_key_of_another_service_is_refused"
HIDDEN = "test_text.Secrets."
IN_FAILURES = HIDDEN + "test_in_every_failure"
SAVED = HIDDEN + "test_a_saved_key_is_in_no_output"
RATE_LIMIT = "test_delivery.Reasons.test_a_rate_limit_is_no_refused_key"
VARIABLES = "test_settings.Variables."
WHITE_SPACE = VARIABLES + "test_white_space_around_each_is_dropped"
STREAMS = "test_streams.Streams."
HALF = STREAMS + "test_half_a_result_is_none"
NOT_TAKEN_BY_A_PIPE = STREAMS + "test_a_new_key_that_a_pipe_did_not_take_exits_6_and_is_named"
NO_ROOM = STREAMS + "test_a_file_that_takes_no_more_exits_6_and_is_removed"
SIGNALS = "test_streams.Signals."
TERMINAL = "test_streams.Terminal."
TEXT = "test_text.Text."

CHANGES = (
    # Rule 1: a link or key that was received is handed over
    Change(
        "a link is taken from a refusal",
        "if exchange.is_ok and (is_usable or found.strip()):",
        "if is_usable or found.strip():",
        NOT_TAKEN,
    ),
    Change(
        "a key is taken from an example in HTML",
        '            body.decode("utf-8", "replace").lstrip("\\ufeff"),',
        '            re.findall(r"\\{.*\\}|$", body.decode("utf-8", "replace"), re.DOTALL)[0],',
        NOT_TAKEN,
    ),
    Change(
        "a Content-Length that is too small loses a key",
        "        response.length = None  # or",
        "        # or",
        COMPLETE,
    ),
    Change(
        "an object that is complete is waited on until the timeout",
        "            if self._parsed is not None:\n                break\n",
        "",
        DELIVERED + "test_what_follows_a_json_object_is_not_waited_for",
    ),
    Change(
        "a key beside an error is thrown away",
        "(is_usable or found.strip())",
        "is_usable",
        WHATEVER_ELSE,
    ),
    Change(
        "NaN in an unused field loses a key",
        "parse_constant=lambda name: None",
        'parse_constant=lambda name: int("NaN")',
        WHATEVER_ELSE,
    ),
    Change(
        "a missing balance is shown as $0.00",
        "        value = get(fields, name, kind)\n        if value is None:",
        "        value = get(fields, name, kind)\n"
        "        value = kind() if kind is int and value is None else value\n"
        "        if value is None:",
        FIELDS,
    ),
    Change(
        "the reason of a response that cannot be used is dropped",
        'f"{problem} {self.http.last.summary()}"',
        "problem",
        "test_delivery.Reasons.test_the_reason_of_a_response_without_the_field_is_shown",
    ),
    Change(
        "a link to plain http is handed to the payer",
        'if url.scheme == "http" and service != ("http", url.hostname):',
        "if False:",
        UNSAFE_LINKS,
    ),
    Change(
        "a link that is not safe is said to be worth another try",
        'raise Failure("failed", message, hint, response=self.http.last)',
        'raise Failure("unreachable", message, hint, response=self.http.last)',
        UNSAFE_LINKS,
    ),
    # Rule 2: a setting is judged by what is stored
    Change(
        "a setting is read back once only",
        "        for _ in range(2):\n            if self.http",
        "        for _ in ():\n            if self.http",
        READ_AGAIN,
    ),
    Change(
        "another value is stored, and it counts as done",
        'if not held and (held is False or "revoked" not in asked):',
        "if False:",
        READ_AGAIN,
    ),
    Change(
        "a provider's key that was lost counts as set",
        'if lost and (not held or "apiKey" in write[2]):',
        "if lost and not held:",
        STORED + "test_a_provider_key_that_was_lost_is_not_proved_by_the_rest",
    ),
    # Rule 3: refused, or lost
    Change(
        "a 2xx that says no counts as done",
        'return bool(is_false or value.get("error") or value.get("errors"))',
        "return False",
        SAYS_NO,
    ),
    Change(
        "a lost new key is said to be safe to repeat",
        'return Failure("uncertain", f"{lost.message}',
        'return Failure("unreachable", f"{lost.message}',
        NAMED,
    ),
    Change(
        "after a lost key, a key is to be revoked on a guess",
        'hint, "keys", lost.response)',
        'hint, "keys --revoke key_2 --yes", lost.response)',
        NAMED,
    ),
    Change(
        "after a lost write there is no request id for support",
        "failure.hint, if_lost.next, exchange)",
        "failure.hint, if_lost.next)",
        LOST_KEYS + "test_the_response_that_was_lost_is_kept",
    ),
    Change(
        "a write that never left is in doubt",
        "exchange.sent = not exchange.lock.acquire(blocking=False)",
        "exchange.sent = True",
        LOST_KEYS + "test_a_write_that_never_left_is_not_in_doubt",
    ),
    # Rule 4: what was delivered, and what was not
    Change(
        "topup --wait shows no link",
        "    account.console.deliver(report)\n",
        "",
        "test_waiting.Processes.test_the_link_arrives_while_the_wait_goes_on",
    ),
    Change(
        "with PYTHONUNBUFFERED half a key counts as printed",
        'sys.stdout = open(out.fileno(), "w", -1, out.encoding, errors, closefd=False)',
        "out.reconfigure(errors=errors)",
        HALF,
    ),
    Change(
        "a result that nobody got exits 0",
        '            raise self.ended("failed", problem) from None\n        self.if_stopped = None',
        "            pass\n        self.if_stopped = None",
        HALF,
    ),
    Change(
        "a new key that nobody got exits 1",
        'Failure("uncertain", message, "Revoke it',
        'Failure("failed", message, "Revoke it',
        NOT_TAKEN_BY_A_PIPE,
    ),
    Change(
        "a new key is created although stdout is closed",
        "if sys.stdout is None:",
        "if False:",
        STREAMS + "test_with_a_closed_stdout_nothing_is_sent",
    ),
    # Rule 5: times and signals
    Change(
        "--timeout is exceeded three times",
        "while thread.is_alive() and clock.now() < end:",
        "while thread.is_alive() and clock.now() < end + 2 * seconds:",
        NETWORK + "test_every_command_ends_in_time_whatever_is_slow",
    ),
    Change(
        "a write that was given up is sent later",
        "if self.clock.stopped_at is not None or not self.lock.acquire(blocking=False):",
        "self.lock.acquire(blocking=False)\n        if self.clock.stopped_at is not None:",
        DEADLINE + "test_a_write_that_was_given_up_is_not_sent_later",
    ),
    Change(
        "a write is sent after a signal",
        "        clock.raise_if_stopped()\n        self.last"
        + GAP
        + "is_sent_write = if_lost and exchange.lock.locked()"
        + GAP
        + "if self.clock.stopped_at is not None or not",
        "        self.last" + GAP + "is_sent_write = if_lost" + GAP + "if not",
        SIGNALS + "test_a_signal_before_the_first_response_stops_the_write",
    ),
    Change(
        "a signal leaves no time for the response to a write",
        "GRACE_S = 1.0",
        "GRACE_S = 0.0",
        SIGNALS + "test_a_new_key_that_is_on_its_way_is_delivered",
    ),
    Change(
        "a slow check costs the link",
        "        before = account.billing(args.timeout / 3)\n    try:",
        "        before = account.billing()\n    try:",
        NETWORK + "test_a_read_before_a_write_takes_a_third_of_the_time",
    ),
    Change(
        "a link is asked for although the key was refused",
        'return isinstance(error, Failure) and error.code != "unauthorized"',
        "return isinstance(error, Failure)",
        DEADLINE + "test_a_read_before_a_write_does_not_stop_it",
    ),
    Change(
        "Ctrl-C is noticed 5 s late in a pause between tries",
        "min(0.1, end - self.now())))",
        "min(5.0, end - self.now())))",
        SIGNALS + "test_a_long_pause_between_tries_ends_at_once",
    ),
    Change(
        "a second signal does not end a program whose stdout is blocked",
        "clock.raise_if_stopped(0 if console.is_asking else 1)",
        "clock.raise_if_stopped(0 if console.is_asking else 1000)",
        SIGNALS + "test_a_stdout_that_takes_nothing_does_not_hold_the_program_for_ever",
    ),
    Change(
        "nohup does not help against a hangup",
        "if number and signal.getsignal(number) is not signal.SIG_IGN:",
        "if number:",
        SIGNALS + "test_a_signal_that_the_parent_ignores_is_ignored",
    ),
    # Money
    Change(
        "the balance is rounded up",
        "usd_text(microusd // MICROUSD_PER_CENT)",
        "usd_text(-(-microusd // MICROUSD_PER_CENT))",
        "page balance",
    ),
    Change(
        "dollars are taken for cents, and cents for dollars",
        '"c" if kind == "CENTS" else "usd"',
        '"usd" if kind == "CENTS" else "c"',
        SENT,
    ),
    Change(
        "an amount above the limit is sent",
        "    if amount.cents > limit_cents:\n",
        "    if False:\n",
        REFUSED_HERE,
    ),
    Change(
        "auto top-up knows no limit",
        '        check_amount("--amount", args.amount, account.settings)\n        rule',
        "        rule",
        REFUSED_HERE,
    ),
    Change(
        "another unit is suggested for a number that has one",
        '"" if suffix else unit',
        "unit",
        "page auto-topup",
    ),
    Change(
        "the suggested top-up is a dollar short",
        "short_usd = -(-short_microusd // MICROUSD_PER_USD)",
        "short_usd = short_microusd // MICROUSD_PER_USD",
        SUGGESTIONS + "test_a_suggested_top_up_is_rounded_up_to_whole_dollars",
    ),
    # Auto top-up
    Change(
        "auto top-up is set without a look at the account",
        "        with OptionalRead():\n"
        "            before = account.billing(args.timeout / 3)\n"
        "        balance",
        "        balance",
        SENT,
    ),
    Change(
        "a dry run does not say that no card is saved",
        '        if before["card_saved"] is False:',
        "        if False:",
        "page auto-topup",
    ),
    Change(
        "a dry run does not say that the card is charged at once",
        "        if charges_now:\n",
        "        if False:\n",
        "page auto-topup",
    ),
    Change(
        "what was charged meanwhile is not said",
        'return f"The balance rose by ${exact_usd(new_microusd - old_microusd)}."',
        'return ""',
        "page auto-topup",
    ),
    Change(
        "--dry-run sends the write",
        "    if args.dry_run:\n"
        "        return dry_run_report(write, account.settings, text)\n"
        "    reads = (account.billing()",
        "    reads = (account.billing()",
        SENT,
    ),
    # Waiting
    Change(
        "a wait goes on when exactly the least balance is there",
        "balance_microusd >= least_microusd:",
        "balance_microusd > least_microusd:",
        BALANCE_WAIT + "test_with_a_least_balance_it_waits_for_that",
    ),
    Change(
        "a wait goes on with a refused key",
        '            if error.code == "unauthorized":\n                raise\n',
        "",
        FAILING + "test_a_refused_key_ends_it_at_once",
    ),
    Change(
        "a first check that fails ends a wait",
        '            if error.code == "unauthorized":\n                raise\n',
        '            if error.code == "unauthorized" or billing["funded"] is None:\n'
        "                raise\n",
        FAILING + "test_a_first_check_that_fails_does_not_end_it",
    ),
    Change(
        "why the last check failed is not told",
        '"last_error": failure and failure.message}',
        '"last_error": None}',
        FAILING + "test_the_last_error_is_told",
    ),
    Change(
        "what was paid while the computer slept is not seen",
        "        clock.sleep(max(0.0, min(max(gap_s, asked_s), last_check - clock.now())))\n",
        "        clock.sleep(max(0.0, min(max(gap_s, asked_s), last_check - clock.now())))\n"
        "        if clock.now() > end:\n            break\n",
        FAILING + "test_a_jump_past_the_end_is_followed_by_one_more_check",
    ),
    Change(
        "a check that hangs takes the whole wait",
        "min(CHECK_S, args.timeout, max(LAST_CHECK_S",
        "min(CHECK_S, max(LAST_CHECK_S",
        "test_waiting.Processes.test_one_check_takes_at_most_the_timeout",
    ),
    Change(
        "topup --wait takes the credit from before for the payment",
        'before = billing if before["balance_microusd"] is None else before',
        'before = {"balance_microusd": 0}',
        ONLY_THIS_PAYMENT,
    ),
    # The network
    Change(
        "redirects are followed, with the key",
        "    opener.add_handler(Handler())\n",
        "    from urllib.request import HTTPErrorProcessor, HTTPRedirectHandler\n"
        "    for each in (Handler(), HTTPErrorProcessor(), HTTPRedirectHandler()):\n"
        "        opener.add_handler(each)\n",
        "test_faults.EveryFault.test_another_origin_never_hears_of_us",
    ),
    Change(
        "a write is sent again",
        "        exchange = self._exchange(write, self.left_s - kept_s, if_lost, field)\n",
        "        exchange = self._exchange(write, self.left_s - kept_s, if_lost, field)\n"
        "        if exchange.status is None:\n"
        "            exchange = self._exchange(write, self.left_s - kept_s, if_lost, field)\n",
        EVERY_FAULT,
    ),
    Change(
        "pauses between tries do not grow",
        "jitter(0.5, 1.0) * attempt",
        "jitter(0.5, 1.0)",
        RETRIES + "test_the_pauses_between_the_tries_are_spread_and_grow",
    ),
    Change(
        "Retry-After is cut to a second",
        "* attempt, asked_s or 0)",
        "* attempt, min(1, asked_s or 0))",
        RETRIES + "test_retry_after_is_honoured_within_the_deadline_only",
    ),
    Change(
        "403 with Retry-After is told as a refused key",
        'elif self.status == 403 and self._header("Retry-After"):',
        "elif False:",
        RATE_LIMIT,
    ),
    Change(
        "102 and 103 are taken for the response",
        "while 102 <= self.status < 200:",
        "while False:",
        "test_network.Interim.test_interim_responses_are_skipped",
    ),
    Change(
        "an address that is silent takes all the time",
        "min(CONNECT_TIMEOUT_S, timeout / 4)",
        "timeout",
        NETWORK + "test_each_address_of_a_name_gets_its_turn",
    ),
    Change(
        "without a thread nothing works",
        "                exchange.work()\n",
        "                raise\n",
        NETWORK + "test_without_a_thread_the_request_runs_all_the_same",
    ),
    Change(
        "a response may have any size",
        "MAX_BODY_BYTES = 4 *",
        "MAX_BODY_BYTES = 400 *",
        "test_delivery.Size.test_a_response_has_at_most_4_mib",
    ),
    Change(
        "a body is not called JSON",
        'headers["Content-Type"] = "application/json"',
        'headers["Content-Type"] = "text/plain"',
        SENT,
    ),
    Change(
        "a response in JSON is not asked for",
        '            "Accept": "application/json",\n',
        "",
        SENT,
    ),
    Change(
        "certificates are not verified",
        "ssl.create_default_context()",
        "ssl._create_unverified_context()",
        TLS + "test_a_certificate_that_is_not_accepted_is_no_network_error",
    ),
    Change(
        "a bad certificate is said to be worth another try",
        '"failed", "the certificate of',
        '"unreachable", "the certificate of',
        TLS + "test_a_certificate_that_is_not_accepted_is_no_network_error",
    ),
    Change(
        "SSL_CERT_FILE without certificates is not noticed",
        'if settings.environ.get("SSL_CERT_FILE"):',
        "if False:",
        TLS + "test_a_wrong_setting_exits_2_and_is_named",
    ),
    Change(
        "a proxy sees the key of a service on loopback",
        "if not proxy or settings.is_loopback or proxy_bypass(settings.host):",
        "if not proxy or proxy_bypass(settings.host):",
        PROXIES + "test_loopback_never_goes_through_a_proxy",
    ),
    Change(
        "the password of a proxy goes to another host",
        "match = re.fullmatch(PROXY, proxy, re.IGNORECASE)",
        "match = re.match(PROXY, proxy, re.IGNORECASE)",
        PROXIES + "test_a_setting_of_another_form_is_refused_by_name",
    ),
    Change(
        "for a proxy that is dead CACHEFORGE_BASE_URL is blamed",
        "setting = setting if self.sent and self.status != 407 else self.proxy_name",
        "pass",
        PROXIES + "test_a_proxy_that_fails_is_the_one_that_is_named",
    ),
    Change(
        "the key crosses the network by http",
        'if url.scheme == "http" and not allow_http:',
        "if False:",
        "page settings",
    ),
    Change(
        "white space of a variable counts",
        "{name: value.strip() for name, value",
        "{name: value for name, value",
        WHITE_SPACE,
    ),
    Change(
        "white space of NO_PROXY counts",
        "            os.environ[name] = value\n",
        "            pass\n",
        WHITE_SPACE,
    ),
    # Revoking
    Change(
        "--yes is not needed",
        "if not args.yes and not (account",
        "if False and not (account",
        REFUSED_HERE,
    ),
    Change(
        "the key in use is revoked without --force",
        "    if warning and not args.force:\n",
        "    if False:\n",
        IN_USE,
    ),
    Change(
        "of ids that look alike, the key in use is not guarded",
        'key["revoked"] is True, key["in_use"] is False), default',
        'key["revoked"] is True, key["in_use"] is not False), default',
        GUARDED + "test_ids_that_look_alike_do_not_get_round_the_guard",
    ),
    Change(
        "a masked prefix is not guarded",
        "not rest[0].isalnum()",
        "False",
        IN_USE,
    ),
    Change(
        "four characters do not show the key in use",
        "POSSIBLE_MATCH_CHARS = 4",
        "POSSIBLE_MATCH_CHARS = 5",
        IN_USE,
    ),
    Change(
        "an id that is not listed is revoked without --force",
        'warning = "No listed key has this id: check it. It may be the key in use."',
        'warning = ""',
        UNLISTED,
    ),
    Change(
        "that an unlisted key is revoked is confirmed by a list without it",
        '    if "created_at" not in key:\n',
        "    if False:\n",
        UNLISTED,
    ),
    Change(
        "a revoked key is revoked again",
        'if args.force or not key["revoked"]:',
        "if True:",
        GUARDED + "test_a_key_is_revoked_only_if_that_is_said_plainly",
    ),
    Change(
        "a revocation that the list does not show is confirmed",
        'confirmed = stored.get("revoked") is True',
        "confirmed = True",
        "page keys-revoke",
    ),
    Change(
        "that the key in use is refused does not confirm that it is revoked",
        'if failure.response.status != 401 or key["in_use"] is False:',
        "if True:",
        "page keys-revoke",
    ),
    Change(
        "a 403 confirms that the key in use is revoked",
        "failure.response.status != 401",
        'failure.code != "unauthorized"',
        "test_revoking.Confirmed.test_a_403_after_the_own_key_was_revoked_proves_nothing",
    ),
    Change(
        "a long refusal is told as too long",
        "elif self.is_ok and len(self.body)",
        "elif len(self.body)",
        "test_delivery.Reasons.test_a_refusal_counts_however_long_it_is",
    ),
    Change(
        "an object that is no JSON is waited on until the timeout",
        "(is_object and open_braces > 0)",
        "is_object",
        "test_delivery.Delivered.test_an_object_that_is_no_json_is_not_waited_on",
    ),
    Change(
        "half a short secret is shown where a long text is cut",
        '[: 10 * MAX_TEXT_CHARS].rpartition(" ")[0]',
        "[: 10 * MAX_TEXT_CHARS]",
        "test_text.Secrets.test_a_secret_at_the_cut_of_a_long_text_is_not_shown_in_part",
    ),
    Change(
        "that our key is refused confirms that another is revoked",
        'if failure.response.status != 401 or key["in_use"] is False:',
        "if failure.response.status != 401:",
        CONFIRMED + "test_what_cannot_be_read_back_exits_5",
    ),
    Change(
        "the id of a key leads to another call",
        "quote(key_id, safe='')",
        "key_id",
        GUARDED + "test_the_id_of_a_key_is_one_segment_of_the_path",
    ),
    Change(
        "a key with a zero time counts as revoked, and is not revoked",
        're.match("[1-9]", str(date))',
        're.match("[0-9]", str(date))',
        GUARDED + "test_a_key_is_revoked_only_if_that_is_said_plainly",
    ),
    Change(
        "the id of a key that was created and lost is withheld",
        "the new key {name} was created",
        "a new key was created",
        "page streams",
    ),
    Change(
        "the account's key is shown in its own base URL",
        "redact(settings.base_url, settings.secrets)\n    name",
        "settings.base_url\n    name",
        HIDDEN + "test_the_key_is_hidden_in_what_the_user_gave",
    ),
    Change(
        "two dots are taken for the id of a key",
        '"KEY_ID": (".*[^.].*"',
        '"KEY_ID": (".+"',
        GUARDED + "test_the_id_of_a_key_is_one_segment_of_the_path",
    ),
    # Secrets
    Change(
        "no key at all is a key",
        '    ("", "is missing or empty"),\n',
        "",
        ONE_CHECK + "test_nothing_is_no_key",
    ),
    Change(
        "a key in quotes is sent",
        '    ("[\'\\"`].*|.*[\'\\"`]", "begins or ends with a quote"),\n',
        "",
        JUNK,
    ),
    Change(
        "a key with its name in front is sent",
        '    (r"[A-Za-z_]\\w*=[^=].*", "has NAME= in front of the key"),\n',
        "",
        JUNK,
    ),
    Change(
        "the name of a variable is sent as a key",
        r'(r"\$[\w:]+|\$\{.*\}|\$\(.*\)|%\w+%", "holds',
        '("never", "holds',
        JUNK,
    ),
    Change(
        "a masked key is sent",
        r'(r".*(\.\.|\*\*).*|.*\*", "holds',
        '("never", "holds',
        JUNK,
    ),
    Change(
        "a placeholder is sent as a key",
        '    (".*<.*>.*|null|undefined", "holds a placeholder"),\n',
        "",
        JUNK,
    ),
    Change(
        "a key with a space in it is sent",
        '    (".*[^!-~].*", "holds',
        '    ("never", "holds',
        JUNK,
    ),
    Change(
        "the provider's key is sent as the account's",
        '{"sk-": "another service"}',
        "{}",
        FOREIGN,
    ),
    Change(
        "the account's key goes to the provider",
        'refused = {"cf_": "CacheForge", "cfk_": "CacheForge", ',
        "refused = {",
        FOREIGN,
    ),
    Change(
        "sixteen characters of a secret are shown",
        "SECRET_BLOCK_CHARS = 16",
        "SECRET_BLOCK_CHARS = 17",
        IN_FAILURES,
    ),
    Change(
        "a dry run shows a short provider key",
        '    if "apiKey" in body:\n',
        "    if False:\n",
        HIDDEN + "test_a_very_short_secret_hides_no_words",
    ),
    Change(
        "a request id is shown with a secret in it",
        "printable(found, secrets)[:100] or None",
        "found[:100] or None",
        IN_FAILURES,
    ),
    Change(
        "a new key that was saved is shown if the service repeats it",
        "            secrets.append(new_key.strip())\n",
        "            pass\n",
        SAVED,
    ),
    Change(
        "everybody can read the new key's file",
        "os.open(name, flags, 0o600)",
        "os.open(name, flags, 0o644)",
        "page keys-create",
    ),
    Change(
        "--save overwrites a file",
        'path, "x", encoding="ascii"',
        'path, "w", encoding="ascii"',
        "page keys-create",
    ),
    Change(
        "a signal while the disk is slow removes the file with the key",
        "except KeyboardInterrupt:  # a second signal, but",
        "except ZeroDivisionError:  # a second signal, but",
        "test_streams.Files.test_a_signal_while_the_disk_is_slow_leaves_the_key_in_its_file",
    ),
    Change(
        "half a key in the --save file counts as saved",
        'could not be written to the file ({error.strerror}); "\n'
        '            raise self.ended("failed", problem) from None',
        'could not be written to the file ({error.strerror}); "',
        NO_ROOM,
    ),
    Change(
        "standard input is read past its first line",
        "else sys.stdin.readline()",
        "else sys.stdin.read()",
        SENT,
    ),
    Change(
        "an option that has only its dashes in common is suggested",
        'typed.lower().strip("-")',
        "typed.lower()",
        "page typing",
    ),
    Change(
        "a typing error repeats what was typed",
        "        near = get_close_matches(typed,",
        '        message += f" {typed}"\n        near = get_close_matches(typed,',
        "page typing",
    ),
    Change(
        "a bug of ours quotes the text of its exception",
        "(line {lines[-1] if lines else 0})",
        "(line {lines[-1] if lines else 0}, {error})",
        "test_streams.OurOwnMistakes."
        "test_it_says_so_with_the_version_and_the_place_to_report_and_quotes_nothing",
    ),
    # Text from the service
    Change(
        "text from the service moves the cursor",
        '        text = "".join(filter(str.isprintable, text))\n',
        "",
        TEXT + "test_names_and_labels_never_add_a_line_or_a_control",
    ),
    Change(
        "text from the service has characters that nobody sees",
        'f"{ESCAPES}|{INVISIBLE}"',
        "ESCAPES",
        TEXT + "test_names_and_labels_never_add_a_line_or_a_control",
    ),
    Change(
        "HTML is shown",
        'elif "html" in kind.lower() or text[:1] in ("<", "{", "["):',
        "elif False:",
        "test_delivery.Reasons.test_plain_text_is_a_reason_and_html_is_none",
    ),
    # The terminal, and the command line
    Change(
        "a note under --json is plain text",
        'self._write_error({"note": line}, f"{line}\\n")',
        'sys.stderr.write(f"{line}\\n")',
        TERMINAL + "test_under_json_everything_on_the_terminal_is_json",
    ),
    Change(
        "Y is taken as a no",
        '.strip().lower() in ("y", "yes")',
        '.strip() in ("y", "yes")',
        "page terminal",
    ),
    Change(
        "--verbose shows 0 ms for every request",
        "{took_s * 1000:.0f} ms",
        "{took_s * 0:.0f} ms",
        "test_commands.Verbose.test_it_shows_how_long_a_request_took",
    ),
    Change(
        "a signal just before a question is missed",
        "self._wake_every(0.1)",
        "pass",
        TERMINAL + "test_a_signal_that_does_not_interrupt_the_question_is_noticed",
    ),
    Change(
        "bytes after the body lose a key",
        "return parse_json(bytes(self.body[: self._length])) if value is None else value",
        "return value",
        COMPLETE,
    ),
    Change(
        "another path counts as the stored address",
        '"^([^/]*//)?[^/]*"',
        '"^.*"',
        STORED + "test_an_address_has_no_case_before_its_path_and_no_final_slash",
    ),
    Change(
        "a read that fails hides what another one showed",
        "        if not stored:  # 5",
        "        if True:  # 5",
        STORED + "test_a_read_that_fails_does_not_hide_what_was_read_before",
    ),
    Change(
        "of two keys that look alike a new one is not noticed",
        "new = list(found_names - Counter(map(key_name, before)))",
        "new = [name for name in found_names if name not in map(key_name, before)]",
        NAMED,
    ),
    Change(
        "a proxy without http:// may have no final slash",
        'return proxy.rstrip("/"), source',
        "return proxy, source",
        "test_network.Proxies.test_https_goes_through_a_tunnel_and_the_proxy_sees_no_key",
    ),
    Change(
        "a list that comes row by row is parsed after each row",
        "if is_object and (is_full or open_braces == 0):",
        "if is_object:",
        DELIVERED + "test_a_list_that_comes_row_by_row_costs_little_more",
    ),
    Change(
        "a response that breaks after a key loses the key",
        "            if self._parsed is not None:\n                break\n"
        + GAP
        + "        self.value = self._parse() if self._parsed is None else self._parsed",
        GAP + "        self.value = None if self.error else self._parse()",
        COMPLETE,
    ),
    Change(
        "an open pipe without a key is waited on for ever",
        "if self.clock.now() > self.ask_until:",
        "if False:",
        "test_streams.StandardInput.test_a_key_that_does_not_come_is_waited_for_until_the_timeout",
    ),
    Change(
        "a command is in no document",
        '    "info": ("show the tenant',
        '    "pay": ("pay", show_info),\n    "info": ("show the tenant',
        "test_docs.Agreement.test_every_command_is_on_every_page",
    ),
    Change(
        "an option is in no document",
        '    Option("", "--verbose",',
        '    Option("", "--quiet", "say less"),\n    Option("", "--verbose",',
        "test_docs.Agreement.test_every_option_is_in_the_readme",
    ),
    Change(
        "an exit code is in no document",
        '    "interrupted": (130,',
        '    "tired": (7, "tired"),\n    "interrupted": (130,',
        "test_docs.Agreement.test_every_exit_code_is_on_every_page",
    ),
    Change(
        "a field of JSON is in no document",
        '        "card_saved": get(billing,',
        '        "currency": "USD",\n        "card_saved": get(billing,',
        "test_docs.JsonFields.test_every_field_is_in_the_readme",
    ),
)


def copy_of_tree(folder: Path, source: str) -> Path:
    """A copy of this repository with other text in ops.py."""
    copy = folder / "copy"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    (copy / OPS).write_text(source, "utf-8")
    return copy


def run_test(source: str, test: str) -> tuple[bool, str]:
    """Run a test against this text of ops.py: whether it passed, and what was said."""
    kind, _, page = test.partition(" ")
    words = ["test_transcripts.py", page] if kind == "page" else ["-m", "unittest", "-f", test]
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        copy = copy_of_tree(Path(folder), source)
        try:
            done = subprocess.run(
                [sys.executable, *words], cwd=copy / "tests", env=env, capture_output=True,
                text=True, timeout=LIMIT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False, f"no end within {LIMIT_S} s"
    said = done.stdout + done.stderr
    return done.returncode == 0 and "skipped=" not in said, said


def check_test(test: str) -> str:
    """What is wrong with a test on the unchanged file; nothing if it passes."""
    passed, said = run_test((ROOT / OPS).read_text("utf-8"), test)
    return "" if passed else f"{test} does not pass on the unchanged file:\n{said}"


def check_change(change: Change) -> str:
    """What is wrong with a change; nothing if its test sees it."""
    source = (ROOT / OPS).read_text("utf-8")
    for old, new in zip(change.old.split(GAP), change.new.split(GAP)):
        count = source.count(old)
        if count != 1:
            return f"its old text stands {count} times in ops.py, not once: {old}"
        source = source.replace(old, new)
    try:
        compile(source, str(OPS), "exec")
    except SyntaxError as error:
        return f"it is no Python: {error}"
    passed, said = run_test(source, change.test)
    if passed:
        return f"no test sees it, but {change.test} should"
    # what breaks each start is seen by any test, and proves nothing
    return "ops.py cannot be imported any more" if "_FailedTest" in said else ""


def main(words: Iterable[str]) -> int:
    """Try the changes that have all words in them; the exit code."""
    changes = [each for each in CHANGES if all(word in " ".join(each) for word in words)]
    if not changes:
        sys.exit("no change has that in it")
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tests = sorted({change.test for change in changes})
        for trouble in filter(None, pool.map(check_test, tests)):
            failed += 1
            print(trouble)
        for change, trouble in zip(changes, pool.map(check_change, changes)):
            failed += bool(trouble)
            print(f"{'NOT SEEN' if trouble else 'seen'}: {change.name}", flush=True)
            if trouble:
                print(f"  {trouble}")
    print(f"{len(changes)} changes, {len(tests)} tests: {failed or 'nothing'} to be done")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
