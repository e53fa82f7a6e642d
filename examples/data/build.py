"""Builds the quickstart's three data files from facts.yaml, and plants the dirt of real data in them.

It knows the three formats and the kinds of dirt; what the cleaning makes of them is left to llamero. The same facts.yaml gives the same bytes.

    python examples/data/build.py [--out FOLDER]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from builder.alpaca import build_alpaca
from builder.dirt import OUTCOMES, Dirt
from builder.facts import ALPACA, DIRT, SHAREGPT, STACKEXCHANGE, Fact, deal_wordings
from builder.posts import build_posts
from builder.sharegpt import build_sharegpt

HERE = Path(__file__).resolve().parent


def build(source: dict[str, Any]) -> dict[str, bytes]:
    """The files, by path below the data folder. Raises KeyError where facts.yaml lacks a part."""
    facts = [Fact(f["id"], tuple(f["topic"]), tuple(f["questions"]), f["answer"]) for f in source["facts"]]
    dealt = deal_wordings(facts, set(source["demo_prompts"]))
    open_questions = iter(source["open_questions"])
    dirt = Dirt()
    posts, bodiless = build_posts(source, facts, dealt[STACKEXCHANGE], open_questions, dirt)
    alpaca = build_alpaca(facts, dealt[ALPACA], set(source["demo_prompts"]), bodiless, open_questions)
    sharegpt = build_sharegpt(source, facts, dealt[SHAREGPT], alpaca, open_questions)
    for file, rows in ((ALPACA, alpaca), (SHAREGPT, sharegpt)):
        for number, row in enumerate(rows, start=1):
            for kind in row.kinds:
                dirt.note(kind, file, number)
    return {
        STACKEXCHANGE: posts,
        ALPACA: as_json([row.value for row in alpaca]),
        SHAREGPT: as_json([row.value for row in sharegpt]),
        DIRT: as_json({kind: dirt.kinds[kind] for kind in OUTCOMES}),
    }


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the quickstart's data from facts.yaml.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: beside this script)")
    out: Path = parser.parse_args().out
    source = yaml.safe_load((HERE / "facts.yaml").read_text(encoding="utf-8"))
    for name, content in build(source).items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        print(f"{path}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
