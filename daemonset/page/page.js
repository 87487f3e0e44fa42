"use strict";
// Shows what /modelcache/list says. Every text goes in as text, never as HTML.
const EVERY_MS = 2000, SILENCE_MS = 10000;
let token = "", timer = 0;
const at = (id) => document.getElementById(id);

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${unit === 0 ? count : count.toFixed(1)} ${units[unit]}`;
}

function duration(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

function fill(id, rows, numbers) {
  const body = at(id).tBodies[0];
  const made = rows.map((cells) => {
    const row = document.createElement("tr");
    cells.forEach((text, number) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      if (numbers.includes(number)) cell.className = "n";
      row.append(cell);
    });
    return row;
  });
  if (made.length === 0) {
    const row = document.createElement("tr"), cell = document.createElement("td");
    cell.textContent = "none";
    cell.className = "none";
    row.append(cell);
    made.push(row);
  }
  body.replaceChildren(...made);
}

function draw(said) {
  const now = said.now_s, room = said.room, used = room.file_system_bytes - room.free_bytes;
  at("agent").textContent = `agent ${said.version}, up ${duration(now - said.started_at_s)}${said.draining ? ", ending" : ""}, store ${said.root}`;
  at("disk").value = room.file_system_bytes ? used / room.file_system_bytes : 0;
  at("room").textContent = `${bytes(room.free_bytes)} free of ${bytes(room.file_system_bytes)}; ${bytes(room.available_bytes)} available, ` +
    `${bytes(room.evictable_bytes)} evictable, ${bytes(room.leased_bytes)} leased, ${bytes(room.pinned_bytes)} pinned`;
  fill("moving", said.moving.map((one) => [
    one.uri, one.waiting === null || one.waiting === undefined ? one.phase : `${one.phase}: ${one.waiting}`, bytes(one.bytes_done),
    one.bytes_total ? bytes(one.bytes_total) : "", `${bytes(one.rate_bytes_per_s || 0)}/s`, one.eta_s === null || one.eta_s === undefined ? "" : duration(one.eta_s),
  ]), [2, 3, 4, 5]);
  fill("cached", said.snapshots.map((one) => [
    one.uris.join("\n"), bytes(one.size_bytes), `${duration(now - one.last_used_at_s)} ago`, one.holders.join("\n"), one.digest.slice(0, 19),
  ]), [1]);
  fill("events", said.events.slice().reverse().map((one) => [one.time, one.error ? `${one.event}: ${one.error}` : one.event, one.model || "", one.message]), []);
}

function tell(text, bad) {
  at("state").textContent = text;
  at("state").className = bad ? "bad" : "";
}

async function look() {
  clearTimeout(timer);
  try {
    const answer = await fetch("list", {
      headers: token ? { Authorization: `Bearer ${token}` } : {}, cache: "no-store", redirect: "error", signal: AbortSignal.timeout(SILENCE_MS),
    });
    if (answer.status === 401 || answer.status === 403) {
      token = "";
      document.querySelector("main").hidden = true;
      at("ask").hidden = false;
      tell(answer.status === 403 ? "This token may not see what is cached here." : "", answer.status === 403);
      return;
    }
    if (!answer.ok) throw new Error(`the agent answered ${answer.status}: ${(await answer.text()).trim()}`);
    draw(await answer.json());
    at("ask").hidden = true;
    document.querySelector("main").hidden = false;
    tell("", false);
  } catch (error) {
    tell(`No news: ${error.message}`, true);
  }
  timer = setTimeout(look, EVERY_MS);
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  at("token").value = "";
  look();
});
look();
