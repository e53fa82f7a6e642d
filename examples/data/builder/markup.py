"""Small Markdown as HTML: as Stack Exchange writes it, and as it is copied from a chat page."""

import html
import re


def prose(text: str) -> str:
    """The text without its code blocks, in one line."""
    return " ".join(re.sub(r"```.*?```", "", text, flags=re.DOTALL).split())


def to_html(text: str) -> str:
    """Small Markdown as HTML in the way of Stack Exchange: paragraphs, lists, code blocks, and what stands within a line."""
    blocks = re.split(r"\n\n(?=\S)", text)
    return "".join(block_to_html(block) + "\n" for block in blocks)


def block_to_html(block: str) -> str:
    if block.startswith("```"):
        language, code = block.removeprefix("```").removesuffix("```").split("\n", 1)
        return f'<pre><code class="lang-{language}">{html.escape(code, quote=False)}</code></pre>'
    if block.startswith("- "):
        items = "".join(f"  <li>{inline_to_html(item)}</li>\n" for item in block.removeprefix("- ").split("\n- "))
        return f"<ul>\n{items}</ul>"
    return f"<p>{inline_to_html(block)}</p>"


def inline_to_html(text: str) -> str:
    """Code, links and bold; an arrow outside of code stays raw, as careless writers leave it."""
    parts = re.split(r"`([^`]+)`", text)
    for index, part in enumerate(parts):
        part = html.escape(part, quote=False)
        if index % 2:
            parts[index] = f"<code>{part}</code>"
            continue
        part = re.sub(r"\[([^\]]+)\]\(([^)]+)\)", r'<a href="\2" rel="nofollow">\1</a>', part.replace("&lt;-", "<-"))
        parts[index] = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", part)
    return "".join(parts)


def to_page(text: str) -> str:
    """HTML as it is copied from a chat page: code blocks stand in a box with a button."""
    box = (
        r'<pre><div class="bg-black rounded-md"><div class="flex items-center"><span>\1</span><button class="flex ml-auto">Copy code</button>'
        r'</div><div class="p-4 overflow-y-auto"><code class="!whitespace-pre hljs language-\1">\2</code></div></div></pre>'
    )
    page = re.sub(r'<pre><code class="lang-(\w+)">(.*?)</code></pre>', box, to_html(text), flags=re.DOTALL)
    return f'<div class="markdown prose w-full break-words">{page.strip()}</div>'


def with_button(text: str) -> str:
    """Markdown in which a code block still carries the words of its button."""
    return re.sub(r"```(\w+)\n(.*?)```", r"```\n\1Copy code\n\2```", text, flags=re.DOTALL)
