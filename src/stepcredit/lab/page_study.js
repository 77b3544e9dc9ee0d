// A study: its note, its table, the legend of its arms and their charts.
function tableRow(cells, kind) {
  return make("tr", {}, ...cells.map((cell, i) => {
    const [tag, attributes] = kind(i);
    return make(tag, attributes, String(cell));
  }));
}
function resultsTable(study) {
  const number = /^\s*([+\-\u2212\u2013]?[.\d].*|[-\u2212\u2013\u2014]?)$/su;
  const style = i => (study.rows.every(row => number.test(row[i])) ? {class: "number"} : {});
  const head = tableRow(study.columns, i => ["th", {scope: "col", ...style(i)}]);
  const rows = study.rows.map(cells => {
    const row = tableRow(cells, i => (i ? ["td", style(i)] : ["th", {scope: "row", ...style(i)}]));
    const arm = study.arms.indexOf(cells[0]);
    if (arm >= 0) row.cells[0].prepend(swatch(arm));
    return row;
  });
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
}

if (data.study) {
  byId("study").hidden = false;
  byId("note").append(plain(data.study.note));
  if (data.study.columns.length) byId("results").append(resultsTable(data.study));
  byId("curves").hidden = !data.study.charts.length;
  byId("legend").append(...data.study.arms.map((name, arm) => make("li", {}, swatch(arm), name)));
  byId("charts").append(...data.study.charts.map(chart => new Chart(chart).element));
}
