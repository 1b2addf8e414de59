"use strict";
// Draws the charts, moves in the timeline by key and button, copies tables.
(() => {
  const find = id => document.getElementById(id);
  const figures = JSON.parse(find("figures").textContent);

  // The timeline's operations in the order of time; `once`: an exchange, at the end that counts it.
  function operations(plot) {
    const found = [];
    plot.data.forEach((trace, curve) => {
      if (trace.meta !== "operations") return;
      trace.hovertext.forEach((text, point) => {
        const device = parseInt(trace.customdata[point], 10); // "0x" would be hexadecimal
        const from = trace.base[point];
        found.push({ curve, point, device, from, to: from + trace.x[point], text: plain(text), once: trace.customdata[point].endsWith("x") });
      });
    });
    return found.sort((a, b) => a.from - b.from || a.device - b.device);
  }

  const plain = text => text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");

  function timeline(plot) {
    const all = operations(plot);
    const whole = [...figures.timeline.layout.xaxis.range];
    let now = -1;

    const range = () => plot.layout.xaxis.range;
    function show(from, to) {
      const wide = Math.min(to - from, whole[1] - whole[0]);
      const start = Math.min(Math.max(from, whole[0]), whole[1] - wide);
      return Plotly.relayout(plot, { "xaxis.range": [start, start + wide] });
    }
    async function pick(index) {
      const operation = all[now = index];
      const [from, to] = range();
      if (operation.from < from || operation.to > to) {
        const wide = Math.max(to - from, 1.2 * (operation.to - operation.from));
        const middle = (operation.from + operation.to) / 2;
        await show(middle - wide / 2, middle + wide / 2);
      }
      Plotly.Fx.hover(plot, [{ curveNumber: operation.curve, pointNumber: operation.point }]);
      find("picked").textContent = find("said").textContent = operation.text;
    }
    function step(by, wanted) {
      let index = now < 0 && by < 0 ? all.length : now;
      do { index += by; } while (all[index] && !wanted(all[index]));
      if (all[index]) return pick(index);
      find("said").textContent = by > 0 ? "No later one" : "No earlier one";
    }
    // Of another device, the operation that runs at the time of this one, or else the nearest.
    function lane(by) {
      if (now < 0) return step(1, () => true);
      const { device, from, to } = all[now];
      const at = (from + to) / 2;
      const others = [...all.keys()].filter(index => all[index].device === device + by);
      if (!others.length) return;
      const away = index => Math.max(all[index].from - at, at - all[index].to, 0);
      return pick(others.reduce((best, other) => (away(other) < away(best) ? other : best)));
    }
    function zoom(factor) {
      const [from, to] = range();
      const at = now < 0 ? (from + to) / 2 : Math.min(Math.max((all[now].from + all[now].to) / 2, from), to);
      return show(at - (at - from) * factor, at + (to - at) * factor);
    }
    const same = operation => now < 0 || operation.device === all[now].device;
    const acts = {
      next: () => step(1, same),
      previous: () => step(-1, same),
      down: () => lane(1),
      up: () => lane(-1),
      exchange: () => step(1, operation => operation.once),
      before: () => step(-1, operation => operation.once),
      in: () => zoom(0.6),
      out: () => zoom(1 / 0.6),
      all: () => show(...whole),
    };
    const keys = {
      ArrowRight: acts.next, ArrowLeft: acts.previous, ArrowDown: acts.down, ArrowUp: acts.up,
      n: acts.exchange, p: acts.before, "+": acts.in, "=": acts.in, "-": acts.out, 0: acts.all,
    };
    plot.addEventListener("keydown", event => {
      const act = event.ctrlKey || event.metaKey || event.altKey ? undefined : keys[event.key];
      if (act) { event.preventDefault(); act(); }
    });
    for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", acts[button.dataset.do]);
    plot.addEventListener("pointerdown", () => plot.focus({ preventScroll: true }));
    // The wheel scrolls the page, until the timeline is what the reader is at.
    plot.addEventListener("wheel", event => {
      if (!event.ctrlKey && document.activeElement !== plot) event.stopPropagation();
    }, { capture: true });
  }

  // Copying

  const cells = row => [...row.cells].flatMap(cell => [cell.textContent, ...Array(cell.colSpan - 1).fill("")]);
  const tabbed = table => [...table.rows].map(row => cells(row).join("\t")).join("\n");

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.body.appendChild(Object.assign(document.createElement("textarea"), { value: text }));
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }

  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const { what } = button.dataset;
      const source = button.parentElement.querySelector(what);
      await copy(what === "table" ? tabbed(source) : source.textContent);
      button.textContent = find("said").textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  // A box that scrolls can be reached by key.
  const boxes = new ResizeObserver(entries => {
    for (const { target } of entries) {
      const wide = target.scrollWidth > target.clientWidth || target.scrollHeight > target.clientHeight;
      if (wide) target.tabIndex = 0; else target.removeAttribute("tabindex");
    }
  });
  document.querySelectorAll(".scroll").forEach(box => boxes.observe(box));

  async function draw() {
    for (const [name, { data, layout }] of Object.entries(figures)) {
      await Plotly.newPlot(find(name), data, layout, { displayModeBar: false, responsive: true, scrollZoom: name === "timeline" });
      if (name === "timeline") timeline(find(name));
    }
    document.documentElement.dataset.ready = Math.round(performance.now());
  }
  draw();
})();
