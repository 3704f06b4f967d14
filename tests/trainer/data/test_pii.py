"""Detection and redaction of personal data and secrets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tests.support.trainer.sensitive_texts import HARMLESS as LOOKALIKES
from tests.support.trainer.sensitive_texts import SENSITIVE as PUBLISHED

from finetune_trainer.data.pii import PII_KINDS, PII_PLACEHOLDERS, find_pii, list_pii_kinds, redact_pii

# In parts, so that secret scanners do not report this file.
KEY = "AKIA" + "IOSFODNN7EXAMPLE"
SENSITIVE = {
    "email": ("Write to jane.doe+x@mail.example.co.uk.", "Write to [EMAIL]."),
    "international phone": ("Call +49 30 901820 today", "Call [PHONE] today"),
    "phone with two zeros": ("Call 0049-30-901820 today", "Call [PHONE] today"),
    "phone with brackets": ("Call +44 (20) 7946-0018", "Call [PHONE]"),
    "phone with dots": ("Call 212.736.5000 or 212-736-5000", "Call [PHONE] or [PHONE]"),
    "American phone": ("Call (212) 736-5000!", "Call [PHONE]!"),
    "credit card without spaces": ("4111111111111111", "[CREDIT_CARD]"),
    "credit card": ("Card 4111 1111 1111 1111, thanks", "Card [CREDIT_CARD], thanks"),
    "IBAN in groups": ("IBAN DE89 3704 0044 0532 0130 00.", "IBAN [IBAN]."),
    "IBAN before words in capitals": ("AT61 1904 3002 3457 3201 SEND IT", "[IBAN] SEND IT"),
    "IPv4": ("From 192.168.10.1.", "From [IP_ADDRESS]."),
    "short IPv6": ("From fe80::1 on", "From [IP_ADDRESS] on"),
    "IPv6": ("From 2001:db8::8a2e:370:7334 on", "From [IP_ADDRESS] on"),
    "IPv4 with a port": ("localhost/127.0.0.1:8080", "localhost/[IP_ADDRESS]:8080"),
    "range of IPv4": ("10.0.0.1-10.0.0.9", "[IP_ADDRESS]-[IP_ADDRESS]"),
    "IPv6 in a URL": ("http://[::1]:80/", "http://[[IP_ADDRESS]]:80/"),
    "social security number": ("SSN 536-90-4399.", "SSN [NATIONAL_ID]."),
    "social security number without hyphens": ("ssn: 536904399", "ssn: [NATIONAL_ID]"),
    "IBAN of a bank that is not listed": ("BE68 5390 0754 7034", "[IBAN]"),
    "AWS secret key": (
        "aws_secret_access_key=" + "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY;",
        "aws_secret_access_key=[SECRET];",
    ),
    "AWS key id": (f"key={KEY}", "key=[SECRET]"),
    "AWS key id for a while": (KEY.replace("AKIA", "ASIA"), "[SECRET]"),
    "GitHub token": ("ghp_" + "a1B2" * 9, "[SECRET]"),
    "GitHub fine-grained token": ("github_pat_" + "a1B2" * 6, "[SECRET]"),
    "Slack token": ("xoxb-" + "1234567890-abcdef", "[SECRET]"),
    "Google key": ("AIza" + "a1B2c" * 7, "[SECRET]"),
    "Hugging Face token": ("hf_" + "aB" * 17, "[SECRET]"),
    "OpenAI key": ("sk-proj-" + "aB3_" * 10, "[SECRET]"),
    "JWT": ("eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "[SECRET]"),
    "private key": (
        "-----BEGIN RSA PRIVATE" + " KEY-----\nMIIB+/=\n-----END RSA PRIVATE KEY-----\nok",
        "[SECRET]\nok",
    ),
}


@pytest.mark.parametrize(("before", "after"), SENSITIVE.values(), ids=SENSITIVE)
def test_redact_sensitive_text_is_replaced_by_kind(before: str, after: str) -> None:
    assert redact_pii(before, PII_KINDS) == after


HARMLESS = {
    "a card number with a wrong digit": "4111 1111 1111 1112",
    "an IBAN with a wrong digit": "DE88 3704 0044 0532 0130 00",
    "a number of sixteen equal digits": "0000 0000 0000 0000",
    "a phone number that is too short": "+49 1",
    "a version": "version 300.1.2.999 and version 10.2.3.4",
    "a time": "12:30:45",
    "a namespace": "std::vector and a::b",
    "a handle": "@jane at example",
    "a word with sk": "risk-assessment and sk-ill",
    "sums": "12 + 34 = 46, 2020-01-02, 1.234.567,89",
}


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_redact_harmless_text_is_unchanged(text: str) -> None:
    assert redact_pii(text, PII_KINDS) == text


# Number of published values that are found, as the table in docs/concepts/data-preparation.md has it.
FOUND = {
    "email": "13 of 19",
    "phone": "978 of 978",
    "creditCard": "62 of 62",
    "iban": "154 of 154",
    "nationalId": "18 of 18",
    "ipAddress": "28 of 29",
    "secret": "14 of 14",
}


def _is_found(kind: str, value: str) -> bool:
    """Return whether the value is redacted completely, apart from words before it such as `SSN: `."""
    redacted = redact_pii(f"My data: {value}, thanks.", PII_KINDS)
    rest = redacted.removeprefix("My data: ").removesuffix(", thanks.").replace(PII_PLACEHOLDERS[kind], "")
    return rest != value and not any(char.isdigit() or char in "@/!" for char in rest)


@pytest.mark.parametrize("kind", PII_KINDS)
def test_find_published_values_recall_is_as_documented(kind: str) -> None:
    values = PUBLISHED[kind]
    found = f"{sum(_is_found(kind, value) for value in values)} of {len(values)}"
    documentation = Path("docs/concepts/data-preparation.md").read_text()
    assert found == FOUND[kind]
    assert f"{found} |" in next(line for line in documentation.splitlines() if line.startswith(f"| `{kind}` | "))


@pytest.mark.parametrize("kind", PII_KINDS)
def test_list_kinds_among_other_texts_are_those_of_each_text(kind: str) -> None:
    for value in (*PUBLISHED[kind], *LOOKALIKES, *(before for before, _ in SENSITIVE.values())):
        expected = [span.kind for span in find_pii(value)]
        assert list_pii_kinds(["Où ça ?", value, "Version 2 is out."]) == expected, value


def test_find_lookalikes_gives_no_false_alarm() -> None:
    false_alarms = Counter(span.kind for text in LOOKALIKES for span in find_pii(text))
    assert false_alarms == {}


def test_find_long_hostile_texts_is_linear() -> None:
    for part in ("sk-", "1.2.", "a:", "12-", "0 1", "A1", "x@", "1.1.1.1 ", "xox", "ssn 1 "):
        find_pii(part * (100_000 // len(part)))


def test_redact_selected_kinds_only() -> None:
    text = "a@b.example from 10.0.0.1"
    assert redact_pii(text, ["ipAddress"]) == "a@b.example from [IP_ADDRESS]"
    assert [place.kind for place in find_pii(text)] == ["email", "ipAddress"]
