// The part of Google Charts that torch-tb-profiler 0.4.3 draws with, as plain SVG and HTML. Nothing is fetched.
// Charts: ColumnChart, ComboChart, SteppedAreaChart, LineChart, PieChart, Timeline, Table.
(() => {
  "use strict";

  const COLORS = ["#3366cc", "#dc3912", "#ff9900", "#109618", "#990099", "#0099c6", "#dd4477", "#66aa00", "#b82e2e",
    "#316395", "#994499", "#22aa99"];
  const GRID = "#dddddd";
  const LETTER = 7; // the width of one, about, in pixels

  // Data

  class DataTable {
    columns = [];
    rows = [];
    properties = new Map();

    addColumn(column) { this.columns.push(column); }
    addRow(row) { this.rows.push(row); }
    addRows(rows) { for (const row of rows) this.rows.push(row); }
    setProperty(row, column, name, value) {
      const key = `${row},${column}`;
      this.properties.set(key, { ...this.properties.get(key), [name]: value });
    }

    // The columns with figures: where each stands, its name, and the column of its tooltip if it has one.
    get series() {
      const found = [];
      this.columns.forEach((column, index) => {
        if (index === 0) return;
        if (column.role === "tooltip") { if (found.length) found.at(-1).tooltip = index; }
        else if (!column.role) found.push({ index, label: column.label ?? "" });
      });
      return found;
    }

    tooltip(row, series) {
      const cells = this.rows[row];
      if (series.tooltip !== undefined) return plainText(cells[series.tooltip]);
      return `${plain(cells[0])}\n${series.label}: ${shortened(plain(cells[series.index]))}`;
    }
  }

  function arrayToDataTable([header, ...rows]) {
    const table = new DataTable();
    for (const cell of header) table.addColumn(typeof cell === "object" ? cell : { label: cell });
    table.addRows(rows);
    return table;
  }

  // A cell is a value, or {v: value, f: how it is written}.
  const plain = cell => (cell !== null && typeof cell === "object" && "v" in cell ? cell.v : cell);
  const written = cell => (cell !== null && typeof cell === "object" && "f" in cell ? cell.f : plain(cell) ?? "");
  const number = cell => Number(plain(cell)) || 0;

  // Text

  function plainText(html) {
    const lines = String(html).replace(/<br\s*\/?>|<\/(div|p|li)>/g, "\n");
    return new DOMParser().parseFromString(lines, "text/html").body.textContent.trim();
  }

  function shortened(value) {
    if (typeof value !== "number") return String(value ?? "");
    const size = Math.abs(value);
    if (size >= 1e6) return `${+(value / 1e6).toFixed(2)}M`;
    if (size >= 1e4) return `${+(value / 1e3).toFixed(1)}k`;
    return String(+value.toPrecision(4));
  }

  const cut = (text, pixels) => {
    const letters = Math.floor(pixels / LETTER);
    return text.length <= letters ? text : letters < 3 ? "" : `${text.slice(0, letters - 1)}…`;
  };

  // Drawing

  function svg(name, attributes = {}, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function html(name, properties = {}, ...children) {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  }

  const path = point => point.map(n => n.toFixed(2)).join(",");
  const told = (shape, text) => { shape.append(svg("title", {}, text)); return shape; };

  class Chart {
    listeners = {};
    selection = [];

    constructor(node) { this.node = node; }
    draw(table, options = {}) {
      this.table = table;
      this.options = options;
      this.paint();
      this.tell("ready");
    }
    clearChart() { this.node.replaceChildren(); }
    getSelection() { return this.selection; }
    setSelection(selection) { this.selection = selection ?? []; }
    tell(event, argument = {}) { for (const listener of this.listeners[event] ?? []) listener(argument); }
    color(index) { const colors = this.options.colors ?? COLORS; return colors[index % colors.length]; }

    // An empty picture as wide as its place on the page, with the title.
    canvas(height = typeof this.options.height === "number" ? this.options.height : 300) {
      const width = this.node.clientWidth || this.node.parentElement?.clientWidth || 600;
      const title = this.options.title ?? "";
      this.picture = svg("svg", { width, height, role: "img", "aria-label": title || this.constructor.name,
        "font-family": "system-ui, sans-serif", "font-size": 11, style: "display: block" });
      if (title) this.add("text", { x: 10, y: 14, "font-weight": "bold", "font-size": 13 }, title);
      this.node.replaceChildren(this.picture);
      return { width, height };
    }
    add(name, attributes, text) {
      const element = svg(name, attributes, text);
      this.picture.append(element);
      return element;
    }
    key(x, y, index, label, color = this.color(index)) {
      this.add("rect", { x, y: y - 9, width: 10, height: 10, fill: color });
      this.add("text", { x: x + 14, y }, label);
    }
  }

  // Round numbers, 0 among them, that reach from the lowest value to the highest.
  function ticks([lowest, highest]) {
    const rough = (highest - lowest || 1) / 4, unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map(n => n * unit).find(n => n >= rough * 0.999);
    const first = Math.floor(lowest / step + 1e-9), last = Math.max(first + 1, Math.ceil(highest / step - 1e-9));
    return Array.from({ length: last - first + 1 }, (_, n) => (first + n) * step);
  }

  // A chart with axes: `area` is where its marks go, `top(v)` the height of a value.
  class Axes extends Chart {
    paint() {
      const { width, height } = this.canvas();
      const series = this.table.series;
      const right = this.twoScales ? 70 : 20;
      this.area = { left: 80, top: 28, width: width - 80 - right, height: height - 28 - 76 };
      this.scales = [0, 1].map(side => ticks(this.range(series, side)));
      this.grid();
      this.legend(series, height - 10);
      this.marks(series);
    }
    get twoScales() { return Object.values(this.options.series ?? {}).some(s => s.targetAxisIndex === 1); }
    settings(position) { return this.options.series?.[position] ?? {}; }
    side(position) { return this.settings(position).targetAxisIndex ?? 0; }
    // The lowest and the highest that is drawn on this scale, and 0.
    range(series, side) {
      const here = series.filter((_, position) => this.side(position) === side);
      const ends = [0, 0];
      for (const row of this.table.rows) {
        const values = here.map(s => number(row[s.index]));
        const sums = [values.filter(v => v < 0), values.filter(v => v > 0)].map(v => v.reduce((a, b) => a + b, 0));
        const reached = this.options.isStacked && this.stacks ? sums : values;
        ends[0] = Math.min(ends[0], ...reached);
        ends[1] = Math.max(ends[1], ...reached);
      }
      return ends;
    }
    top(value, side = 0) {
      const { top, height } = this.area, scale = this.scales[side];
      return top + height * (scale.at(-1) - value) / (scale.at(-1) - scale[0]);
    }
    // Where a bar between two values begins, and how tall it is.
    span(from, to, side = 0) {
      const ends = [this.top(from, side), this.top(to, side)];
      return { y: Math.min(...ends), height: Math.abs(ends[0] - ends[1]) };
    }
    grid() {
      const { left, top, width, height } = this.area;
      for (const tick of this.scales[0]) {
        const y = this.top(tick);
        this.add("line", { x1: left, x2: left + width, y1: y, y2: y, stroke: GRID });
        this.add("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, shortened(tick));
      }
      if (this.twoScales) for (const tick of this.scales[1]) {
        this.add("text", { x: left + width + 6, y: this.top(tick, 1) + 4 }, shortened(tick));
      }
      const middle = top + height / 2, title = { "text-anchor": "middle", "font-style": "italic" };
      const across = this.options.hAxis?.title, up = this.options.vAxis?.title;
      if (across) this.add("text", { ...title, x: left + width / 2, y: top + height + 34 }, across);
      if (up) this.add("text", { ...title, x: 14, y: middle, transform: `rotate(-90 14 ${middle})` }, up);
    }
    legend(series, y) {
      let x = this.area.left;
      series.forEach(({ label }, position) => {
        this.key(x, y, position, label);
        x += 30 + LETTER * label.length;
      });
    }
    // The names of the rows below the marks; as many as there is room for.
    names() {
      const { left, top, width, height } = this.area, rows = this.table.rows, wide = width / rows.length;
      const every = Math.ceil(rows.length / Math.max(1, Math.floor(width / 60)));
      rows.forEach((row, n) => {
        if (n % every) return;
        const label = svg("text", { x: left + (n + 0.5) * wide, y: top + height + 16, "text-anchor": "middle" },
          cut(String(written(row[0])), Math.max(wide * every, 30)));
        this.picture.append(told(label, String(written(row[0]))));
      });
    }
    mark(row, series, shape) {
      told(shape, this.table.tooltip(row, series));
      shape.addEventListener("click", () => {
        this.selection = [{ row, column: series.index }];
        this.tell("select");
      });
      this.picture.append(shape);
    }
  }

  // Bars, on each other or side by side; a series of type "line" runs over them.
  class ColumnChart extends Axes {
    stacks = true;
    margin = 0.15;
    marks(series) {
      const { left, width } = this.area, rows = this.table.rows, wide = width / Math.max(1, rows.length);
      const bars = series.filter((_, position) => this.settings(position).type !== "line");
      rows.forEach((row, n) => {
        const reached = { up: 0, down: 0 }; // what stands on what, above and below 0
        bars.forEach((one, nth) => {
          const value = number(row[one.index]), position = series.indexOf(one);
          const share = this.options.isStacked ? 1 : 1 / bars.length;
          const way = value < 0 ? "down" : "up", base = this.options.isStacked ? reached[way] : 0;
          const inner = wide * (1 - 2 * this.margin);
          const x = left + n * wide + wide * this.margin + (this.options.isStacked ? 0 : nth * inner * share);
          const place = this.span(base, base + value, this.side(position));
          const bar = { x, ...place, width: Math.max(0.5, inner * share), fill: this.color(position) };
          this.mark(n, one, svg("rect", bar));
          reached[way] += value;
        });
      });
      series.forEach((one, position) => {
        if (this.settings(position).type === "line") this.line(one, position, (_, n) => left + (n + 0.5) * wide);
      });
      this.names();
    }
    line(one, position, x) {
      const side = this.side(position);
      const points = this.table.rows.map((row, n) => [x(row, n), this.top(number(row[one.index]), side)]);
      const stroke = { fill: "none", stroke: this.color(position), "stroke-width": 2 };
      this.add("polyline", { points: points.map(path).join(" "), ...stroke });
      points.forEach(([cx, cy], n) => {
        this.mark(n, one, svg("circle", { cx, cy, r: 3, fill: this.color(position) }));
      });
    }
  }

  class ComboChart extends ColumnChart {}

  // Bars without a gap are the steps of an area.
  class SteppedAreaChart extends ColumnChart {
    margin = 0;
    marks(series) {
      if (this.options.isStacked) { super.marks(series); return; }
      const { left, width } = this.area, wide = width / Math.max(1, this.table.rows.length);
      series.forEach((one, position) => this.table.rows.forEach((row, n) => {
        const color = this.color(position), opacity = this.options.areaOpacity ?? 0.3;
        const place = { x: left + n * wide, width: wide, ...this.span(0, number(row[one.index])) };
        this.mark(n, one, svg("rect", { ...place, fill: color, "fill-opacity": opacity, stroke: color }));
      }));
      this.names();
    }
  }

  // Lines over a number. With `explorer`, dragging zooms in and a right click shows all again.
  class LineChart extends Axes {
    paint() {
      const all = this.table.rows.map(row => number(row[0]));
      this.from = this.zoom?.[0] ?? all.reduce((a, b) => Math.min(a, b), Infinity);
      this.to = this.zoom?.[1] ?? all.reduce((a, b) => Math.max(a, b), -Infinity);
      if (!all.length) [this.from, this.to] = [0, 1];
      super.paint();
      if (this.options.explorer) this.explore();
    }
    across(value) { return this.area.left + this.area.width * (value - this.from) / (this.to - this.from || 1); }
    back(x) { return this.from + (this.to - this.from) * (x - this.area.left) / (this.area.width || 1); }
    getChartLayoutInterface() {
      return {
        getChartAreaBoundingBox: () => ({ ...this.area }),
        getHAxisValue: x => this.back(x),
      };
    }
    marks(series) {
      const { left, top, width, height } = this.area;
      for (let n = 0; n <= 6; n++) {
        const x = left + width * n / 6;
        this.add("text", { x, y: top + height + 16, "text-anchor": "middle" }, shortened(this.back(x)));
      }
      const clip = `clip-${Math.random().toString(36).slice(2)}`, area = svg("clipPath", { id: clip });
      area.append(svg("rect", { x: left, y: top - 2, width, height: height + 4 }));
      this.picture.append(area);
      series.forEach((one, position) => {
        const rows = this.table.rows.filter(row => plain(row[one.index]) != null);
        const points = rows.map(row => [this.across(number(row[0])), this.top(number(row[one.index]))]);
        told(this.add("polyline", { points: points.map(path).join(" "), fill: "none", stroke: this.color(position),
          "stroke-width": 2, "clip-path": `url(#${clip})` }), one.label);
      });
      this.setSelection(this.selection);
    }
    setSelection(selection) {
      super.setSelection(selection);
      for (const old of this.node.querySelectorAll(".chosen")) old.remove();
      for (const { row, column } of this.selection) {
        const cells = this.table.rows[row], cx = this.across(number(cells[0])), cy = this.top(number(cells[column]));
        this.add("circle", { class: "chosen", cx, cy, r: 5, fill: "#000000" });
      }
    }
    explore() {
      const { left, top, width, height } = this.area;
      const surface = this.add("rect", { x: left, y: top, width, height, fill: "transparent", cursor: "crosshair" });
      const place = event => {
        const x = event.clientX - this.picture.getBoundingClientRect().left;
        return Math.min(Math.max(x, left), left + width);
      };
      surface.addEventListener("pointerdown", down => {
        if (down.button !== 0) return;
        const start = place(down), shade = this.add("rect", { y: top, height, fill: "#3366cc", "fill-opacity": 0.2 });
        surface.setPointerCapture(down.pointerId);
        surface.onpointermove = event => {
          shade.setAttribute("x", Math.min(start, place(event)));
          shade.setAttribute("width", Math.abs(place(event) - start));
        };
        surface.onpointerup = event => {
          const ends = [start, place(event)].sort((a, b) => a - b);
          shade.remove();
          surface.onpointermove = surface.onpointerup = null;
          if (ends[1] - ends[0] > 4) { this.zoom = ends.map(x => this.back(x)); this.paint(); }
        };
      });
      surface.addEventListener("contextmenu", event => {
        event.preventDefault();
        this.zoom = undefined;
        this.paint();
      });
    }
  }

  class PieChart extends Chart {
    paint() {
      const { width, height } = this.canvas();
      const values = this.table.rows.map(row => number(row[1]));
      const total = values.reduce((a, b) => a + b, 0) || 1;
      const radius = Math.min(width * 0.19, height * 0.4), x = radius + 10;
      const y = height / 2 + (this.options.title ? 8 : 0);
      let turned = -Math.PI / 2;
      this.table.rows.forEach((row, n) => {
        const angle = Math.min(2 * Math.PI * values[n] / total, 2 * Math.PI - 1e-4);
        const d = ring(x, y, radius, turned, angle, this.options.pieHole ?? 0);
        const slice = svg("path", { d, fill: this.color(n), stroke: "#ffffff" });
        this.picture.append(told(slice, this.said(n, values[n], total)));
        turned += angle;
      });
      if (this.options.legend !== "none") this.list(x + radius + 16, values, total, width, height);
    }
    said(row, value, total) {
      const tooltip = this.table.columns.findIndex(column => column.role === "tooltip");
      if (tooltip > 0) return plainText(this.table.rows[row][tooltip]);
      return `${written(this.table.rows[row][0])}\n${shortened(value)} (${(100 * value / total).toFixed(1)}%)`;
    }
    list(x, values, total, width, height) {
      const room = Math.max(1, Math.floor((height - 30) / 16));
      this.table.rows.slice(0, room).forEach((row, n) => {
        const share = ` ${(100 * values[n] / total).toFixed(1)}%`;
        this.key(x, 30 + 16 * n, n, cut(String(written(row[0])), width - x - 14 - LETTER * share.length) + share);
      });
    }
  }

  // The path of a slice that starts at one angle and turns by another, with a hole in the middle of the whole.
  function ring(x, y, radius, start, angle, hole) {
    const at = (r, a) => `${x + r * Math.cos(a)} ${y + r * Math.sin(a)}`, large = angle > Math.PI ? 1 : 0;
    const inner = radius * hole, end = start + angle;
    return `M${at(radius, start)}A${radius} ${radius} 0 ${large} 1 ${at(radius, end)}`
      + `L${at(inner, end)}A${inner} ${inner} 0 ${large} 0 ${at(inner, start)}Z`;
  }

  // Rows of [lane, name, tooltip, start, end].
  class Timeline extends Chart {
    paint() {
      const rows = this.table.rows, lanes = [...new Set(rows.map(row => row[0]))];
      const { width } = this.canvas(Math.max(60, Math.min(this.options.height ?? 300, 24 * lanes.length + 30)));
      const from = rows.reduce((least, row) => Math.min(least, row[3]), Infinity);
      const to = rows.reduce((most, row) => Math.max(most, row[4]), -Infinity);
      const across = value => 10 + (width - 20) * (value - from) / (to - from || 1);
      rows.forEach(([lane, name, tooltip, start, end], n) => {
        const x = across(start), y = 24 * lanes.indexOf(lane), wide = Math.max(0.5, across(end) - x);
        const bar = svg("rect", { x, y, width: wide, height: 22, fill: this.color(n) });
        this.picture.append(told(bar, plainText(tooltip)));
        const inside = { x: x + 3, y: y + 15, fill: "#ffffff", "pointer-events": "none" };
        if (wide > 30) this.add("text", inside, cut(name, wide - 6));
      });
      for (let n = 0; n <= 6 && rows.length; n++) {
        const value = from + (to - from) * n / 6, anchor = n === 0 ? "start" : n === 6 ? "end" : "middle";
        const place = { x: across(value), y: 24 * lanes.length + 16, "text-anchor": anchor };
        this.add("text", place, `${shortened(value)} ms`);
      }
    }
  }

  const STYLE = `
    .splitnet-table { border-collapse: collapse; width: 100%; font: 12px system-ui, sans-serif; }
    .splitnet-table :is(th, td) { border: 1px solid #dddddd; padding: 1px 6px; text-align: left; }
    .splitnet-table th { background: #f5f5f5; }
    .splitnet-table th button { all: unset; cursor: pointer; }
    .splitnet-table th button:focus-visible { outline: 2px solid; }
    .splitnet-table td.number { text-align: right; }`;

  class Table extends Chart {
    paint() {
      this.size = this.options.page === "enable" ? this.options.pageSize ?? 30 : Infinity;
      this.sorted = this.options.sortColumn ?? -1;
      this.up = this.options.sortAscending !== false;
      this.first = 0;
      this.fill();
    }
    get order() {
      const order = this.table.rows.map((_, n) => n), value = n => plain(this.table.rows[n][this.sorted]);
      if (this.sorted < 0) return order;
      const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
      return order.sort((a, b) => compare(value(a), value(b)) * (this.up ? 1 : -1));
    }
    fill() {
      const shown = this.table.columns.map((_, n) => n).filter(n => !this.table.columns[n].role);
      const head = html("tr", {}, ...shown.map(n => this.heading(n)));
      const rows = this.order.slice(this.first, this.first + this.size);
      const body = rows.map(row => html("tr", {}, ...shown.map(column => this.cell(row, column))));
      const table = html("table", { className: "splitnet-table" }, html("thead", {}, head), html("tbody", {}, ...body));
      this.node.replaceChildren(html("style", { textContent: STYLE }), table, ...this.pager());
    }
    heading(column) {
      const sorted = this.sorted === column, arrow = sorted ? (this.up ? " ▲" : " ▼") : "";
      const press = () => { this.up = sorted ? !this.up : true; this.sorted = column; this.first = 0; this.fill(); };
      const button = html("button", { textContent: (this.table.columns[column].label ?? "") + arrow, onclick: press });
      const cell = html("th", { scope: "col" }, button);
      if (sorted) cell.setAttribute("aria-sort", this.up ? "ascending" : "descending");
      return cell;
    }
    cell(row, column) {
      const value = written(this.table.rows[row][column]);
      const { style, className } = this.table.properties.get(`${row},${column}`) ?? {};
      const cell = html("td", this.options.allowHtml ? { innerHTML: value } : { textContent: value });
      if (this.table.columns[column].type === "number") cell.className = "number";
      if (className) cell.classList.add(...className.split(" "));
      if (style) cell.style.cssText = style;
      return cell;
    }
    pager() {
      const count = this.table.rows.length;
      if (count <= this.size) return [];
      const turn = by => html("button", { textContent: by < 0 ? "← previous" : "next →",
        disabled: by < 0 ? this.first === 0 : this.first + this.size >= count,
        onclick: () => { this.first += by * this.size; this.fill(); } });
      const where = ` ${this.first + 1} to ${Math.min(this.first + this.size, count)} of ${count} `;
      return [html("div", {}, turn(-1), where, turn(1))];
    }
  }

  window.google = {
    charts: { load: () => Promise.resolve() },
    visualization: {
      DataTable, arrayToDataTable, ColumnChart, ComboChart, SteppedAreaChart, LineChart, PieChart, Timeline, Table,
      events: { addListener: (chart, event, listener) => { (chart.listeners[event] ??= []).push(listener); } },
    },
  };
})();
