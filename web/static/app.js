// What the pages need of a script, beside htmx. Without it every form still works.
"use strict";

const root = document.documentElement;

// Times in the reader's zone.
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const plain = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" });
function localTimes(part) {
  for (const time of part.querySelectorAll("time[data-shown]")) {
    const moment = new Date(time.dateTime);
    if (Number.isNaN(moment.getTime())) continue;
    time.title = exact.format(moment);
    if (time.dataset.shown === "moment") time.textContent = plain.format(moment);
  }
}

// The menu, dialogs, light and dark.
document.addEventListener("click", (event) => {
  const on = (selector) => event.target.closest(selector);
  const menu = on("[data-toggle-menu]");
  if (menu) menu.setAttribute("aria-expanded", String(document.querySelector(".side").classList.toggle("open")));
  const opener = on("[data-opens]");
  if (opener) document.getElementById(opener.dataset.opens).showModal();
  const closer = on("[data-closes]");
  if (closer) closer.closest("dialog").close();
  if (on("[data-prints]")) print();
  if (on("[data-theme-switch]")) {
    const now = root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    document.cookie = `theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=lax; secure`;
  }
});

// A form that asks before it is sent; a form is sent once.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.confirm && !confirm(form.dataset.confirm)) {
    event.preventDefault();
    return;
  }
  if (form.method === "post" && !event.defaultPrevented) {
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
  }
});
addEventListener("pageshow", () => { for (const form of document.forms) delete form.dataset.sent; });

// Keys.
let going = false;
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.target.closest("input, textarea, select, [role=application], dialog[open]")) return;
  const links = document.querySelectorAll(".side [data-key]");
  if (going) {
    going = false;
    for (const link of links) if (link.dataset.key === event.key) { event.preventDefault(); link.click(); return; }
  }
  if (event.key === "g") going = true;
  else if (event.key === "?") document.getElementById("keys")?.showModal();
  else if (event.key === "/") {
    event.preventDefault();
    const field = document.querySelector("[data-search]");
    if (field) field.focus();
    else for (const link of links) if (link.dataset.key === "/") link.click();
  } else if (event.key === "j" || event.key === "k") {
    const rows = [...document.querySelectorAll("[data-rows] a:first-of-type")].filter((link) => link.closest("td:first-child, li"));
    if (!rows.length) return;
    const at = rows.indexOf(document.activeElement);
    rows[Math.max(0, Math.min(rows.length - 1, at + (event.key === "j" ? 1 : -1)))].focus();
  }
});

// A run that goes on: how far it is, and how fast, as it is told; the whole page again once it has ended.
const units = ["B", "kB", "MB", "GB", "TB", "PB"];
function size(bytes) {
  let unit = 0;
  while (bytes >= 999.5 && unit < units.length - 1) { bytes /= 1000; unit += 1; }
  return `${bytes.toFixed(unit === 0 || bytes >= 99.95 ? 0 : bytes >= 9.995 ? 1 : 2)} ${units[unit]}`;
}
function watchRun(place) {
  const events = new EventSource(place.dataset.runEvents);
  const times = [], rates = [];
  let before = null, plot = null;
  const again = () => { events.close(); htmx.ajax("GET", place.dataset.runPage, { target: "#run", swap: "innerHTML" }); };
  events.addEventListener("over", again);
  events.addEventListener("busy", () => events.close());
  events.addEventListener("far", (event) => {
    const far = JSON.parse(event.data);
    if (place.dataset.state && place.dataset.state !== far.state) { again(); place.dataset.state = ""; setTimeout(() => watchRun(place), 500); return; }
    place.dataset.state = far.state;
    const told = place.querySelector("[data-far]");
    if (!told || far.done === undefined) return;
    let bar = told.querySelector("progress"), words = told.querySelector(".sub");
    if (!bar) { told.replaceChildren(bar = document.createElement("progress"), words = document.createElement("span")); words.className = "sub"; }
    bar.setAttribute("aria-label", far.label);
    if (far.total) { bar.max = far.total; bar.value = far.done; }
    const now = Date.now() / 1000;
    if (far.rates && far.rates.length) {
      const began = now - far.rates[far.rates.length - 1][0];
      for (const [at, rate] of far.rates) { times.push(began + at); rates.push(rate); }
    }
    if (before && before.label === far.label && now > before.at) {
      const rate = far.rate ?? Math.max(0, (far.done - before.done) / (now - before.at));
      times.push(now); rates.push(rate);
      words.textContent = `${far.label}: ${size(far.done)}${far.total ? ` of ${size(far.total)}` : ""}, ${size(rate)}/s`;
      plot = draw(place, plot, times, rates);
    } else words.textContent = `${far.label}: ${size(far.done)}${far.total ? ` of ${size(far.total)}` : ""}`;
    before = { label: far.label, done: far.done, at: now };
  });
  addEventListener("pagehide", () => events.close());
}
function drawEnded(place) {
  const here = place.querySelector("[data-rates]");
  if (!here) return;
  const began = Number(here.dataset.began), told = JSON.parse(here.dataset.rates);
  draw(place, null, told.map(([at]) => began + at), told.map(([, rate]) => rate));
}
function draw(place, plot, times, rates) {
  const here = place.querySelector("[data-plot]");
  if (!here || typeof uPlot === "undefined" || times.length < 2) return plot;
  if (plot && here.contains(plot.root)) { plot.setData([times, rates]); return plot; }
  // Colours as they are computed: a canvas knows no light-dark().
  const ink = getComputedStyle(here).color, line = getComputedStyle(here.closest(".card")).borderTopColor, accent = getComputedStyle(document.querySelector("a")).color;
  const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line } };
  here.replaceChildren();
  const made = new uPlot({
    width: here.clientWidth, height: 200, legend: { show: false }, cursor: { show: false },
    series: [{}, { stroke: accent, width: 2, points: { show: false } }],
    axes: [axis, { ...axis, size: 75, values: (_, values) => values.map((value) => `${size(value)}/s`) }],
  }, [times, rates], here);
  new ResizeObserver(() => { if (here.contains(made.root)) made.setSize({ width: here.clientWidth, height: 200 }); }).observe(here);
  return made;
}

document.addEventListener("DOMContentLoaded", () => {
  localTimes(document);
  document.body.addEventListener("htmx:afterSwap", (event) => { localTimes(event.detail.target); drawEnded(document); });
  // What failed while only a part was asked for is told without leaving the page.
  document.body.addEventListener("htmx:responseError", (event) => {
    const answer = event.detail.xhr;
    if (answer.status === 401) return;
    const told = document.getElementById("told");
    if (told) told.innerHTML = answer.responseText.includes("<html") ? "" : answer.responseText;
  });
  document.body.addEventListener("htmx:sendError", () => {
    const told = document.getElementById("told");
    if (told && !told.firstChild) {
      const note = document.createElement("div");
      note.className = "note warn";
      note.textContent = "The appliance does not answer. This page goes on by itself once it does.";
      told.replaceChildren(note);
    }
  });
  document.body.addEventListener("htmx:afterOnLoad", (event) => { if (event.detail.successful) document.getElementById("told")?.replaceChildren(); });
  const run = document.querySelector("[data-run-events]");
  if (run) watchRun(run);
  drawEnded(document);
});
