"""What the pages of a zoo look like, and the few lines of script in them; all of it inline.

No page loads anything: it works from a disk without a network, and mailed to somebody.
"""

from typing import Final

BAR_STEP: Final = 2
"""Percent by which bars differ. Each length is a class: a page of 100,000 has no room for pictures,
and its policy none for attributes of style."""

_BARS: Final = " ".join(
    f".b{percent} {{ background-size: {percent}% .3rem, 100% .3rem; }}"
    for percent in range(BAR_STEP, 101, BAR_STEP)
)

STYLE: Final = """
:root {
  --back: #fff; --raised: #f5f7f9; --line: #d3dae1; --text: #1b2127; --faint: #515c67;
  --link: #0a4fa3; --done: #11612b; --poor: #7a4a00; --failed: #a10f25; --bar: #2f6fb8;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    color-scheme: dark;
    --back: #12161b; --raised: #1b2128; --line: #37414c; --text: #e5eaf0; --faint: #a3afbc;
    --link: #86bdff; --done: #62cf80; --poor: #e6b450; --failed: #ff8a82; --bar: #5c9ce6;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 90rem; padding: 1rem clamp(.75rem, 3vw, 2.5rem) 3rem;
  background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
p { margin: .5rem 0; max-width: 70rem; overflow-wrap: anywhere; }
code { font: .92em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.faint { color: var(--faint); }
.status {
  border-left: .4rem solid var(--mark); background: var(--raised); padding: .75rem 1rem;
  border-radius: .25rem;
}
.status h2 { margin: 0; color: var(--mark); font-size: 1.3rem; }
.status dl { margin: .75rem 0 0; }
.done { --mark: var(--done); } .poor { --mark: var(--poor); } .failed { --mark: var(--failed); }
.mark { color: var(--mark); font-weight: 600; white-space: nowrap; }
.mark::before { content: "\\2713\\a0"; }
.mark.poor::before { content: "!\\a0"; }
.mark.failed::before { content: "\\2717\\a0"; }
.js .sortable tbody tr:not(.on) { display: none; }
.more { font: inherit; color: var(--link); background: none; border: 1px solid var(--line);
  border-radius: .25rem; padding: .3rem .8rem; margin: .5rem 0; cursor: pointer; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .75rem;
  margin: 1rem 0; }
.tiles div { background: var(--raised); border-radius: .25rem; padding: .6rem .8rem; }
.tiles dt, .faint { font-size: .875em; }
.tiles dt { color: var(--faint); }
.tiles dd { margin: 0; font-size: 1.15rem; overflow-wrap: anywhere; }
.tiles dd small { display: block; font-size: .8rem; color: var(--faint); }
.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1rem; }
.facts dt { color: var(--faint); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
ul { padding-left: 1.25rem; margin: .5rem 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .25rem; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem;
  border-top: 1px solid var(--line); }
thead th { background: var(--raised); vertical-align: bottom; border-top: 0; }
tbody th { font-weight: 400; min-width: clamp(9rem, 17vw, 16rem); }
tbody th, .long { overflow-wrap: anywhere; }
.long { min-width: 11rem; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.w { white-space: nowrap; }
thead .n, thead .w { white-space: normal; }
thead button { font: inherit; color: inherit; background: none; border: 0; padding: 0;
  cursor: pointer; text-align: inherit; }
thead button::after { content: "\\a0\\2195"; color: var(--faint); font-weight: 400; }
[aria-sort=ascending] button::after { content: "\\a0\\2191"; color: inherit; }
[aria-sort=descending] button::after { content: "\\a0\\2193"; color: inherit; }
.bar {
  background: linear-gradient(var(--bar) 0 0) 0 1.4rem / 0 .3rem no-repeat content-box border-box,
    linear-gradient(var(--line) 0 0) 0 1.4rem / 100% .3rem no-repeat content-box border-box;
  print-color-adjust: exact;
}
td.bar { padding-bottom: .7rem; min-width: 5rem; }
.tiles .bar { display: block; height: .3rem; margin-top: .5rem; background-position: 0 0; }
@BARS@
.filter { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: center;
  margin: 1rem 0 .75rem; }
.filter fieldset { border: 0; margin: 0; padding: 0; display: flex; flex-wrap: wrap;
  gap: .25rem 1rem; }
.filter legend { float: left; padding: 0; margin-right: 1rem; color: var(--faint); }
.filter input[type=search] { font: inherit; color: inherit; background: var(--back);
  border: 1px solid var(--faint); border-radius: .25rem; padding: .2rem .5rem; width: 14rem;
  max-width: 100%; }
[hidden] { display: none !important; }
@media (max-width: 36rem) {
  .facts { grid-template-columns: minmax(0, 1fr); gap: 0; }
  .facts dd { margin-bottom: .4rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 9pt; }
  .filter, .more { display: none; }
  .scroll { overflow: visible; border: 0; }
  table { font-size: 7.5pt; }
  tbody th, .long { min-width: 0; }
  th, td { padding: .15rem .3rem; }
  tr, .status, .tiles div { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  thead button::after { content: none; }
}
""".replace("@BARS@", _BARS)

SCRIPT: Final = """
"use strict";
document.documentElement.className = "js";  // now only the rows that are marked are laid out
addEventListener("DOMContentLoaded", () => {
  const STEP = 500, compare = new Intl.Collator(undefined, {numeric: true}).compare;
  const filter = document.querySelector(".filter"), count = n => n.toLocaleString("en");
  const sorting = table => {
    const body = table.tBodies[0], heads = Array.from(table.tHead.rows[0].cells);
    const rows = Array.from(body.rows), more = document.createElement("button");
    let shown = [], most = STEP, wanted = () => true;
    const show = () => {
      const found = rows.filter(wanted), piece = document.createDocumentFragment();
      for (const row of shown) row.classList.remove("on");
      shown = found.slice(0, most);
      for (const row of shown) row.classList.add("on");
      piece.append(...shown);
      body.prepend(piece);
      more.hidden = shown.length === found.length;
      more.textContent = `Show more (${count(shown.length)} of ${count(found.length)})`;
      return found.length;
    };
    const key = (row, at) => {
      const cell = row.cells[at], number = cell.dataset.v;
      return number === undefined ? cell.textContent.replace("–", "") : Number(number);
    };
    heads.forEach((head, at) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending", way = up ? 1 : -1;
        const keys = new Map(rows.map(row => [row, key(row, at)]));
        rows.sort((one, other) => {
          const a = keys.get(one), b = keys.get(other);
          if (a === "" || b === "") return (a === "") - (b === "");  // not known: last, either way
          return way * (typeof a === "number" && typeof b === "number" ? a - b : compare(a, b));
        });
        for (const each of heads) each.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        show();
      });
    });
    more.type = "button";
    more.className = "more";
    more.addEventListener("click", () => { most += 10 * STEP; show(); });
    table.parentNode.after(more);
    show();
    return choose => { wanted = choose; most = STEP; return [show(), rows.length]; };
  };
  try {
    const [first] = Array.from(document.querySelectorAll("table.sortable"), sorting);
    if (!filter) return;
    const choices = Array.from(filter.querySelectorAll("input[type=radio]"));
    const words = filter.querySelector("input[type=search]");
    const choose = () => {
      const status = choices.find(each => each.checked).value;
      const word = words.value.trim().toLowerCase();
      const [n, all] = first(row => (status === "all" || row.classList.contains(status))
        && (!word || row.textContent.toLowerCase().includes(word)));
      filter.querySelector("output").textContent = `${count(n)} of ${count(all)}`;
    };
    const follow = () => {
      const named = choices.find(each => "#" + each.value === location.hash);
      if (named) named.checked = true;
      choose();
    };
    for (const each of choices) each.addEventListener("change", () => {
      history.replaceState(null, "", "#" + each.value);
      choose();
    });
    words.addEventListener("input", choose);
    addEventListener("hashchange", follow);
    filter.hidden = false;
    follow();
  } catch (error) {
    document.documentElement.className = "";  // the plain table
    throw error;
  }
});
"""
