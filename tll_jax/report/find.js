const cards = [...document.querySelectorAll(".look-alike")];

// The place table is made when it is first opened: a page has a hundred of them.
function openTable(card) {
  const facts = JSON.parse(card.querySelector("script").textContent);
  const frames = [...card.querySelectorAll(".frame")];
  frames.forEach((frame, side) => {
    const places = document.createElement("div");
    places.className = "places";
    const [top, left, height, width] = facts.boxes[side];
    places.style.cssText = `--rows: ${facts.rows}; --columns: ${facts.columns}; inset: auto; top: ${top}%; ` +
      `left: ${left}%; height: ${height}%; width: ${width}%`;
    places.setAttribute("role", "group");
    places.setAttribute("aria-label", `places of the ${["left", "right"][side]} picture`);
    for (let at = 0; at < facts.rows * facts.columns; at += 1) {
      const cell = document.createElement("button");
      cell.type = "button";
      cell.setAttribute("aria-pressed", "false");
      cell.setAttribute("aria-label",
        `row ${Math.floor(at / facts.columns) + 1}, column ${at % facts.columns + 1}`);
      places.append(cell);
    }
    frame.append(places);
  });
  placeTable(frames, card.querySelector(".region"), { ...facts, cover: 0.6, keys: "Shift+Tab" });
}

cards.forEach(card => card.querySelector("details.table")?.addEventListener("toggle", event => {
  const isOpen = event.target.open, hasTable = card.querySelector("script") !== null;
  card.classList.toggle("open", isOpen && hasTable);
  if (isOpen && hasTable && !card.querySelector(".places")) openTable(card);
}));

// The first Escape lets a place go, the next one leaves the table.
cards.forEach(card => card.addEventListener("keydown", event => {
  const isIn = event.key === "Escape" && event.target.closest(".places");
  if (isIn && !card.querySelector(".places [aria-pressed=true]")) card.querySelector("details.table summary").focus();
}));

// Pairs said not to be alike, kept by the browser where it can, so that all pages of a result share them.
const bar = document.querySelector("#dismissed");
const kept = `tll find ${document.querySelector("[data-result]")?.dataset.result}`;
let notAlike = {};
try { notAlike = JSON.parse(localStorage.getItem(kept)) ?? {}; } catch { /* Some browsers keep nothing for files. */ }

function update() {
  cards.forEach(card => {
    const isOut = card.dataset.pair in notAlike;
    card.classList.toggle("dismissed", isOut);
    const button = card.querySelector(".not-alike");
    button.setAttribute("aria-pressed", String(isOut));
    card.querySelector(".to-list")?.remove();
    // The list is below all cards: many tab stops away.
    if (isOut) button.insertAdjacentHTML("afterend", '<a class="to-list" href="#dismissed">To the list</a>');
  });
  const pairs = Object.entries(notAlike);
  bar.hidden = !pairs.length;
  bar.querySelector("[role=status]").textContent =
    `${pairs.length} ${pairs.length === 1 ? "pair is" : "pairs are"} not alike.`;
  const lines = ["# Pairs that are not alike, for tll find --ignore: the contents of their files, and names.",
    ...pairs.map(([contents, names]) => `${contents} # ${names}`), ""];
  document.querySelector("#ignore").href = "data:text/plain;charset=utf-8," + encodeURIComponent(lines.join("\n"));
  try { localStorage.setItem(kept, JSON.stringify(notAlike)); } catch { /* As above. */ }
}

if (bar) {
  cards.forEach(card => card.querySelector(".not-alike").addEventListener("click", () => {
    const { pair } = card.dataset;
    if (pair in notAlike) delete notAlike[pair];
    else notAlike[pair] = card.getAttribute("aria-label").replace(/^Pair \d+: /, "");
    update();
  }));
  document.querySelector("#undo").addEventListener("click", () => {
    // The button goes with the bar; the focus must not.
    const first = cards.find(card => card.dataset.pair in notAlike);
    notAlike = {};
    update();
    first?.querySelector(".not-alike").focus();
  });
  update();
}

const copying = (button, words) => button?.addEventListener("click", () => navigator.clipboard.writeText(words()).then(
  () => { button.textContent = "Copied"; }, () => { button.textContent = "Select and copy by hand"; }));
copying(document.querySelector("#copy"), () => document.querySelector("#command").textContent);
copying(document.querySelector("#copy-ignore"), () => bar.dataset.command);
