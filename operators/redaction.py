"""Personal data that has a form, replaced by its kind before a text is used: "[email]", "[phone]" …

Patterns are of Unicode (digits of every script) and know no language. What has a check digit is checked,
so that an order number is no card. Names, addresses, and numbers spoken in words have no form and stay.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache

Check = Callable[[str], bool]


def redact(text: str, kinds: Iterable[str]) -> str:
    """``text`` with each occurrence of the kinds (of :data:`KINDS`) replaced by ``[kind]``. Nothing else
    changes; without ``kinds`` the text itself is returned."""
    for kind in kinds:
        pattern, check = _PATTERNS[kind]
        text = pattern.sub(_replacement(kind, check), text)
    return text


@lru_cache
def _replacement(kind: str, check: Check) -> Callable[[re.Match[str]], str]:
    return lambda match: f"[{kind}]" if check(match.group()) else match.group()


def _digits(text: str) -> str:
    """The decimal digits of any script, as ASCII."""
    return "".join(str(unicodedata.decimal(c)) for c in text if c.isdecimal())


def _is_card(text: str) -> bool:
    """12 to 19 digits whose Luhn sum is right, and not all the same."""
    digits = _digits(text)
    if not 12 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    total = 0
    for at, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + at % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def _is_iban(text: str) -> bool:
    """ISO 13616: the rest modulo 97 is 1."""
    plain = re.sub(r"\s", "", text).upper()
    if not 15 <= len(plain) <= 34:
        return False
    turned = "".join(str(int(c, 36)) for c in plain[4:] + plain[:4])
    return int(turned) % 97 == 1


def _is_phone(text: str) -> bool:
    """8 to 15 digits (E.164) that are no date such as 01.02.2031, no fraction, and not all the same."""
    digits = _digits(text)
    return 8 <= len(digits) <= 15 and len(set(digits)) > 1 and not _NO_PHONE.match(text)


def _is_ip(text: str) -> bool:
    return all(int(part) < 256 for part in text.split("."))


_NO_PHONE = re.compile(r"\d{1,2}([./-])\d{1,2}\1\d{2,4}|0[.,]\d")
_LOCAL = r"[\w.!#$%&'*+/=?^`{|}~-]"
_LABEL = r"\w[\w-]{0,62}"
# Every repetition is bounded and begins at a place of its own: no text takes more than linear time.
_PATTERNS: dict[str, tuple[re.Pattern[str], Check]] = {
    "email": (re.compile(rf"(?<!{_LOCAL}){_LOCAL}{{1,64}}@{_LABEL}(?:\.{_LABEL}){{1,8}}"), bool),
    "iban": (re.compile(r"\b[A-Za-z]{2}[0-9]{2}(?:[ ]?[A-Za-z0-9]){11,30}\b", re.ASCII), _is_iban),
    "card": (re.compile(r"(?<!\d)\d(?:[ -]?\d){11,18}(?!\d)"), _is_card),
    "ip": (re.compile(r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w.]*\d)"), _is_ip),
    "phone": (re.compile(r"(?<![\w.])(?:\+|00|\(?0)\d?(?:[ ()./-]{0,2}\d){6,14}(?!\d)"), _is_phone),
}
"""In the order in which they are looked for when all are: a card is no phone number."""
KINDS = tuple(_PATTERNS)
