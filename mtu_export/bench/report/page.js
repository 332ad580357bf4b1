"use strict";
// Sorts tables by a column; a second press turns the order over. Without it, tables stay as they are.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const order = before === "ascending" ? "descending" : before === "descending" ? null : "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      if (order) head.setAttribute("aria-sort", order);
      const rows = order ? [...original].sort((a, b) => compare(a, b, index, order)) : original;
      body.append(...rows);
    });
  });
}

// What was not measured comes last in both orders.
function compare(a, b, index, order) {
  const [x, y] = [value(a.cells[index]), value(b.cells[index])];
  if (x === null || y === null) return (x === null) - (y === null);
  const difference = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
  return order === "ascending" ? difference : -difference;
}

function value(cell) {
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  return cell.querySelector(".nothing") ? null : cell.textContent;
}
