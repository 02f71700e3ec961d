"use strict";
// Maps of tiles: points by class; pointing at one, or going there by arrow keys, shows the tile.
const MARGIN = 16, REACH = 12, SHOWN = 160, RADIUS = 3;
const SIGNS = { circle: "●", square: "■", triangle: "▲", diamond: "◆" };
const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function outline(brush, mark, x, y, r) {
  brush.beginPath();
  if (mark === "square") brush.rect(x - r, y - r, 2 * r, 2 * r);
  else if (mark === "triangle") { brush.moveTo(x, y - r); brush.lineTo(x + r, y + r); brush.lineTo(x - r, y + r); }
  else if (mark === "diamond") { brush.moveTo(x, y - r); brush.lineTo(x + r, y); brush.lineTo(x, y + r); brush.lineTo(x - r, y); }
  else brush.arc(x, y, r, 0, 7);
  brush.closePath();
}

function placed(points, width, height) {
  const xs = points.map(p => p[0]), ys = points.map(p => p[1]);
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const w = width - 2 * MARGIN, h = height - 2 * MARGIN;
  return points.map(([x, y]) => [MARGIN + w * (x - left) / (right - left || 1), MARGIN + h * (high - y) / (high - low || 1)]);
}

function choice(box, words, change) {
  const label = document.createElement("label"), input = document.createElement("input");
  Object.assign(input, { type: words.type, name: words.name, checked: words.isChecked });
  input.addEventListener("change", () => change(input.checked));
  label.append(input);
  if (words.sign) {
    const sign = document.createElement("span");
    sign.ariaHidden = "true"; sign.style.color = words.colour; sign.textContent = words.sign;
    label.append(sign, " ");
  }
  label.append(words.text);
  box.append(label);
}

function begin(box, number) {
  const map = JSON.parse(box.querySelector("script").textContent), sheet = box.dataset.sheet;
  const stage = box.querySelector(".stage"), canvas = box.querySelector("canvas"), brush = canvas.getContext("2d");
  const tip = box.querySelector(".tip"), tile = box.querySelector(".tile"), words = box.querySelector("output");
  const hidden = new Set();
  let subject = map.subjects[0], pointed = -1, places = [];
  new Image().src = sheet; // so that it is there when it is wanted

  const isShown = i => !hidden.has(map.labels[i]);
  const look = i => [map.colours[map.labels[i]], map.marks[map.labels[i]]];

  function draw() {
    const scale = window.devicePixelRatio || 1;
    canvas.width = stage.clientWidth * scale; canvas.height = stage.clientHeight * scale;
    brush.scale(scale, scale);
    places = placed(subject.places, stage.clientWidth, stage.clientHeight);
    brush.globalAlpha = .75;
    places.forEach(([x, y], i) => {
      if (!isShown(i)) return;
      const [colour, mark] = look(i);
      brush.fillStyle = colour; outline(brush, mark, x, y, RADIUS); brush.fill();
    });
    brush.globalAlpha = 1;
    if (pointed >= 0) { brush.lineWidth = 2; brush.strokeStyle = "#1f2328"; outline(brush, "circle", ...places[pointed], 2 * RADIUS); brush.stroke(); }
  }

  function nearest(x, y) {
    let best = -1, least = REACH * REACH;
    places.forEach(([px, py], i) => {
      const d = (px - x) ** 2 + (py - y) ** 2;
      if (d < least && isShown(i)) { best = i; least = d; }
    });
    return best;
  }

  function next(from, [dx, dy]) { // the near point that lies most in that direction
    let best = from, least = Infinity;
    places.forEach(([x, y], i) => {
      const [px, py] = [x - places[from][0], y - places[from][1]], along = px * dx + py * dy;
      const cost = Math.hypot(px, py) + 2 * Math.abs(px * dy - py * dx);
      if (i !== from && along > 0 && cost < least && isShown(i)) { best = i; least = cost; }
    });
    return best;
  }

  function show(i) {
    if (i === pointed) return;
    pointed = i;
    tip.hidden = i < 0;
    if (i >= 0) {
      const [slide, ...at] = map.tiles[i];
      tile.style.backgroundImage = `url("${sheet}")`;
      tile.style.backgroundSize = `${map.columns * SHOWN}px auto`;
      tile.style.backgroundPosition = `-${i % map.columns * SHOWN}px -${Math.floor(i / map.columns) * SHOWN}px`;
      words.textContent = `${map.classes[map.labels[i]]} · ${map.slides[slide]}${at.length ? ` at ${at.join(", ")}` : ""}`;
      const [x, y] = places[i];
      tip.style.left = `${Math.max(0, x > stage.clientWidth / 2 ? x - tip.offsetWidth - 12 : x + 12)}px`;
      tip.style.top = `${Math.max(0, Math.min(y - 40, stage.clientHeight - tip.offsetHeight))}px`;
    }
    draw();
  }

  function point(event) {
    const frame = stage.getBoundingClientRect();
    show(nearest(event.clientX - frame.left, event.clientY - frame.top));
  }

  map.subjects.forEach((one, i) => choice(box.querySelector(".subjects"),
    { type: "radio", name: `by-${number}`, text: one.name, isChecked: i === 0 },
    () => { subject = one; show(-1); draw(); }));
  map.classes.forEach((text, i) => choice(box.querySelector(".classes"),
    { type: "checkbox", name: `class-${number}`, text, isChecked: true, sign: SIGNS[map.marks[i]], colour: map.colours[i] },
    on => { if (on) hidden.delete(i); else hidden.add(i); show(-1); draw(); }));
  stage.addEventListener("pointermove", point);
  stage.addEventListener("pointerdown", point);
  stage.addEventListener("pointerleave", () => show(-1));
  canvas.addEventListener("blur", () => show(-1));
  canvas.addEventListener("keydown", event => {
    const way = WAYS[event.key];
    if (event.key === "Escape") show(-1);
    if (!way) return;
    event.preventDefault();
    show(pointed < 0 ? places.findIndex((_, i) => isShown(i)) : next(pointed, way));
  });
  window.addEventListener("resize", draw);
  window.addEventListener("beforeprint", draw);
  draw();
}

document.querySelectorAll(".map").forEach(begin);
