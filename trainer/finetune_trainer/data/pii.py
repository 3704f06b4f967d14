"""Detection and redaction of personal data and secrets in text: by pattern, then by a validator for each kind.

Findings are never logged. A phone number is found if it has a country code or is written in the US format. Numbers in
other national formats are not found. What is found of published examples is in docs/concepts/data-preparation.md.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import phonenumbers
import regex
from stdnum import iban

from finetune_trainer.data.card_numbers import is_card_number
from finetune_trainer.data.ip_addresses import IP_ADDRESS_PATTERN, is_ip_address
from finetune_trainer.data.national_ids import NATIONAL_ID_HINT, NATIONAL_ID_PATTERN, is_national_id

_SECRET_PARTS = (
    "AKIA",
    "ASIA",
    *("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    "github_pat_",
    "xox",
    "AIza",
    "hf_",
    "sk-",
    "eyJ",
    "-----BEGIN ",
    "ecret",
    "ECRET",
)
"""Texts of which each secret below contains one."""
_SECRET_PATTERNS = {
    "AWS key id": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "AWS secret key": r"""(?i:aws_?secret_?(?:access_?)?key|secretaccesskey)["']?\s{0,4}[:=]\s{0,4}["']?"""
    r"(?P<value>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])",
    "GitHub": r"\bgh[pousr]_[A-Za-z0-9]{36,255}\b|\bgithub_pat_[A-Za-z0-9_]{22,255}\b",
    "Slack": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,250}",
    "Google": r"\bAIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])",
    "Hugging Face": r"\bhf_[A-Za-z0-9]{30,40}\b",
    # With digits and capitals, or with many digits, unlike the names of packages (`sk-learn-contrib-…`).
    "OpenAI and its like": r"\bsk-(?=(?:[A-Za-z_-]{0,99}[0-9]){2})"
    r"(?=[a-z0-9_-]{0,99}[A-Z]|(?:[A-Za-z_-]{0,99}[0-9]){5})(?:[a-z]{2,10}[0-9]{0,2}-)*[A-Za-z0-9_-]{20,200}",
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

    pattern: re.Pattern[str]
    locate: Callable[[re.Match[str]], tuple[int, int] | None] = re.Match.span
    """Returns the start and the end of what a candidate contains, or None."""


def _accept_if(is_valid: Callable[[re.Match[str]], bool]) -> Callable[[re.Match[str]], tuple[int, int] | None]:
    """Return a function that accepts a complete candidate or nothing."""
    return lambda match: match.span() if is_valid(match) else None


def _locate_secret(match: re.Match[str]) -> tuple[int, int]:
    return match.span("value") if match["value"] else match.span()


def _is_phone(match: re.Match[str]) -> bool:
    text = match.group()
    number = "+" + text[2:] if text.startswith("00") else text
    try:
        parsed = phonenumbers.parse(number, None if number.startswith("+") else "US")
    except phonenumbers.NumberParseException:
        return False
    return phonenumbers.is_valid_number(parsed)


def _locate_iban(match: re.Match[str]) -> tuple[int, int] | None:
    text = match.group()
    while text:  # the words that follow may have the form of further groups
        if iban.is_valid(text, check_country=False):  # its lists of banks are not complete
            return match.start(), match.start() + len(text)
        text = text.rpartition(" ")[0]
    return None


# These patterns begin with a character set, which `re` searches without trying the pattern at each position.
_DIGIT_PATTERN = re.compile(r"\d")
_IPV4_HINT = re.compile(r"\d\.\d{1,3}\.\d{1,3}\.\d")
_IPV6_HINT = re.compile(r":[0-9A-Fa-f]{0,4}:")
_CODE_HINT = re.compile(r"[A-Z]{2}\d{2}")
_CARD_HINT = re.compile(r"\d(?:[ -]?\d){12}")
_NUMBER_HINT = re.compile(r"\d(?:[ ()./-]{0,2}\d){6}")
_OTHER_DIGITS = regex.compile(r"[\p{Nd}--[0-9]]", regex.V1)
_SECRET_BYTES = tuple(part.encode() for part in _SECRET_PARTS)
_CHARACTER_CLASSES = bytes.maketrans(b"123456789BCDEFGHIJKLMNOPQRSTUVWXYZ", b"0" * 9 + b"A" * 25)
"""Replaces digits by `0` and capitals by `A`, so that a search for bytes finds all numbers of one form."""
_NUMBER_SEPARATORS = b" ()./-"
_DETECTORS = {
    "secret": _PiiDetector(re.compile("|".join(_SECRET_PATTERNS.values())), _locate_secret),
    "email": _PiiDetector(
        # Not addresses: `git@github.com:org/x.git` and `icon@2x.png`.
        re.compile(
            r"(?<![\w.%+-])(?!(?:git|hg|svn)@)[\w.%+-]{1,64}@(?![1-9]x\.)(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}"
            r"(?![\w-]|\.[A-Za-z]|:[\w.~-]*/)"
        ),
    ),
    "iban": _PiiDetector(re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b"), _locate_iban),
    "nationalId": _PiiDetector(NATIONAL_ID_PATTERN, _accept_if(is_national_id)),
    "creditCard": _PiiDetector(
        re.compile(r"(?<![\w.+-])\d(?:[ -]?\d){12,18}(?![\w-]|\.\d)"),
        _accept_if(lambda match: is_card_number(match.group())),
    ),
    "phone": _PiiDetector(
        re.compile(
            r"(?<![\w+.-])(?:(?:\+|00)[1-9](?:[ ()./-]{0,2}\d){6,14}|(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4})(?![\w-])"
        ),
        _accept_if(_is_phone),
    ),
    "ipAddress": _PiiDetector(IP_ADDRESS_PATTERN, _accept_if(is_ip_address)),
}
PII_KINDS = tuple(_DETECTORS)
"""Kinds in order of precedence: text that is found as one kind is not searched for later kinds."""
PII_PLACEHOLDERS = {
    "email": "[EMAIL]",
    "phone": "[PHONE]",
    "creditCard": "[CREDIT_CARD]",
    "iban": "[IBAN]",
    "nationalId": "[NATIONAL_ID]",
    "ipAddress": "[IP_ADDRESS]",
    "secret": "[SECRET]",
}
"""Texts that replace redacted data, by kind."""


def list_pii_kinds(texts: Sequence[str]) -> list[str]:
    """Return the kind of each personal data or secret in the texts."""
    return [span.kind for text in texts for span in find_pii(text)] if _may_contain_pii("\n".join(texts)) else []


def _may_contain_pii(text: str) -> bool:
    """Return False if nothing is found in any part of the text, as in most texts.

    It searches for bytes that each kind contains, which takes a tenth of the time of the patterns.
    """
    if not text.isascii() and _OTHER_DIGITS.search(text):
        return True
    data = text.encode("ascii", "replace")
    if b"@" in data or any(part in data for part in _SECRET_BYTES):
        return True
    classes = data.translate(_CHARACTER_CLASSES)
    return b"0" in classes and _may_contain_number(text, classes)


def _may_contain_number(text: str, classes: bytes) -> bool:
    """Return whether the text, in the given classes of characters, may contain data that has digits."""
    return (
        b"AA00" in classes
        or b"0000000" in classes.translate(None, _NUMBER_SEPARATORS)
        or (b"0.0" in classes and _IPV4_HINT.search(text) is not None)
        or (b":" in classes and _IPV6_HINT.search(text) is not None)
    )


def find_pii(text: str) -> list[PiiSpan]:
    """Return all personal data and secrets in the text, in order and without overlaps."""
    spans: list[PiiSpan] = []
    for span in _detect_spans(text):
        index = bisect(spans, span.start, key=lambda accepted_span: accepted_span.start)
        if (not index or spans[index - 1].end <= span.start) and (
            index == len(spans) or span.end <= spans[index].start
        ):
            spans.insert(index, span)
    return spans


def _detect_spans(text: str) -> Iterator[PiiSpan]:
    for kind in _list_candidate_kinds(text):
        detector = _DETECTORS[kind]
        for match in detector.pattern.finditer(text):
            span = detector.locate(match)
            if span:
                yield PiiSpan(*span, kind)


def _list_candidate_kinds(text: str) -> Iterator[str]:
    """Yield the kinds that the text may contain, in order of precedence: for most texts there are none."""
    if any(part in text for part in _SECRET_PARTS):
        yield "secret"
    if "@" in text:
        yield "email"
    if _DIGIT_PATTERN.search(text):
        yield from _list_numeric_kinds(text)


def _list_numeric_kinds(text: str) -> Iterator[str]:
    has_code, has_number = _CODE_HINT.search(text), _NUMBER_HINT.search(text)
    if has_code:
        yield "iban"
    if (has_code or has_number) and NATIONAL_ID_HINT.search(text):
        yield "nationalId"
    if has_number and _CARD_HINT.search(text):
        yield "creditCard"
    if has_number:
        yield "phone"
    if _IPV4_HINT.search(text) or (":" in text and _IPV6_HINT.search(text)):
        yield "ipAddress"


def redact_pii(text: str, kinds: Collection[str]) -> str:
    """Replace personal data and secrets of these kinds by placeholders."""
    for span in reversed(find_pii(text)):
        if span.kind in kinds:
            text = text[: span.start] + PII_PLACEHOLDERS[span.kind] + text[span.end :]
    return text
