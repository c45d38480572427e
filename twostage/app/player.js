// Plays sounds that belong together: all run at once and one is heard, so that a switch keeps the position.
// gradio calls this once with `element`, `props` and `watch`; props.value is {items: [...], archive} or null.
const root = element.querySelector(".ts-player");
const SVG = "http://www.w3.org/2000/svg";
const COLORS = ["#e07a1f", "#2f7ed8", "#2a9d5c", "#a05ec0", "#c9485b", "#6b7d8c", "#b39b1e", "#1fa3a3"];
const DRIFT = 0.03; // seconds that tracks may be apart
const PATIENCE = 500; // milliseconds between two corrections of what is not heard
let clock = 0;

function make(tag, attributes = {}, children = []) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function svgElement(tag, attributes, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

const time = (seconds) => `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;

function show() {
  cancelAnimationFrame(clock);
  root.querySelectorAll("audio").forEach((audio) => audio.pause());
  root.replaceChildren();
  const value = props.value;
  if (!value || !value.items || !value.items.length) return;
  const stage = make("div");
  const names = value.items.map((item, place) => make("option", { value: place }, [item.name]));
  const choice = make("select", { ariaLabel: "Recording", onchange: () => open(stage, value.items[choice.value]) }, names);
  const all = value.archive ? [save(value.archive, "Download all")] : [];
  const head = value.items.length > 1 ? [choice] : [make("strong", {}, [value.items[0].name])];
  root.append(make("div", { className: "ts-row" }, [...head, ...all]), stage);
  open(stage, value.items[0]);
}

function save(file, label) {
  return make("a", { className: "ts-button ts-save", href: file.url, download: file.orig_name }, [label]);
}

function open(stage, item) {
  cancelAnimationFrame(clock);
  stage.querySelectorAll("audio").forEach((audio) => audio.pause());
  const audios = item.tracks.map((track) => make("audio", { src: track.audio.url, preload: "auto", muted: true }));
  let heard = 0, mended = 0;

  const where = make("output", { className: "ts-time" });
  const slider = make("input", { type: "range", min: 0, max: item.seconds, step: 0.01, value: 0, ariaLabel: "Position" });
  const play = make("button", { className: "ts-button ts-play", type: "button" });
  const swap = make("button", { className: "ts-button ts-swap", type: "button" }, ["Switch"]);
  const labels = item.tracks.map((track, place) =>
    make("button", { className: "ts-button ts-track", type: "button", onclick: () => hear(place) }, [track.label]));
  const heads = item.tracks.map(() => make("div", { className: "ts-head" }));

  const go = (seconds) => audios.forEach((audio) => { audio.currentTime = Math.min(seconds, audio.duration || seconds); });
  const running = () => !audios[heard].paused;

  function hear(place) {
    const now = audios[heard].currentTime;
    if (Math.abs(audios[place].currentTime - now) > DRIFT) audios[place].currentTime = now;
    heard = place;
    audios.forEach((audio, other) => { audio.muted = other !== place; });
    refresh();
  }

  function refresh() {
    const now = audios[heard].currentTime;
    where.textContent = `${time(now)} / ${time(item.seconds)}`;
    slider.value = now;
    heads.forEach((head) => { head.style.left = `${Math.min(100, (100 * now) / item.seconds)}%`; });
    play.textContent = running() ? "Pause" : "Play";
    labels.forEach((label, place) => label.setAttribute("aria-pressed", place === heard));
    rows.forEach((row, place) => row.classList.toggle("ts-heard", place === heard));
  }

  function together() {
    if (performance.now() - mended < PATIENCE) return;
    const now = audios[heard].currentTime;
    const late = audios.filter((audio) => audio.muted && Math.abs(audio.currentTime - now) > DRIFT);
    late.forEach((audio) => { audio.currentTime = now; });
    mended = performance.now();
  }

  function tick() {
    together();
    refresh();
    if (running()) clock = requestAnimationFrame(tick);
  }

  play.addEventListener("click", async () => {
    if (running()) {
      audios.forEach((audio) => audio.pause());
    } else {
      const now = audios[heard].currentTime;
      go(now >= item.seconds - 0.05 ? 0 : now);
      await Promise.allSettled(audios.map((audio) => audio.play()));
    }
    tick();
  });
  swap.addEventListener("click", () => hear((heard + 1) % audios.length));
  slider.addEventListener("input", () => { go(Number(slider.value)); refresh(); });
  audios.forEach((audio) => { audio.addEventListener("pause", refresh); audio.addEventListener("seeked", refresh); });

  const rows = item.tracks.map((track, place) => make("div", { className: "ts-spectrogram" }, [
    make("div", { className: "ts-unit" }, ["kHz"]),
    make("div", { className: "ts-name" }, [track.label]),
    make("div", { className: "ts-hertz" }, [1, 0.5, 0].map((part) => make("span", {}, [`${(part * item.top) / 1000}`]))),
    make("div", { className: "ts-picture", onclick: (event) => {
      const box = event.currentTarget.getBoundingClientRect();
      go(((event.clientX - box.left) / box.width) * item.seconds);
      refresh();
    } }, [make("img", { src: track.picture.url, alt: `Spectrogram: ${track.label}`, draggable: false }), heads[place]]),
  ]));

  stage.replaceChildren(
    ...audios,
    make("div", { className: "ts-row" }, [
      play, ...(audios.length > 1 ? [swap] : []), make("div", { className: "ts-tracks" }, labels), where,
      ...(item.file ? [save(item.file, "Download")] : []),
    ]),
    slider,
    make("div", { className: "ts-pictures" }, [...rows, axis(item.seconds)]),
    levels(item),
    ...(item.gained ? [make("p", { className: "ts-gained" }, [item.gained])] : []),
  );
  hear(item.file ? item.tracks.length - 1 : 0); // what came out, where something did
}

function axis(seconds) {
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200];
  const step = steps.find((candidate) => seconds / candidate <= 8) || seconds / 8;
  const marks = [];
  for (let at = 0; at < seconds * 0.96; at += step) {
    const mark = make("span", {}, [step < 1 ? at.toFixed(1) : String(at)]);
    mark.style.left = `${(100 * at) / seconds}%`;
    marks.push(mark);
  }
  const unit = make("span", { className: "ts-unit" }, ["s"]);
  return make("div", { className: "ts-axis" }, [...marks, unit]);
}

// Levels of third octaves as lines over a logarithmic axis.
function levels(item) {
  const width = Math.max(300, Math.min(900, root.clientWidth || 640)); // as wide as it is shown, so that text keeps its size
  const [height, left, right, bottom] = [200, 38, 14, 22];
  const known = item.tracks.flatMap((track) => track.levels).filter((level) => level !== null);
  const high = Math.ceil(Math.max(...known) / 10) * 10;
  const low = Math.max(high - 60, Math.floor(Math.min(...known) / 10) * 10);
  const first = Math.log(item.hertz[0]), last = Math.log(item.hertz[item.hertz.length - 1]);
  // what lies 60 dB below the loudest third octave is not heard beside it
  const x = (hertz) => left + ((Math.log(hertz) - first) / (last - first)) * (width - left - right);
  const y = (level) => 10 + ((high - Math.max(level, low)) / (high - low || 1)) * (height - bottom - 10);
  const chart = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, class: "ts-levels", role: "img" });
  chart.append(svgElement("title", {}, "Level of third octaves by frequency"));
  for (let level = high; level >= low; level -= high - low > 50 ? 20 : 10) {
    chart.append(svgElement("line", { x1: left, x2: width - right, y1: y(level), y2: y(level), class: "ts-grid" }));
    chart.append(svgElement("text", { x: left - 6, y: y(level) + 4, "text-anchor": "end" }, level));
  }
  for (const hertz of [63, 125, 250, 500, 1000, 2000, 4000]) {
    const label = hertz < 1000 ? String(hertz) : `${hertz / 1000}k`;
    chart.append(svgElement("line", { x1: x(hertz), x2: x(hertz), y1: 10, y2: height - bottom, class: "ts-grid" }));
    chart.append(svgElement("text", { x: x(hertz), y: height - bottom + 14, "text-anchor": "middle" }, label));
  }
  const key = item.tracks.map((track, place) => {
    const color = COLORS[place % COLORS.length];
    const points = track.levels
      .map((level, band) => (level === null ? null : `${x(item.hertz[band])},${y(level)}`))
      .filter((point) => point !== null);
    chart.append(svgElement("polyline", { points: points.join(" "), fill: "none", stroke: color, "stroke-width": 2.5 }));
    const dot = make("i");
    dot.style.background = color;
    return make("span", {}, [dot, track.label]);
  });
  return make("figure", { className: "ts-chart" }, [
    make("figcaption", {}, ["Level of third octaves, dB over Hz", make("span", { className: "ts-key" }, key)]), chart,
  ]);
}

watch("value", show);
show();
