"use strict";

const articles = [...document.querySelectorAll("article")];
const answers = new Map(); // by article: "yes", "no", or nothing where it was skipped
let at = 0;

function show() {
  articles.forEach((article, number) => { article.hidden = number !== at; });
  document.getElementById("end").hidden = at < articles.length;
  document.getElementById("progress").value = at;
  document.getElementById("count").textContent = `${answers.size} answered`;
}

/** What a key does: answer or skip the question that is shown, or go one back. */
function press(key) {
  if (key === "Backspace") {
    at = Math.max(at - 1, 0);
  } else if (at < articles.length) {
    if (key === " ") answers.delete(articles[at]);
    else answers.set(articles[at], key === "y" ? "yes" : "no");
    at += 1;
  }
  show();
}

/** The file that judge-check reads. */
function table() {
  const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const rows = articles.filter((article) => answers.has(article))
    .map((article) => [article.dataset.file, article.dataset.question, answers.get(article)].map(quoted).join(","));
  return ["file_name,question,answer", ...rows, ""].join("\n");
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !["y", "n", " ", "Backspace"].includes(event.key)) return;
  event.preventDefault();
  press(event.key);
});
document.querySelector("nav").addEventListener("click", (event) => {
  if (event.target.dataset.key) press(event.target.dataset.key);
});
document.getElementById("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([table()], {type: "text/csv"}));
  link.download = "answers.csv";
  link.click();
});
show();
