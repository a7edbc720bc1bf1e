// Draws the charts of a page with the copy of plotly that is in it, and draws them again for another choice,
// color scheme, width or paper. What Python gives: `charts` (JSON), and `arrays` and `plotly`, deflated.
"use strict";
window.ready = (async () => {
  const spec = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)"), paper = matchMedia("print");
  const coarse = matchMedia("(pointer: coarse)").matches; // a finger scrolls the page, it does not zoom a chart
  const PAPER_WIDTH = 672; // CSS pixels between the margins of A4
  const choice = { ...spec.choice };
  let printing = false;

  async function unpack(id) {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(plain).arrayBuffer();
  }
  const buffer = await unpack("arrays");
  const code = document.createElement("script");
  code.textContent = new TextDecoder().decode(await unpack("plotly"));
  document.head.append(code);

  const arrays = spec.arrays.map(([offset, ...shape]) => {
    const size = shape.reduce((a, b) => a * b, 1), flat = new Float32Array(buffer, 4 * offset, size);
    if (shape.length === 1) return flat;
    return Array.from({ length: shape[0] }, (_, row) => flat.subarray(row * shape[1], (row + 1) * shape[1]));
  });
  const theme = () => spec.themes[dark.matches && !printing ? "dark" : "light"];

  // {"$": 3} stands for an array, "@blue" for a color of the theme
  function resolve(value) {
    if (typeof value === "string") return value[0] === "@" ? theme()[value.slice(1)] : value;
    if (Array.isArray(value)) return value.map(resolve);
    if (value === null || typeof value !== "object") return value;
    if ("$" in value) return arrays[value.$];
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, resolve(inner)]));
  }

  // a logarithm on both sides of zero: the coordinate is asinh(value / width), in decades
  const forward = (value, width) => Math.asinh(value / width) / Math.LN10;
  const backward = (place, width) => width * Math.sinh(place * Math.LN10);
  const power = (e) => (e === 0 ? "1" : e === 1 ? "10" : `10<sup>${String(e).replace("-", "−")}</sup>`);
  const plain = (value) => value.toLocaleString("en", { maximumSignificantDigits: 6 }).replace("-", "−");

  function signedTicks(low, high, width, most, whole) {
    const room = (high - low) / most, stride = Math.max(1, Math.ceil(room)), found = [];
    if (low <= 0 && high >= 0) found.push([0, "0"]);
    for (const sign of [-1, 1]) {
      const end = sign < 0 ? -low : high;
      if (end <= 0) continue;
      const start = Math.max(0.8 * room, sign < 0 ? -high : low);
      const top = Math.floor(Math.log10(backward(end, width)) + 1e-9);
      for (let e = top; forward(10 ** e, width) >= start - 1e-9; e -= stride) {
        found.push([sign * forward(10 ** e, width), whole ? plain(sign * 10 ** e) : (sign < 0 ? "−" : "") + power(e)]);
      }
    }
    if (found.length < 3) { // within one decade: even steps of the value itself
      const [from, to] = [backward(low, width), backward(high, width)];
      const size = 10 ** Math.floor(Math.log10((to - from) / 3));
      const step = size * ((to - from) / size > 12 ? 5 : (to - from) / size > 6 ? 2 : 1);
      found.length = 0;
      for (let k = Math.ceil(from / step); k * step <= to; k++) found.push([forward(k * step, width), plain(k * step)]);
    }
    found.sort((a, b) => a[0] - b[0]);
    return { tickvals: found.map((tick) => tick[0]), ticktext: found.map((tick) => tick[1]) };
  }

  function logTicks(low, high) {
    const few = high - low <= 2, stride = Math.max(1, Math.ceil((high - low) / 7)), found = [];
    for (let e = Math.floor(low / stride) * stride; e <= high; e += stride) {
      for (const factor of few ? [1, 2, 5] : [1]) found.push([factor * 10 ** e, few ? plain(factor * 10 ** e) : power(e)]);
    }
    const seen = found.filter(([value]) => Math.log10(value) >= low - 1e-9 && Math.log10(value) <= high + 1e-9);
    if (seen.length < 2) return { dtick: null, tickvals: null };
    return { tickvals: seen.map((tick) => tick[0]), ticktext: seen.map((tick) => tick[1]) };
  }

  function drawn(trace, chart) {
    const made = resolve(trace);
    delete made.meta;
    for (const [axis, width] of Object.entries(chart.signed)) {
      const values = made[axis];
      made[axis] = Array.from(values, (value) => forward(value, width));
      if (!made.customdata) made.customdata = made.type === "heatmap" ? made.z.map(() => values) : Array.from(values);
    }
    if (made.logarithmic === false) {
      delete made.logarithmic;
      made.customdata = made.z;
    }
    if (made.logarithmic) { // colors by the logarithm, numbers as they are
      delete made.logarithmic;
      made.customdata = made.z;
      const [floor, top] = [Math.log10(made.zmin), Math.log10(made.zmax)];
      const least = made.zmin * (1 - 1e-4); // arrays are rounded, bounds are not
      made.z = made.z.map((row) => Array.from(row, (value) => (value >= least ? Math.log10(value) : null)));
      if (made.texttemplate) made.text = made.customdata.map((row) => Array.from(row, (value) => plain(Number(value.toPrecision(3)))));
      [made.zmin, made.zmax] = [floor, top];
      const ticks = [];
      const stride = Math.max(1, Math.ceil((top - floor) / 7));
      for (let e = Math.ceil(floor); e <= top; e += stride) ticks.push(e);
      if (ticks.length < 2) ticks.splice(0, ticks.length, floor, (floor + top) / 2, top);
      made.colorbar = { ...made.colorbar, tickvals: ticks };
      made.colorbar.ticktext = ticks.map((e) => (Number.isInteger(e) ? power(e) : plain(Number((10 ** e).toPrecision(2)))));
    }
    if (made.type === "heatmap" || made.type === "contour") {
      const text = { color: theme().soft, size: 12 };
      made.colorbar = { thickness: 12, outlinewidth: 0, tickfont: text, ...made.colorbar };
      if (made.colorbar.title) made.colorbar.title = { text: made.colorbar.title, side: "right", font: text };
    }
    return made;
  }

  function laidOut(chart, div, traces) {
    const { ink, soft, line, card } = theme(), layout = resolve(chart.layout);
    const whole = div.closest("figure").dataset.span === "6";
    const width = !printing ? div.clientWidth : whole ? PAPER_WIDTH : PAPER_WIDTH / 2 - 12;
    for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
      const axis = layout[name], signed = chart.signed[name[0]];
      const title = typeof axis.title === "string" ? { text: axis.title, font: { size: 13 } } : axis.title;
      const common = { gridcolor: line, linecolor: soft, zeroline: false, automargin: true, tickfont: { color: soft, size: 12 }, ticklabeloverflow: "allow", exponentformat: "power", minexponent: 4 };
      layout[name] = { ...common, ...axis, title };
      const kept = div.layout && div.layout[name] && !div.layout[name].autorange && div.layout[name].range;
      if (axis.type === "log" && axis.range) Object.assign(layout[name], logTicks(...(kept || axis.range)));
      if (!signed) continue;
      const range = kept || axis.range.map((value) => forward(value, signed));
      const size = name[0] === "x" ? width / 62 : div.clientHeight / 50;
      Object.assign(layout[name], { range, ...signedTicks(...range, signed, Math.max(3, size), axis.whole) });
      delete layout[name].whole;
    }
    const named = traces.filter((trace) => trace.name && trace.type === "scatter" && trace.showlegend !== false);
    const legend = layout.showlegend !== false && (named.length > 1 || named.some((trace) => trace.showlegend));
    return {
      font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif", size: 12.5, color: ink },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 8, r: 14, t: legend ? 30 : 10, b: 8 }, modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink },
      legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom", font: { size: 12 } }, hovermode: "closest",
      hoverlabel: { bgcolor: card, bordercolor: line, font: { color: ink, size: 12.5 }, namelength: -1 },
      dragmode: coarse ? false : "zoom", uirevision: chart.name, ...layout, width, height: div.clientHeight,
    };
  }

  const settings = {
    displaylogo: false, displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };
  async function draw(chart) {
    const div = document.getElementById(`chart-${chart.name}`);
    const all = { ...choice, ...chart.choice };
    const seen = chart.traces.filter((trace) => Object.entries(trace.meta ?? {}).every(([key, value]) => String(value) === String(all[key])));
    const own = { ...settings, toImageButtonOptions: { format: "svg", filename: chart.name } };
    await Plotly.react(div, seen.map((trace) => drawn(trace, chart)), laidOut(chart, div, seen), own);
    if (div.listens) return;
    div.listens = true;
    div.on("plotly_relayout", (change) => {
      if (Object.keys(change).some((key) => /^[xy]axis\.(range|autorange)/.test(key))) draw(chart); // other ticks
    });
    div.on("plotly_click", ({ points: [point] }) => chart.picks && choose(chart.picks, String(point.customdata ?? point.x)));
  }
  const drawAll = () => Promise.all(spec.charts.map(draw));

  function choose(key, value) {
    const slider = document.querySelector(`input[data-key="${key}"]`);
    const place = slider ? slider.dataset.values.split(" ").indexOf(value) : -1;
    if (place < 0) return;
    slider.value = place;
    choice[key] = value;
    for (const each of document.querySelectorAll(`[data-shows="${key}"]`)) each.textContent = plain(Number(value));
    drawAll();
  }
  for (const slider of document.querySelectorAll("input[data-key]")) {
    slider.addEventListener("input", () => choose(slider.dataset.key, slider.dataset.values.split(" ")[slider.value]));
  }
  for (const select of document.querySelectorAll("select[data-chart]")) {
    const chart = spec.charts.find((each) => each.name === select.dataset.chart);
    select.value = chart.choice[select.dataset.key];
    select.addEventListener("change", () => { chart.choice[select.dataset.key] = select.value; draw(chart); });
  }

  function onPaper(now) {
    if (printing === now) return;
    printing = now;
    drawAll();
  }
  dark.addEventListener("change", drawAll);
  paper.addEventListener("change", (event) => onPaper(event.matches));
  addEventListener("beforeprint", () => onPaper(true));
  addEventListener("afterprint", () => onPaper(false));
  let waiting = 0, last = document.body.clientWidth;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { if (!printing && document.body.clientWidth !== last) { last = document.body.clientWidth; drawAll(); } }, 120);
  });
  printing = paper.matches;
  await drawAll();
  document.documentElement.classList.add("drawn");
  return true;
})();
window.ready.catch((error) => {
  const note = document.getElementById("failed");
  note.hidden = false;
  note.append(` (${error})`);
  throw error;
});
