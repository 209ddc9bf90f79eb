// Renders what pymdownx.arithmatex marks: \(inline\) or \[display\].
for (const equation of document.querySelectorAll(".arithmatex")) {
  const text = equation.textContent.trim()
  try {
    katex.render(text.slice(2, -2), equation, { displayMode: text.startsWith("\\[") })
  } catch (error) {
    console.error(text, error)
  }
}
