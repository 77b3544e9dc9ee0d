// Rollouts with their tokens colored by the credit of one scheme.
const groups = byId("groups");
const signed = x => (x < 0 ? "\u2212" : "+") + Math.abs(x).toFixed(3);
let scheme = null;

function choose(next) {
  const before = scheme;
  scheme = next;
  hideTip();
  if (!before || before.set !== scheme.set) fillGroups(data.sets[scheme.set]);
  paint();
}
function fillGroups(set) {
  groups.replaceChildren(...set.groups.map(group =>
    make("div", {class: "group"}, make("h3", {}, "group " + group.label),
      make("div", {class: "prompt"}, set.rollouts[group.rows[0]].prompt),
      make("div", {class: "rollouts"}, ...group.rows.map(row => rolloutCard(set.rollouts[row], row))))));
  const lines = set.rollouts.flatMap(rollout => rollout.characters.join("").split("\n"));
  groups.classList.toggle("short", lines.every(line => line.length <= 14));
  const own = data.sets.length > 1 ? " Each scheme shows its own rollouts." : "";
  const counts = `${set.groups.length} of ${set.all_groups} groups, ${set.rollouts.length} rollouts.`;
  byId("shown").textContent = counts + own + " Arrow keys walk tokens and rollouts.";
}
function rolloutCard(rollout, row) {
  const text = make("div", {class: "text"});
  let end = 0;
  rollout.offsets.forEach(([start, stop], t) => {
    if (start > end) text.append(plain(rollout.characters.slice(end, start).join("")));
    const own = rollout.characters.slice(Math.max(start, end), stop).join("");
    text.append(make("span", {class: "token", "data-row": row, "data-t": t, tabindex: t ? -1 : 0}, own));
    end = Math.max(end, stop);
  });
  text.append(plain(rollout.characters.slice(end).join("")));
  const reward = rollout.reward === null ? "no reward" : "reward " + Number(rollout.reward.toPrecision(6));
  return make("article", {}, make("h4", {}, make("span", {}, "row " + rollout.row),
    make("span", {}, rollout.counted ? reward : "not counted")), text);
}
function color(credit) {
  const strength = Math.min(Math.abs(credit) / scheme.scale, 1) * 0.75;
  return credit === 0 ? "" : `rgba(var(${credit > 0 ? "--plus" : "--minus"}), ${strength.toFixed(3)})`;
}
function paint() {
  for (const token of groups.querySelectorAll(".token")) {
    const credit = scheme.rollouts[token.dataset.row], t = +token.dataset.t;
    token.style.backgroundColor = color(credit.advantages[t]);
    const segment = credit.segment_ids[t];
    token.classList.toggle("off", segment === -1 && credit.advantages[t] === 0);
    token.classList.toggle("cut", t > 0 && segment !== credit.segment_ids[t - 1]);
  }
  [...byId("schemes").children].forEach((button, i) => button.setAttribute("aria-pressed", data.schemes[i] === scheme));
  byId("options").replaceChildren(plain(scheme.options));
  byId("low").textContent = "\u2264 " + signed(-scheme.scale);
  byId("high").textContent = "\u2265 " + signed(scheme.scale);
  document.documentElement.style.scrollPaddingTop = byId("bar").offsetHeight + 8 + "px";
}
function showToken(token) {
  const credit = scheme.rollouts[token.dataset.row], t = +token.dataset.t, segment = credit.segment_ids[t];
  const table = make("table");
  for (const [name, values] of Object.entries(credit.terms))
    table.append(make("tr", {}, make("td", {}, name), make("td", {}, signed(values[t]))));
  table.append(make("tr", {class: "total"}, make("td", {}, "credit"), make("td", {}, signed(credit.advantages[t]))));
  showTip(token, () => token.getClientRects()[0] || token.getBoundingClientRect(), [
    make("div", {}, escaped(JSON.stringify(shortened(token.textContent, 80)))), table,
    make("div", {}, `token ${t}, ${segment < 0 ? "no segment" : "segment " + segment}`)]);
}
function neighbor(here, key) {
  const inText = here.closest(".text"), texts = [...groups.querySelectorAll(".text")], at = texts.indexOf(inText);
  const tokens = [...inText.querySelectorAll(".token")], t = tokens.indexOf(here);
  const entry = step => {
    for (let i = at + step; texts[i]; i += step)
      if (texts[i].querySelector(".token")) return texts[i].querySelector(".token[tabindex='0']");
    return null;
  };
  return {
    ArrowRight: () => tokens[t + 1], ArrowLeft: () => tokens[t - 1], Home: () => tokens[0], End: () => tokens.at(-1),
    ArrowDown: () => entry(1), ArrowUp: () => entry(-1),
  }[key]?.();
}

const tokenOf = event => event.target.closest(".token");
for (const name of ["mouseover", "focusin"])
  groups.addEventListener(name, event => { const token = tokenOf(event); token ? showToken(token) : hideTip(); });
for (const name of ["mouseleave", "focusout"]) groups.addEventListener(name, hideTip);
groups.addEventListener("keydown", event => {
  const here = tokenOf(event), target = here && neighbor(here, event.key);
  if (!target) return;
  event.preventDefault();
  if (target.closest(".text") === here.closest(".text")) { here.tabIndex = -1; target.tabIndex = 0; }
  target.focus();
});

if (data.schemes.length) {
  byId("credit").hidden = false;
  for (const each of data.schemes) {
    const button = make("button", {type: "button"}, each.name);
    button.addEventListener("click", () => choose(each));
    byId("schemes").append(button);
  }
  choose(data.schemes[0]);
}
