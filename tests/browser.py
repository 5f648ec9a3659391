"""A headless Chromium that is on this machine already, and a gateway for it to look at."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from pipelines.config.fields import Settings
from pipelines.gateway.app import Gateway
from pipelines.gateway.server import config_of, listen, url_of

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"]


def missing() -> str | None:
    """Why there is no browser; None if there is one."""
    try:
        import playwright  # noqa: F401
    except ModuleNotFoundError:
        return "no playwright: pip install playwright"
    if program() is None:
        return f"no Chromium: none of {', '.join(PROGRAMS)} on PATH, and CHROMIUM names none"
    return None


def program() -> str | None:
    named = os.environ.get("CHROMIUM")
    found = filter(None, [named, *map(shutil.which, PROGRAMS)])
    return next(found, None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A Playwright browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served(gateway: Gateway) -> Iterator[str]:
    """The gateway's address; in a thread of its own. It never connects to Kafka."""
    with served_app(gateway.app, "off") as url:
        yield url


@contextmanager
def served_app(app: Any, lifespan: Any = "on") -> Iterator[str]:
    """The address of an ASGI app that runs in a thread of its own."""
    settings = Settings(gateway_port=0)
    config = config_of(app, settings)
    config.lifespan = lifespan
    server = uvicorn.Server(config)
    with listen(settings) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        try:
            yield url_of(listener)
        finally:
            server.should_exit = server.force_exit = True
            thread.join(10)
