// Turns a model's Markdown into elements that can do no harm: sanitised, nothing loaded from elsewhere, links in a new tab.

const ALLOWED_TAGS = [
  "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "strong",
  "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
];
const ALLOWED_ATTR = ["href", "title", "start", "align", "class"];

const purifier = window.DOMPurify;
const parser = new window.marked.Marked({ gfm: true, breaks: true, async: false });

parser.use({
  renderer: {
    // An image would tell its server who reads this: its text stands in for it.
    image({ text, href }) {
      return `<em>image: ${escapeText(text || href)}</em>`;
    },
    // A model's raw HTML is shown as text, as it was written.
    html({ text }) {
      return escapeText(text);
    },
  },
});

purifier.addHook("afterSanitizeAttributes", (node) => {
  if (node.hasAttribute("class") && !/^language-[\w+#.-]+$/.test(node.getAttribute("class"))) node.removeAttribute("class");
  if (node.tagName !== "A") return;
  const target = node.getAttribute("href") || "";
  if (!/^(https?:|mailto:|#)/i.test(target)) node.removeAttribute("href");
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

/** A fragment of harmless elements for a piece of Markdown. */
export function renderMarkdown(text) {
  const fragment = purifier.sanitize(parser.parse(text), {
    ALLOWED_TAGS,
    ALLOWED_ATTR,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
  for (const block of fragment.querySelectorAll("pre")) block.replaceWith(dressCode(block));
  for (const table of fragment.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "table";
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}

function dressCode(block) {
  const code = block.querySelector("code") || block;
  const language = (/language-([\w+#.-]+)/.exec(code.className) || [])[1] || "";
  const figure = document.createElement("figure");
  figure.className = "code";
  const head = document.createElement("figcaption");
  const name = document.createElement("span");
  name.textContent = language;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.setAttribute("aria-label", "Copy this code");
  head.append(name, button);
  const pre = document.createElement("pre");
  pre.tabIndex = 0;
  const inner = document.createElement("code");
  inner.textContent = code.textContent.replace(/\n$/, "");
  pre.append(inner);
  figure.append(head, pre);
  return figure;
}

function escapeText(text) {
  return text.replace(/[&<>"']/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[c]);
}
