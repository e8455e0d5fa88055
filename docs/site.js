// What scrolls sideways is reached by the keyboard, too, and the search has a name. The theme makes both on loading.
document$.subscribe(() => setTimeout(() => {
  document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code").forEach(one => { one.tabIndex = 0; });
  document.querySelectorAll(".md-code__nav").forEach((one, at) => { one.ariaLabel = `Code ${at + 1}`; });
  document.querySelector(".md-search").ariaLabel = "Search";
}));
