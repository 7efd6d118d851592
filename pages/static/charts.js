// Draws every <figure data-chart="ADDRESS">: its JSON holds `x` {label, time}, `series` [{label, unit}] and `values`, the
// x first. With data-topic it is drawn anew whenever that topic changes. data-shape is "line" (default) or "bars".
"use strict";

(() => {
  const HEIGHT = 240;
  const WHOLE = [1, 10, 100, 1000, 10000, 100000].flatMap((step) => [step, 2 * step, 5 * step]); // of steps and stops
  const DAY = 86400; // seconds
  // From so many seconds between two ticks on: how a tick reads, and what the first of a year, a month or a day adds.
  const TIMES = [
    [365 * DAY, "{YYYY}", null, null, null],
    [28 * DAY, "{MMM}", "\n{YYYY}", null, null],
    [DAY, "{D} {MMM}", "\n{YYYY}", null, null],
    [60, "{HH}:{mm}", "\n{D} {MMM} {YYYY}", null, "\n{D} {MMM}"],
    [1, "{HH}:{mm}:{ss}", "\n{D} {MMM} {YYYY}", null, "\n{D} {MMM}"],
  ].map((row) => [...row, null, null, null, 1]);
  const UNITS = ["", "k", "M", "G", "T"];
  const drawn = new WeakMap();
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const amount = (value, unit) => {
    if (value === null || value === undefined) return "–";
    if (unit !== "bytes") return Math.abs(value) >= 1000 ? value.toLocaleString("en") : String(+value.toPrecision(4));
    let place = 0;
    while (Math.abs(value) >= 1000 && place < UNITS.length - 1) {
      value /= 1000;
      place += 1;
    }
    return `${+value.toPrecision(3)} ${UNITS[place]}B`;
  };

  // Bars stand on each other, so the longest is drawn first and the others over it.
  const stacked = (values) => {
    const sums = values[0].map(() => 0);
    const heights = values.slice(1).map((row) => row.map((value, place) => (sums[place] += value || 0)));
    return [values[0], ...heights.reverse()];
  };

  const arranged = (told, shape) => (shape === "bars" ? stacked(told.values) : told.values);

  // One point has no width of its own, and a bar half of its own on either side.
  const across = (shape, time) => (plot, least, most) => {
    const places = plot.data[0];
    if (places.length === 1) return [places[0] - (time ? 1800 : 1), places[0] + (time ? 1800 : 1)];
    if (shape !== "bars") return [least, most];
    const half = places.slice(1).reduce((gap, place, number) => Math.min(gap, place - places[number]), Infinity) / 2;
    return [least - half, most + half];
  };

  const options = (told, width, shape) => {
    const line = { stroke: colour("--ink"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    const unit = told.series.length ? told.series[0].unit : "";
    const numbers = [...told.series.keys()];
    const bars = shape === "bars" ? uPlot.paths.bars({ size: [0.6, 40] }) : undefined;
    return {
      width,
      height: HEIGHT,
      scales: {
        x: { time: Boolean(told.x.time), range: across(shape, told.x.time) },
        ...(bars ? { y: { range: (_, __, most) => [0, most * 1.05 || 1] } } : {}),
      },
      axes: [
        { ...line, label: told.x.label, labelSize: 22, ...(told.x.time ? { values: TIMES } : { incrs: WHOLE }) },
        { ...line, size: 70, values: (_, ticks) => ticks.map((tick) => amount(tick, unit)) },
      ],
      series: [
        { label: told.x.label, value: told.x.time ? "{D} {MMM} {YYYY} {HH}:{mm}" : (_, value) => amount(value, "") },
        ...(bars ? numbers.reverse() : numbers).map((number) => ({
          label: told.series[number].label,
          stroke: colour(`--series-${(number % 8) + 1}`),
          fill: bars ? colour(`--series-${(number % 8) + 1}`) : undefined,
          paths: bars,
          width: bars ? 0 : 2,
          spanGaps: true,
          points: { show: !bars && told.values[0].length < 40 },
          value: (plot, _, __, place) => {
            const known = drawn.get(plot.root.closest("figure"));
            return place === null || !known ? "–" : amount(known.told.values[number + 1][place], told.series[number].unit);
          },
        })),
      ],
    };
  };

  const draw = async (figure) => {
    const place = figure.querySelector("[data-plot]");
    let told;
    try {
      const answer = await fetch(figure.dataset.chart, { headers: { accept: "application/json" } });
      if (!answer.ok) throw new Error(String(answer.status));
      told = await answer.json();
    } catch (error) {
      if (!drawn.has(figure)) place.textContent = "The chart could not be loaded.";
      return;
    }
    const before = drawn.get(figure);
    if (before && before.plot && before.series === JSON.stringify(told.series) && before.dark === dark.matches) {
      before.told = told;
      before.plot.setData(arranged(told, figure.dataset.shape));
      return;
    }
    if (before && before.plot) before.plot.destroy();
    place.textContent = told.values[0].length ? "" : "Nothing to draw yet.";
    const plot = told.values[0].length
      ? new uPlot(options(told, place.clientWidth, figure.dataset.shape), arranged(told, figure.dataset.shape), place)
      : null;
    fitted.observe(place);
    drawn.set(figure, { plot, told, series: JSON.stringify(told.series), dark: dark.matches });
    figure.dataset.drawn = "yes";
  };

  const figures = (root) => root.querySelectorAll("figure[data-chart]");
  const all = () => figures(document).forEach(draw);

  document.addEventListener("DOMContentLoaded", all);
  document.addEventListener("htmx:afterSwap", (event) => figures(event.target).forEach(draw));
  document.addEventListener("live", (event) =>
    document.querySelectorAll(`figure[data-topic="${CSS.escape(event.detail)}"]`).forEach(draw));
  dark.addEventListener("change", all);
  const fitted = new ResizeObserver((changes) =>
    changes.forEach(({ target }) => {
      const known = drawn.get(target.parentElement);
      if (known && known.plot && known.plot.width !== target.clientWidth) {
        known.plot.setSize({ width: target.clientWidth, height: HEIGHT });
      }
    }));
})();
