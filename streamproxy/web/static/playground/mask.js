// The brush: strokes over a picture, and the mask that they make. OpenAI's masks are transparent where a picture may
// change, and of the picture's own size.

const SHOWN = 1024; // most pixels of an edge on the screen; the mask has the picture's own size
const COLOUR = "#f43f5e";
const OPACITY = 0.55;
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Draw strokes, `{size, points: [[x, y], ...]}` as shares of the picture's shorter edge and of its edges. Pure data. */
function paint(context, strokes, width, height) {
  context.lineCap = context.lineJoin = "round";
  for (const { size, points } of strokes) {
    context.lineWidth = size * Math.min(width, height);
    context.beginPath();
    points.forEach(([x, y], at) => context[at ? "lineTo" : "moveTo"](x * width, y * height));
    if (points.length === 1) context.lineTo(points[0][0] * width + 0.01, points[0][1] * height);
    context.stroke();
  }
}

/** The mask as a PNG: opaque, but for the strokes. */
export function maskOf(strokes, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "destination-out";
  paint(context, strokes, width, height);
  return canvas.convertToBlob({ type: "image/png" });
}

/** The canvas, driven by pointer and keyboard. */
export class Brush {
  #canvas;
  #layer = new OffscreenCanvas(1, 1);
  #size; // the input that says the brush's size, in percent of the picture's shorter edge
  #picture; // an ImageBitmap
  #strokes = [];
  #at = [0.5, 0.5];
  #painting = false;

  constructor(canvas, size) {
    this.#canvas = canvas;
    this.#size = size;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#painting && this.#move(this.#where(event)));
    for (const type of ["pointerup", "pointercancel"]) canvas.addEventListener(type, () => (this.#painting = false));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("keyup", ({ key }) => key === " " && (this.#painting = false));
    canvas.addEventListener("focus", () => this.#show());
    canvas.addEventListener("blur", () => {
      this.#painting = false;
      this.#show();
    });
    size.addEventListener("input", () => this.#show());
  }

  /** Begin with this picture, or with none. */
  open(picture) {
    this.#picture?.close();
    this.#picture = picture;
    this.#strokes = [];
    if (!picture) return;
    const scale = Math.min(1, SHOWN / Math.max(picture.width, picture.height));
    this.#canvas.width = this.#layer.width = Math.max(1, Math.round(picture.width * scale));
    this.#canvas.height = this.#layer.height = Math.max(1, Math.round(picture.height * scale));
    this.#show();
  }

  undo() {
    this.#strokes.pop();
    this.#show();
  }

  clear() {
    this.#strokes = [];
    this.#show();
  }

  /** The mask as a PNG, or undefined where nothing is painted. */
  async mask() {
    if (!this.#picture || !this.#strokes.length) return undefined;
    return maskOf(this.#strokes, this.#picture.width, this.#picture.height);
  }

  #where({ clientX, clientY }) {
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    return [(clientX - left) / width, (clientY - top) / height];
  }

  #down(event) {
    this.#canvas.setPointerCapture(event.pointerId);
    this.#begin(this.#where(event));
  }

  #begin(at) {
    this.#painting = true;
    this.#at = at;
    this.#strokes.push({ size: this.#size.value / 100, points: [at] });
    this.#show();
  }

  #move(to) {
    this.#at = to;
    if (this.#painting) this.#strokes.at(-1).points.push(to);
    this.#show();
  }

  #key(event) {
    const step = KEYS[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (step) this.#move(this.#at.map((share, at) => Math.max(0, Math.min(1, share + step[at] * 0.04))));
    else if (event.key === " ") {
      if (!event.repeat) this.#begin(this.#at);
    } else if (event.key === "+" || event.key === "-" || event.key === "−") {
      this.#size.value = Number(this.#size.value) + (event.key === "+" ? 2 : -2);
      this.#show();
    } else return;
    event.preventDefault();
  }

  #show() {
    if (!this.#picture) return;
    const { width, height } = this.#canvas;
    const layer = this.#layer.getContext("2d");
    layer.clearRect(0, 0, width, height);
    layer.strokeStyle = COLOUR;
    paint(layer, this.#strokes, width, height);
    const context = this.#canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.drawImage(this.#picture, 0, 0, width, height);
    context.globalAlpha = OPACITY;
    context.drawImage(this.#layer, 0, 0);
    context.globalAlpha = 1;
    if (document.activeElement === this.#canvas) this.#ring(context, width, height);
  }

  /** Where the brush is, for the keyboard. */
  #ring(context, width, height) {
    const radius = (this.#size.value / 200) * Math.min(width, height);
    for (const [colour, wide] of [
      ["#000", 4],
      ["#fff", 2],
    ]) {
      context.strokeStyle = colour;
      context.lineWidth = wide;
      context.beginPath();
      context.arc(this.#at[0] * width, this.#at[1] * height, radius, 0, 2 * Math.PI);
      context.stroke();
    }
  }
}
