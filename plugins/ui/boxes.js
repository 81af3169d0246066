// The boxes of a picture's individuals: drag one to move it, its corner to resize it; arrow keys move, with shift resize.
// props.value is a list of [x0, y0, x1, y1], relative to the picture's sides.
const SMALLEST = 0.05;
const STEP = 0.01;
let held = null; // of a drag: number of the box, whether its corner, where it began

const stage = () => element.querySelector(".boxes");
const boxes = () => (props.value || []).map((box) => [...box]);
const limited = (value, low, high) => Math.min(Math.max(value, low), high);

function changed([x0, y0, x1, y1], dx, dy, corner) {
  if (corner) return [x0, y0, limited(x1 + dx, x0 + SMALLEST, 1), limited(y1 + dy, y0 + SMALLEST, 1)];
  const x = limited(x0 + dx, 0, 1 - (x1 - x0)), y = limited(y0 + dy, 0, 1 - (y1 - y0));
  return [x, y, x + (x1 - x0), y + (y1 - y0)];
}

function place(frame, [x0, y0, x1, y1]) {
  const percents = { left: x0, top: y0, width: x1 - x0, height: y1 - y0 };
  for (const [side, share] of Object.entries(percents)) frame.style[side] = `${100 * share}%`;
}

function draw() {
  stage().replaceChildren(...boxes().map((box, number) => {
    const frame = document.createElement("div");
    frame.className = "box";
    frame.dataset.number = number;
    frame.tabIndex = 0;
    frame.style.borderColor = props.colours[number];
    place(frame, box);
    if (props.pictures[number]) {
      const picture = document.createElement("img");
      picture.src = props.pictures[number];
      frame.append(picture);
    }
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = props.names[number] || "";
    name.style.background = props.colours[number];
    const corner = document.createElement("span");
    corner.className = "corner";
    corner.style.background = props.colours[number];
    frame.append(name, corner);
    return frame;
  }));
}

function moved(number, dx, dy, corner, from) {
  const all = boxes();
  all[number] = changed(from || all[number], dx, dy, corner).map((value) => Math.round(1e4 * value) / 1e4);
  return all;
}

element.addEventListener("pointerdown", (event) => {
  const frame = event.target.closest(".box");
  if (!frame) return;
  const number = Number(frame.dataset.number);
  held = { frame, number, corner: event.target.className === "corner", x: event.clientX, y: event.clientY, from: boxes()[number] };
  frame.setPointerCapture(event.pointerId);
});

element.addEventListener("pointermove", (event) => {
  if (!held) return;
  const { width, height } = stage().getBoundingClientRect();
  held.all = moved(held.number, (event.clientX - held.x) / width, (event.clientY - held.y) / height, held.corner, held.from);
  place(held.frame, held.all[held.number]);
});

element.addEventListener("pointerup", () => {
  if (held && held.all) keep(held.all);
  held = null;
});

element.addEventListener("keydown", (event) => {
  const way = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] }[event.key];
  const frame = event.target.closest(".box");
  if (!way || !frame) return;
  event.preventDefault();
  keep(moved(Number(frame.dataset.number), ...way, event.shiftKey));
  stage().children[frame.dataset.number].focus();
});

function keep(all) {
  props.value = all;
  draw();
  trigger("change");
}

watch(["value", "names", "pictures"], draw);
draw();
