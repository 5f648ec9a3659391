"""Notes of a transcript file.

python examples/summarise_file.py examples/standup.txt --model smollm2-135m
"""

from __future__ import annotations

import argparse
from pathlib import Path

import longstream


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    options = parser.parse_args(arguments)
    operator = longstream.load_operator(options.model)
    stream = operator.open(options.file.stem)
    for line in options.file.read_text("utf-8").splitlines():
        if line.strip():
            stream.feed(line)
    notes = stream.close()
    for item in notes.items if notes else ():
        print(f"{item.kind}: {item.text}")


if __name__ == "__main__":
    main()
