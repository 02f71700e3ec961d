"use strict";
// Tables of class "sortable": a button in each heading, and a box above that leaves out rows without its words.

function cellAt(row, column) {
  let at = 0;
  for (const cell of row.cells) {
    if (at === column) return cell.colSpan === 1 ? cell : null;
    at += cell.colSpan;
    if (at > column) return null;
  }
  return null;
}

function keyOf(row, column, isNumber) {
  const cell = cellAt(row, column), text = cell ? (cell.dataset.key ?? cell.textContent.trim()) : "";
  if (text === "") return null;
  return isNumber ? Number(text) : text;
}

function compare(a, b) {
  return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true, sensitivity: "base" });
}

function sort(table, column, isNumber, way) {
  const body = table.tBodies[0];
  const keyed = [...body.rows].map(row => [keyOf(row, column, isNumber), row]);
  const known = keyed.filter(([key]) => key !== null), unknown = keyed.filter(([key]) => key === null);
  known.sort(([a], [b]) => way * compare(a, b));
  body.append(...[...known, ...unknown].map(([, row]) => row)); // what has no value comes last, either way
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    if ("unsorted" in heading.dataset) return;
    const button = document.createElement("button"), isNumber = heading.dataset.kind === "number";
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const sorted = heading.ariaSort, first = isNumber ? "descending" : "ascending"; // the best first
      const next = !sorted ? first : sorted === "ascending" ? "descending" : "ascending";
      headings.forEach(other => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", next);
      sort(table, column, isNumber, next === "ascending" ? 1 : -1);
    });
  });
}

for (const box of document.querySelectorAll("input[data-filters]")) {
  const rows = [...document.getElementById(box.dataset.filters).tBodies[0].rows];
  const said = box.closest("p").querySelector("output");
  const texts = new Map(rows.map(row => [row, row.textContent.toLowerCase()]));
  const filter = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach(row => { row.hidden = !words.every(word => texts.get(row).includes(word)); });
    said.textContent = words.length ? `${rows.filter(row => !row.hidden).length} of ${rows.length} rows` : "";
  };
  box.closest("p").hidden = false;
  box.addEventListener("input", filter);
  if (box.value) filter(); // a browser that goes back may fill the box by itself
}
