"use strict";
const changes = Object.create(null);  // a triplet may be called "__proto__"

/** The corrections of one triplet's object in one part, made where there are none. */
function place(circle) {
  const group = circle.closest(".individual"), name = circle.closest("article").dataset.triplet;
  const triplet = (changes[name] ??= {}), objects = (triplet.objects ??= []);
  const k = Number(group.dataset.object);
  while (objects.length <= k) objects.push({target_keypoints: {}, image_keypoints: {}});
  return objects[k][group.dataset.part];
}

function note(circle) {
  const size = circle.ownerSVGElement.viewBox.baseVal, round = v => Math.round(v * 1e5) / 1e5;
  const seen = Number(circle.dataset.seen);
  const x = round(circle.cx.baseVal.value / size.width), y = round(circle.cy.baseVal.value / size.height);
  place(circle)[circle.dataset.k] = seen ? [x, y, seen] : [0, 0, 0];
  circle.classList.add("changed");
  circle.classList.remove("doubtful");
  count();
}

function show(circle) {
  circle.classList.toggle("occluded", circle.dataset.seen === "1");
  circle.classList.toggle("absent", circle.dataset.seen === "0");
  const group = circle.closest(".individual"), k = circle.dataset.k;
  for (const bone of group.querySelectorAll(`.bone[data-a="${k}"], .bone[data-b="${k}"]`)) {
    const ends = [bone.dataset.a, bone.dataset.b].map(end => group.querySelector(`.point[data-k="${end}"]`));
    bone.classList.toggle("hidden", ends.some(end => end.dataset.seen === "0"));
    ends.forEach((end, at) => {
      bone.setAttribute(`x${at + 1}`, end.cx.baseVal.value);
      bone.setAttribute(`y${at + 1}`, end.cy.baseVal.value);
    });
  }
}

function count() {
  const names = Object.keys(changes).length;
  document.getElementById("count").textContent = names ? `${names} triplets changed` : "";
}

/** What the button saves. */
function corrections() {
  return {triplets: changes};
}

for (const svg of document.querySelectorAll("svg")) {
  const size = svg.viewBox.baseVal;
  svg.style.setProperty("--unit", `${Math.max(size.width, size.height) / 128}px`);
}

for (const circle of document.querySelectorAll(".point")) {
  circle.addEventListener("pointerdown", event => {
    event.preventDefault();
    const svg = circle.ownerSVGElement, size = svg.viewBox.baseVal;
    let moved = false;
    const move = event => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      circle.setAttribute("cx", Math.min(Math.max(at.x, 0), size.width));
      circle.setAttribute("cy", Math.min(Math.max(at.y, 0), size.height));
      if (circle.dataset.seen === "0") circle.dataset.seen = "2";  // fetched from the foot of the picture
      moved = true;
      show(circle);
    };
    const end = () => {
      window.removeEventListener("pointermove", move);
      window.removeEventListener("pointerup", end);
      window.removeEventListener("pointercancel", end);
      if (moved) note(circle);
    };
    window.addEventListener("pointermove", move);
    window.addEventListener("pointerup", end);
    window.addEventListener("pointercancel", end);
  });
  circle.addEventListener("dblclick", () => {
    circle.dataset.seen = String((Number(circle.dataset.seen) + 2) % 3);
    show(circle);
    note(circle);
  });
}

for (const box of document.querySelectorAll(".drop")) {
  const article = box.closest("article");
  const dim = () => article.classList.toggle("dropped", box.checked);
  dim();
  box.addEventListener("change", () => {
    (changes[article.dataset.triplet] ??= {}).drop = box.checked;
    dim();
    count();
  });
}

document.getElementById("save").addEventListener("click", () => {
  const link = document.createElement("a");
  const text = JSON.stringify(corrections(), null, 2) + "\n";
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "corrections.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
