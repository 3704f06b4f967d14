"""National identity and social security numbers that can be recognized by their form and check digits.

Numbers of other countries are plain digits with a weak check digit or none. To search for them would find more order
numbers than persons.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from stdnum.be import nn
from stdnum.br import cpf
from stdnum.ch import ssn as ahv
from stdnum.cn import ric
from stdnum.es import dni, nie
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.it import codicefiscale
from stdnum.kr import rrn
from stdnum.mx import curp
from stdnum.us import itin, ssn

_CONTEXT_CHARS = 32
_SSN_CONTEXT = re.compile(r"(?i:\bssn|social security)[^\d]*\Z")


def _is_named_ssn(match: re.Match[str]) -> bool:
    """Return whether digits without hyphens are a number that the text before calls a social security number."""
    before = match.string[max(0, match.start() - _CONTEXT_CHARS) : match.start()]
    return _SSN_CONTEXT.search(before) is not None and ssn.is_valid(match.group().replace(" ", ""))


def _check_number(is_valid: Callable[[str], bool]) -> Callable[[re.Match[str]], bool]:
    return lambda match: is_valid(match.group())


_NUMBERS: Mapping[str, tuple[str, Callable[[re.Match[str]], bool]]] = {
    "ssn": (r"\d{3}-\d\d-\d{4}", _check_number(lambda number: ssn.is_valid(number) or itin.is_valid(number))),
    "named_ssn": (r"\d{3} ?\d\d ?\d{4}", _is_named_ssn),
    "cpf": (r"\d{3}\.\d{3}\.\d{3}-\d\d", _check_number(cpf.is_valid)),
    "ahv": (r"756\.\d{4}\.\d{4}\.\d\d", _check_number(ahv.is_valid)),
    "nn": (r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d", _check_number(nn.is_valid)),
    "dni": (r"\d{8}-?[A-Z]", _check_number(dni.is_valid)),
    "nie": (r"[XYZ]-?\d{7}-?[A-Z]", _check_number(nie.is_valid)),
    "hetu": (r"\d{6}[-+A-FU-Y]\d{3}[0-9A-Y]", _check_number(hetu.is_valid)),
    "rrn": (r"\d{6}-\d{7}", _check_number(rrn.is_valid)),
    "ric": (r"\d{17}[0-9X]", _check_number(ric.is_valid)),
    "nir": (r"[12] ?\d\d ?\d\d ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d", _check_number(nir.is_valid)),
    "codicefiscale": (r"[A-Z]{6}\d\d[A-Z]\d\d[A-Z]\d{3}[A-Z]", _check_number(codicefiscale.is_valid)),
    "curp": (r"[A-Z]{4}\d{6}[HM][A-Z]{5}[0-9A-Z]\d", _check_number(curp.is_valid)),
}
NATIONAL_ID_HINT = re.compile(
    r"\d(?:\d{5}|\d\d-\d\d-\d{4}|\d\d \d\d \d{4}|\d\d\.\d{3}\.\d{3}-|56\.\d{4}\.|\d\.\d\d\.\d\d-|\d[A-Z]\d\d[A-Z]"
    r"| \d\d \d\d (?:\d\d|2[AB]) )"
)
"""Faster pattern that each text with such a number matches."""
NATIONAL_ID_PATTERN = re.compile(
    r"(?<![\w.+-])(?:" + "|".join(f"(?P<{name}>{form})" for name, (form, _) in _NUMBERS.items()) + r")(?![\w-]|\.\d)"
)
"""Pattern with one named group for each kind of number."""


def is_national_id(match: re.Match[str]) -> bool:
    """Return whether a match of `NATIONAL_ID_PATTERN` is a valid number."""
    return _NUMBERS[str(match.lastgroup)][1](match)
