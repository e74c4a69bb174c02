// The page around the plot: search, legend, tooltip, pointer and keys. Texts reach it by textContent alone.
{
  const element = (id) => document.getElementById(id);
  const data = JSON.parse(element("data").textContent);
  const clusters = data.clusters;
  const number = (value) => value.toLocaleString("en-US");
  const name = (one) => (one ? one.keywords.slice(0, 4).join(", ") || `Cluster ${one.label}` : "Noise");
  const canvas = element("map"), field = element("search"), legend = element("legend"), tip = element("tip");

  let selected = new Set(); // clusters chosen in the legend; none chosen means all
  let words = [];
  let haystack = null; // made at the first search
  let hovered = -1, pinned = -1;

  const plot = makePlot(canvas, data, () => placeTip());
  const { cluster, show } = plot;

  // ---- What is shown ----------------------------------------------------------------------------------------------

  function refilter() {
    let found = 0;
    show.searching = words.length > 0;
    show.named.fill(0);
    for (let i = 0; i < plot.count; i++) {
      const matches = (!selected.size || selected.has(cluster[i])) && words.every((word) => haystack[i].includes(word));
      show.state[i] = cluster[i] < 0 && !element("noise").checked ? HIDDEN : matches ? ACTIVE : FADED;
      if (show.state[i] !== ACTIVE) continue;
      found++;
      if (cluster[i] >= 0) show.named[cluster[i]] = 1;
    }
    const scope = selected.size ? ", chosen clusters only" : "", hint = found ? "; Enter zooms there" : "";
    element("found").textContent = words.length ? `Found ${number(found)} of ${number(plot.count)}${scope}${hint}` : "";
    element("all").disabled = !selected.size;
    legend.classList.toggle("some", selected.size > 0);
    legend.querySelectorAll("button").forEach((button, i) => button.setAttribute("aria-pressed", String(selected.has(i))));
    point(show.state[hovered] === ACTIVE ? hovered : -1, show.state[pinned] === ACTIVE ? pinned : -1);
  }

  function search(text) {
    words = text.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length && !haystack) haystack = data.texts.map((text, i) => `${data.ids[i]}\n${text}`.toLowerCase());
    refilter();
  }

  function toggle(i) {
    if (!selected.delete(i)) selected.add(i);
    refilter();
  }

  // ---- One point --------------------------------------------------------------------------------------------------

  function point(at, pin = pinned) {
    [hovered, pinned] = [at, pin];
    show.ringed = [...new Set([pinned, hovered])].filter((i) => i >= 0);
    canvas.classList.toggle("pointing", hovered >= 0);
    plot.redraw();
  }

  function placeTip() {
    const i = pinned >= 0 ? pinned : hovered;
    tip.hidden = i < 0;
    tip.classList.toggle("pinned", pinned >= 0);
    if (i < 0) return;
    tip.querySelector(".swatch").style.background = plot.colorOf(i);
    element("tip-cluster").textContent = name(clusters[cluster[i]]);
    element("tip-probability").textContent = cluster[i] < 0 ? "" : `probability ${data.probability[i].toFixed(2)}`;
    element("tip-text").textContent = data.texts[i];
    element("tip-id").textContent = data.ids[i];
    const { x, y } = plot.screen(i), { width, height } = plot.size(), box = tip.getBoundingClientRect();
    const beside = x + 16 + box.width < width - 8 ? x + 16 : x - 16 - box.width;
    const left = clamp(beside, 8, Math.max(8, width - box.width - 8));
    const top = clamp(y - 18, 8, Math.max(8, height - box.height - 8));
    tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
  }

  // From point to point by keyboard, among those that are not faded.
  function step(direction) {
    const points = plot.active(), at = points.indexOf(hovered);
    if (!points.length) return;
    const next = at < 0 ? (direction > 0 ? 0 : points.length - 1) : (at + direction + points.length) % points.length;
    point(points[next], -1);
    const { x, y } = plot.screen(hovered), { width, height } = plot.size();
    if (clamp(x, 40, width - 40) !== x || clamp(y, 40, height - 40) !== y) plot.setView(plot.panned(width / 2 - x, height / 2 - y));
    element("announce").textContent = `${data.ids[hovered]}, ${name(clusters[cluster[hovered]])}: ${data.texts[hovered]}`;
  }

  // ---- Pointer ----------------------------------------------------------------------------------------------------

  const fingers = new Map(); // mouse button, pen or fingers that are down, and where
  let travelled = 0; // pixels since the first came down: few make a click, more a drag

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, place(event));
    if (fingers.size === 1) travelled = 0;
  });

  canvas.addEventListener("pointermove", (event) => {
    const now = place(event), before = fingers.get(event.pointerId);
    if (!before) {
      const near = plot.nearest(now, 12);
      if (near !== hovered) point(near);
      return;
    }
    fingers.set(event.pointerId, now);
    travelled += Math.hypot(now.x - before.x, now.y - before.y);
    if (travelled < 4) return;
    canvas.classList.add("dragging");
    const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
    if (!other) return plot.setView(plot.panned(now.x - before.x, now.y - before.y));
    const apart = (a) => Math.max(1, Math.hypot(a.x - other.x, a.y - other.y));
    plot.setView(plot.zoomed(apart(now) / apart(before), (before.x + other.x) / 2, (before.y + other.y) / 2));
    plot.setView(plot.panned((now.x - before.x) / 2, (now.y - before.y) / 2));
  });

  function lift(event) {
    if (!fingers.delete(event.pointerId) || fingers.size) return;
    canvas.classList.remove("dragging");
    if (event.type === "pointercancel" || travelled >= 4) return;
    const near = plot.nearest(place(event), event.pointerType === "touch" ? 24 : 12);
    point(hovered, near === pinned ? -1 : near);
  }
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => point(-1));
  canvas.addEventListener("dblclick", (event) => plot.moveTo(plot.zoomed(2, place(event).x, place(event).y)));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const pixels = clamp(event.deltaY * [1, 16, plot.size().height][event.deltaMode], -300, 300);
    const { x, y } = place(event);
    // A pinch on a trackpad arrives as small wheel steps with the control key.
    plot.setView(plot.zoomed(Math.exp(-pixels * (event.ctrlKey ? 0.01 : 0.0018)), x, y));
    point(plot.nearest({ x, y }, 12));
  }, { passive: false });

  // ---- Keys and controls ------------------------------------------------------------------------------------------

  const pan = (dx, dy) => () => plot.moveTo(plot.panned(dx, dy));
  const zoom = (factor) => () => plot.moveTo(plot.zoomed(factor));
  const keys = {
    ArrowLeft: pan(80, 0), ArrowRight: pan(-80, 0), ArrowUp: pan(0, 80), ArrowDown: pan(0, -80),
    "+": zoom(1.5), "=": zoom(1.5), "-": zoom(1 / 1.5), 0: plot.showAll, n: () => step(1), p: () => step(-1),
  };

  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });

  function clearSearch() {
    field.value = "";
    search("");
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && event.target !== field) {
      event.preventDefault();
      field.focus();
      field.select();
    } else if (event.key === "Escape") {
      if (event.target === field) clearSearch();
      else if (show.ringed.length) point(-1, -1);
      else if (words.length) clearSearch();
      else { selected.clear(); refilter(); }
    }
  });

  field.addEventListener("input", () => search(field.value));
  field.addEventListener("keydown", (event) => {
    const points = event.key === "Enter" && words.length ? plot.active() : [];
    if (points.length) plot.moveTo(plot.around(points));
  });
  element("zoom-in").addEventListener("click", zoom(1.6));
  element("zoom-out").addEventListener("click", zoom(1 / 1.6));
  element("zoom-fit").addEventListener("click", plot.showAll);
  element("noise").addEventListener("change", refilter);
  element("all").addEventListener("click", () => { selected.clear(); refilter(); });

  // ---- Legend -----------------------------------------------------------------------------------------------------

  function legendRow(one, i) {
    const span = (kind, text) => Object.assign(document.createElement("span"), { className: kind, textContent: text });
    const button = Object.assign(document.createElement("button"), { type: "button" });
    const label = Object.assign(span("words", one.keywords.slice(0, 2).join(", ") || name(one)), { dir: "auto" });
    if (one.keywords.length > 2) label.append(span("rest", `, ${one.keywords.slice(2).join(", ")}`));
    button.append(span("swatch", ""), label, span("size", number(one.size)));
    button.style.setProperty("--day", one.day);
    button.style.setProperty("--night", one.night);
    button.addEventListener("click", () => toggle(i));
    const light = (which) => () => { show.lit = which; plot.redraw(); };
    button.addEventListener("pointerenter", light(i));
    button.addEventListener("pointerleave", light(-1));
    const row = document.createElement("li");
    row.append(button);
    return row;
  }

  legend.addEventListener("keydown", (event) => {
    const sibling = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const next = sibling && event.target.closest("li")?.[sibling]?.querySelector("button");
    if (!next) return;
    event.preventDefault();
    next.focus();
  });

  element("title").textContent = data.title;
  element("counts").textContent = data.counts;
  element("note").textContent = data.note;
  element("note").hidden = !data.note;
  element("noise-row").hidden = data.noise === 0;
  element("noise-size").textContent = number(data.noise);
  element("none").hidden = clusters.length > 0;
  legend.append(...clusters.map(legendRow));
  refilter();
}
