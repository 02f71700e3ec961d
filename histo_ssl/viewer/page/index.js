"use strict";

// The list of slides. Names come from files: they are set as text, never as HTML.

function element(name, text, classes) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (classes) made.className = classes;
  return made;
}

function card(slide) {
  const item = element("li");
  const link = element(slide.reason ? "div" : "a", "", "card");
  if (!slide.reason) {
    link.href = `/slide/${slide.id}`;
    const picture = element("img");
    picture.src = slide.thumbnail;
    picture.alt = "";
    picture.loading = "lazy";
    link.append(picture);
  }
  link.append(element("strong", slide.name));
  const known = slide.facts.map(([name, value]) => `${name} ${value}`);
  if (!slide.reason) known.push(`${slide.width.toLocaleString("en")} × ${slide.height.toLocaleString("en")} px`);
  link.append(element("span", known.join(", ")));
  if (slide.reason) link.append(element("span", `can't be shown: ${slide.reason}`, "reason"));
  item.append(link);
  item.dataset.words = [slide.name, ...known].join(" ").toLowerCase();
  return item;
}

function show(list, words) {
  let n = 0;
  for (const item of list.children) {
    item.hidden = !words.every((word) => item.dataset.words.includes(word));
    n += item.hidden ? 0 : 1;
  }
  document.getElementById("count").textContent = `${n} of ${list.children.length}`;
}

async function start() {
  const list = document.getElementById("slides");
  const slides = await (await fetch("/api/slides.json")).json();
  list.append(...slides.map(card));
  const find = document.getElementById("find");
  const search = () => show(list, find.value.toLowerCase().split(/\s+/));
  find.addEventListener("input", search);
  search();
}

start();
