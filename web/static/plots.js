// What grows, by uPlot: the repository day by day, and the room that a plan asks for.
"use strict";

// Colours as they are computed: a canvas knows no light-dark().
function colours(place) {
  const of = (name) => {
    const probe = document.createElement("span");
    probe.className = `ink-${name}`;
    place.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };
  return { ink: getComputedStyle(place).color, line: of("line"), accent: of("accent"), warn: of("warn"), bad: of("bad") };
}

function plotted(place, columns, series, more = {}) {
  const { ink, line } = colours(place);
  const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line } };
  place.replaceChildren();
  const plot = new uPlot({
    width: place.clientWidth, height: 240, legend: { show: false }, series: [{}, ...series],
    axes: [axis, { ...axis, size: 75, values: (_, values) => values.map((value) => size(value)) }], ...more,
  }, columns, place);
  new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height: 240 })).observe(place);
}

const veil = (colour, percent) => `color-mix(in srgb, ${colour} ${percent}%, transparent)`;

function drawGrowth() {
  const place = document.querySelector("[data-growth]"), told = document.getElementById("growth-data");
  if (!place || !told) return;
  const data = JSON.parse(told.textContent), { accent } = colours(place);
  const days = data.days.map((day) => Date.parse(`${day}T00:00:00Z`) / 1000);
  plotted(place, [days, data.used], [{ stroke: accent, width: 2, fill: veil(accent, 15) }]);
}

function drawRoom() {
  const place = document.querySelector("[data-room]");
  if (!place) return;
  const data = JSON.parse(place.dataset.room), { accent, warn, bad } = colours(place);
  const columns = [data.at], series = [], bands = [];
  const add = (values, look) => columns.push(values) && series.push({ points: { show: false }, ...look }) && series.length;
  const between = (low, high, colour) => {
    const look = { stroke: veil(colour, 60), width: 1 };
    const under = add(low, look), above = add(high, look);
    bands.push({ series: [above, under], fill: veil(colour, 18) });
  };
  between(data.low, data.high, accent);
  if (data.then_low) between(data.then_low, data.then_high, warn);
  if (data.trend) add(data.trend, { stroke: accent, width: 2 });
  if (data.holds) add(data.at.map(() => data.holds), { stroke: bad, width: 2, dash: [6, 4] });
  plotted(place, columns, series, { bands, scales: { y: { range: (_, least, most) => [0, most * 1.05] } } });
}

document.addEventListener("DOMContentLoaded", () => {
  drawGrowth();
  drawRoom();
  document.body.addEventListener("htmx:afterSwap", (event) => { if (event.detail.target.id === "answer") drawRoom(); });
});
