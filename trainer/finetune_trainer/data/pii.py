"""Detection and redaction of personal data and secrets in text: by pattern, then by a validator for each kind.

Findings are never logged. A phone number is found if it has a country code or is written in the US format. Numbers in
other national formats are not found.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import phonenumbers
from stdnum import iban, luhn

_CARD_FIRST_DIGITS = "23456"
_SECRET_PREFIXES = ("AKIA", "ASIA", "gh", "github_pat_", "xox", "AIza", "hf_", "sk-", "eyJ", "-----BEGIN ")
"""Prefixes of the secrets below. Each secret contains one of them."""
_SECRET_PATTERNS = {
    "AWS key id": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "GitHub": r"\bgh[pousr]_[A-Za-z0-9]{36,255}\b|\bgithub_pat_[A-Za-z0-9_]{22,255}\b",
    "Slack": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,250}",
    "Google": r"\bAIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])",
    "Hugging Face": r"\bhf_[A-Za-z0-9]{30,40}\b",
    "OpenAI and its like": r"\bsk-(?:[a-z]{2,10}[0-9]{0,2}-)*[A-Za-z0-9_-]{20,200}",
    "JWT": r"\beyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{4,8192}\.[A-Za-z0-9_-]{8,2048}",
    "private key": r"-----BEGIN (?:[A-Z]{2,12} ){0,2}PRIVATE KEY-----(?:[^-]{0,8192}-----END [A-Z ]{1,40}-----)?",
}


@dataclass(frozen=True)
class PiiSpan:
    """Location and kind of personal data or a secret in a text."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class _PiiDetector:
    """Detector of one kind of personal data or secret."""

    may_match: Callable[[str], object]
    """Fast check that is false only for texts without a match, as most texts are."""
    pattern: re.Pattern[str]
    validate: Callable[[str], int] = len
    """Returns the number of characters of a candidate that are a match; 0 if it is not a match."""


def _validate_phone(text: str) -> int:
    number = "+" + text[2:] if text.startswith("00") else text
    try:
        parsed = phonenumbers.parse(number, None if number.startswith("+") else "US")
    except phonenumbers.NumberParseException:
        return 0
    return len(text) if phonenumbers.is_valid_number(parsed) else 0


def _validate_card(text: str) -> int:
    digits = re.sub(r"[ -]", "", text)
    return len(text) if digits[0] in _CARD_FIRST_DIGITS and len(set(digits)) > 1 and luhn.is_valid(digits) else 0


def _validate_iban(text: str) -> int:
    # The words that follow may have the form of further groups.
    while text:
        if iban.is_valid(text):
            return len(text)
        text = text.rpartition(" ")[0]
    return 0


def _validate_ip_address(text: str) -> int:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return 0
    return len(text) if any(char.isdigit() for char in text) else 0  # a::b is more often code than an address


def _may_hold_secret(text: str) -> bool:
    return any(prefix in text for prefix in _SECRET_PREFIXES)


def _may_hold_ip_address(text: str) -> bool:
    return _IPV4_HINT.search(text) is not None or (":" in text and _IPV6_HINT.search(text) is not None)


# These patterns begin with a character set, which `re` searches without trying the pattern at each position.
_DIGIT_PATTERN = re.compile(r"\d")
_IPV4_HINT = re.compile(r"\d\.\d{1,3}\.\d")
_IPV6_HINT = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IBAN_HINT = re.compile(r"[A-Z]{2}\d{2}")
_CARD_HINT = re.compile(r"\d(?:[ -]?\d){12}")
_PHONE_HINT = re.compile(r"\d(?:[ ()./-]{0,2}\d){6}")
_DETECTORS = {
    "secret": _PiiDetector(_may_hold_secret, re.compile("|".join(_SECRET_PATTERNS.values()))),
    "email": _PiiDetector(
        lambda text: "@" in text,
        re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"),
    ),
    "iban": _PiiDetector(
        _IBAN_HINT.search, re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b"), _validate_iban
    ),
    "creditCard": _PiiDetector(
        _CARD_HINT.search, re.compile(r"(?<![\w.+-])\d(?:[ -]?\d){12,18}(?![\w-])"), _validate_card
    ),
    "phone": _PiiDetector(
        _PHONE_HINT.search,
        re.compile(
            r"(?<![\w+.-])(?:(?:\+|00)[1-9](?:[ ()./-]{0,2}\d){6,14}|(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4})(?![\w-])"
        ),
        _validate_phone,
    ),
    "ipAddress": _PiiDetector(
        _may_hold_ip_address,
        re.compile(r"(?<![\w.:])(?:(?:\d{1,3}\.){3}\d{1,3}|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4})(?![\w:]|\.\w)"),
        _validate_ip_address,
    ),
}
PII_KINDS = tuple(_DETECTORS)
"""Kinds in order of precedence: text that is found as one kind is not searched for later kinds."""
_DIGITLESS_KINDS = ("secret", "email")
PII_PLACEHOLDERS = {
    "email": "[EMAIL]",
    "phone": "[PHONE]",
    "creditCard": "[CREDIT_CARD]",
    "iban": "[IBAN]",
    "ipAddress": "[IP_ADDRESS]",
    "secret": "[SECRET]",
}
"""Texts that replace redacted data, by kind."""


def find_pii(text: str) -> list[PiiSpan]:
    """Return all personal data and secrets in the text, in order and without overlaps."""
    spans: list[PiiSpan] = []
    for span in _detect_spans(text):
        if all(span.end <= accepted_span.start or accepted_span.end <= span.start for accepted_span in spans):
            spans.append(span)
    return sorted(spans, key=lambda place: place.start)


def _detect_spans(text: str) -> Iterator[PiiSpan]:
    kinds = PII_KINDS if _DIGIT_PATTERN.search(text) else _DIGITLESS_KINDS
    for kind, detector in ((name, _DETECTORS[name]) for name in kinds):
        for match in detector.pattern.finditer(text) if detector.may_match(text) else ():
            length = detector.validate(match.group())
            if length:
                yield PiiSpan(match.start(), match.start() + length, kind)


def redact_pii(text: str, kinds: Collection[str]) -> str:
    """Replace personal data and secrets of these kinds by placeholders."""
    for span in reversed(find_pii(text)):
        if span.kind in kinds:
            text = text[: span.start] + PII_PLACEHOLDERS[span.kind] + text[span.end :]
    return text
