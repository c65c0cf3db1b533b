// Sorting, filtering, pictures when they are near, and what the pointer finds on a chart.
// Text is set as text: no name of a file or a folder becomes HTML.
"use strict";

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// The table of categories -----------------------------------------------------------------------

const table = document.getElementById("table");
const body = table.tBodies[0];
const rows = [...body.rows];

for (const button of table.querySelectorAll(".sort")) {
  button.addEventListener("click", () => {
    const header = button.closest("th");
    const column = header.cellIndex;
    // Numbers begin with the lowest: the worst comes first. A second click turns it round.
    const isDescending = header.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) {
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    }
    header.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
    // A failed row spans columns: its cells are found by their value, or it goes to the end.
    const value = (row) => row.cells[column]?.dataset.v ?? "-1";
    const isText = column === 0;
    const order = (a, b) =>
      isText ? value(a).localeCompare(value(b)) : Number(value(a)) - Number(value(b));
    rows.sort((a, b) => (isDescending ? order(b, a) : order(a, b)));
    body.append(...rows);
  });
}

const find = document.getElementById("find");
const show = document.getElementById("show");
const shown = document.getElementById("shown");

const filterRows = () => {
  const words = find.value.trim().toLowerCase();
  let count = 0;
  for (const row of rows) {
    const isNamed = row.dataset.name.toLowerCase().includes(words);
    const isChosen = !show.value || row.dataset.flags.split(" ").includes(show.value);
    row.hidden = !(isNamed && isChosen);
    count += !row.hidden;
  }
  shown.textContent = count === rows.length ? "" : `${count} of ${rows.length}`;
};
find.addEventListener("input", filterRows);
show.addEventListener("change", filterRows);
for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", (event) => event.preventDefault());
}

// Charts ----------------------------------------------------------------------------------------

const tip = document.getElementById("tip");
const SVG = "http://www.w3.org/2000/svg";

const parsed = new WeakMap();
const marksOf = (chart) => {
  if (!parsed.has(chart)) parsed.set(chart, JSON.parse(chart.dataset.marks));
  return parsed.get(chart);
};

const point = (chart, index) => {
  const [x, y, text] = marksOf(chart)[index];
  let ring = chart.querySelector(".pointer");
  if (!ring) {
    ring = document.createElementNS(SVG, "circle");
    ring.setAttribute("class", "pointer");
    ring.setAttribute("r", "5");
    chart.append(ring);
  }
  ring.setAttribute("cx", x);
  ring.setAttribute("cy", y);
  const box = chart.getBoundingClientRect();
  const scale = box.width / chart.viewBox.baseVal.width;
  tip.textContent = text;
  tip.hidden = false;
  const left = Math.min(box.left + x * scale + 12, innerWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, box.top + y * scale - tip.offsetHeight - 10)}px`;
  chart.dataset.at = index;
};

const leave = (chart) => {
  tip.hidden = true;
  chart.querySelector(".pointer")?.remove();
};

for (const chart of document.querySelectorAll(".chart")) {
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const scale = chart.viewBox.baseVal.width / box.width;
    const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    let best = -1;
    let nearest = Infinity;
    marksOf(chart).forEach((mark, index) => {
      const distance = Math.hypot((mark[0] - x) * 2, mark[1] - y);
      if (distance < nearest) [best, nearest] = [index, distance];
    });
    if (best >= 0) point(chart, best);
  });
  chart.addEventListener("pointerleave", () => leave(chart));
  chart.addEventListener("blur", () => leave(chart));
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const last = marksOf(chart).length - 1;
    point(chart, Math.min(last, Math.max(0, Number(chart.dataset.at ?? -1) + step)));
  });
}

// Galleries -------------------------------------------------------------------------------------

const PAGE = 18;
const viewer = document.getElementById("viewer");
let viewed = { items: [], at: 0, category: "" };

const data = (content) => `data:image/webp;base64,${content}`;
const isWrong = (item) => item.kind === "missed" || item.kind === "alarm";
const VERDICTS = { missed: "missed defect", alarm: "false alarm", right: "" };

const stack = (item, layers) => {
  const box = make("span", { className: "stack" });
  for (const layer of ["image", ...layers]) {
    if (!item[layer]) continue;
    const image = make("img", { className: layer, src: data(item[layer]), loading: "lazy", decoding: "async", alt: "" });
    box.append(image);
  }
  return box;
};

const describe = (item) =>
  [VERDICTS[item.kind], item.type, `score ${item.factor} × threshold`].filter(Boolean).join(", ");

const card = (items, index, category) => {
  const item = items[index];
  const title = make("b", { textContent: VERDICTS[item.kind] || item.type, className: isWrong(item) ? "bad" : "" });
  const name = item.path.split("/").slice(-2).join("/");
  const text = make("span", { className: "card-text" }, title, `${item.factor}×\u2002${name}`);
  const button = make("button", { type: "button", className: "card" }, stack(item, ["heat", "outline"]), text);
  button.setAttribute("aria-label", `${name}: ${describe(item)}; enlarge`);
  button.addEventListener("click", () => view(items, index, category));
  return make("li", {}, button);
};

const view = (items, at, category) => {
  viewed = { items, at, category };
  const item = items[at];
  document.getElementById("viewer-title").textContent = item.path;
  const panes = viewer.querySelector(".panes");
  panes.replaceChildren();
  const kinds = [["Image", []], ["Heat", ["heat"]]];
  if (item.outline) kinds.push(["Mask", ["outline"]]);
  for (const [name, layers] of kinds) {
    const box = stack(item, layers);
    box.querySelector("img").alt = `${name} of ${item.path}`;
    panes.append(make("figure", {}, box, make("figcaption", { textContent: name })));
  }
  const note = `${category}: ${describe(item)}. ${at + 1} of ${items.length}.`;
  viewer.querySelector(".viewer-note").textContent = note;
  document.getElementById("previous").disabled = at === 0;
  document.getElementById("next").disabled = at === items.length - 1;
  if (!viewer.open) viewer.showModal();
};

const turn = (step) => {
  const at = viewed.at + step;
  if (at >= 0 && at < viewed.items.length) view(viewed.items, at, viewed.category);
};
document.getElementById("previous").addEventListener("click", () => turn(-1));
document.getElementById("next").addEventListener("click", () => turn(1));
document.getElementById("close").addEventListener("click", () => viewer.close());
viewer.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close();
});
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") turn(-1);
  if (event.key === "ArrowRight") turn(1);
});

const fill = (gallery) => {
  const { items, total } = JSON.parse(gallery.querySelector("script").textContent);
  const list = gallery.querySelector(".cards");
  const more = gallery.querySelector(".more");
  const byError = gallery.querySelector(".by-error");
  const byType = gallery.querySelector(".by-type");
  const count = gallery.querySelector(".count");
  let found = [];
  const add = (number) => {
    const first = list.children.length;
    const last = Math.min(found.length, first + number);
    for (let index = first; index < last; index += 1) {
      list.append(card(found, index, gallery.dataset.category));
    }
    more.hidden = last === found.length;
    more.textContent = `Show ${Math.min(2 * PAGE, found.length - last)} more`;
    const of = items.length < total ? ` (of ${total}, the hardest are kept)` : "";
    count.textContent = `${found.length} image${found.length === 1 ? "" : "s"}${of}`;
  };
  const choose = () => {
    found = items.filter(
      (item) => (!byError.value || item.kind === byError.value) && (!byType.value || item.type === byType.value),
    );
    list.replaceChildren();
    add(PAGE);
  };
  byError.addEventListener("change", choose);
  byType.addEventListener("change", choose);
  more.addEventListener("click", () => add(2 * PAGE));
  for (const layer of gallery.querySelectorAll(".layer")) {
    layer.addEventListener("change", () => list.classList.toggle(`no-${layer.value}`, !layer.checked));
  }
  choose();
};

const galleries = new Set(document.querySelectorAll(".gallery"));
const near = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting && galleries.delete(target)) fill(target);
    }
  },
  { rootMargin: "800px" },
);
galleries.forEach((gallery) => near.observe(gallery));
addEventListener("beforeprint", () => galleries.forEach((gallery) => galleries.delete(gallery) && fill(gallery)));
