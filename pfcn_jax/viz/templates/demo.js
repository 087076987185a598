// The page of the demo: uploads an image, asks for its segments whenever a slider moves, shows what lies under the mouse.
"use strict";

const at = (id) => document.getElementById(id);
let limits = null; // of uploads, from the server
let current = null; // the image on show: {key, height, width, image}
let answer = null; // its segments, with `map`: ids by pixel
let asking = false, changed = false; // one request at a time; the newest values go next

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw new Error("no answer from the program: it was stopped, or the image is far too large");
  }
  let value;
  try {
    value = await response.json();
  } catch (error) {
    throw new Error(`the program answered with status ${response.status}`);
  }
  if (!response.ok) throw new Error(value.error);
  return value;
}

function showError(error) {
  at("error").hidden = !error;
  at("error").textContent = error ? error.message : "";
}

async function upload(file) {
  showError(null);
  if (file.size > limits.max_bytes) {
    showError(new Error(`${file.name}: the file has more than ${limits.max_bytes / 2 ** 20} MiB`));
    return;
  }
  at("status").textContent = `${file.name}: the network is looking ...`;
  try {
    const path = `/api/images?name=${encodeURIComponent(file.name)}`;
    const headers = { "Content-Type": "application/octet-stream" };
    const added = await call(path, { method: "POST", headers, body: file });
    current = added;
    answer = null;
    clearHighlight();
    at("image").src = added.image;
    at("image").alt = file.name;
    at("hint").hidden = true;
    at("view").hidden = at("tools").hidden = false;
    at("drop").classList.add("filled");
    await ask();
  } catch (error) {
    at("status").textContent = "";
    showError(error);
  }
}

function thresholds() {
  const values = {};
  for (const input of document.querySelectorAll("#sliders input")) values[input.name] = Number(input.value);
  return values;
}

async function ask() {
  changed = true;
  if (asking || !current) return;
  asking = true;
  try {
    while (changed) {
      changed = false;
      const of = current;
      const body = JSON.stringify({ key: of.key, thresholds: thresholds() });
      const got = await call("/api/segments", { method: "POST", headers: { "Content-Type": "application/json" }, body });
      if (of !== current) continue;
      got.map = await unpack(got.ids);
      answer = got;
      showError(null);
      show();
    }
  } catch (error) {
    showError(error);
  } finally {
    asking = false;
  }
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint16Array(await new Response(stream).arrayBuffer());
}

function show() {
  at("image").src = at("plain").checked ? current.image : answer.overlay;
  const count = answer.segments.length;
  at("status").textContent = `${current.width} x ${current.height} pixels, ${count} segments; the network took ` +
    `${duration(current.seconds)}, its kernels ${duration(answer.seconds)}`;
  const steps = [["picked", "picked"], ["fused", "after fusion"], ["rescored", "rescored"], ["placed", "on the canvas"]];
  at("kernels").replaceChildren(...steps.map(([key, text]) => {
    const item = document.createElement("li"), number = document.createElement("b");
    number.textContent = answer.kernels[key];
    item.append(number, text);
    return item;
  }));
  at("segments").replaceChildren(...answer.segments.map(segmentRow));
  clearHighlight();
}

// The first image of a size takes seconds: its programs are compiled.
function duration(seconds) {
  return seconds < 2 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(1)} s (with compilation)`;
}

function segmentRow(segment) {
  const row = document.createElement("tr");
  const name = document.createElement("td"), score = document.createElement("td"), area = document.createElement("td");
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.background = `rgb(${segment.color})`;
  name.append(swatch, segment.name);
  score.textContent = segment.score.toFixed(2);
  area.textContent = `${segment.area} px`;
  row.append(name, score, area);
  row.dataset.id = segment.id;
  row.addEventListener("mouseenter", () => highlight(segment.id));
  row.addEventListener("mouseleave", clearHighlight);
  return row;
}

// Everything but one segment is darkened.
function highlight(id) {
  const canvas = at("highlight");
  if (canvas.dataset.id === String(id)) return;
  canvas.width = current.width;
  canvas.height = current.height;
  const pixels = new ImageData(current.width, current.height);
  for (let i = 0; i < answer.map.length; i++) pixels.data[4 * i + 3] = answer.map[i] === id ? 0 : 130;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  canvas.dataset.id = id;
  for (const row of at("segments").children) row.classList.toggle("on", row.dataset.id === String(id));
}

function clearHighlight() {
  const canvas = at("highlight");
  canvas.width = canvas.height = 0;
  delete canvas.dataset.id;
  at("tip").hidden = true;
  for (const row of at("segments").children) row.classList.remove("on");
}

// Which segment lies under the mouse: the image may be drawn larger than it is, with bars beside it.
function segmentAt(event) {
  const box = at("image").getBoundingClientRect();
  const scale = Math.min(box.width / current.width, box.height / current.height);
  const x = Math.floor((event.clientX - box.left - (box.width - scale * current.width) / 2) / scale);
  const y = Math.floor((event.clientY - box.top - (box.height - scale * current.height) / 2) / scale);
  if (x < 0 || y < 0 || x >= current.width || y >= current.height) return null;
  return answer.segments[answer.map[y * current.width + x] - 1] || null;
}

function hover(event) {
  if (!answer) return;
  const segment = segmentAt(event);
  if (!segment) {
    clearHighlight();
    return;
  }
  highlight(segment.id);
  const tip = at("tip");
  tip.textContent = `${segment.name} ${segment.score.toFixed(2)} (${segment.thing ? "thing" : "stuff"}, ${segment.area} px)`;
  tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - 220)}px`;
  tip.style.top = `${event.clientY + 16}px`;
  tip.hidden = false;
}

function addSlider(slider) {
  const box = document.createElement("div"), label = document.createElement("label");
  const value = document.createElement("output"), input = document.createElement("input");
  const text = document.createElement("small");
  box.className = "slider";
  label.textContent = slider.name.replaceAll("_", " ");
  label.htmlFor = input.id = input.name = slider.name;
  Object.assign(input, { type: "range", min: slider.low, max: slider.high, step: slider.step });
  input.dataset.start = input.value = slider.value;
  value.textContent = input.value;
  text.textContent = slider.text;
  label.append(value);
  box.append(label, input, text);
  input.addEventListener("input", () => {
    value.textContent = input.value;
    ask();
  });
  at("sliders").append(box);
}

function reset() {
  for (const input of document.querySelectorAll("#sliders input")) {
    input.value = input.dataset.start;
    input.previousElementSibling.querySelector("output").textContent = input.value;
  }
  ask();
}

function takeFirst(files) {
  if (files.length) upload(files[0]);
}

async function start() {
  const drop = at("drop"), file = at("file");
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    takeFirst(event.dataTransfer.files);
  });
  drop.addEventListener("dragenter", () => drop.classList.add("over"));
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("click", (event) => current && event.preventDefault());
  drop.addEventListener("mousemove", hover);
  drop.addEventListener("mouseleave", clearHighlight);
  document.addEventListener("paste", (event) => takeFirst(event.clipboardData.files));
  file.addEventListener("change", () => {
    takeFirst(file.files);
    file.value = "";
  });
  at("another").addEventListener("click", () => file.click());
  at("plain").addEventListener("change", () => answer && show());
  at("reset").addEventListener("click", reset);
  try {
    const info = await call("/api/info");
    limits = info;
    at("model").textContent = info.model;
    at("limits").textContent = `JPEG, PNG, WebP, BMP, GIF; at most ${info.max_bytes / 2 ** 20} MiB and ` +
      `${info.max_pixels / 1e6} megapixels`;
    info.sliders.forEach(addSlider);
    document.body.dataset.ready = "yes";
  } catch (error) {
    showError(error);
  }
}

start();
