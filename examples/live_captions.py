"""Live captions with translation: lines of speech on standard input, translated as they come.

tail -f talk.txt | python examples/live_captions.py --to fr
"""

from __future__ import annotations

import argparse
import sys

import longstream


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", default="fr")
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    options = parser.parse_args(arguments)
    operator = longstream.load_operator(options.model, targets=(options.to,))
    stream = operator.open("captions")
    for line in sys.stdin:
        if not line.strip():
            continue
        stream.feed(line.strip())
        for event in stream.results():
            if isinstance(event, longstream.TranslationEvent):
                print(f"{event.source_text}\n  {event.committed}", flush=True)


if __name__ == "__main__":
    main()
