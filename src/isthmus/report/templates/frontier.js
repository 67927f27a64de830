// The frontier's slider: it shows the figures of the plan that it stands at. Without it the chosen plan is shown.
(() => {
  "use strict";
  const slider = document.getElementById("frontier-at");
  if (!slider) return;
  const stops = JSON.parse(document.getElementById("frontier-stops").textContent);
  const section = document.getElementById("frontier");
  const ring = document.getElementById("frontier-ring");
  const texts = section.querySelectorAll("[data-text]");
  const bars = section.querySelectorAll("[data-bar]");
  const show = () => {
    const stop = stops[slider.valueAsNumber];
    texts.forEach((one, place) => { one.textContent = stop.texts[place]; });
    bars.forEach((one, place) => { one.style.width = stop.bars[place] + "%"; });
    ring.setAttribute("cx", stop.x);
    ring.setAttribute("cy", stop.y);
    slider.setAttribute("aria-valuetext", stop.spoken);
  };
  slider.addEventListener("input", show);
  // A click on the chart goes to the nearest plan.
  const chart = section.querySelector(".chart");
  chart.addEventListener("click", (event) => {
    const place = chart.getBoundingClientRect();
    const x = ((event.clientX - place.left) / place.width) * chart.viewBox.baseVal.width;
    const away = stops.map((stop) => Math.abs(stop.x - x));
    slider.value = away.indexOf(Math.min(...away));
    show();
  });
  slider.parentElement.hidden = false;
  show();
})();
