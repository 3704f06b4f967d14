"""IP addresses, and what looks like one: version numbers, sections, and names in code."""

from __future__ import annotations

import ipaddress
import re

IP_ADDRESS_PATTERN = re.compile(
    r"(?<![\w.:])(?:(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\w|:[0-9A-Fa-f]{0,4}:|-(?:alpha|beta|rc|dev|snapshot))"
    r"|(?:[0-9A-Fa-f]{0,4}:){2,7}(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{0,4})(?![\w:]|\.\w))",
    re.IGNORECASE,
)
_CONTEXT_CHARS = 48
_VERSION_CONTEXT = re.compile(
    r"(?:\b(?:versions?|ver|v|releases?|rel|builds?|rev|revisions?|firmware|driver|packages?|pkg|up(?:grad|dat)ed? to"
    r"|sections?|sec|sect|chapters?|clauses?|paragraphs?|articles?|figures?|fig|appendix|rfc[ -]?\d+,?|oid"
    r"|chrome|edg|opr)\b\.?|§|[=<>~^!]=|[~^])[\s:=#/\"'`(]*(?:(?:is|no|number)\b\.?\s*)?v?"
    r"(?:\d+(?:\.\d+)+\s*(?:,|-|/|and|or|to|through|until)\s*)*\Z|[a-z]-\Z",
    re.IGNORECASE,
)
"""Text before a version number, such as `version 1.2.3.4`, `pkg==1.2.3.4`, `Chrome/120.0.0.0`."""
_OBJECT_IDENTIFIER = re.compile(r"(?:1\.3\.(?:6|14|36|101|132)|2\.5\.(?:4|8|29))\.")
"""Start of identifiers in certificates and algorithms, such as `2.5.4.3` (common name)."""
_IPV6_START = re.compile(r"[0-9a-f]{4}:|64:ff9b:|100::|0:0:0:0:0:|::ffff:", re.IGNORECASE)
_SLICE_CONTEXT = re.compile(r"[\w\])]\[\Z")


def is_ip_address(match: re.Match[str]) -> bool:
    """Return whether a match of `IP_ADDRESS_PATTERN` is an address: `a::b1` is code, and `version 1.2.3.4` is none."""
    address = match.group()
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    before = match.string[max(0, match.start() - _CONTEXT_CHARS) : match.start()]
    if ":" in address:
        return _is_ipv6(address, before)
    return _VERSION_CONTEXT.search(before) is None and _OBJECT_IDENTIFIER.match(address) is None


def _is_ipv6(address: str, before: str) -> bool:
    """Return whether a valid address has the form of those that are in use, and is not a name or slice in code."""
    if address == "::1":
        return _SLICE_CONTEXT.search(before) is None
    groups = [group for group in address.split(":") if group]
    is_word = len(groups) < 3 and address[:4].isalpha()
    return _IPV6_START.match(address) is not None and not is_word
