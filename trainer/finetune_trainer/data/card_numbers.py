"""Payment card numbers: the ranges of the issuers, and the check digit."""

from __future__ import annotations

import re

from stdnum import luhn

_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|(?:30[0-5]|309|36\d|38\d|39\d)\d{11,16}"  # Diners Club
    r"|35(?:2[89]|[3-8]\d)\d{12,15}"  # JCB
    r"|(?:6011|64[4-9]\d|65\d\d|62\d\d|60\d\d)\d{12,15}"  # Discover, UnionPay, RuPay
    r"|(?:50[0-9]\d|5[6-8]\d\d|6304|6390|67\d\d)\d{9,15}"  # Maestro, Elo, Verve
    r"|(?:220[0-4]|8[12]\d\d)\d{12,15}"  # Mir, RuPay
    r"|9792\d{12}"  # Troy
)
"""First digits and lengths of the large issuers: https://en.wikipedia.org/wiki/Payment_card_number"""


def is_card_number(text: str) -> bool:
    """Return whether the text is a card number of a known issuer, with or without spaces and hyphens."""
    digits = re.sub(r"[ -]", "", text)
    return _ISSUERS.fullmatch(digits) is not None and len(set(digits)) > 1 and luhn.is_valid(digits)
