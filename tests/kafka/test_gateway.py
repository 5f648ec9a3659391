"""The gateway and its page on a real broker, with a worker that runs the real engine on a toy model."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import browser
from tests.kafka_settings import ENGINE, environment_of
from tests.page_meetings import draft, encoded, opening, release
from tests.worker_process import producer, wait_until, workers

ROOT = Path(__file__).parents[2]
NO_BROWSER = browser.missing()


class GatewayProcess:
    """``longstream gateway`` on a test's topics."""

    def __init__(self, topics: Any, port: int = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli.main", "gateway", "--port", str(port), "--json"],
            cwd=ROOT,
            env=environment_of(topics),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.url = json.loads(line)["url"].rstrip("/")
        self.port = int(self.url.rpartition(":")[2])
        wait_until(lambda: self.call("GET", "/ready")[0] == 200, 60)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        request = urllib.request.Request(self.url + path, method=method)
        data = None
        if body is not None:
            request.add_header("content-type", "application/json")
            data = json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request, data, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())
        except urllib.error.URLError:
            return 0, None

    def stop(self) -> int:
        self.process.terminate()
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@contextmanager
def gateways(topics: Any) -> Iterator[Callable[..., GatewayProcess]]:
    started: list[GatewayProcess] = []

    def start(port: int = 0) -> GatewayProcess:
        started.append(GatewayProcess(topics, port))
        return started[-1]

    try:
        yield start
    finally:
        for gateway in started:
            if gateway.process.poll() is None:
                gateway.stop()


def publish(topics: Any, events: list[tuple[str, Any]]) -> None:
    """Results as a worker would have written them."""
    names: dict[str, str] = {
        "segments": topics.segments,
        "summaries": topics.latest,
        "translations": topics.translations,
    }
    with producer(topics.bootstrap) as made:
        for source, event in events:
            key = event.stream_id.encode()
            made.send(names[source], key=key, value=encoded(event))
        made.flush()


def test_two_gateways_show_one_meeting(topics: Any, tmp_path: Path) -> None:
    """What is said at one is heard at the other; a reader moves between them; forgotten is forgotten."""
    topics.create(2)
    with workers(topics, tmp_path, **ENGINE) as start, gateways(topics) as serve:
        start("w1")
        one, two = serve(), serve()
        said = [
            {"segment_id": f"s{n}", "text": f"sentence number {n} of the talk"} for n in range(6)
        ]
        status, taken = one.call("POST", "/v1/streams/talk/segments", {"segments": said})
        assert status == 201
        assert all(entry["offset"] >= 0 for entry in taken["segments"])
        wait_until(lambda: two.call("GET", "/v1/streams/talk/transcript")[0] == 200, 30)
        wait_until(
            lambda: len(two.call("GET", "/v1/streams/talk/transcript")[1]["segments"]) == 6, 30
        )
        assert two.call("POST", "/v1/streams/talk/segments", said[0])[1]["known"]
        one.call("POST", "/v1/streams/talk/segments", {"type": "session_end"})
        wait_until(lambda: two.call("GET", "/v1/streams/talk/summary")[0] == 200, 60)
        wait_until(lambda: two.call("GET", "/v1/streams/talk/summary")[1]["status"] == "final", 60)
        assert one.call("GET", "/v1/streams/talk/translations/fr")[0] == 200
        cursor = one.call("GET", "/v1/streams/talk")[1]["cursor"]
        assert one.stop() == 0
        missed = urllib.request.urlopen(
            f"{two.url}/v1/streams/talk/events?after={cursor}", timeout=30
        )
        with missed:
            assert b"retry" in missed.readline()
            missed.readline()
            assert missed.readline().strip() == b"event: hello"
        status, answer = two.call("DELETE", "/v1/streams/talk")
        assert (status, answer["stream_id"]) == (200, "talk")
        wait_until(lambda: two.call("GET", "/v1/streams/talk")[0] == 404, 30)


# --- the page --------------------------------------------------------------------------------------


@pytest.mark.skipif(NO_BROWSER is not None, reason=NO_BROWSER or "")
def test_the_page(topics: Any, tmp_path: Path) -> None:
    """One walk through the page; each step says what it proves."""
    topics.create(2)
    hostile = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"
    publish(topics, [*opening(epoch=9), *release(epoch=9)])
    with (
        workers(topics, tmp_path, **ENGINE) as start,
        gateways(topics) as serve,
        browser.chromium() as chromium,
    ):
        start("w1")
        gateway = serve()
        page = chromium.new_context(locale="en-GB").new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))

        page.goto(gateway.url)
        page.get_by_role("link", name="Release meeting").click()
        page.get_by_role("heading", name="Release meeting").wait_for()
        assert_accessible(page)

        # Notes are grouped; one that was replaced says so.
        decisions = page.locator(".group.decision .item")
        assert decisions.count() == 4
        assert "replaced" in page.locator(".item.superseded").inner_text()
        action = page.locator(".item", has_text="Run the load test")
        assert "Mei Lin" in action.inner_text()
        assert "Wednesday noon" in action.inner_text()

        # Evidence leads to the transcript, Escape back.
        action.get_by_role("button", name="Show in the transcript").click()
        focused = page.evaluate("document.activeElement.innerText")
        assert "I will run the load test" in focused
        page.keyboard.press("Escape")
        assert "Mei Lin" in page.evaluate("document.activeElement.innerText")

        # Translations; the committed text is as it was published.
        page.get_by_role("button", name="French").click()
        page.get_by_text("Bien, nous sortons jeudi quatorze").wait_for()
        page.get_by_role("button", name="Original").click()

        # What is said now appears, markup as text; a draft is grey until its final.
        publish(topics, [("segments", draft("release-weekly", 90, "Tom Berg", "half a sent", 0))])
        page.locator(".drafts", has_text="half a sent").wait_for()
        said = {"segment_id": "release-weekly-90", "text": hostile}
        assert gateway.call("POST", "/v1/streams/release-weekly/segments", said)[0] == 201
        page.locator("#lines", has_text="<script>document.title").wait_for()
        assert page.locator(".drafts li").count() == 0
        assert page.locator("#lines img, #lines script").count() == 0

        # A worker's own results come in without a reload.
        talk = [
            {"segment_id": f"t{n}", "text": f"sentence number {n} of the talk"} for n in range(6)
        ]
        gateway.call("POST", "/v1/streams/talk/segments", {"segments": talk})
        page.get_by_role("link", name="talk").click()
        page.locator("#lines", has_text="sentence number 5").wait_for(timeout=30_000)

        # A question is answered by the worker: with evidence, or refused.
        page.get_by_label("Your question").fill("Which sentence of the talk is number 3?")
        page.get_by_label("Your question").press("Enter")
        # It is refused where the worker has not read the segments yet: topics have no common order.
        page.locator(".answer .chip, .answer .state").first.wait_for(timeout=60_000)

        # A person's note, and a person's change of it, by the worker's own hand.
        note = {"text": "Bring the keys", "kind": "action_item", "owner": "Ana"}
        assert gateway.call("POST", "/v1/streams/talk/items", note)[0] == 202
        mine = page.locator(".item", has_text="Bring the keys")
        mine.wait_for(timeout=60_000)
        assert "by a person" in mine.inner_text()
        mine.locator("summary").click()
        mine.get_by_role("button", name="Mark as done").click()
        page.locator(".item.done", has_text="Bring the keys").wait_for(timeout=60_000)
        gateway.call("POST", "/v1/streams/talk/segments", {"type": "session_end"})
        page.locator("#facts", has_text="Ended").wait_for(timeout=60_000)
        page.locator("#facts", has_text="Revision 0.").wait_for(timeout=60_000)

        # The gateway goes away and comes back: the page says so, catches up and misses nothing.
        page.get_by_role("link", name="Release meeting").click()
        page.locator("#lines", has_text="<script>document.title").wait_for()
        gateway.stop()
        page.locator("#link[data-state=lost]").wait_for(timeout=30_000)
        publish(topics, [("segments", release()[-1][1])])
        again = serve(gateway.port)
        again.call("POST", "/v1/streams/release-weekly/segments", {"text": "Said meanwhile."})
        page.locator("#lines", has_text="Said meanwhile.").wait_for(timeout=60_000)
        page.locator("#link[data-state=open]").wait_for(timeout=30_000)

        # A long absence: what changed since then is marked, and can be marked as read.
        page.evaluate(
            "localStorage.setItem('seen opening', '9.2'); history.replaceState(0, '', '#/')"
        )
        page.goto(f"{again.url}/?again#/opening")
        page.get_by_text("notes changed since you looked").wait_for()
        assert page.locator(".item.fresh").count() == 3
        page.get_by_role("button", name="Mark as read").click()
        assert page.locator(".item.fresh").count() == 0
        page.context.close()

        for options in (
            {"locale": "en-GB", "viewport": {"width": 390, "height": 800}},  # a phone
            {"locale": "en-GB", "viewport": {"width": 640, "height": 400}},  # 200 % zoom
            {"locale": "en-GB", "color_scheme": "dark"},
            {"locale": "ar"},
        ):
            look_elsewhere(chromium, again.url, options)
        assert problems == []


def look_elsewhere(chromium: Any, url: str, options: dict[str, Any]) -> None:
    """Nothing runs out of the page sideways, and all can be used by keyboard and screen reader."""
    context = chromium.new_context(**options)
    page = context.new_page()
    page.goto(f"{url}/#/opening")
    page.locator(".item").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), options
    if options["locale"] == "ar":
        assert page.evaluate("document.documentElement.dir") == "rtl"
        assert page.locator("#title").evaluate("e => getComputedStyle(e).direction") == "rtl"
    if page.locator("#tabs").is_visible():
        page.locator("#tab-notes").focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("#said").is_visible()
        assert_accessible(page)
        page.keyboard.press("ArrowLeft")
    assert_accessible(page)
    context.close()


def assert_accessible(page: Any) -> None:
    """axe finds nothing (WCAG 2.2 A and AA, and its own good practice)."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_a_port_that_is_taken_is_said_in_a_sentence(topics: Any) -> None:
    topics.create(1)
    with gateways(topics) as serve:
        port = serve().port
        second = subprocess.run(
            [sys.executable, "-m", "pipelines.cli.main", "gateway", "--port", str(port)],
            cwd=ROOT,
            env=environment_of(topics),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert second.returncode == 2
    assert "choose another LONGSTREAM_GATEWAY_PORT" in second.stderr
    assert "Traceback" not in second.stderr
