"""Draws docs/llamero.svg, the picture that the README and docs/architecture.md open with."""

from pathlib import Path

WIDTH, HEIGHT = 960, 330
STYLE = """
  text { font: 14px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #1f2933 }
  .title { font-weight: 600; font-size: 15px } .small { font-size: 12px; fill: #52606d }
  .box { fill: #fff; stroke: #9aa5b1 } .data { fill: #e3f1f9; stroke: #5aa0c8 } .train { fill: #fdf0dc; stroke: #d99a3d }
  .measure { fill: #e9f5e4; stroke: #6aa84f } .serve { fill: #f3e8f7; stroke: #9a62b3 }
  .arrow { stroke: #52606d; stroke-width: 1.6; fill: none; marker-end: url(#head) }
  .refused { stroke: #c0392b; stroke-dasharray: 4 3 } .page { fill: #fbfcfd; stroke: #dde3ea }
"""


def box(x: int, y: int, width: int, height: int, kind: str, title: str, *lines: str) -> str:
    text = f'<text class="title" x="{x + width // 2}" y="{y + 26}" text-anchor="middle">{title}</text>'
    for index, line in enumerate(lines):
        text += f'<text class="small" x="{x + width // 2}" y="{y + 48 + 18 * index}" text-anchor="middle">{line}</text>'
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="9"/>{text}'


def arrow(path: str, kind: str = "") -> str:
    return f'<path class="arrow {kind}" d="{path}"/>'


PARTS = [
    f'<rect class="page" x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="12"/>',
    box(24, 28, 150, 102, "box", "job.yaml", "one FineTuneJob:", "base, data, training,", "gate, rollout"),
    box(24, 200, 150, 102, "box", "raw data", "Alpaca, ShareGPT,", "Stack Exchange, dialog,", "JSONL, CSV, Parquet"),
    box(236, 114, 142, 102, "data", "prepare", "clean, deduplicate,", "split, tokenise,", "every reject explained"),
    box(420, 114, 142, 102, "train", "train", "QLoRA, no padding,", "checkpoints that", "survive a kill"),
    box(604, 114, 142, 102, "measure", "evaluate", "perplexity, answers", "side by side,", "the gate, a report"),
    box(788, 114, 148, 102, "serve", "serve", "engine with many", "adapters, OpenAI-", "compatible chat"),
    arrow("M174 80 C 215 80, 205 150, 232 152"),
    arrow("M174 250 C 215 250, 205 182, 232 180"),
    arrow("M378 165 H416"),
    arrow("M562 165 H600"),
    arrow("M746 165 H784"),
    arrow("M675 216 V262", "refused"),
    '<text class="small" x="675" y="282" text-anchor="middle">refused by the gate:</text>',
    '<text class="small" x="675" y="299" text-anchor="middle">not served, the reason is kept</text>',
    '<text class="small" x="491" y="82" text-anchor="middle">llamero run job.yaml</text>',
    arrow("M862 114 V72"),
    '<text class="small" x="862" y="44" text-anchor="middle">chat page and</text>',
    '<text class="small" x="862" y="61" text-anchor="middle">/v1/chat/completions</text>',
]


def main() -> None:
    head = (
        '<marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L10 5 L0 10 z" fill="#52606d"/></marker>'
    )
    title = "<title>llamero: one manifest takes raw data to a served chat model</title>"
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{title}<style>{STYLE}</style>'
        f"<defs>{head}</defs>\n" + "\n".join(PARTS) + "\n</svg>\n"
    )
    (Path(__file__).parent.parent / "docs" / "llamero.svg").write_text(svg)


if __name__ == "__main__":
    main()
