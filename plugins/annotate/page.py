"""Style and script of the review page."""

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 0; color: #1c1e22; background: #fff }
header { position: sticky; top: 0; z-index: 1; padding: 8px 24px; background: #fffd; border-bottom: 1px solid #ddd }
header p { margin: 0 0 8px; color: #555 }
h1 { font-size: 20px; margin: 0 } h2 { font-size: 17px; margin: 0 }
main, section { padding: 0 24px 24px }
article { padding: 16px 0; border-bottom: 1px solid #ddd } article.dropped .pictures { opacity: 0.3 }
article p, article ul { margin: 2px 0; color: #555 } ul { padding-left: 18px } .failed { color: #b91c1c }
.pictures { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 8px }
figure { margin: 0; max-width: 512px; flex: 1 1 260px } figcaption { color: #555; font-size: 13px }
svg { width: 100%; max-height: 80vh; display: block; touch-action: none; user-select: none }
.mask { fill: var(--colour); opacity: 0.3 }
.box { fill: none; stroke: var(--colour); stroke-width: calc(0.8 * var(--unit)) }
.bone { stroke: var(--colour); stroke-width: calc(0.8 * var(--unit)) } .bone.hidden { display: none }
.point { r: calc(1.6 * var(--unit)); fill: var(--colour); cursor: grab }
.point { stroke: #fff; stroke-width: calc(0.5 * var(--unit)) }
.point.occluded { fill: #fff; stroke: var(--colour) }
.point.absent { fill: #fff8; stroke: #999; stroke-dasharray: 1 1 }
.point.doubtful { stroke: #dc2626; stroke-dasharray: calc(1 * var(--unit)) calc(0.6 * var(--unit)) }
.point.changed { stroke: #000 }
text { fill: var(--colour); font-size: calc(5 * var(--unit)) }
text { paint-order: stroke; stroke: #fff; stroke-width: calc(1 * var(--unit)) }
"""

SCRIPT = """
"use strict";
const changes = {};

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
  const text = JSON.stringify(corrections(), null, 2) + "\\n";
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "corrections.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
"""
