"""Judging a subject by the rules of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnimeta.namedtuple import NamedTuple
from cnimeta.testing.conformance.process import Hung
from cnimeta.testing.conformance.rules import Deviation, NotApplicable, Rules
from cnimeta.testing.conformance.table import RULES

if TYPE_CHECKING:
    from cnimeta.testing.conformance.subject import Subject
    from cnimeta.testing.conformance.table import Rule

PASS, FAIL, NOT_APPLICABLE = "pass", "FAIL", "n/a"


class Finding(NamedTuple):
    """The outcome of one rule."""

    rule: str
    clause: str
    outcome: str
    detail: str = ""
    """What was seen, or why the rule does not apply."""
    sentence: str = ""
    """What the specification says."""


def examine(subject: Subject) -> list[Finding]:
    """Test every rule, in order."""
    subject.begin()
    rules = Rules(subject)
    return [judge(rules, rule) for rule in RULES]


def judge(rules: Rules, rule: Rule) -> Finding:
    """Test one rule. One that fails leaves the attachment deleted, so later rules stand alone.

    A rule in which the plugin hangs fails, after the subject's `timeout_s`.
    """
    outcome, detail = PASS, ""
    rules.subject.begin()
    try:
        rule.test(rules)
    except NotApplicable as reason:
        outcome, detail = NOT_APPLICABLE, str(reason)
    except (Deviation, Hung) as seen:
        _recover(rules)
        outcome, detail = FAIL, str(seen)
    return Finding(rule.words, rule.clause, outcome, detail, rule.sentence)


def _recover(rules: Rules) -> None:
    """As far as it lets itself be cleaned up."""
    rules.subject.begin()
    try:
        rules.clean()
    except Hung:
        rules.subject.renew()
