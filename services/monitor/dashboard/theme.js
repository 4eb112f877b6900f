/* The theme, set before anything is painted: the system's, or the one chosen here before. */
"use strict";
{
  let chosen = null;
  try {
    chosen = localStorage.getItem("aiaas-theme");
  } catch {
    chosen = null; // storage is forbidden: the system's theme, and a choice lasts as long as the page
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
