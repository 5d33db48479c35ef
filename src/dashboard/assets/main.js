// Listens, and gives what comes to the views.

import { NodeView } from "./node.js";
import { TrackerView } from "./tracker.js";

const THEMES = ["system", "light", "dark"];
const KEY = "lapwing-theme";
const main = document.getElementById("main");
const connection = document.getElementById("connection");
const views = {};
let updating = false;

function setTheme(theme) {
  if (theme === "system") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", theme);
  document.getElementById("theme").textContent = `Theme: ${theme}`;
}

function theme() {
  // Where nothing may be stored the page does without.
  let known = "system";
  try { known = localStorage.getItem(KEY) ?? "system"; } catch { /* see above */ }
  let at = Math.max(0, THEMES.indexOf(known));
  setTheme(THEMES[at]);
  document.getElementById("theme").addEventListener("click", () => {
    at = (at + 1) % THEMES.length;
    setTheme(THEMES[at]);
    try { localStorage.setItem(KEY, THEMES[at]); } catch { /* see above */ }
  });
}

async function update(frame) {
  document.getElementById("role").textContent = frame.role;
  document.getElementById("version").textContent = `Lapwing ${frame.version}`;
  document.title = `Lapwing ${frame.role}`;
  if (frame.node) {
    views.node ??= new NodeView(main, frame.role === "seed");
    const answer = await fetch("/metrics");
    await views.node.update(frame.node, answer.ok ? await answer.text() : "");
  }
  if (frame.tracker) {
    views.tracker ??= new TrackerView(main);
    views.tracker.update(frame.tracker);
  }
}

function listen() {
  const events = new EventSource("events");
  events.addEventListener("message", async (event) => {
    // One that comes while the last is still being shown is left out: the next one says it all.
    if (updating) return;
    updating = true;
    try {
      await update(JSON.parse(event.data));
      connection.textContent = "live";
      connection.className = "";
    } catch (error) {
      connection.textContent = `cannot be shown: ${error.message}`;
      connection.className = "lost";
    } finally { updating = false; }
  });
  events.addEventListener("error", () => {
    connection.textContent = "no connection; trying again";
    connection.className = "lost";
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
  });
}

theme();
listen();
