"""Published examples of personal data and secrets, and texts that look like them, to measure detection with.

Nothing here belongs to a person: issuers and standards publish these values for tests and documentation. Secrets are in
parts, so that secret scanners do not report this file.
"""

from __future__ import annotations

import phonenumbers
from phonenumbers import PhoneNumberFormat, PhoneNumberType

# https://docs.stripe.com/testing, https://docs.adyen.com/development-resources/testing/test-card-numbers,
# https://developer.paypal.com/braintree/docs/reference/general/testing
_CARDS = """
4111111111111111 4242424242424242 4012888888881881 4000056655665556 4222222222222 5555555555554444 5105105105105100
2223003122003222 2223000048400011 5200828282828210 378282246310005 371449635398431 378734493671000 6011111111111117
6011000990139424 6011981111111113 6500000000000002 3056930009020004 36227206271667 30569309025904 38520000023237
3530111333300000 3566002020360505 6200000000000005 6205500000000000004 6759649826438453 6304000000000000
5019717010103742 5066991111111118 6062828888666688 2201382000000013
"""
# One example of each country in the SWIFT IBAN registry.
_IBANS = """
AD1200012030200359100100 AE070331234567890123456 AL47212110090000000235698741 AT611904300234573201
AZ21NABZ00000000137010001944 BA391290079401028494 BE68539007547034 BG80BNBG96611020345678 BH67BMAG00001299123456
BR1800360305000010009795493C1 BY13NBRB3600900000002Z00AB00 CH9300762011623852957 CR05015202001026284066
CY17002001280000001200527600 CZ6508000000192000145399 DE89370400440532013000 DK5000400440116243
DO28BAGR00000001212453611324 EE382200221020145685 EG380019000500000000263180002 ES9121000418450200051332
FI2112345600000785 FO6264600001631634 FR1420041010050500013M02606 GB29NWBK60161331926819 GE29NB0000000101904917
GI75NWBK000000007099453 GL8964710001000206 GR1601101250000000012300695 GT82TRAJ01020000001210029690
HR1210010051863000160 HU42117730161111101800000000 IE29AIBK93115212345678 IL620108000000099999999
IQ98NBIQ850123456789012 IS140159260076545510730339 IT60X0542811101000000123456 JO94CBJO0010000000000131000302
KW81CBKU0000000000001234560101 KZ86125KZT5004100100 LB62099900000001001901229114 LC55HEMM000100010012001200023015
LI21088100002324013AA LT121000011101001000 LU280019400644750000 LV80BANK0000435195001 MC5811222000010123456789030
MD24AG000225100013104168 ME25505000012345678951 MK07250120000058984 MR1300020001010000123456753
MT84MALT011000012345MTLCAST001S MU17BOMM0101101030300200000MUR NL91ABNA0417164300 NO9386011117947
PK36SCBL0000001123456702 PL61109010140000071219812874 PS92PALS000000000400123456702 PT50000201231234567890154
QA58DOHB00001234567890ABCDEFG RO49AAAA1B31007593840000 RS35260005601001611379 SA0380000000608010167519
SC18SSCB11010000000000001497USD SE4550000000058398257466 SI56263300012039086 SK3112000000198742637541
SM86U0322509800000000270100 ST23000100010051845310146 SV62CENR00000000000000700025 TL380080012345678910157
TN5910006035183598478831 TR330006100519786457841326 UA213223130000026007233566001 VA59001123000012345678
VG96VPVG0000012345678901 XK051212012345678906
"""
# RFC 5737, 3849, 9637, 4291, 5952 and 6052.
_ADDRESSES = """
192.0.2.1 192.0.2.255 198.51.100.7 203.0.113.9 127.0.0.1 10.0.0.1 172.16.254.3 255.255.255.255 169.254.1.1
2001:db8::1 2001:db8::8a2e:370:7334 3fff::1 2001:DB8:0:0:8:800:200C:417A 2001:DB8::8:800:200C:417A FF01::101 ::1
FF01:0:0:0:0:0:0:101 0:0:0:0:0:0:0:1 ::FFFF:129.144.52.38 ::13.1.68.3 ABCD:EF01:2345:6789:ABCD:EF01:2345:6789
2001:db8:0:1:1:1:1:1 2001:0db8:0000:0000:0001:0000:0000:0001 64:ff9b::192.0.2.33 2001:db8:122:344::192.0.2.33
fe80::1ff:fe23:4567:890a fd12:3456:789a:1::1 2001:db8:: fe80::a
"""
# RFC 5322, appendix A, and the valid addresses of https://en.wikipedia.org/wiki/Email_address.
_EMAILS = """
john.q.public@example.com mary@x.test jdoe@one.test sysservices@example.net simple@example.com very.common@example.com
FirstName.LastName@EasierReading.org x@example.com long.email-address-with-hyphens@and.subdomains.example.com
user.name+tag+sorting@example.com name/surname@example.com admin@example example@s.example "john..doe"@example.org
mailhost!username@example.org user%example.com@example.org user-@example.org postmaster@[123.123.123.123]
_test@[IPv6:2001:0db8:85a3:0000:0000:8a2e:0370:7334]
"""
# The documentation of python-stdnum.
_NATIONAL_IDS = (
    "536-90-4399",
    "SSN: 536904399",
    "Social security number 536 90 4399",
    "912-90-3456",
    "54362315-K",
    "54362315K",
    "X-2482300-W",
    "X2482300W",
    "RCCMNL83S18D969H",
    "2 95 10 99 126 111 93",
    "295109912611193",
    "390.533.447-05",
    "756.9217.0769.85",
    "85.07.30-033.28",
    "131052-308T",
    "360426199101010071",
    "971013-9019902",
    "BOXW310820HNERXN09",
)
# The documentation of AWS, GitHub, Slack, Google, jwt.io and RFC 7468.
_SECRETS = (
    "AKIA" + "IOSFODNN7EXAMPLE",
    "ASIA" + "IOSFODNN7EXAMPLE",
    'aws_secret_access_key = "' + "wJalrXUtnFEMI/K7MDENG/" + 'bPxRfiCYEXAMPLEKEY"',
    "AWS_SECRET_ACCESS_KEY=" + "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY",
    "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a",
    "github_pat_" + "11AAAAAAA0" + "a1B2c3D4e5F6g7H8" * 4,
    "xoxb-" + "17653672481-19874698323-pdFZKVeTuE8sk7oOcHrzqqgy",
    "AIza" + "SyDaGmWKa4JsXZ-HjGw7ISLn_3namBGewQe",
    "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH",
    "sk-proj-" + "a1B2c3D4e5F6g7H8" * 3,
    "sk-ant-api03-" + "a1B2c3D4_e5F6-g7H8" * 5,
    "sk-or-v1-" + "0e6f44a47a05f1dad2ad7e88c4c1d6b77688157716fb1a5271146f7464951c96",
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIn0"
    ".SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c",
    "-----BEGIN PRIVATE" + " KEY-----\nMIGEAgEAMBAGByqGSM49\n-----END PRIVATE KEY-----",
)
HARMLESS = (
    # versions, as PEP 440, browsers, Windows and package managers write them
    "version 10.2.3.4",
    "v 1.2.3.4 and v1.2.3.4",
    "Version: 6.0.0.1, build 2.0.0.9",
    "versions 1.2.3.4, 1.2.3.5 and 1.2.4.0",
    "pip install package==10.2.3.4",
    "pkg 10.2.3.4 replaces pkg-10.2.3.3.tar.gz",
    "upgraded to 1.9.0.2",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/120.0.0.0 Safari/537.36 Edg/120.0.0.0",
    "release 7.4.3.2 needs firmware 1.0.0.12",
    "1.1.dev1, 1.0.post456.dev34, 2!1.0.0, 10.0.19045.3803",
    # sections, identifiers of objects and documents
    "Section 3.1.4.2 of the standard, § 4.2.1.7 and Figure 1.2.3.4",
    "OID 1.3.6.1.4.1.311.21.20, '2.5.29.17', ObjectIdentifier('1.3.101.112')",
    "RFC 5545 3.8.2.4",
    "doi:10.1000/182 and doi.org/10.1038/nphys1170, arXiv:2101.12345v2",
    "ORCID 0000-0002-1825-0097",
    "ISBN 978-3-16-148410-0, 0-306-40615-2, 9780306406157",
    "EAN 4006381333931, ISSN 2049-3630",
    "IMEI 490154203237518, 352099001761481 and 49-015420-323751-8",
    "C232AB00-9414-11EC-B3C8-9F6BDECED846, 017F22E2-79B0-7CC3-98C4-DC0C0C07398F",
    "d41d8cd98f00b204e9800998ecf8427e",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "MAC 00:00:5E:00:53:01",
    # code
    "a::b1, std::f2, abc::dead::beef1, x[::1], a[::2], boost::asio::ip",
    "git@github.com:org/x.git, ssh://git@github.com/org/x, deploy@host.example:/srv/app",
    "sk-learn-contrib-something-long-name-here, risk-assessment-of-the-whole-plan-2024",
    "icon@2x.png, @types/node@20.1.0, @app.route('/')",
    "hf_hub_download, ghp_, AKIA, eyJ, xoxb-",
    "0x7fffffffe000, 1e-10, 3.14159265358979, 1_000_000_000",
    # numbers and dates
    "2020-01-02T03:04:05.678Z, 12:30:45, 31.12.1999, 1999/12/31",
    "1.234.567,89 EUR, $1,234,567.89, 12 345 678",
    "1700000000, 1700000000000, 1700000000000000000",
    # numbers with a wrong check digit, and numbers that are never issued (https://www.ssa.gov/employer/randomization.html)
    "4111 1111 1111 1112, 378282246310006, 0000 0000 0000 0000",
    "DE88 3704 0044 0532 0130 00",
    "000-12-3456, 666-12-3456, 900-12-3456, 078-05-1120, 219-09-9999, 123-00-4567, 123-45-0000",
    "54362315A, 390.533.447-06, 756.9217.0769.86, RCCMNL83S18D969A",
    "order 536904399, part 54362-315",
    "+1 555, +49 1, 999.999.9999",
)
"""Texts without personal data. Each is counted as one."""


def _list_phones() -> list[str]:
    """Return Google's example numbers of all regions, in international form with spaces and without."""
    kinds = (PhoneNumberType.FIXED_LINE, PhoneNumberType.MOBILE)
    regions = sorted(phonenumbers.SUPPORTED_REGIONS)
    numbers = [phonenumbers.example_number_for_type(region, kind) for region in regions for kind in kinds]
    forms = (PhoneNumberFormat.INTERNATIONAL, PhoneNumberFormat.E164)
    return [phonenumbers.format_number(number, form) for number in numbers if number for form in forms]


def _group(number: str) -> str:
    """Return a number in groups of four, as it is printed."""
    return " ".join(number[start : start + 4] for start in range(0, len(number), 4))


SENSITIVE: dict[str, list[str]] = {
    "email": _EMAILS.split(),
    "phone": _list_phones(),
    "creditCard": [form for number in _CARDS.split() for form in (number, _group(number))],
    "iban": [form for number in _IBANS.split() for form in (number, _group(number))],
    "nationalId": list(_NATIONAL_IDS),
    "ipAddress": _ADDRESSES.split(),
    "secret": list(_SECRETS),
}
"""Texts with one value of each kind."""
