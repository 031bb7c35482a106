"""Findings as text for people, JSON for scripts, and JUnit's XML for CI systems. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from cnimeta.testing.conformance.examination import FAIL, NOT_APPLICABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta.testing.conformance.examination import Finding

FORMATS = ("text", "json", "junit")


def rendered(findings: Sequence[Finding], form: str, subject: str) -> str:
    """The report on a subject, in one of FORMATS."""
    return {"text": _text, "json": _json, "junit": _junit}[form](findings, subject)


def _text(findings: Sequence[Finding], _subject: str) -> str:
    lines = []
    for finding in findings:
        lines.append(f"{finding.outcome:4}  {finding.rule} ({finding.clause})")
        if finding.outcome == FAIL:
            lines.append(f"      the specification: {finding.sentence}")
        lines += [f"      {line}" for line in finding.detail.splitlines()]
    return "\n".join(lines)


def _json(findings: Sequence[Finding], _subject: str) -> str:
    return json.dumps([finding._asdict() for finding in findings], indent=2)


def _junit(findings: Sequence[Finding], subject: str) -> str:
    broken = sum(finding.outcome == FAIL for finding in findings)
    left_out = sum(finding.outcome == NOT_APPLICABLE for finding in findings)
    name = quoteattr(f"conformance of {subject}")
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        f'<testsuite name={name} tests="{len(findings)}" failures="{broken}" skipped="{left_out}" errors="0">',
    ]
    for finding in findings:
        lines.append(f"  <testcase classname={quoteattr(finding.clause)} name={quoteattr(finding.rule)}>")
        detail = _printable(finding.detail)
        if finding.outcome == FAIL:
            lines.append(f"    <failure message={quoteattr(detail)}>{escape(finding.sentence)}</failure>")
        elif finding.outcome == NOT_APPLICABLE:
            lines.append(f"    <skipped message={quoteattr(detail)}/>")
        lines.append("  </testcase>")
    return "\n".join([*lines, "</testsuite>"])


def _printable(text: str) -> str:
    """What XML can hold: no control characters but white space."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
