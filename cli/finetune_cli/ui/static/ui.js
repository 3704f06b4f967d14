// Refreshes the parts of a page that change. Without it, all pages work: they are rendered by the server.
"use strict";

const INTERVAL_MS = 3000;
let requests = 0;

/** Return whether the user is about to copy or to use something in this part. */
function isInUse(part) {
  const selection = document.getSelection();
  const selects = selection && !selection.isCollapsed && part.contains(selection.anchorNode);
  return selects || part.querySelector("select:focus") !== null;
}

/** Replace a part, and keep what the user has done in it: focus, ticks, scroll positions, opened details. */
function replacePart(part, fresh) {
  const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
  const ticks = [...part.querySelectorAll("input:checked")].map((box) => box.value);
  const opened = [...part.querySelectorAll("details[open]")].map((details) => details.id);
  const scrolled = [...part.querySelectorAll(".scroll, .log")].map((box) => [box.scrollLeft, box.scrollTop]);
  part.replaceWith(fresh);
  for (const box of fresh.querySelectorAll("input[type=checkbox]")) box.checked = ticks.includes(box.value);
  for (const id of opened) fresh.querySelector("#" + CSS.escape(id))?.setAttribute("open", "");
  fresh.querySelectorAll(".scroll, .log").forEach((box, index) => {
    [box.scrollLeft, box.scrollTop] = scrolled[index] ?? [0, 0];
  });
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  prepare(fresh);
}

/** Replace the parts that differ in another version of this page. */
function applyPage(text) {
  const page = new DOMParser().parseFromString(text, "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(part.id);
    if (!fresh || isInUse(part)) continue;
    if (part.dataset.source === undefined) part.dataset.source = "";
    if (part.dataset.source !== fresh.outerHTML) {
      const source = fresh.outerHTML;
      replacePart(part, fresh);
      fresh.dataset.source = source;
    }
  }
  const announcer = document.getElementById("announcer");
  const announced = page.getElementById("announcer");
  if (announcer && announced && announcer.textContent !== announced.textContent) {
    announcer.textContent = announced.textContent;
  }
}

function setOffline(isOffline) {
  document.getElementById("offline").hidden = !isOffline;
}

/** Load this page again and show what has changed. */
async function refresh(address) {
  const request = ++requests;
  try {
    const response = await fetch(address, { credentials: "same-origin", cache: "no-store" });
    const text = await response.text();
    if (request !== requests) return;
    if (response.ok) applyPage(text);
    setOffline(response.status === 401);
  } catch {
    setOffline(true);
  }
}

async function poll() {
  if (!document.hidden) await refresh(location.href);
  setTimeout(poll, INTERVAL_MS);
}

/** Add the buttons that copy commands. */
function prepare(root) {
  for (const button of root.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
      document.getElementById("announcer").textContent = "Copied";
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
}

/** Filter while the user types, without a new page. */
function prepareFilter(form) {
  let timer = 0;
  const apply = () => {
    const values = [...new FormData(form)].filter(([, value]) => value !== "");
    const query = new URLSearchParams(values).toString();
    history.replaceState(null, "", query ? "?" + query : location.pathname);
    refresh(location.href);
  };
  form.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(apply, 200); });
  form.addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(timer); apply(); });
}

document.documentElement.classList.add("scripted");
prepare(document);
document.querySelectorAll("form[data-filter]").forEach(prepareFilter);
for (const log of document.querySelectorAll(".log")) log.scrollTop = log.scrollHeight;
if (document.querySelector("[data-live]")) {
  setTimeout(poll, INTERVAL_MS);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(location.href); });
}
