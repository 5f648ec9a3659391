"""The little that the tests need to know of PromQL: which series and labels an expression names."""

from __future__ import annotations

import re

WORDS = {"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring", "group_left"}
WORDS |= {"group_right", "inf", "nan", "atan2", "start", "end"}

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|`[^`]*`')
_COMMENT = re.compile(r"#.*")
_RANGE = re.compile(r"\[[^\]]*\]")
_MATCHERS = re.compile(r"\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_DURATION = re.compile(r"\b\d[\w.]*")
_NAME = re.compile(r"[A-Za-z_:][\w:]*(?!\w)(?!\s*\()")
_LABEL = re.compile(r"[A-Za-z_]\w*")


def series_in(expression: str) -> set[str]:
    """Names of the series in a PromQL expression: identifiers that are no label and no function."""
    text = _STRING.sub('""', expression)
    for pattern in (_COMMENT, _RANGE, _MATCHERS, _GROUPING, _DURATION):
        text = pattern.sub(" ", text)
    return {name for name in _NAME.findall(text) if name.lower() not in WORDS}


def labels_in(expression: str) -> set[str]:
    """Names of the labels an expression matches on, groups by or joins on."""
    text = _COMMENT.sub(" ", _STRING.sub("", expression))
    parts = _MATCHERS.findall(text) + _GROUPING.findall(text)
    return {label for part in parts for label in _LABEL.findall(part)}
