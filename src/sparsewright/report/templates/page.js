// Draws the figures, and paints them from the style sheet: once, and again when light or dark changes.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const charts = [...document.querySelectorAll("[data-figure]")];
  const config = { displayModeBar: false, responsive: true, displaylogo: false };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function paintTrace(trace) {
    const { run, part, faint, dense, heat } = trace.meta || {};
    if (heat) {
      trace.colorscale = [[0, colour("--heat-0")], [0.5, colour("--heat-1")], [1, colour("--heat-2")]];
      return;
    }
    const own = colour(dense ? "--dense" : part === undefined ? `--run-${run}` : `--part-${part}`);
    trace.marker = { ...trace.marker, color: own };
    if (trace.marker.line) trace.marker.line = { ...trace.marker.line, color: own };
    if (trace.type === "scatter") trace.line = { ...trace.line, color: own };
    if (trace.error_x) trace.error_x.color = colour("--text");
    if (faint) trace.opacity = 0.55;
  }

  function paintAxis(axis) {
    Object.assign(axis, { gridcolor: colour("--grid"), linecolor: colour("--line"), tickcolor: colour("--line") });
  }

  function painted(figure) {
    const { data, layout } = structuredClone(figure);
    data.forEach(paintTrace);
    Object.keys(layout).filter((key) => /^[xy]axis/.test(key)).forEach((key) => paintAxis(layout[key]));
    layout.font = { ...layout.font, color: colour("--muted"), family: getComputedStyle(document.body).fontFamily };
    layout.hoverlabel = { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--text") } };
    return { data, layout };
  }

  function draw() {
    for (const chart of charts) {
      const { data, layout } = painted(figures[Number(chart.dataset.figure)]);
      Plotly.react(chart, data, layout, config);
    }
  }

  draw();
  dark.addEventListener("change", draw);
})();
