"""``python -m tests.page_screenshots docs/img``: the page as the documents show it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from operators.events import AnswerEvent, Covers, Evidence, Segment
from pipelines.gateway.app import Gateway
from tests.browser import chromium, served
from tests.page_meetings import MODEL, RELEASE, draft, opening, release
from tests.pipelines.gateway import made

SHOTS: dict[str, dict[str, Any]] = {
    "page-desktop": {"viewport": {"width": 1360, "height": 850}, "locale": "en-GB"},
    "page-dark": {
        "viewport": {"width": 1360, "height": 850},
        "locale": "en-GB",
        "color_scheme": "dark",
    },
    "page-phone": {
        "viewport": {"width": 390, "height": 844},
        "locale": "en-GB",
        "device_scale_factor": 2,
        "has_touch": True,
    },
    "page-arabic": {"viewport": {"width": 1360, "height": 850}, "locale": "ar"},
}


def fill(gateway: Gateway) -> None:
    """Both meetings, two older ones, a draft and an answer."""
    now = time.time_ns() // 1_000_000
    offset = 0
    old = [
        ("board-q3", "Board, third quarter", 26 * 3_600_000),
        ("design", "Design review", 700_000),
    ]
    for name, title, age in old:
        for source, event in release(name, now - age):
            if source == "segments" and event.type == "session_start":
                settings = msgspec.structs.replace(event.settings, title=title)
                event = msgspec.structs.replace(event, settings=settings)
            offset += 1
            gateway.views.take(source, offset, _at(event, now - age), event)
        offset += 1
        end = Segment(stream_id=name, type="session_end")
        gateway.views.take("segments", offset, now - age, end)
    for source, event in [*opening(now=now - 40_000), *release(now=now - 4_000)]:
        offset += 1
        gateway.views.take(source, offset, _at(event, now), event)
    start = sum(900 + 62 * len(text) for _, text, _ in RELEASE) + 5_000
    gateway.views.take("answers", 1, now, answer())
    partial = draft(
        "release-weekly", len(RELEASE), "Priya Shah", "And I will ask them which", start
    )
    gateway.views.take("segments", offset + 1, now, partial)


def answer() -> AnswerEvent:
    return AnswerEvent(
        stream_id="release-weekly",
        epoch=0,
        revision=1,
        question_id="q1",
        question="Why did the date move?",
        text="The load test was not finished; Mei Lin asked for two more days, "
        "and support has people on Thursday.",
        evidence=(
            Evidence("release-weekly-3", 19_000, None, "Mei Lin"),
            Evidence("release-weekly-4", 25_000, None, "Tom Berg"),
        ),
        covers=Covers(to_ms=120_000),
        model=MODEL,
    )


def _at(event: Any, default: int) -> int:
    return int(getattr(event, "emitted_at_ms", None) or default)


def take(folder: Path) -> None:
    gateway, _ = made(gateway_port=0)
    fill(gateway)
    with served(gateway) as url, chromium() as browser:
        for name, options in SHOTS.items():
            context = browser.new_context(**options)
            page = context.new_page()
            problems: list[str] = []
            page.on(
                "console", lambda m, p=problems: p.append(m.text) if m.type == "error" else None
            )
            page.on("pageerror", lambda e, p=problems: p.append(str(e)))
            stream = "opening" if name == "page-arabic" else "release-weekly"
            page.add_init_script("localStorage.setItem('seen release-weekly', '0.3')")
            page.goto(f"{url}/#/{stream}")
            page.wait_for_selector(".item")
            page.wait_for_timeout(400)
            page.screenshot(path=folder / f"{name}.png")
            if name == "page-phone":
                page.click("#tab-said")
                page.wait_for_timeout(300)
                page.screenshot(path=folder / "page-phone-transcript.png")
            context.close()
            assert not problems, problems


if __name__ == "__main__":
    take(Path(sys.argv[1]))
