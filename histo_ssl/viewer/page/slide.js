"use strict";

// One slide: deep zoom, one map over it, and what is known of the tile that is pointed at.
// Names come from files: they are set as text, never as HTML.

const byId = (id) => document.getElementById(id);
const slideId = location.pathname.split("/").pop();
const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
const MOVE_S = isStill ? 0 : 0.35;
const MAP_TILE_PX = 48;
const POINT_MS = 60; // the pointer rests that long before a tile is asked for

const page = {
  slide: null, // facts of the slide
  groups: [], // maps of one title: {title, layers}
  chosen: null, // the map that is shown
  drawn: null, // its image in the viewer
  seen: new Map(), // title -> the map of it that was shown last
  tile: "", // the tile that is told of
  asked: 0, // number of the newest question: answers to older ones come too late
};
const marker = byId("marker"); // goes in and out of the page with the tile that it frames
let viewer = null;

function element(name, text, classes) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (classes) made.className = classes;
  return made;
}

async function ask(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

// Levels of the slide, or of a map, the finest of which may be coarser than the slide's.
function tiles(address, kind, maxLevel) {
  const { width, height, tilePx, minLevel } = page.slide;
  const source = new OpenSeadragon.TileSource({ width, height, tileSize: tilePx, tileOverlap: 0, minLevel, maxLevel });
  source.getLevelScale = (level) => 2 ** (level - page.slide.maxLevel);
  source.getTileUrl = (level, x, y) => `${address}/${level}/${x}_${y}.${kind}`;
  return source;
}

// A tile of a map has one colour, so that more pixels than these show nothing more.
function finest(side) {
  const { minLevel, maxLevel } = page.slide;
  return Math.max(minLevel, maxLevel - Math.max(0, Math.floor(Math.log2(side / MAP_TILE_PX))));
}

// ---- maps

function groupsOf(layers) {
  const found = new Map();
  for (const layer of layers) {
    if (!found.has(layer.title)) found.set(layer.title, { title: layer.title, layers: [] });
    found.get(layer.title).layers.push(layer);
  }
  return [...found.values()];
}

function choice(title, value, isChecked) {
  const label = element("label", "", "choice");
  const radio = element("input");
  Object.assign(radio, { type: "radio", name: "layer", value, checked: isChecked });
  label.append(radio, element("span", title));
  return [label, radio];
}

function listLayers() {
  const list = byId("layers");
  const [none, noneRadio] = choice("none", "none", true);
  noneRadio.addEventListener("change", () => choose(null));
  list.append(none);
  page.groups.forEach((group, i) => {
    const [label, radio] = choice(group.title, String(i), false);
    if (i < 9) label.append(element("kbd", String(i + 1)));
    radio.addEventListener("change", () => choose(layerOf(group)));
    list.append(label);
    if (group.layers.length > 1) list.append(variants(group, radio));
  });
}

function variants(group, radio) {
  const select = element("select", "", "variant");
  select.setAttribute("aria-label", `which of ${group.title}`);
  for (const layer of group.layers) {
    const option = element("option", layer.variant);
    option.value = layer.id;
    select.append(option);
  }
  group.select = select;
  select.selectedIndex = Math.max(0, group.layers.findIndex((layer) => layer.isFirst));
  select.addEventListener("change", () => {
    radio.checked = true;
    choose(layerOf(group));
  });
  return select;
}

const layerOf = (group) => (group.select ? group.layers[group.select.selectedIndex] : group.layers[0]);

function pick(i) {
  const radios = [...document.querySelectorAll("input[name=layer]")];
  const radio = radios[i] && radios[i].checked ? radios[0] : radios[i];
  if (!radio) return;
  radio.checked = true;
  radio.dispatchEvent(new Event("change"));
}

async function choose(layer) {
  page.chosen = layer;
  page.tile = "";
  byId("settings").hidden = layer === null;
  byId("legend").replaceChildren();
  if (layer === null) {
    state("");
    undraw();
    return;
  }
  const isSlow = setTimeout(() => state("Reading the map; clusters take some seconds the first time."), 300);
  try {
    const facts = await ask(`/api/${slideId}/${layer.id}.json`);
    if (page.chosen !== layer) return; // another one was chosen meanwhile
    page.seen.set(layer.title, layer);
    state(`${facts.tiles.toLocaleString("en")} ${facts.noun}`);
    byId("legend").append(legend(facts));
    draw(layer, facts.side);
  } catch (error) {
    if (page.chosen !== layer) return;
    undraw();
    state(error.message);
  } finally {
    clearTimeout(isSlow);
  }
}

function draw(layer, side) {
  const before = page.drawn;
  viewer.addTiledImage({
    tileSource: tiles(`/layer/${slideId}/${layer.id}`, "png", finest(side)),
    opacity: opacity(),
    minPixelRatio: 2, // flat colours need no more: a quarter of the tiles that 1 asks for
    success: ({ item }) => {
      if (page.chosen !== layer) {
        viewer.world.removeItem(item);
        return;
      }
      page.drawn = item;
      if (before && viewer.world.getIndexOfItem(before) >= 0) viewer.world.removeItem(before);
    },
  });
}

function undraw() {
  if (page.drawn && viewer.world.getIndexOfItem(page.drawn) >= 0) viewer.world.removeItem(page.drawn);
  page.drawn = null;
}

const opacity = () => Number(byId("opacity").value) / 100;

function fade() {
  byId("percent").textContent = `${byId("opacity").value} %`;
  if (page.drawn) page.drawn.setOpacity(opacity());
}

function state(words) {
  byId("state").textContent = words;
}

function legend(facts) {
  return facts.kind === "numbers" ? scale(facts) : classes(facts);
}

function scale(facts) {
  const made = element("div", "", "scale");
  const strip = element("div", "", "strip");
  strip.style.background = `linear-gradient(to right, ${facts.colours.join(", ")})`;
  const ends = element("div", "", "ends");
  ends.append(element("span", facts.ends[0]), element("span", facts.label), element("span", facts.ends[1]));
  made.append(strip, ends);
  return made;
}

function classes(facts) {
  const made = element("ul", "", "classes");
  facts.names.forEach((name, i) => {
    const item = element("li");
    const square = element("span", "", "square");
    square.style.background = facts.colours[i];
    item.append(square, element("span", name), element("span", `${(100 * facts.shares[i]).toFixed(1)} %`, "share"));
    made.append(item);
  });
  return made;
}

// ---- the tile that is pointed at

// The map that is shown says most; the labels of all tiles, and clusters that were looked at, come with it.
function questions() {
  const found = page.chosen ? [page.chosen] : [];
  for (const group of page.groups) {
    const layer = group.layers[0].isOfTiles ? group.layers[0] : group.select && page.seen.get(group.title);
    if (layer && !found.includes(layer)) found.push(layer);
  }
  return found.slice(0, 3);
}

async function tell(point) {
  const x = Math.floor(point.x);
  const y = Math.floor(point.y);
  const asked = ++page.asked;
  if (x < 0 || y < 0 || x >= page.slide.width || y >= page.slide.height) return forget();
  const layers = questions();
  const answers = await Promise.all(
    layers.map((layer) => ask(`/api/${slideId}/${layer.id}/at/${x}_${y}.json`).catch(() => null)),
  );
  if (asked !== page.asked) return;
  const first = answers.findIndex((answer) => answer !== null);
  if (first < 0) return forget();
  showTile(layers, answers, first);
}

function showTile(layers, answers, first) {
  const { tile, x, y, side } = answers[first];
  const address = `/picture/${slideId}/${layers[first].id}/${tile}.jpg`;
  if (page.tile !== address) byId("picture").src = address;
  page.tile = address;
  const rows = [["place", `${x.toLocaleString("en")}, ${y.toLocaleString("en")} px`]];
  for (const answer of answers) {
    const isNew = ([name]) => !rows.some(([known]) => known === name);
    if (answer !== null) rows.push(...answer.facts.filter(isNew));
  }
  byId("told").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  byId("tile").hidden = false;
  byId("hint").hidden = true;
  mark(x, y, side);
}

function forget() {
  page.tile = "";
  byId("tile").hidden = true;
  byId("hint").hidden = false;
  viewer.removeOverlay(marker);
}

function mark(x, y, side) {
  const place = viewer.world.getItemAt(0).imageToViewportRectangle(x, y, side, side);
  marker.hidden = false;
  if (viewer.getOverlayById(marker)) viewer.updateOverlay(marker, place);
  else viewer.addOverlay({ element: marker, location: place });
}

const onSlide = (pixel) => viewer.world.getItemAt(0).viewerElementToImageCoordinates(pixel);

function point() {
  let resting = 0;
  const at = (pixel, ms) => {
    clearTimeout(resting);
    resting = setTimeout(() => tell(onSlide(pixel)), ms);
  };
  new OpenSeadragon.MouseTracker({
    element: viewer.canvas,
    moveHandler: (event) => event.pointerType === "mouse" && at(event.position, POINT_MS),
  });
  viewer.addHandler("canvas-click", (event) => event.quick && at(event.position, 0));
}

function tellMiddle() {
  const size = viewer.viewport.getContainerSize();
  tell(onSlide(new OpenSeadragon.Point(size.x / 2, size.y / 2)));
}

// ---- view

function measure() {
  if (!page.slide.mpp || !viewer.world.getItemCount()) return;
  const perPx = page.slide.mpp / viewer.world.getItemAt(0).viewportToImageZoom(viewer.viewport.getZoom(true));
  const longest = 160 * perPx;
  const power = 10 ** Math.floor(Math.log10(longest));
  const um = [5, 2, 1].find((factor) => factor * power <= longest) * power;
  byId("barline").style.width = `${um / perPx}px`;
  byId("bartext").textContent = um < 1000 ? `${Number(um.toPrecision(3))} µm` : `${um / 1000} mm`;
  byId("bar").hidden = false;
}

function keys(event) {
  const key = event.originalEvent.key;
  if (/^[1-9]$/.test(key)) pick(Number(key));
  else if (key === "n" || key === "N") pick(0);
  else if (key === "[" || key === "]") {
    byId("opacity").value = Number(byId("opacity").value) + (key === "]" ? 10 : -10);
    fade();
  } else if (key === "Enter") tellMiddle();
  else if (!/^[rf]$/i.test(key)) return; // these two would turn the slide
  event.preventDefaultAction = true;
}

function zoom(factor) {
  viewer.viewport.zoomBy(factor);
  viewer.viewport.applyConstraints();
}

function openViewer() {
  viewer = OpenSeadragon({
    element: byId("viewer"),
    drawer: "canvas",
    showNavigationControl: false,
    showNavigator: innerWidth >= 900,
    navigatorPosition: "TOP_RIGHT",
    navigatorAutoFade: false,
    animationTime: MOVE_S,
    blendTime: 0,
    immediateRender: isStill,
    minPixelRatio: 0.7, // pixels of the screen per pixel of a tile; half as many tiles as by 0.5
    maxZoomPixelRatio: 4,
    visibilityRatio: 0.3,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true },
    tileSources: tiles(`/tile/${slideId}`, "jpg", page.slide.maxLevel),
  });
  viewer.canvas.setAttribute("role", "application");
  viewer.canvas.setAttribute("aria-label", `slide ${page.slide.name}: arrows move, plus and minus zoom, 0 shows all`);
  viewer.addHandler("canvas-key", keys);
  for (const event of ["open", "animation", "resize"]) viewer.addHandler(event, measure);
  viewer.addHandler("tile-load-failed", (event) => state(`a part can't be shown: ${event.message}`));
  byId("closer").addEventListener("click", () => zoom(1.6));
  byId("farther").addEventListener("click", () => zoom(1 / 1.6));
  byId("whole").addEventListener("click", () => viewer.viewport.goHome());
  byId("opacity").addEventListener("input", fade);
  point();
}

async function start() {
  page.slide = await ask(`/api/${slideId}.json`);
  document.title = page.slide.name;
  byId("name").textContent = page.slide.name;
  const { width, height, mpp, facts } = page.slide;
  const size = `${width.toLocaleString("en")} × ${height.toLocaleString("en")} px`;
  const scale = mpp ? `${Number(mpp.toPrecision(3))} µm/px` : "µm/px unknown";
  byId("facts").textContent = [...facts.map(([name, value]) => `${name} ${value}`), size, scale].join(", ");
  page.groups = groupsOf(page.slide.layers);
  openViewer();
  listLayers();
}

start().catch((error) => state(error.message));
