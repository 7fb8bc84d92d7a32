"""Break ops.py on purpose, once for each change below, and see that a test notices.

    bash .ci/run mutants               all changes
    python3 .ci/mutants.py [WORD]      the changes that have WORD in their name, text or tests

A change is seen if its tests fail with it. The run fails if a change is not seen, if its old
text does not stand exactly once in ops.py, or if one of its tests does not pass on the unchanged
file (a test that is skipped or missing did not pass).
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


class Change(NamedTuple):
    """What a user would see, the text as it is, the text that breaks it, and the tests (by their
    ids, with spaces between) of which at least one fails then."""

    name: str
    old: str
    new: str
    tests: str


WAIT = "test_waiting.BalanceWait."
ODDS = "test_commands.Odds."
REFUSED = "test_commands.Refused."
REQUESTS = "test_commands.Requests."
LOST = "test_faults.LostAnswers."
SIGNALS = "test_streams.Signals."
FILES = "test_streams.Files."
SENT = REQUESTS + "test_each_command_sends_its_requests_and_a_dry_run_all_but_the_write"
REFUSED_HERE = REQUESTS + "test_reads_send_one_request_and_a_refusal_here_sends_no_write"
REPEATED_KEY = (
    "test_faults.NewKey.test_a_service_that_repeats_it_everywhere_does_not_make_us_show_it"
)
READ_BACK = LOST + "test_it_is_a_success_only_where_all_of_it_can_be_read_back"
ODD_FIELDS = "test_faults.Fields.test_evidence_must_be_right_and_all_else_is_null_where_it_is_wrong"
STILL_FINE = "test_faults.StillFine.test_odd_but_valid_answers_are_believed_at_the_first_try"

CHANGES = (
    # Found by hand: these once lived through the whole suite.
    Change(
        "of two new keys, the first is to be revoked",
        "if len(new) == 1 else",
        "if new else",
        LOST + "test_of_two_new_keys_none_is_to_be_revoked_on_a_guess",
    ),
    Change(
        "a wait goes on when exactly the least balance is there",
        '            if billing["balance_microusd"] >= least_microusd:',
        '            if billing["balance_microusd"] > least_microusd:',
        WAIT + "test_exactly_the_least_balance_is_enough",
    ),
    Change(
        "Ctrl-C is noticed 5 s late in a pause between tries",
        "min(0.2, end - self.now())",
        "min(5.0, end - self.now())",
        SIGNALS + "test_a_long_pause_between_tries_ends_at_once",
    ),
    Change(
        "a second signal does not end a program whose stdout is blocked",
        "if time.monotonic() - clock.stopped_at > 1:",
        "if False:",
        SIGNALS + "test_a_stdout_that_takes_nothing_does_not_hold_the_program_for_ever",
    ),
    Change(
        "nohup does not help against a hangup",
        "if number and signal.getsignal(number) is not signal.SIG_IGN:",
        "if number:",
        SIGNALS + "test_a_signal_that_the_parent_ignores_is_ignored",
    ),
    Change(
        "a body is not called JSON",
        'request.add_header("Content-type", "application/json")',
        'request.add_header("Content-type", "text/plain")',
        SENT,
    ),
    Change(
        "a response in JSON is not asked for",
        '            "Accept": "application/json",\n',
        "",
        SENT,
    ),
    Change(
        "after a lost write there is no request id for support",
        "self.http_status, self.request_id = other.http_status, other.request_id",
        "self.http_status = other.http_status",
        LOST + "test_what_the_service_said_of_the_request_is_kept",
    ),
    Change(
        "after a lost write nobody knows how long to wait",
        "            self.retry_after_seconds = other.retry_after_seconds\n",
        "",
        LOST + "test_what_the_service_said_of_the_request_is_kept",
    ),
    Change(
        "a request id that is the new key is shown",
        'None if "cf_" in found else show(found, secrets)',
        "show(found, secrets)",
        REPEATED_KEY,
    ),
    Change(
        "a bad certificate is said to be worth another try",
        "failure.retryable = False",
        "failure.retryable = True",
        "test_network.Tls.test_a_certificate_that_does_not_verify_is_not_tried_again",
    ),
    Change(
        "--verbose shows 0 ms for every request",
        "{took_s * 1000:.0f} ms",
        "{took_s * 0:.0f} ms",
        ODDS + "test_verbose_shows_how_long_a_request_took",
    ),
    Change(
        "a dry run shows a short provider key",
        '"<hidden>" if name == "apiKey" else hide(value, self._secrets)',
        "hide(value, self._secrets)",
        ODDS + "test_a_short_provider_key_is_redacted_in_a_dry_run",
    ),
    Change(
        "a note under --json is plain text",
        'self._write_error(self._line({"note": line}, f"{line}\\n"))',
        'self._write_error(f"{line}\\n")',
        "test_streams.Terminal.test_under_json_everything_on_the_terminal_is_json",
    ),
    Change(
        "Y is taken as a no",
        ".strip().lower() in",
        ".strip() in",
        "test_streams.Terminal.test_a_question_is_answered_with_a_capital_letter_too",
    ),
    Change(
        "standard input is read past its first line",
        "sys.stdin.readline(8192)",
        "sys.stdin.read()",
        ODDS + "test_the_provider_key_is_the_first_line_of_standard_input",
    ),
    Change(
        "a name that stands twice in an unused field stops a read",
        "            fields[name] = None if name in fields else value\n",
        "            if name in fields:\n                raise ValueError\n"
        "            fields[name] = value\n",
        STILL_FINE,
    ),
    Change(
        "NaN in an unused field stops a read",
        "parse_constant=lambda name: None",
        'parse_constant=lambda name: int("NaN")',
        STILL_FINE,
    ),
    Change(
        "half a key in the --save file counts as saved",
        "            while line:\n",
        "            if line:\n",
        FILES + "test_half_a_key_in_the_file_is_no_success",
    ),
    Change(
        "a slow check costs the link",
        "return read(within_s=args.timeout / 3)",
        "return read(within_s=args.timeout)",
        "test_network.Deadline.test_a_slow_look_does_not_cost_the_link_that_is_made_after_it",
    ),
    Change(
        "pauses between tries do not grow",
        "jitter(0.5, 1.5) * attempt",
        "jitter(0.5, 1.5)",
        "test_faults.Retries.test_the_pauses_between_the_tries_are_spread_and_grow",
    ),
    Change(
        "the suggested top-up is a dollar short",
        "-(-short_microusd // MICROUSD_PER_USD)",
        "short_microusd // MICROUSD_PER_USD",
        "test_commands.Suggestions.test_a_suggested_top_up_is_rounded_up_to_whole_dollars",
    ),
    # The key, the network
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
        "READ_ATTEMPTS if body is None and within_s is None else 1",
        "READ_ATTEMPTS if within_s is None else 1",
        READ_BACK,
    ),
    Change(
        "a read is not tried again",
        "READ_ATTEMPTS if body is None and within_s is None else 1",
        "1",
        "test_faults.Retries.test_a_read_survives_two_failures_and_is_given_up_after_three",
    ),
    Change(
        "a proxy sees the key of a service on loopback",
        '"" if base.is_loopback else getproxies()',
        "getproxies()",
        "test_network.Proxies.test_loopback_never_goes_through_a_proxy",
    ),
    Change(
        "the password of an https proxy goes out in clear",
        'if (scheme or "http").lower() != "http":',
        "if False:",
        "test_network.Proxies."
        "test_an_https_proxy_would_get_its_password_in_clear_and_exits_2_unheard",
    ),
    Change(
        "the key crosses the network by http",
        'if url.scheme == "http" and not (',
        "if False and not (",
        REFUSED + "test_a_service_at_an_http_address",
    ),
    Change(
        "certificates are not verified",
        "ssl.create_default_context()",
        "ssl._create_unverified_context()",
        "test_network.Tls.test_certificates_that_do_not_verify_are_refused_with_the_fix",
    ),
    Change(
        "--timeout is exceeded three times",
        "self._thread.is_alive() and clock.now() < began + seconds:",
        "self._thread.is_alive() and clock.now() < began + 3 * seconds:",
        WAIT + "test_a_service_that_hangs_does_not_make_it_longer",
    ),
    Change(
        "a write that was given up is sent later",
        "            if not gate.acquire(blocking=False):\n                raise OSError\n",
        "            gate.acquire(blocking=False)\n",
        "test_network.Deadline.test_a_write_that_was_given_up_is_not_sent_later",
    ),
    Change(
        "Retry-After is cut to a second",
        "return float(asked_s) if asked_s is not None else",
        "return 1.0 if asked_s is not None else",
        "test_faults.Retries.test_retry_after_is_honoured_within_the_deadline_only",
    ),
    # Secrets
    Change(
        "the key is shown when the service repeats it",
        '        text = text.replace(secret, "<hidden>")\n',
        "        pass\n",
        "test_text.Echo.test_in_errors",
    ),
    Change(
        "a request id is shown as it comes, with a secret in it",
        "show(found, secrets)[:100] or None",
        "found[:100] or None",
        "test_text.Echo.test_in_errors",
    ),
    Change(
        "a new key that was saved is shown when the service repeats it",
        "        self._secrets.append(api_key)\n",
        "",
        REPEATED_KEY,
    ),
    Change(
        "a new key that was saved is printed, too",
        'data = {"id": key["id"], "prefix": key["prefix"], "saved_to": saved_to}',
        'data = {**key, "saved_to": saved_to}',
        REPEATED_KEY,
    ),
    Change(
        "everybody can read the new key's file",
        "os.open(path, flags, 0o600)",
        "os.open(path, flags, 0o644)",
        FILES + "test_the_file_is_for_its_owner_alone",
    ),
    Change(
        "--save overwrites a file",
        "os.O_CREAT | os.O_EXCL |",
        "os.O_CREAT | os.O_TRUNC |",
        FILES + "test_what_is_there_already_is_not_overwritten",
    ),
    Change(
        "--save leaves an empty file behind",
        "if kind and self._is_there():",
        "if False:",
        FILES + "test_half_a_key_in_the_file_is_no_success",
    ),
    Change(
        "an account key with a space in it is sent",
        '(".*[^!-~].*|.{4097,}"',
        '("never"',
        REFUSED + "test_an_account_key_that_cannot_be_one",
    ),
    Change(
        "the account's own key goes to the provider",
        "if key == account.settings.api_key:\n        raise",
        "if False:\n        raise",
        REFUSED + "test_the_accounts_own_key_as_the_providers",
    ),
    Change(
        "the provider's key crosses the network by http",
        'check_url(base_url, "--base-url", account.settings.allow_http)',
        'check_url(base_url, "--base-url", True)',
        REFUSED + "test_a_provider_at_an_http_address",
    ),
    Change(
        "a typing error repeats what was typed",
        're.split("[\\"\']", message)[0].rstrip(" :")',
        'message.rstrip(" :")',
        REFUSED + "test_a_secret_in_the_wrong_place_is_not_repeated",
    ),
    Change(
        "a bug of ours quotes the text of its exception",
        'line {line})"',
        'line {line}) {error}"',
        "test_streams.OurOwnMistakes."
        "test_it_says_so_with_the_version_and_the_place_to_report_and_quotes_nothing",
    ),
    # Text from the service
    Change(
        "text from the service moves the cursor",
        'text = "".join(filter(str.isprintable, text))',
        "pass",
        "test_text.Text.test_names_and_labels_never_add_a_line_or_a_control",
    ),
    Change(
        "JSON is not ASCII",
        "json.dumps(value,",
        "json.dumps(value, ensure_ascii=False,",
        "test_text.Text.test_json_is_ascii_on_one_line_whatever_stands_in_it",
    ),
    Change(
        "HTML is shown",
        "if value is not None or is_page:",
        "if value is not None:",
        ODDS + "test_html_is_not_shown",
    ),
    Change(
        "a link to plain http is handed to the payer",
        '(url.scheme == "https" or on_loopback)',
        "True",
        "test_faults.Evidence.test_a_link_that_is_not_one_exits_5",
    ),
    # Money
    Change(
        "a missing balance is shown as $0.00",
        '        need(billing, "creditBalanceMicrousd", int)\n',
        '        billing.setdefault("creditBalanceMicrousd", 0)\n',
        ODD_FIELDS,
    ),
    Change(
        "the balance is rounded up",
        "cents_text(microusd // MICROUSD_PER_CENT)",
        "cents_text(-(-microusd // MICROUSD_PER_CENT))",
        ODDS + "test_a_balance_is_rounded_down_and_enough_is_said_by_the_exit_code",
    ),
    Change(
        "dollars are taken for cents, and cents for dollars",
        '"c" if kind == "CENTS" else "usd"',
        '"usd" if kind == "CENTS" else "c"',
        SENT,
    ),
    Change(
        "threshold and amount of auto top-up are swapped",
        'amounts["threshold_cents"] = args.threshold or DEFAULT_THRESHOLD_CENTS\n'
        '        amounts["amount_cents"]',
        'amounts["amount_cents"] = args.threshold or DEFAULT_THRESHOLD_CENTS\n'
        '        amounts["threshold_cents"]',
        SENT,
    ),
    Change(
        "a top-up above the cap is made",
        "if cents > settings.max_topup_cents:",
        "if False:",
        REFUSED + "test_amounts_above_the_cap",
    ),
    Change(
        "auto top-up knows no cap",
        "    for cents in amounts.values():\n",
        "    for cents in ():\n",
        REFUSED + "test_amounts_above_the_cap",
    ),
    Change(
        "auto top-up is set to less than a dollar",
        'if kind == "CENTS" and cents < 100:',
        "if False:",
        REFUSED + "test_amounts_of_auto_topup_that_look_like_dollars",
    ),
    Change(
        "too little credit for --min exits 0",
        "report.exit = 0 if enough else PaymentRequired.exit",
        "report.exit = 0",
        ODDS + "test_a_balance_is_rounded_down_and_enough_is_said_by_the_exit_code",
    ),
    Change(
        "topup --wait shows no link",
        "    console.deliver(payment_report(link, None), Failure(",
        "    (payment_report(link, None), Failure(",
        "test_waiting.TopupWait.test_unpaid_exits_4_exactly_on_time_with_one_link",
    ),
    Change(
        "a wait goes on with a refused key",
        "            if isinstance(look, Unauthorized):\n                raise look\n",
        "",
        WAIT + "test_a_refused_key_ends_it_at_once",
    ),
    # Writes and what became of them
    Change(
        "--dry-run sends the write",
        "            if self.dry_run:\n",
        "            if False:\n",
        SENT,
    ),
    Change(
        "--yes is not needed",
        "is_sure = args.yes or args.dry_run",
        "is_sure = True",
        REFUSED_HERE,
    ),
    Change(
        "the key in use is revoked without --force",
        'if key["in_use"] is not False and not args.force:',
        "if False:",
        REFUSED_HERE,
    ),
    Change(
        "a revocation that the list does not show is confirmed",
        "None if None in found else all(found)",
        "True",
        ODDS + "test_a_revocation_that_the_list_does_not_show_is_not_confirmed",
    ),
    Change(
        "the id of a key leads to another call",
        'percent_encode(key_id, "[^A-Za-z0-9_.~-]")',
        "key_id",
        ODDS + "test_a_key_id_stays_one_segment_of_the_path",
    ),
    Change(
        "a 2xx that says no counts as done",
        'if get(value, "ok", bool) is False or',
        "if False and",
        "test_faults.ReadBack.test_a_success_that_says_no_is_a_no",
    ),
    Change(
        "another value is stored, and it counts as done",
        "if held and (is_visible or not lost):",
        "if held is not None and (is_visible or not lost):",
        "test_faults.ReadBack.test_a_host_is_compared_without_its_case_and_the_rest_to_the_letter",
    ),
    Change(
        "a lost provider key counts as set",
        "is_visible=key is None,",
        "is_visible=True,",
        READ_BACK,
    ),
    Change(
        "a lost new key is said to be safe to repeat",
        'code, exit = "uncertain", 6',
        'code, exit = "uncertain", 5',
        READ_BACK,
    ),
    Change(
        "a new key is created although stdout is closed",
        "if sys.stdout is None or sys.stdout.closed:",
        "if False:",
        "test_streams.Streams.test_with_a_closed_stdout_nothing_is_sent",
    ),
    Change(
        "a new key that nobody got exits 0",
        'raise Undelivered(f"standard output did not take the result ({why})") from None',
        "pass",
        "test_streams.Streams.test_a_new_key_that_a_broken_pipe_swallowed_exits_6_and_is_named",
    ),
    Change(
        "a closed terminal leaves an empty key file without a word",
        '("SIGINT", "SIGTERM", "SIGHUP")',
        '("SIGINT", "SIGTERM")',
        SIGNALS + "test_while_a_key_is_made_it_says_to_look_first_and_leaves_no_empty_file",
    ),
    # The command line
    Change(
        "an abbreviated option is accepted",
        "allow_abbrev=False",
        "allow_abbrev=True",
        REFUSED + "test_abbreviated_options",
    ),
    Change(
        "a command is in no document",
        '    "info": Command(\n',
        '    "pay": Command("pay", {"": show_balance}, [""]),\n    "info": Command(\n',
        "test_docs.Agreement.test_every_command_is_on_every_page",
    ),
    Change(
        "an option is in no document",
        '    ("--verbose", "", "a line per exchange on stderr"),\n',
        '    ("--verbose", "", "a line per exchange on stderr"),\n'
        '    ("--quiet", "", "say less"),\n',
        "test_docs.Agreement.test_every_option_is_in_the_readme",
    ),
    Change(
        "an exit code is in no document",
        "  130  interrupted\n",
        "  7    tired\n  130  interrupted\n",
        "test_docs.Agreement.test_every_exit_code_is_on_every_page",
    ),
    Change(
        "a field of JSON is in no document",
        '        "card_saved": get(billing, "defaultPaymentMethodSet", bool),\n',
        '        "card_saved": get(billing, "defaultPaymentMethodSet", bool),\n'
        '        "currency": "USD",\n',
        "test_docs.JsonFields.test_every_field_is_in_the_readme",
    ),
)


def copy_of_tree(folder: Path, source: str) -> Path:
    """A copy of this repository with other text in ops.py."""
    copy = folder / "copy"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    (copy / OPS).write_text(source, "utf-8")
    return copy


def run_tests(source: str, tests: str) -> tuple[bool, str]:
    """Run tests against this text of ops.py: whether all passed, and what was said."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "unittest", "-f", *tests.split()]
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        copy = copy_of_tree(Path(folder), source)
        try:
            done = subprocess.run(
                command, cwd=copy / "tests", env=env, capture_output=True, text=True,
                timeout=LIMIT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False, f"no end within {LIMIT_S} s"
    return done.returncode == 0 and "skipped=" not in done.stderr, done.stderr


def check_test(test: str) -> str:
    """What is wrong with a test on the unchanged file; nothing if it passes."""
    passed, said = run_tests((ROOT / OPS).read_text("utf-8"), test)
    return "" if passed else f"{test} does not pass on the unchanged file:\n{said}"


def check_change(change: Change) -> str:
    """What is wrong with a change; nothing if a test sees it."""
    source = (ROOT / OPS).read_text("utf-8")
    count = source.count(change.old)
    if count != 1:
        return f"its old text stands {count} times in ops.py, not once"
    changed = source.replace(change.old, change.new)
    try:
        compile(changed, str(OPS), "exec")
    except SyntaxError as error:
        return f"it is no Python: {error}"
    passed, said = run_tests(changed, change.tests)
    if passed:
        return f"no test sees it, but {change.tests} should"
    # what breaks each start is seen by any test, and proves nothing
    return "ops.py cannot be imported any more" if "_FailedTest" in said else ""


def main(words: Iterable[str]) -> int:
    """Try the changes that have all words in them; the exit code."""
    changes = [each for each in CHANGES if all(word in " ".join(each) for word in words)]
    if not changes:
        sys.exit("no change has that in it")
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tests = sorted({test for change in changes for test in change.tests.split()})
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
