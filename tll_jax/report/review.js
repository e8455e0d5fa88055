const boxes = [...document.querySelectorAll("input[data-id]")];
const text = document.querySelector("#overrides");
const quoted = words => /[",\r\n]/.test(words) ? '"' + words.replaceAll('"', '""') + '"' : words;
const isChanged = box => box.checked !== box.defaultChecked;

function update() {
  const lines = boxes.filter(box => isChanged(box) || "set" in box.dataset).map(box => {
    const faces = isChanged(box) ? Number(box.checked) : box.dataset.faces;
    return [quoted(box.dataset.id), box.dataset.side, faces].join();
  });
  boxes.forEach(box => box.parentElement.classList.toggle("changed", isChanged(box)));
  text.value = ["id,side,faces", ...lines, ""].join("\n");
  document.querySelector("#count").textContent = lines.length;
  document.querySelector("#download").href = "data:text/csv;charset=utf-8," + encodeURIComponent(text.value);
}

document.addEventListener("change", update);
document.querySelector("#copy").addEventListener("click", event => {
  navigator.clipboard.writeText(text.value).then(
    () => { event.target.textContent = "Copied"; },
    () => { text.select(); event.target.textContent = "Selected: copy by hand"; });
});
update();
