// Draws the report: everything that is shown comes from the JSON in #data, and reaches the page as text only.
"use strict";

const {report, metrics, extremes} = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");

// ---- small helpers

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const known = (value) => value !== null && value !== undefined;
const score = (value) => (known(value) ? value.toFixed(4) : "–");
// a small error has its first digit after the fourth decimal
const exact = (value) => (known(value) && value > 0 && value < 0.001 ? value.toFixed(6) : score(value));
const whole = (value) => (known(value) ? value.toLocaleString("en") : "–");
const short = (value) => value.toLocaleString("en", {maximumSignificantDigits: 5});
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const plural = (count, one, many) => `${whole(count)} ${count === 1 ? one : many}`;

function duration(seconds) {
  const s = Math.round(seconds);
  if (s < 60) return `${seconds < 10 ? seconds.toFixed(1) : s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} m ${String(s % 60).padStart(2, "0")} s`;
  return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} m`;
}

// ---- scales: data are transformed before uPlot sees them, so that its axes stay linear and ticks are ours

const linear = {to: (v) => v, from: (v) => v, ticks: null, label: short};

const log = {
  to: Math.log10,
  from: (v) => 10 ** v,
  ticks(low, high) {
    const within = (steps) => {
      const found = [];
      for (let decade = Math.floor(low); decade <= high; decade++)
        for (const step of steps) {
          const at = decade + Math.log10(step);
          if (at >= low - 1e-9 && at <= high + 1e-9) found.push(at);
        }
      return found;
    };
    const choices = [[1], [1, 3], [1, 2, 5], [1, 2, 3, 5, 7], [1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9]].map(within);
    return choices.find((found) => found.length >= 4) ?? choices.at(-1);
  },
  label: (v) => (v >= 1e6 ? `${short(v / 1e6)} M` : short(v)),
};

const logit = {
  to: (p) => Math.log(p / (1 - p)),
  from: (v) => 1 / (1 + Math.exp(-v)),
  ticks(low, high) {
    const tails = [1, 2, 3, 4, 5, 6, 7].map((power) => 10 ** -power);
    const all = [...tails.map((p) => logit.to(p)), 0, ...tails.map((p) => logit.to(1 - p))].sort((a, b) => a - b);
    return all.filter((at) => at >= low - 1e-9 && at <= high + 1e-9);
  },
  label(p) {
    if (p < 9e-4) return `10⁻${"⁰¹²³⁴⁵⁶⁷"[-Math.round(Math.log10(p))]}`;
    return p.toFixed(7).replace(/\.?0+$/, "");
  },
};

// ---- one chart: its heading, legend, axes, and a box that says what is under the pointer

const charts = [];

/**
 * series: [{name, colour, data, faint, points, line, fill}], data already transformed by `y.scale`
 * x, y: {label, scale, range}, the range in transformed units too
 * legend: entries besides the series
 * draw(u): paints over the series
 * nearest(u): index of the point under the pointer, where not the nearest x is meant
 * tip(index): what to say about a point, [heading, [[name, value], ...]]
 */
function chart(grid, {title, note, xs, series, x, y, legend = [], draw, nearest, tip, wide}) {
  const plot = el("div", {class: "plot", role: "img", "aria-label": `${title}. ${note}`});
  const kind = ({faint, line}) => (line === false ? "dot" : faint ? "faint" : "");
  const entries = [...series.map((s) => ({name: s.name, colour: s.colour, kind: kind(s)})), ...legend];
  const figure = el("figure", wide ? {class: "wide"} : {}, el("h3", {}, title), el("p", {class: "note"}, note));
  if (entries.length > 1 || legend.length)
    figure.append(el("ul", {class: "legend"}, ...entries.map((entry) =>
      el("li", {}, el("i", {class: entry.kind, style: `color: var(--${entry.colour})`}), entry.name))));
  figure.append(el("div", {class: "ylabel"}, `↑ ${y.label}`), plot);
  grid.append(figure);

  const axis = ({label, scale = linear}, vertical) => ({
    label: vertical ? undefined : `${label} →`,
    labelSize: 20,
    labelGap: 2,
    labelFont: "12.5px system-ui, sans-serif",
    font: "12px system-ui, sans-serif",
    stroke: () => colour("muted"),
    grid: {stroke: () => colour("grid"), width: 1},
    ticks: {show: false},
    border: {show: !vertical, stroke: () => colour("line"), width: 1},
    gap: 6,
    space: vertical ? 36 : 64,
    // the widest label decides, so that none is cut off
    size: vertical ? (u, labels) => 12 + 7.2 * Math.max(3, ...(labels ?? []).map((text) => text.length)) : 26,
    splits: scale.ticks ? (u, axisIndex, low, high) => scale.ticks(low, high) : undefined,
    values: (u, splits) => splits.map((at) => scale.label(scale.from(at))),
  });

  const box = el("div", {class: "tip", hidden: ""});
  const show = (u) => {
    const index = nearest ? u.cursor.idxs[1] : u.cursor.idx;
    const content = known(index) && u.cursor.left >= 0 ? tip(index) : null;
    box.hidden = !content;
    if (!content) return;
    const [heading, rows] = content;
    box.replaceChildren(el("b", {}, heading),
      el("table", {}, ...rows.map(([name, value]) => el("tr", {}, el("td", {}, name), el("td", {}, value)))));
    const {left, top} = u.cursor;
    const room = u.over.clientWidth;
    const beside = left > room / 2 ? left - box.offsetWidth - 14 : left + 14;
    box.style.left = `${Math.max(-u.over.offsetLeft, Math.min(beside, room - box.offsetWidth))}px`;
    box.style.top = `${Math.max(0, Math.min(top - 20, u.over.clientHeight - box.offsetHeight))}px`;
  };

  const size = () => ({width: plot.clientWidth, height: wide ? 400 : plot.clientWidth < 420 ? 250 : 280});
  // uPlot asks for the range of x also while enlarging: only the whole of the data gets ours
  const range = x.range && ((u, low, high) => (low === xs[0] && high === xs.at(-1) ? x.range : [low, high]));
  // a function, since a plain pair would not come back after enlarging
  const rangeOfY = y.range && (() => y.range);
  const u = new uPlot({
    ...size(),
    padding: [8, 30, 0, 0],
    legend: {show: false},
    scales: {x: {time: false, range}, y: {range: rangeOfY}},
    axes: [axis(x, false), axis(y, true)],
    series: [{}, ...series.map((s) => ({
      stroke: () => colour(s.colour) + (s.faint ? "55" : ""),
      width: s.line === false ? 0 : s.faint ? 1 : 2,
      paths: s.line === false ? () => null : undefined,
      fill: s.fill ? () => colour(s.colour) + "1c" : undefined,
      points: {show: !!s.points, size: 7, width: 0, fill: () => colour(s.colour)},
      spanGaps: true,
    }))],
    cursor: {
      x: !nearest, y: false,
      drag: {x: true, y: !!nearest, uni: 20},
      points: {size: 9, width: 2, stroke: () => colour("page"), fill: (u, index) => colour(series[index - 1].colour)},
      dataIdx: nearest ? (u) => nearest(u) : undefined,
    },
    hooks: {setCursor: [show], draw: draw ? [(u) => clipped(u, draw)] : []},
  }, [xs, ...series.map((s) => s.data)], plot);
  u.over.append(box);
  u.over.addEventListener("mouseleave", () => { box.hidden = true; });
  charts.push(u);
  // in the next frame, since a new height would be a new resize while this one is still being reported
  new ResizeObserver(() => requestAnimationFrame(() => {
    const wanted = size();
    if (wanted.width > 0 && wanted.width !== u.width) u.setSize(wanted);
  })).observe(plot);
}

function clipped(u, draw) {
  const {left, top, width, height} = u.bbox;
  u.ctx.save();
  u.ctx.beginPath();
  const edge = 7 * uPlot.pxRatio; // dots that stand on the edge are drawn whole
  u.ctx.rect(left - edge, top - edge, width + 2 * edge, height + 2 * edge);
  u.ctx.clip();
  draw(u);
  u.ctx.restore();
}

function dashedLine(u, name, points) {
  u.ctx.strokeStyle = colour(name);
  u.ctx.lineWidth = 1.5 * uPlot.pxRatio;
  u.ctx.setLineDash([5 * uPlot.pxRatio, 4 * uPlot.pxRatio]);
  u.ctx.beginPath();
  for (const [x, y] of points) u.ctx.lineTo(u.valToPos(x, "x", true), u.valToPos(y, "y", true));
  u.ctx.stroke();
}

function discs(u, name, opacity, points) {
  u.ctx.fillStyle = colour(name);
  u.ctx.globalAlpha = opacity;
  for (const [x, y, radius] of points) {
    u.ctx.beginPath();
    u.ctx.arc(u.valToPos(x, "x", true), u.valToPos(y, "y", true), radius * uPlot.pxRatio, 0, 2 * Math.PI);
    u.ctx.fill();
  }
}

// the index of the point closest to the pointer in two directions, null when none is within 24 pixels
function closest(u, xs, ys) {
  const {left, top} = u.cursor;
  let best = null, distance = 24 ** 2;
  for (let i = 0; i < xs.length; i++) {
    const d = (u.valToPos(xs[i], "x") - left) ** 2 + (u.valToPos(ys[i], "y") - top) ** 2;
    if (d < distance) [best, distance] = [i, d];
  }
  return best;
}

// ---- training: curves over steps

// A log continued from a checkpoint may hold a step twice: the later row is what the weights have seen.
const byStep = (rows) => new Map(rows.filter((row) => known(row.step)).map((row) => [row.step, row]));
const logged = byStep(report.history);
const validations = byStep(report.validations);

const column = (rows, key) => [...rows.values()].filter((row) => known(row[key]))
  .map((row) => [row.step, row[key]]).sort((a, b) => a[0] - b[0]);

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

// The rows of the log, and their trend: the median of about an eighteenth of the log around each row, less
// towards both ends. It does not lag, and unlike a mean leaves the steep fall of the first steps where it is.
function smoothed(pairs) {
  const reach = Math.floor(pairs.length / 36);
  if (reach === 0) return [{name: "batches", colour: "blue", pairs}];
  const medians = pairs.map(([step], i) => {
    const half = Math.min(reach, i, pairs.length - 1 - i);
    return [step, median(pairs.slice(i - half, i + half + 1).map((pair) => pair[1]))];
  });
  return [
    {name: "batches", colour: "blue", faint: true, pairs},
    {name: "running median", colour: "blue", pairs: medians},
  ];
}

/** curves: [{name, colour, pairs, ...}]; each is laid out on the union of all steps. */
function overSteps(grid, {curves, y, format = score, ...rest}) {
  const present = curves.filter((curve) => curve.pairs.length);
  const scale = y.scale ?? linear;
  const steps = [...new Set(present.flatMap((curve) => curve.pairs.map(([step]) => step)))].sort((a, b) => a - b);
  if (steps.length < 2) return; // a single validation is in the tiles already
  const series = present.map((curve) => {
    const at = new Map(curve.pairs);
    return {...curve, data: steps.map((step) => (at.has(step) ? scale.to(at.get(step)) : null))};
  });
  const tip = (index) => {
    const rows = series.map((s) => {
      let near = s.pairs[0];
      for (const pair of s.pairs) if (Math.abs(pair[0] - steps[index]) < Math.abs(near[0] - steps[index])) near = pair;
      return [near[0] === steps[index] ? s.name : `${s.name}, step ${whole(near[0])}`, format(near[1])];
    });
    return [`step ${whole(steps[index])}`, rows];
  };
  chart(grid, {xs: steps, series, x: {label: "training step"}, y, tip, ...rest});
}

function training(grid) {
  const loss = column(logged, "loss"), gap = column(logged, "gap@20");
  const checkedLoss = column(validations, "loss"), checkedGap = column(validations, "gap@20");
  const values = [...loss, ...checkedLoss].map((pair) => pair[1]);
  // an untrained network's loss is hundreds of times its final one: on a linear axis the rest would be a flat line
  const spread = Math.min(...values) > 0 && Math.max(...values) > 8 * Math.min(...values);
  overSteps(grid, {
    title: "Loss during training",
    note: "On the batches just trained on" + (checkedLoss.length ? ", and on the validation set." : "."),
    y: spread ? {label: "loss (log scale)", scale: log} : {label: "loss"},
    format: short,
    curves: [
      ...smoothed(loss),
      {name: "validation", colour: "orange", points: true, pairs: checkedLoss},
    ],
  });
  const best = report.best_possible?.["gap@20"];
  const reach = [...gap, ...checkedGap].map((pair) => pair[1]);
  overSteps(grid, {
    title: "GAP@20 during training",
    note: "On the batches just trained on" + (checkedGap.length ? ", and on the validation set." : "."),
    // the line of the best possible score is part of the picture, so the axis has to hold it
    y: {
      label: "GAP@20",
      range: known(best) ? [Math.min(...reach, best) * 0.95, Math.max(...reach, best) * 1.03] : undefined,
    },
    curves: [
      ...smoothed(gap),
      {name: "validation", colour: "orange", points: true, pairs: checkedGap},
    ],
    legend: known(best) ? [{name: `best possible ${score(best)}`, colour: "green", kind: "dashed"}] : [],
    draw: known(best) ? (u) => dashedLine(u, "green", [[u.scales.x.min, best], [u.scales.x.max, best]]) : undefined,
  });
  const colours = ["orange", "blue", "green", "purple", "gold"];
  const rising = metrics.filter((metric) => metric.rising);
  overSteps(grid, {
    title: "Metrics on the validation set",
    note: "Measured at each validation during training.",
    wide: true,
    y: {label: "score, 0 to 1"},
    curves: rising.map(({key, label}, i) =>
      ({name: label, colour: colours[i], points: true, pairs: column(validations, key)})),
  });
}

// ---- precision–recall

function precisionRecall(grid) {
  const {recall, precision} = report.precision_recall ?? {};
  if (!recall?.length) return;
  const points = recall.map((r, i) => [r, precision[i]]).filter(([r, p]) => known(r) && known(p))
    .sort((a, b) => a[0] - b[0]);
  const xs = points.map(([r]) => r), ys = points.map(([, p]) => p);
  chart(grid, {
    title: "Precision against recall",
    note: "The 20 highest scores of each video in one list, followed downwards; the area under the curve is GAP@20.",
    xs, series: [{name: "precision", colour: "blue", fill: true, data: ys}],
    x: {label: "recall (share of the true labels found)", range: [0, 1]},
    y: {label: "precision (share of the predictions that are true)", range: [0, 1.02]},
    tip: (i) => [`recall ${score(xs[i])}`, [["precision", score(ys[i])]]],
  });
}

// ---- calibration

function calibration(grid) {
  const {score: scores, frequency, count} = report.calibration ?? {};
  const bins = (scores ?? []).map((s, i) => ({score: s, frequency: frequency[i], count: count[i]}))
    .filter((bin) => known(bin.score) && known(bin.frequency) && bin.count > 0).sort((a, b) => a.score - b.score);
  if (!bins.length) return;
  const inside = bins.flatMap((bin) => [bin.score, bin.frequency]).filter((p) => p > 0 && p < 1);
  const low = logit.to(Math.max(1e-7, Math.min(0.1, ...inside))) - 0.5;
  const high = logit.to(Math.min(1 - 1e-7, Math.max(0.9, ...inside))) + 0.5;
  // a bin in which all or none came true has no logit: it is drawn on the edge
  const place = (p) => Math.min(high, Math.max(low, logit.to(p)));
  const xs = bins.map((bin) => place(bin.score)), ys = bins.map((bin) => place(bin.frequency));
  const most = Math.log(1 + Math.max(...bins.map((bin) => bin.count)));
  const radius = bins.map((bin) => 2 + 4 * Math.log(1 + bin.count) / most);
  chart(grid, {
    title: "Can the scores be read as probabilities?",
    note: "On the dashed line, what scores 0.1 is true one time in ten; below it the model is too sure. " +
      "Larger dots hold more predictions.",
    xs, series: [{name: "predictions, binned by score", colour: "blue", data: ys, line: false}],
    legend: [{name: "perfectly calibrated", colour: "muted", kind: "dashed"}],
    x: {label: "score (logit scale)", scale: logit, range: [low, high]},
    y: {label: "share that is true (logit scale)", scale: logit, range: [low, high]},
    nearest: (u) => closest(u, xs, ys),
    draw: (u) => {
      dashedLine(u, "muted", [[low, low], [high, high]]);
      discs(u, "blue", 1, xs.map((x, i) => [x, ys[i], radius[i]]));
    },
    tip: (i) => {
      const {count, score, frequency} = bins[i];
      const precise = (p) => Number(p.toPrecision(3)).toString();
      return [plural(count, "prediction", "predictions"),
        [["mean score", precise(score)], ["share that is true", precise(frequency)]]];
    },
  });
}

// ---- classes against their number of examples

function examples(grid) {
  const scored = report.per_class.filter((c) => known(c.ap));
  const trained = scored.some((c) => known(c.train_count));
  const size = (c) => (trained ? c.train_count : c.support);
  // log(0) has no place on the axis; a class never trained on stands at 1
  const at = (c) => log.to(Math.max(1, size(c)));
  const dots = scored.filter((c) => known(size(c))).sort((a, b) => size(a) - size(b));
  if (dots.length < 2) return;
  const xs = dots.map(at), ys = dots.map((c) => c.ap);
  const low = Math.floor(xs[0] * 2) / 2, high = Math.max(low + 0.5, Math.ceil(xs.at(-1) * 10) / 10);

  // the trend, whatever the crowd of dots hides: four bins to a power of ten, each with enough classes for a median
  const bins = new Map();
  xs.forEach((x, i) => {
    const bin = Math.floor(4 * x);
    if (!bins.has(bin)) bins.set(bin, []);
    bins.get(bin).push(i);
  });
  const medians = [...bins.values()].filter((bin) => bin.length >= Math.max(5, dots.length / 200))
    .map((bin) => [median(bin.map((i) => xs[i])), median(bin.map((i) => ys[i]))]);
  const missing = report.per_class.length - dots.length;
  const notes = ["Each dot is a class; point at it for its name."];
  const lacking = trained ? "an AP or a training count" : "a positive in this set";
  if (missing) notes.push(`${plural(missing, "class", "classes")} without ${lacking} left out.`);
  if (size(dots[0]) === 0) notes.push("Classes without training examples stand at 1.");
  chart(grid, {
    title: `Average precision of each class against its ${trained ? "training examples" : "examples in this set"}`,
    note: notes.join(" "),
    wide: true, xs,
    series: [{name: "class", colour: "blue", data: ys, line: false}],
    legend: medians.length > 2 ? [{name: "median of classes of similar size", colour: "orange", kind: ""}] : [],
    x: {
      label: trained ? "training videos with the class (log scale)"
        : "videos with the class in this set, training counts unknown (log scale)",
      scale: log,
      range: [low, high],
    },
    y: {label: "average precision (AP)", range: [-0.02, 1.02]},
    nearest: (u) => closest(u, xs, ys),
    draw: (u) => {
      discs(u, "blue", dots.length > 800 ? 0.35 : 0.7, xs.map((x, i) => [x, ys[i], dots.length > 800 ? 2.2 : 3.2]));
      if (medians.length < 3) return;
      u.ctx.globalAlpha = 1;
      u.ctx.strokeStyle = colour("orange");
      u.ctx.lineWidth = 2.5 * uPlot.pxRatio;
      u.ctx.lineJoin = "round";
      u.ctx.beginPath();
      for (const [x, y] of medians) u.ctx.lineTo(u.valToPos(x, "x", true), u.valToPos(y, "y", true));
      u.ctx.stroke();
    },
    tip: (i) => [dots[i].name, [
      ["AP", score(dots[i].ap)],
      ["videos in this set", whole(dots[i].support)],
      ...(trained ? [["training videos", whole(dots[i].train_count)]] : []),
    ]],
  });
}

// ---- tables of classes

const counted = report.per_class.some((c) => known(c.train_count));
const columns = [
  {key: "name", title: "class", text: (c) => c.name},
  {key: "id", title: "id", text: (c) => String(c.id)},
  {key: "ap", title: "AP", text: (c) => score(c.ap)},
  {key: "support", title: "videos in this set", text: (c) => whole(c.support)},
  ...(counted ? [{key: "train_count", title: "training videos", text: (c) => whole(c.train_count)}] : []),
];

function row(c, shown) {
  return el("tr", {}, ...shown.map(({key, text}) => {
    const cell = el("td", {class: key});
    if (key === "ap" && known(c.ap)) cell.append(el("span", {class: "bar"}, el("i", {style: `width: ${100 * c.ap}%`})));
    cell.append(text(c));
    return cell;
  }));
}

function extremeTables() {
  const shown = columns.filter((column) => column.key !== "id");
  const table = (title, classes) => el("div", {}, el("h3", {}, title),
    el("table", {class: "classes"},
      el("thead", {}, el("tr", {}, ...shown.map(({key, title}) => el("th", {class: key, scope: "col"}, title)))),
      el("tbody", {}, ...classes.map((c) => row(c, shown)))));
  const {best, worst, minimum} = extremes;
  if (!best.length) return;
  const grid = el("div", {class: "grid"}, table(`Best ${best.length}`, best));
  if (worst.length) grid.append(table(`Worst ${worst.length}`, worst));
  page.append(
    el("h2", {}, "Best and worst classes"),
    el("p", {class: "note"},
      `By average precision, among the classes with at least ${plural(minimum, "video", "videos")} in this set.`),
    grid);
}

function allClasses() {
  if (!report.per_class.length) return;
  const collator = new Intl.Collator("en", {numeric: true, sensitivity: "base"});
  const byName = new Map([...report.per_class].sort((a, b) => collator.compare(a.name, b.name)).map((c, i) => [c, i]));
  const sought = new Map(report.per_class.map((c) => [c, `${c.name} ${c.id}`.toLowerCase()]));
  const value = (c, key) => (key === "name" ? byName.get(c) : c[key]);
  let sort = {key: "support", down: true}, found = [], drawn = 0;

  const body = el("tbody"), status = el("span", {class: "note", role: "status"});
  const invitation = "Search by name or id";
  const input = el("input", {type: "search", placeholder: invitation, "aria-label": invitation});
  const heads = columns.map(({key, title}) => {
    const button = el("button", {type: "button"}, title);
    button.addEventListener("click", () => {
      // names and ids read upwards first, numbers from the largest
      sort = {key, down: sort.key === key ? !sort.down : key !== "name" && key !== "id"};
      update();
    });
    return el("th", {class: key, scope: "col"}, button);
  });
  const frame = el("div", {class: "all", tabindex: "0"},
    el("table", {class: "classes"}, el("thead", {}, el("tr", {}, ...heads)), body));

  // rows are made as they come into view: thousands at once would take longer than a key press
  function more() {
    while (drawn < found.length && frame.scrollTop + 3 * frame.clientHeight > body.offsetHeight) {
      body.append(...found.slice(drawn, drawn + 100).map((c) => row(c, columns)));
      drawn = Math.min(found.length, drawn + 100);
    }
  }
  function update() {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const {key, down} = sort;
    found = report.per_class.filter((c) => words.every((word) => sought.get(c).includes(word)));
    found.sort((a, b) => {
      const [left, right] = [value(a, key), value(b, key)];
      if (!known(left) || !known(right)) return known(right) - known(left); // unknown values last, either way
      return (down ? right - left : left - right) || byName.get(a) - byName.get(b);
    });
    heads.forEach((head, i) => {
      if (columns[i].key === key) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const all = plural(report.per_class.length, "class", "classes");
    status.textContent = words.length ? `${whole(found.length)} of ${all}` : all;
    body.replaceChildren();
    drawn = frame.scrollTop = 0;
    more();
  }
  input.addEventListener("input", update);
  frame.addEventListener("scroll", more, {passive: true});
  page.append(el("h2", {}, "All classes"), el("div", {class: "search"}, input, status), frame);
  update();
}

// ---- the page, from top to bottom

function header() {
  const {title, recipe, checkpoint, step, data, videos, classes, parameters, seconds} = report;
  const sources = data.length > 4 ? [...data.slice(0, 3), `${whole(data.length - 3)} more`] : data;
  const size = [[videos, "video", "videos"], [classes, "class", "classes"], [parameters, "parameter", "parameters"]];
  const facts = [
    ["recipe", recipe],
    ["checkpoint", `${checkpoint}, step ${whole(step)}`],
    ["data", sources.join(", ")],
    ["size", size.map((words) => plural(...words)).join(", ")],
    ["evaluated in", duration(seconds) + (seconds > 0 ? `, ${whole(Math.round(videos / seconds))} videos/s` : "")],
  ];
  const list = facts.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]);
  page.append(el("h1", {}, title), el("dl", {class: "facts"}, ...list));
}

function tiles() {
  const tile = ({label, meaning, value, best, share}) => {
    const node = el("div", {class: "tile"}, el("div", {}, label), el("div", {class: "value"}, exact(value)));
    const width = `width: ${Math.min(100, 100 * share)}%`;
    if (known(share)) node.append(el("div", {class: "share"}, el("i", {style: width})));
    if (known(best)) node.append(el("div", {class: "best"},
      (known(share) ? `${(100 * share).toFixed(1)} % of the ` : "") + `best possible ${exact(best)}`));
    node.append(el("div", {class: "note"}, meaning));
    return node;
  };
  page.append(el("section", {class: "tiles", "aria-label": "Metrics"}, ...metrics.map(tile)));
}

function pictures(title, ...draw) {
  const grid = el("div", {class: "grid"});
  page.append(el("h2", {}, title), grid);
  for (const one of draw) one(grid);
  if (!grid.children.length) grid.previousSibling.remove();
}

page.replaceChildren();
header();
tiles();
pictures("Scores", precisionRecall, calibration, examples);
pictures("Training", training);
extremeTables();
allClasses();
page.append(el("footer", {}, "Drag over a picture to enlarge a part of it, double-click to see all of it again. " +
  "The numbers behind this page are in report.json."));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((u) => u.redraw(false)));
