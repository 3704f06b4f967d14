"""Detection and redaction of personal data and secrets."""

from __future__ import annotations

import pytest

from finetune_trainer.data.pii import find_pii, redact_pii

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
KINDS = ["email", "phone", "creditCard", "iban", "ipAddress", "secret"]


@pytest.mark.parametrize(("before", "after"), SENSITIVE.values(), ids=SENSITIVE)
def test_redact_sensitive_text_is_replaced_by_kind(before: str, after: str) -> None:
    assert redact_pii(before, KINDS) == after


HARMLESS = {
    "a card number with a wrong digit": "4111 1111 1111 1112",
    "an IBAN with a wrong digit": "DE88 3704 0044 0532 0130 00",
    "a number of sixteen equal digits": "0000 0000 0000 0000",
    "a phone number that is too short": "+49 1",
    "a version": "version 300.1.2.999",
    "a time": "12:30:45",
    "a namespace": "std::vector and a::b",
    "a handle": "@jane at example",
    "a word with sk": "risk-assessment and sk-ill",
    "sums": "12 + 34 = 46, 2020-01-02, 1.234.567,89",
}


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_redact_harmless_text_is_unchanged(text: str) -> None:
    assert redact_pii(text, KINDS) == text


def test_redact_selected_kinds_only() -> None:
    text = "a@b.example from 10.0.0.1"
    assert redact_pii(text, ["ipAddress"]) == "a@b.example from [IP_ADDRESS]"
    assert [place.kind for place in find_pii(text)] == ["email", "ipAddress"]
