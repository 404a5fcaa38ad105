"""The report's only script: sorts the matrix of tasks and filters tasks and samples. The page is whole without it."""

from __future__ import annotations

__all__ = ["SCRIPT"]

# Controls are made here and not in the markup, so that a page whose script does not run shows none that do nothing.
SCRIPT = """
"use strict";
const make = (tag, attributes, ...children) => {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
};
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = make("button", {type: "button", className: "sort"}, ...head.childNodes);
    head.append(button);
    const numbers = table.querySelector(`tbody tr:not(.group) > :nth-child(${column + 1})[data-value]`) !== null;
    button.addEventListener("click", () => {
      const falling = head.ariaSort === "ascending" || (head.ariaSort !== "descending" && numbers);
      heads.forEach((other) => { other.ariaSort = "none"; });
      head.ariaSort = falling ? "descending" : "ascending";
      const value = (row) => {
        const cell = row.cells[column];
        return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
      };
      for (const body of table.tBodies) {
        const rows = [...body.rows].filter((row) => row.className !== "group");
        rows.sort((one, other) => {
          const a = value(one), b = value(other);
          const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
          return falling ? -order : order;
        });
        body.append(...rows);
      }
    });
  });
}
for (const list of document.querySelectorAll("[data-filter]")) {
  const items = [...list.querySelectorAll("[data-words]")];
  const field = make("input", {type: "search", placeholder: list.dataset.filter});
  field.ariaLabel = list.dataset.filter;
  const count = make("output", {className: "small"});
  const bar = make("div", {className: "controls"}, field);
  let wrong = null;
  if (items.some((item) => item.dataset.wrong === "1")) {
    wrong = make("input", {type: "checkbox"});
    bar.append(make("label", {}, wrong, " wrong answers only"));
    wrong.addEventListener("change", () => show());
  }
  bar.append(count);
  list.before(bar);
  const show = () => {
    const words = field.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let shown = 0;
    for (const item of items) {
      const fits = words.every((word) => item.dataset.words.toLowerCase().includes(word));
      item.hidden = !fits || (wrong !== null && wrong.checked && item.dataset.wrong !== "1");
      shown += item.hidden ? 0 : 1;
    }
    for (const body of list.querySelectorAll("tbody")) {
      body.hidden = !body.querySelector("[data-words]:not([hidden])");
    }
    count.textContent = shown === items.length ? "" : `${shown} of ${items.length}`;
  };
  field.addEventListener("input", show);
}
""".strip()
