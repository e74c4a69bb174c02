"use strict";

const HIDDEN = 0, FADED = 1, ACTIVE = 2;
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

// The plot of the points on a canvas: what is where, how it is drawn, and which point is near. It knows no controls.
// A point's cluster is a place in data.clusters, largest first, or -1 for noise.
function makePlot(canvas, data, afterPaint) {
  const EDGE = 64; // pixels around the picture, so that dots on its rim need no clipping
  const pen = canvas.getContext("2d");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const clusters = data.clusters;
  const count = data.ids.length;
  const X = Float32Array.from(data.x);
  const Y = Float32Array.from(data.y, (y) => -y); // screens count downwards
  const cluster = Int32Array.from(data.cluster);
  // Noise lies underneath, and small clusters on top of large ones.
  const order = Uint32Array.from({ length: count }, (_, i) => i).sort((a, b) => cluster[a] - cluster[b] || a - b);

  // What the controls change, followed by redraw().
  const show = {
    state: new Uint8Array(count).fill(ACTIVE), // of each point
    named: new Uint8Array(clusters.length).fill(1), // clusters that keep their name
    searching: false, // active points stand out
    lit: -1, // a cluster before which the others pale
    ringed: [], // points with a ring
  };

  let width = 1, height = 1, ratio = 1;
  let view = { k: 1, x: 0, y: 0 }; // screen = world * k + (x, y)
  let whole = view; // the view of all points
  let moving = 0, scheduled = false, image = null, colors = {};

  const screen = (i) => ({ x: X[i] * view.k + view.x, y: Y[i] * view.k + view.y });
  const active = () => order.filter((i) => show.state[i] === ACTIVE);

  // ---- View -------------------------------------------------------------------------------------------------------

  // The view that holds these points, and a little of what surrounds them if they are few.
  function around(points) {
    let left = Infinity, right = -Infinity, top = Infinity, bottom = -Infinity;
    for (const i of points) {
      left = Math.min(left, X[i]); right = Math.max(right, X[i]);
      top = Math.min(top, Y[i]); bottom = Math.max(bottom, Y[i]);
    }
    if (left > right) [left, right, top, bottom] = [-1, 1, -1, 1];
    const margin = Math.min(48, width / 8, height / 8);
    const k = Math.min((width - 2 * margin) / Math.max(right - left, 0.2), (height - 2 * margin) / Math.max(bottom - top, 0.2));
    return { k, x: width / 2 - (k * (left + right)) / 2, y: height / 2 - (k * (top + bottom)) / 2 };
  }

  const panned = (dx, dy) => ({ k: view.k, x: view.x + dx, y: view.y + dy });

  // Closer or farther by a factor, with the place under (x, y) staying there.
  function zoomed(factor, x = width / 2, y = height / 2) {
    const k = clamp(view.k * factor, whole.k / 2, whole.k * 200), change = k / view.k;
    return { k, x: x - (x - view.x) * change, y: y - (y - view.y) * change };
  }

  function setView(next) {
    cancelAnimationFrame(moving);
    view = next;
    redraw();
  }

  // Glide there: the scale changes evenly in the logarithm, the centre in step with what it uncovers.
  function moveTo(target) {
    cancelAnimationFrame(moving);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return setView(target);
    const from = view, began = performance.now();
    const centre = (v) => [(width / 2 - v.x) / v.k, (height / 2 - v.y) / v.k];
    const [fromX, fromY] = centre(from), [toX, toY] = centre(target);
    const level = Math.abs(target.k / from.k - 1) < 1e-6;
    const step = (now) => {
      const t = clamp((now - began) / 280, 0, 1), eased = 1 - (1 - t) ** 3;
      const k = from.k * (target.k / from.k) ** eased;
      const share = level ? eased : (1 / from.k - 1 / k) / (1 / from.k - 1 / target.k);
      const x = fromX + (toX - fromX) * share, y = fromY + (toY - fromY) * share;
      view = t === 1 ? target : { k, x: width / 2 - k * x, y: height / 2 - k * y };
      redraw();
      if (t < 1) moving = requestAnimationFrame(step);
    };
    moving = requestAnimationFrame(step);
  }

  function resize() {
    const box = canvas.parentElement.getBoundingClientRect();
    const dx = (box.width - width) / 2, dy = (box.height - height) / 2;
    const wasWhole = view.k === whole.k && view.x === whole.x && view.y === whole.y;
    [width, height] = [Math.max(1, box.width), Math.max(1, box.height)];
    ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    image = pen.createImageData(canvas.width + 2 * EDGE, canvas.height + 2 * EDGE);
    whole = around(order);
    view = wasWhole ? whole : panned(dx, dy);
    paint(); // at once: a resized canvas is blank
  }

  // ---- Drawing ----------------------------------------------------------------------------------------------------

  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const colorOf = (i) => (cluster[i] < 0 ? colors.noise : clusters[cluster[i]].color);

  // The page's colours change with the light or dark preference; everything else takes them from here.
  function readColors() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["ground", "ink", "noise", "faded"]) colors[name] = style.getPropertyValue(`--${name}`).trim();
    for (const one of clusters) one.color = dark.matches ? one.night : one.day;
    redraw();
  }

  function redraw() {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => { scheduled = false; paint(); });
  }

  function paint() {
    // Fewer points, larger dots; they grow with the zoom, but slower than the distances.
    const crowd = clamp(Math.sqrt((width * height) / Math.max(count, 1)) * 0.12, 1.7, 4.5);
    const radius = clamp(crowd * (view.k / whole.k) ** 0.3, 1.5, 8);
    const [red, green, blue] = rgb(colors.ground);
    new Uint32Array(image.data.buffer).fill((255 << 24) | (blue << 16) | (green << 8) | red);
    stamp(FADED, radius * 0.85);
    stamp(ACTIVE, show.searching ? radius * 1.25 + 0.5 : radius);
    pen.putImageData(image, -EDGE, -EDGE);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    paintNames();
    const finds = show.searching ? active() : [];
    if (finds.length <= 100) finds.forEach((i) => paintDot(i, radius * 1.25 + 0.5)); // no name may hide the only find
    show.ringed.forEach((i) => paintDot(i, radius + 2.5, 2));
    afterPaint();
  }

  // A dot as the pixels that it covers: their distance in the image's bytes, and how far each is covered.
  function dotOf(radius) {
    const reach = Math.ceil(radius * ratio + 0.5), steps = [], cover = [];
    for (let y = -reach; y <= reach; y++) {
      for (let x = -reach; x <= reach; x++) {
        const share = clamp(radius * ratio + 0.5 - Math.hypot(x, y), 0, 1);
        if (share > 0) { steps.push((y * image.width + x) * 4); cover.push(share); }
      }
    }
    return { steps: Int32Array.from(steps), cover: Float32Array.from(cover) };
  }

  // Dots are blended here and not by the canvas, which without a GPU takes five times as long for 20,000 of them.
  function stamp(which, radius) {
    const { steps, cover } = dotOf(radius), pixels = image.data;
    const noise = rgb(colors.noise), faded = rgb(colors.faded), own = clusters.map((one) => rgb(one.color));
    const right = image.width - EDGE / 2, bottom = image.height - EDGE / 2;
    for (let n = 0; n < count; n++) {
      const i = order[n], of = cluster[i];
      if (show.state[i] !== which) continue;
      const x = Math.round((X[i] * view.k + view.x) * ratio) + EDGE, y = Math.round((Y[i] * view.k + view.y) * ratio) + EDGE;
      if (x < EDGE / 2 || y < EDGE / 2 || x > right || y > bottom) continue;
      const pale = which === FADED || (show.lit >= 0 && of !== show.lit);
      const [red, green, blue] = pale ? faded : of < 0 ? noise : own[of];
      const strength = pale ? 0.8 : show.searching ? 1 : of < 0 ? 0.55 : 0.4 + 0.5 * data.probability[i];
      const centre = (y * image.width + x) * 4;
      for (let j = 0; j < steps.length; j++) {
        const at = centre + steps[j], share = cover[j] * strength;
        pixels[at] += (red - pixels[at]) * share;
        pixels[at + 1] += (green - pixels[at + 1]) * share;
        pixels[at + 2] += (blue - pixels[at + 2]) * share;
      }
    }
  }

  function paintDot(i, radius, ring = 0) {
    const { x, y } = screen(i);
    pen.beginPath();
    pen.arc(x, y, radius, 0, 7);
    pen.fillStyle = colorOf(i);
    pen.fill();
    if (!ring) return;
    pen.lineWidth = ring;
    pen.strokeStyle = colors.ink;
    pen.stroke();
  }

  // The largest clusters are named first. A name that would lie on another moves a line, or waits for a closer view.
  function paintNames() {
    const taken = [];
    pen.font = `600 ${width < 520 ? 11.5 : 13}px ${getComputedStyle(document.body).fontFamily}`;
    Object.assign(pen, { textAlign: "center", textBaseline: "middle", lineJoin: "round", lineWidth: 3.5 });
    clusters.forEach((one, i) => {
      if (taken.length > 150 || !one.keywords.length || !show.named[i] || (show.lit >= 0 && show.lit !== i)) return;
      const words = one.keywords.slice(0, 2).join(" · ");
      const text = words.length > 40 ? `${words.slice(0, 39)}…` : words;
      const half = pen.measureText(text).width / 2 + 6;
      const center = one.x * view.k + view.x, middle = -one.y * view.k + view.y;
      // A name at the edge is pushed inside; one whose cluster is out of sight is not.
      const seen = center >= 0 && center <= width && width > 2 * half;
      const x = seen ? clamp(center, half, width - half) : center;
      const free = (y) => !taken.some((other) => Math.abs(other.x - x) < other.half + half && Math.abs(other.y - y) < 20);
      const y = [0, -12, 12, -22, 22].map((offset) => middle + offset).find(free);
      if (y === undefined) return;
      taken.push({ x, y, half });
      pen.globalAlpha = 0.75;
      pen.strokeStyle = colors.ground;
      pen.strokeText(text, x, y);
      pen.globalAlpha = 1;
      pen.fillStyle = colors.ink;
      pen.fillText(text, x, y);
    });
  }

  // ---- Pointing: a grid over the plane, so that a look touches a few cells and not every point ---------------------

  const side = clamp(Math.ceil(Math.sqrt(count / 2)), 1, 256);
  const cellOf = (value) => clamp(Math.floor(((value + 1) / 2) * side), 0, side - 1);
  const cells = Array.from({ length: side * side }, () => []);
  for (let i = 0; i < count; i++) cells[cellOf(Y[i]) * side + cellOf(X[i])].push(i);

  // The nearest active point within a reach in pixels, or -1.
  function nearest(at, reach) {
    const x = (at.x - view.x) / view.k, y = (at.y - view.y) / view.k, span = reach / view.k;
    let best = -1, least = span * span;
    for (let row = cellOf(y - span); row <= cellOf(y + span); row++) {
      for (let column = cellOf(x - span); column <= cellOf(x + span); column++) {
        for (const i of cells[row * side + column]) {
          const distance = (X[i] - x) ** 2 + (Y[i] - y) ** 2;
          if (show.state[i] === ACTIVE && distance < least) [best, least] = [i, distance];
        }
      }
    }
    return best;
  }

  dark.addEventListener("change", readColors);
  readColors();
  resize();
  new ResizeObserver(resize).observe(canvas.parentElement);

  return {
    count, cluster, show, screen, active, colorOf, nearest, redraw,
    around, panned, zoomed, setView, moveTo, showAll: () => moveTo(whole), size: () => ({ width, height }),
  };
}
