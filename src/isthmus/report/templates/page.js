// Tooltips by pointer, touch and keyboard. Without this script the browser's own titles serve.
(() => {
  "use strict";
  const tips = new Map();
  for (const one of document.querySelectorAll("button[title], svg [tabindex]")) {
    const title = one.querySelector(":scope > title");
    tips.set(one, title ? title.textContent : one.getAttribute("title"));
    if (title) title.remove();
    one.removeAttribute("title");
  }
  const box = document.createElement("div");
  box.className = "tip";
  box.setAttribute("role", "tooltip");
  box.hidden = true;
  document.body.append(box);
  const hide = () => { box.hidden = true; };
  const show = (one) => {
    box.textContent = "";
    for (const text of tips.get(one).split("\n")) {
      const line = document.createElement("div");
      line.textContent = text;
      box.append(line);
    }
    box.hidden = false;
    const place = one.getBoundingClientRect();
    const left = place.left + place.width / 2 - box.offsetWidth / 2;
    const above = place.top - box.offsetHeight - 8;
    const right = document.documentElement.clientWidth - box.offsetWidth - 8;
    box.style.left = Math.max(8, Math.min(left, right)) + "px";
    box.style.top = (above < 8 ? place.bottom + 8 : above) + "px";
  };
  const find = (event) => {
    for (let one = event.target; one instanceof Element; one = one.parentElement) if (tips.has(one)) return one;
    return null;
  };
  const follow = (event) => { const one = find(event); if (one) show(one); else hide(); };
  for (const name of ["pointerover", "focusin", "click"]) document.addEventListener(name, follow);
  for (const name of ["focusout", "pointerleave"]) document.addEventListener(name, hide);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  // Tabbing to a site out of sight scrolls the page: its tip follows it.
  const move = () => { if (!box.hidden && tips.has(document.activeElement)) show(document.activeElement); else hide(); };
  window.addEventListener("scroll", move, { passive: true, capture: true });
  window.addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details")) one.open = true;
  });
})();
