"use strict";
// Tables sort by a click, or Enter, on a heading: numbers with the largest first, texts from A to Z, and then back.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const value = (row, place) => {
    const cell = row.cells[place];
    return cell.dataset.v === undefined ? cell.textContent.trim() : Number(cell.dataset.v);
  };
  const missing = (row, place) => row.cells[place].hasAttribute("data-missing");
  for (const button of table.querySelectorAll("thead button")) {
    button.addEventListener("click", () => {
      const heading = button.parentElement;
      const place = Number(button.dataset.place);
      const rows = Array.from(body.rows);
      const numeric = rows.some((row) => typeof value(row, place) === "number");
      const before = heading.getAttribute("aria-sort");
      const first = numeric ? "descending" : "ascending";
      const order = before === first ? (numeric ? "ascending" : "descending") : first;
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((one, other) => {
        const gone = missing(one, place) - missing(other, place);  // what is not there stays at the end
        if (gone) return gone;
        const [a, b] = [value(one, place), value(other, place)];
        return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
      });
      for (const other of table.querySelectorAll("[aria-sort]")) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", order);
      body.append(...rows);
    });
  }
}
