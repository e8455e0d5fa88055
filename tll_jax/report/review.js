const boxes = [...document.querySelectorAll("input[data-id]")];
const text = document.querySelector("#overrides");
let csv = "";  // The text area would make line feeds of carriage returns.
// As csv_cell in files.py: an apostrophe keeps spreadsheets from calculating what begins like a formula.
const plain = words => /^'*[=+\-@\t\r]/.test(words) ? "'" + words : words;
const quoted = words => /[",\r\n]|^\s|\s$/.test(words) ? '"' + words.replaceAll('"', '""') + '"' : words;
const isChanged = box => box.checked !== box.defaultChecked;

function update() {
  const lines = boxes.filter(box => isChanged(box) || "set" in box.dataset).map(box => {
    const faces = isChanged(box) ? Number(box.checked) : box.dataset.faces;
    return [quoted(plain(box.dataset.id)), box.dataset.side, faces].join();
  });
  boxes.forEach(box => box.parentElement.classList.toggle("changed", isChanged(box)));
  csv = text.value = ["id,side,faces", ...lines, ""].join("\n");
  document.querySelector("#count").textContent = lines.length;
  document.querySelector("#download").href = "data:text/csv;charset=utf-8," + encodeURIComponent(csv);
}

document.addEventListener("change", update);
document.querySelector("#copy").addEventListener("click", event => {
  navigator.clipboard.writeText(csv).then(
    () => { event.target.textContent = "Copied"; },
    () => { text.select(); event.target.textContent = "Selected: copy by hand"; });
});
update();
