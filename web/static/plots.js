// The repository's growth, by uPlot.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const place = document.querySelector("[data-growth]");
  const told = document.getElementById("growth-data");
  if (!place || !told) return;
  const data = JSON.parse(told.textContent);
  const days = data.days.map((day) => Date.parse(`${day}T00:00:00Z`) / 1000);
  // Colours as they are computed: a canvas knows no light-dark().
  const ink = getComputedStyle(place).color, line = getComputedStyle(place.closest(".card")).borderTopColor;
  const accent = getComputedStyle(document.querySelector("main a, .side a")).color;
  const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line } };
  const plot = new uPlot({
    width: place.clientWidth, height: 240, legend: { show: false },
    series: [{}, { stroke: accent, width: 2, fill: `color-mix(in srgb, ${accent} 15%, transparent)` }],
    axes: [axis, { ...axis, size: 75, values: (_, values) => values.map((value) => size(value)) }],
  }, [days, data.used], place);
  new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height: 240 })).observe(place);
});
