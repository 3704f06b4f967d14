"""Personal data and secrets in text: found by pattern, then checked by what knows the rules of each kind.

What is found is never logged. Phone numbers need their country code or the American way of writing; a number that
only its own country would recognise is not found.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import phonenumbers
from stdnum import iban, luhn

_CARD_STARTS = "23456"
_SECRET_STARTS = ("AKIA", "ASIA", "gh", "github_pat_", "xox", "AIza", "hf_", "sk-", "eyJ", "-----BEGIN ")
"""One of these stands in each of the secrets below."""
_SECRETS = {
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
class Place:
    """Where something sensitive stands in a text."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class _Kind:
    """`possible` is false only for texts without a match, and far faster to tell: most texts have none.

    `accepted` says how many characters of a candidate are meant; 0 if it is something else.
    """

    possible: Callable[[str], object]
    pattern: re.Pattern[str]
    accepted: Callable[[str], int] = len


def _phone(text: str) -> int:
    number = "+" + text[2:] if text.startswith("00") else text
    try:
        parsed = phonenumbers.parse(number, None if number.startswith("+") else "US")
    except phonenumbers.NumberParseException:
        return 0
    return len(text) if phonenumbers.is_valid_number(parsed) else 0


def _card(text: str) -> int:
    digits = re.sub(r"[ -]", "", text)
    return len(text) if digits[0] in _CARD_STARTS and len(set(digits)) > 1 and luhn.is_valid(digits) else 0


def _iban(text: str) -> int:
    # The words after it may be spelt like more groups of it.
    while text:
        if iban.is_valid(text):
            return len(text)
        text = text.rpartition(" ")[0]
    return 0


def _address(text: str) -> int:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return 0
    return len(text) if any(char.isdigit() for char in text) else 0  # a::b is code more often than an address


def _may_hold_secret(text: str) -> bool:
    return any(start in text for start in _SECRET_STARTS)


def _may_hold_address(text: str) -> bool:
    return _FOUR.search(text) is not None or (":" in text and _SIX.search(text) is not None)


# What these begin with is a set of characters, which `re` looks for without trying the pattern at each place.
_DIGIT = re.compile(r"\d")
_FOUR = re.compile(r"\d\.\d{1,3}\.\d")
_SIX = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IBAN = re.compile(r"[A-Z]{2}\d{2}")
_CARD = re.compile(r"\d(?:[ -]?\d){12}")
_PHONE = re.compile(r"\d(?:[ ()./-]{0,2}\d){6}")
_KINDS = {
    "secret": _Kind(_may_hold_secret, re.compile("|".join(_SECRETS.values()))),
    "email": _Kind(
        lambda text: "@" in text,
        re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"),
    ),
    "iban": _Kind(_IBAN.search, re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b"), _iban),
    "creditCard": _Kind(_CARD.search, re.compile(r"(?<![\w.+-])\d(?:[ -]?\d){12,18}(?![\w-])"), _card),
    "phone": _Kind(
        _PHONE.search,
        re.compile(
            r"(?<![\w+.-])(?:(?:\+|00)[1-9](?:[ ()./-]{0,2}\d){6,14}|(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4})(?![\w-])"
        ),
        _phone,
    ),
    "ipAddress": _Kind(
        _may_hold_address,
        re.compile(r"(?<![\w.:])(?:(?:\d{1,3}\.){3}\d{1,3}|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4})(?![\w:]|\.\w)"),
        _address,
    ),
}
KINDS = tuple(_KINDS)
"""In this order: what belongs to an earlier kind is not looked at again."""
_KINDS_WITHOUT_DIGITS = ("secret", "email")
PLACEHOLDERS = {
    "email": "[EMAIL]",
    "phone": "[PHONE]",
    "creditCard": "[CREDIT_CARD]",
    "iban": "[IBAN]",
    "ipAddress": "[IP_ADDRESS]",
    "secret": "[SECRET]",
}
"""What stands where something was redacted."""


def find(text: str) -> list[Place]:
    """Everything sensitive in a text, in its order; no two places overlap."""
    found: list[Place] = []
    for place in _candidates(text):
        if all(place.end <= other.start or other.end <= place.start for other in found):
            found.append(place)
    return sorted(found, key=lambda place: place.start)


def _candidates(text: str) -> Iterator[Place]:
    kinds = KINDS if _DIGIT.search(text) else _KINDS_WITHOUT_DIGITS
    for name, kind in ((name, _KINDS[name]) for name in kinds):
        for match in kind.pattern.finditer(text) if kind.possible(text) else ():
            length = kind.accepted(match.group())
            if length:
                yield Place(match.start(), match.start() + length, name)


def redact(text: str, kinds: Collection[str]) -> str:
    """The text with a placeholder for everything of these kinds."""
    for place in reversed(find(text)):
        if place.kind in kinds:
            text = text[: place.start] + PLACEHOLDERS[place.kind] + text[place.end :]
    return text
