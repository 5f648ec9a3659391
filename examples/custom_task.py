"""A task of your own: keywords of what was said lately, beside the summaries.

python examples/custom_task.py talk.txt --model smollm2-135m
"""

from __future__ import annotations

import argparse
from pathlib import Path

from longstream import Outcome, ResultEvent, Task, load_operator

PROMPT = (Path(__file__).parent / "keywords.txt").read_text("utf-8")


class Keywords(Task):
    """Three keywords after every ``every`` tokens of transcript."""

    name = "keywords"

    def __init__(self, every: int = 100) -> None:
        self.every = every

    def due(self, progress):
        return "tokens" if progress.tokens >= self.every else None

    def run(self, view, occasion):
        before = view.last_output.get(self.name, "none yet")
        ask = self.tools.ask(PROMPT.format(before=before), max_tokens=24)
        (answer,) = yield [ask]
        event = self.tools.result(self.name, view, answer)
        return Outcome(events=(event,), remember={self.name: event.text})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    options = parser.parse_args()
    operator = load_operator(options.model, tasks=(Keywords(),))
    stream = operator.open(options.file.stem)
    for line in options.file.read_text("utf-8").splitlines():
        stream.feed(line)
        for event in stream.results():
            if isinstance(event, ResultEvent):
                print(f"{event.task} {event.revision}: {event.text}")


if __name__ == "__main__":
    main()
