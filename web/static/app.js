// What the pages need of a script, beside htmx. Without it every form still works.
"use strict";

document.documentElement.classList.add("js");

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-toggle-menu]");
  if (!opener) return;
  const open = document.querySelector(".side").classList.toggle("open");
  opener.setAttribute("aria-expanded", String(open));
});

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-opens]");
  if (opener) document.getElementById(opener.dataset.opens).showModal();
  const closer = event.target.closest("[data-closes]");
  if (closer) closer.closest("dialog").close();
});
