// Sorting by a column's head, and filtering by words. Without this script the tables stand as they were written.
(() => {
  "use strict";
  const number = /^-?(\d|\.\d)/;
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending";
      for (const one of heads) one.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const words = head.classList.contains("word");
      const key = (row) => row.cells[column].dataset.key;
      const rows = [...body.rows].sort((one, other) => {
        const [a, b] = [key(one), key(other)];
        // What is not known stays last, whichever way.
        if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1);
        const order = !words && number.test(a) && number.test(b) ? a - b : a < b ? -1 : a > b ? 1 : 0;
        return up ? order : -order;
      });
      body.append(...rows);
    }));
  }
  for (const input of document.querySelectorAll("[data-filter]")) {
    const rows = [...document.getElementById(input.dataset.filter).tBodies[0].rows];
    const shown = document.querySelector(`[data-shown="${input.dataset.filter}"]`);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        count += !row.hidden;
      }
      shown.textContent = words.length ? `${count} of ${rows.length}` : "";
    });
    input.parentElement.hidden = false;
  }
})();
