// The formulas of dbkit/telemetry/sizing.py; tests/docs/test_docs.py holds one against the other.

function probabilityOfWait(busy, size) {
  if (busy >= size) return 1;
  let blocked = 1;
  for (let number = 1; number <= size; number++) {
    blocked = (busy * blocked) / (number + busy * blocked);
  }
  return (size * blocked) / (size - busy * (1 - blocked));
}

function waitOfShare(rate, hold, size, share) {
  const busy = rate * hold;
  const waits = probabilityOfWait(busy, size);
  if (waits <= 1 - share) return 0;
  if (busy >= size) return Infinity;
  return (hold / (size - busy)) * Math.log(waits / (1 - share));
}

function advisedSize(rate, hold, target, share) {
  for (let size = Math.floor(rate * hold) + 1; size <= 1000; size++) {
    if (waitOfShare(rate, hold, size, share) <= target) return size;
  }
  return null;
}

function milliseconds(seconds) {
  if (seconds === Infinity) return "the queue grows";
  return `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
}

function showSizing(form) {
  const number = (name) => Math.max(Number(form.elements[name].value) || 0, 0);
  const processes = Math.max(number("processes"), 1);
  const rate = number("rate") / processes;
  const hold = number("hold") / 1000;
  const target = number("target") / 1000;
  const advised = advisedSize(rate, hold, target, 0.99);
  const said = form.querySelector("output");
  const rows = form.querySelector("tbody");
  rows.replaceChildren();
  if (advised === null) {
    said.textContent = "No pool of up to 1000 connections achieves this: use more processes or shorter holds.";
    return;
  }
  const total = (advised + 1) * processes;
  said.textContent =
    `DATABASE_POOL_SIZE=${advised}: ${(rate * hold).toFixed(1)} in use on average; ` +
    `the server needs ${total} connections, including the probes'.`;
  const least = Math.max(Math.floor(rate * hold), 1);
  for (let size = least; size <= advised + 2; size += Math.max(Math.floor((advised - least) / 8), 1)) {
    const row = rows.insertRow();
    row.insertCell().textContent = size;
    row.insertCell().textContent = `${(100 * probabilityOfWait(rate * hold, size)).toFixed(1)}%`;
    row.insertCell().textContent = milliseconds(waitOfShare(rate, hold, size, 0.99));
  }
}

function startSizing() {
  const form = document.querySelector("form.sizing");
  if (form === null) return;
  form.addEventListener("input", () => showSizing(form));
  showSizing(form);
}

if (typeof document !== "undefined") {
  document.addEventListener("DOMContentLoaded", startSizing);
}
