"use strict";
const panel = document.getElementById("panel");
const cards = [...document.querySelectorAll("[data-of]")];
let zoom = 0;

function show(card) {
  const own = new Set(card.dataset.of.split(" "));
  for (const other of cards) {
    other.classList.toggle("linked", other !== card && other.dataset.of.split(" ").some((name) => own.has(name)));
  }
  if (card.dataset.figures) {
    panel.textContent = card.dataset.figures;
    panel.hidden = false;
  }
}

function hide() {
  panel.hidden = true;
  for (const card of cards) card.classList.remove("linked");
}

function setZoom(step) {
  zoom = step === 0 ? 0 : Math.max(-4, Math.min(6, zoom + step));
  const factor = 1.2 ** zoom;
  document.documentElement.style.setProperty("--zoom", factor);
  document.querySelector(".zoom output").textContent = Math.round(100 * factor) + " %";
}

for (const card of cards) {
  card.addEventListener("mouseenter", () => show(card));
  card.addEventListener("mouseleave", hide);
  card.addEventListener("focus", () => show(card));
  card.addEventListener("blur", hide);
  card.addEventListener("click", () => show(card));
}
for (const button of document.querySelectorAll("[data-zoom]")) {
  button.addEventListener("click", () => setZoom(Number(button.dataset.zoom)));
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const step = { "+": 1, "=": 1, "-": -1, "0": 0 }[event.key];
  if (event.key === "Escape") hide();
  else if (step !== undefined) setZoom(step);
});
