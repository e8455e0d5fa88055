// A click on a pair of maps shows it as large as the window allows; a click or Escape closes it.
{
  const large = document.querySelector("#large");
  document.querySelectorAll(".enlarge").forEach(button => button.addEventListener("click", () => {
    const name = button.parentElement.querySelector("b").textContent;
    large.querySelector("p").textContent = name + " (click or Escape closes)";
    large.querySelector("div").replaceChildren(...[...button.querySelectorAll("img")].map(one => one.cloneNode()));
    large.setAttribute("aria-label", name);
    large.showModal();
  }));
  large.addEventListener("click", () => large.close());
}
