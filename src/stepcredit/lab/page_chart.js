// A small chart of one metric: one line an arm, the values at a step on hover and by the arrow keys.
const DASHES = ["none", "7 3", "2 3", "10 3 2 3", "5 2 1 2 1 2"];  // an arm is known without its color, too
const DRAWN = 400;  // points a line; more could not be told apart
const MINUS = "\u2212", pen = document.createElement("canvas").getContext("2d");
const isNumber = x => typeof x === "number", whole = x => x.toLocaleString("en-US");

function figure(x, decimals) {
  if (!isNumber(x)) return x ?? "\u2013";
  const size = Math.abs(x), plainly = x === 0 || (size < 1e7 && size >= 10 ** -decimals && decimals <= 8);
  const digits = {minimumFractionDigits: decimals, maximumFractionDigits: decimals};
  return (plainly ? x.toLocaleString("en-US", digits) : x.toExponential(2)).replaceAll("-", MINUS);
}
function ticks(low, high, wanted) {  // multiples of 1, 2 or 5 x 10^n that enclose the range
  const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find(times => times * power >= rough) ?? 10);
  if (!(step > 0 && step < Infinity)) return {values: [low, high], decimals: 3};
  const first = Math.floor(low / step), last = Math.ceil(high / step);
  const values = Array.from({length: last - first + 1}, (_, i) => (first + i) * step);
  return {values, decimals: Math.max(0, -Math.floor(Math.log10(step)))};
}
function valueTicks(chart) {
  const values = chart.lines.flatMap(line => line.points.map(point => point[1]).filter(isNumber));
  let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  if (low === high) [low, high] = low ? [Math.min(0, 2 * low), Math.max(0, 2 * low)] : [0, 1];
  if (low > 0 && low < high / 2) low = 0;
  return ticks(low, high, 5);
}
function runs(points) {  // the stretches between gaps; a long one keeps the least and the greatest of each bin
  const found = [[]];
  for (const point of points) isNumber(point[1]) ? found.at(-1).push(point) : found.push([]);
  const width = Math.ceil(2 * points.length / (DRAWN - 2));
  return found.filter(run => run.length).map(run => {
    if (points.length <= DRAWN) return run;
    const kept = new Set([run[0], run.at(-1)]);
    for (let i = 0; i < run.length; i += width) {
      const bin = run.slice(i, i + width).sort((a, b) => a[1] - b[1]);
      kept.add(bin[0]).add(bin.at(-1));
    }
    return run.filter(point => kept.has(point));
  });
}
const swatch = arm => draw("svg", {class: `swatch arm${arm % 6}`, viewBox: "0 0 26 8", "aria-hidden": "true"},
  draw("path", {class: "line", d: "M0 4H26", "stroke-dasharray": DASHES[arm % DASHES.length]}));

class Chart {
  constructor(chart) {
    Object.assign(this, chart, {width: 0});
    this.steps = [...new Set(this.lines.flatMap(line => line.points.map(point => point[0])))].sort((a, b) => a - b);
    this.valueAt = this.lines.map(line => new Map(line.points));
    this.at = this.steps.length - 1;
    this.drawable = this.lines.some(line => line.points.some(point => isNumber(point[1])));
    this.svg = draw("svg", {"aria-hidden": "true"});
    const [first, last] = [this.steps[0], this.steps[this.at]];
    this.plot = make("div", {class: "plot", role: "slider", tabindex: 0, "aria-label": `${this.name} by step`,
      "aria-valuemin": first, "aria-valuemax": last, "aria-valuenow": last}, this.svg);
    const caption = make("figcaption", {}, make("h3", {}, this.name), make("span", {}, this.unit));
    const thinned = this.lines.some(line => line.points.length > DRAWN);
    const remark = !this.drawable ? "No values." : thinned ? "Drawn by the extremes of short stretches." : "";
    this.element = make("figure", {}, caption, this.drawable ? this.plot : "", make("div", {class: "remark"}, remark));
    this.element.append(this.numbers());
    if (!this.drawable) return;
    this.ticks = valueTicks(this);
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }
  numbers() {  // filled when opened: it may be long
    const box = make("div", {tabindex: 0, role: "region", "aria-label": `Numbers of ${this.name}`});
    const details = make("details", {}, make("summary", {}, "Numbers"), box);
    details.addEventListener("toggle", () => {
      if (box.firstChild) return;
      const head = ["step", ...this.lines.map(line => data.study.arms[line.arm])];
      const row = step => [step, ...this.valueAt.map(values => values.get(step) ?? "\u2013")];
      const rows = this.steps.map(step => tableRow(row(step), i => (i ? ["td"] : ["th", {scope: "row"}])));
      const top = tableRow(head, () => ["th", {scope: "col"}]);
      box.append(make("table", {}, make("thead", {}, top), make("tbody", {}, ...rows)));
    });
    return details;
  }
  draw() {
    const width = this.plot.clientWidth, height = this.plot.clientHeight;
    if (!width || width === this.width) return;
    pen.font = getComputedStyle(this.svg).font;
    const wide = text => pen.measureText(text).width, y = this.ticks;
    const named = this.lines.length * 13 < height - 20 ? this.lines : [];
    const names = named.map(line => fitted(data.study.arms[line.arm], width / 4, wide));
    const left = Math.max(...y.values.map(value => wide(figure(value, y.decimals)))) + 8;
    const overhang = wide(whole(data.study.steps[1])) / 2;  // of the last label of the axis of steps
    const right = width - Math.max(overhang + wide("step"), ...names.map(wide)) - 10;
    const [top, bottom] = [8, height - 22], [from, to] = data.study.steps, low = y.values[0], high = y.values.at(-1);
    this.x = step => (to === from ? (left + right) / 2 : left + (step - from) / (to - from) * (right - left));
    const size = Math.max(Math.abs(low), Math.abs(high));  // divided by first: nothing overflows or underflows
    this.y = value => bottom - (value / size - low / size) / (high / size - low / size) * (bottom - top);
    Object.assign(this, {width, top, bottom});
    this.cursor = draw("g", {class: "cursor"});
    const base = y.values.includes(0) ? 0 : low;
    this.svg.replaceChildren(...y.values.flatMap(value => [
      draw("path", {class: value === base ? "axis" : "grid", d: `M${left} ${this.y(value)}H${right}`}),
      draw("text", {x: left - 6, y: this.y(value) + 4, "text-anchor": "end"}, figure(value, y.decimals))]));
    for (const step of ticks(from, to, Math.max(1, Math.floor((right - left) / 70))).values)
      if (step >= from && step <= to && Number.isInteger(step))
        this.svg.append(draw("text", {x: this.x(step), y: height - 6, "text-anchor": "middle"}, whole(step)));
    this.svg.append(draw("text", {x: right + overhang + 6, y: height - 6}, "step"));
    this.svg.append(...this.lines.map(line => this.curve(line)), this.cursor);
    this.nameLines(names, right + 6);
    this.leave();
  }
  curve(line) {
    const group = draw("g", {class: `curve arm${line.arm % 6}`, "data-arm": line.arm});
    const place = ([step, value]) => [this.x(step).toFixed(2), this.y(value).toFixed(2)];
    const stretches = runs(line.points);
    const d = stretches.map(run => "M" + run.map(point => place(point).join(" ")).join("L")).join("");
    group.append(draw("path", {class: "line", d, "stroke-dasharray": DASHES[line.arm % DASHES.length]}));
    for (const run of stretches) {
      const [cx, cy] = place(run[0]);
      if (run.length === 1) group.append(draw("circle", {class: "dot", cx, cy, r: 2.5}));
    }
    return group;
  }
  nameLines(names, x) {  // at the end of its line, moved apart where two would overlap
    const last = line => line.points.findLast(point => isNumber(point[1]))?.[1] ?? NaN;
    const ends = names.map((name, i) => ({name, y: this.y(last(this.lines[i]))}));
    const placed = ends.filter(end => !Number.isNaN(end.y)).sort((a, b) => a.y - b.y);
    placed.forEach((end, i) => { end.y = Math.max(end.y, i ? placed[i - 1].y + 13 : this.top); });
    placed.reduceRight((below, end) => (end.y = Math.min(end.y, below - 13)), this.bottom + 13);
    for (const end of placed) this.svg.append(draw("text", {class: "name", x, y: end.y + 4}, end.name));
  }
  mark(index) {
    this.at = Math.max(0, Math.min(index, this.steps.length - 1));
    const step = this.steps[this.at], x = this.x(step), {top, bottom} = this, rows = [], dots = [], heard = [];
    this.lines.forEach(({arm}, i) => {
      const name = data.study.arms[arm], value = this.valueAt[i].get(step);
      const shown = figure(value, this.ticks.decimals + 2);
      rows.push(make("tr", {}, make("td", {}, swatch(arm), shortened(name, 40)), make("td", {}, shown)));
      heard.push(`${name} ${shown}`);
      if (isNumber(value)) dots.push(draw("circle", {class: `dot arm${arm % 6}`, cx: x, cy: this.y(value), r: 3}));
    });
    this.cursor.replaceChildren(draw("line", {x1: x, x2: x, y1: top, y2: bottom}), ...dots);
    this.plot.setAttribute("aria-valuenow", step);
    this.plot.setAttribute("aria-valuetext", `step ${step}: ${heard.join(", ")}`);
    const where = () => {
      const box = this.plot.getBoundingClientRect();
      return {left: box.left + this.x(step) + 10, top: box.top, bottom: box.bottom};
    };
    const contents = [make("div", {}, `step ${whole(step)}`), make("table", {}, ...rows)];
    showTip(this.plot, where, contents, {spoken: false, leave: () => this.cursor.replaceChildren()});
  }
  leave() {
    if (tipped?.owner === this.plot) hideTip();
  }
  listen() {
    const point = event => {
      const x = event.clientX - this.plot.getBoundingClientRect().left;
      const off = i => Math.abs(this.x(this.steps[i]) - x);
      this.mark(this.steps.reduce((best, _, i) => (off(i) < off(best) ? i : best), 0));
    };
    this.plot.addEventListener("pointerdown", point);
    this.plot.addEventListener("pointermove", point);
    for (const name of ["pointerleave", "blur"]) this.plot.addEventListener(name, () => this.leave());
    this.plot.addEventListener("focus", () => this.mark(this.at));
    this.plot.addEventListener("keydown", event => {
      const by = {ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1,
        PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity}[event.key];
      if (by === undefined) return;
      event.preventDefault();
      this.mark(this.at + by);
    });
  }
}
function fitted(name, limit, wide) {
  let length = 24, text = escaped(shortened(name, length));
  while (wide(text) > limit && length > 2) text = escaped(shortened(name, --length));
  return text;
}
