// Sphinx writes \(…\) in a span and \[…\] in a div.
for (const formula of document.querySelectorAll(".math")) {
  const tex = formula.textContent.trim().slice(2, -2);
  katex.render(tex, formula, { displayMode: formula.tagName === "DIV", throwOnError: false });
}
// Dotted names in tables may wrap after a dot.
for (const name of document.querySelectorAll("td code .pre")) {
  name.innerHTML = name.innerHTML.replaceAll(".", ".<wbr>");
}
