// A canvas of slices: a line for each slot, time to the right, now at the right edge.

const FRAME_MS = 100;
const CALM_FRAME_MS = 1_000; // for who wants less motion
const LINE = 22; // px of a slot
const GAP = 4;
const LABEL = 15; // px of a worker's name above its slots
const NOTCH = 5;
const BAD = new Set(["fail", "cancel"]);
const PUT_BACK = new Set(["suspend", "hold", "reclaim", "park"]);
const HOW = {
  suspend: "was suspended",
  hold: "was suspended by an operator",
  park: "waits for a person",
  reclaim: "lost its worker",
  finish: "finished",
  fail: "failed",
  cancel: "was cancelled",
  unheard: "is over; how it ended was not heard",
};

// Names that differ in one letter stand a golden angle apart.
function hue(text) {
  let sum = 0;
  for (const character of text) sum = (sum * 31 + character.codePointAt(0)) >>> 0;
  return Math.round(sum * 137.508) % 360;
}

function seconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

export class Picture {
  constructor(canvas, { windowMs, say }) {
    this.canvas = canvas;
    this.windowMs = windowMs;
    this.say = say;
    this.slices = new Map(); // by number
    this.workers = [];
    this.lines = []; // {worker, lane, top}
    this.chosen = null; // number
    this.told = null; // when the chosen one had ended, when it was told of last
    this.timer = 0;
    this.aheadMs = 0; // of the server's clock over ours
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => this.choose(null));
    canvas.addEventListener("click", (event) => {
      this.point(event);
      this.open();
    });
    canvas.addEventListener("keydown", (event) => this.key(event));
    this.restyle();
  }

  clear() {
    this.slices.clear();
    this.choose(null);
  }

  take({ now_ms, slices, workers }) {
    // The smallest lag is the truest: what comes late says nothing of the clock.
    const ahead = now_ms - performance.now();
    this.aheadMs = this.aheadMs ? Math.max(ahead, this.aheadMs - 1) : ahead;
    for (const each of slices) this.slices.set(each.number, each);
    const oldest = now_ms - this.windowMs - 2_000;
    for (const [number, each] of this.slices) if ((each.ends_ms ?? now_ms) < oldest) this.slices.delete(number);
    this.workers = workers;
    this.layOut();
  }

  now() {
    return performance.now() + this.aheadMs;
  }

  layOut() {
    const lanes = new Map(this.workers.map(([worker, slots]) => [worker, slots]));
    for (const { worker, lanes: taken } of this.slices.values())
      lanes.set(worker, Math.max(lanes.get(worker) ?? 0, ...taken.map((lane) => lane + 1)));
    this.lines = [];
    let top = 0;
    for (const worker of [...lanes.keys()].sort()) {
      top += LABEL;
      for (let lane = 0; lane < lanes.get(worker); lane += 1) {
        this.lines.push({ worker, lane, top });
        top += LINE;
      }
      top += GAP;
    }
    const height = Math.max(top, LABEL + LINE);
    if (this.height !== height) {
      this.height = height;
      this.restyle();
    }
  }

  restyle() {
    const { canvas } = this;
    const style = getComputedStyle(canvas);
    this.text = style.color;
    this.faint = style.borderTopColor;
    this.bad = style.caretColor;
    const ratio = devicePixelRatio || 1;
    canvas.style.height = `${this.height ?? LABEL + LINE}px`;
    this.width = canvas.clientWidth;
    canvas.width = Math.round(this.width * ratio);
    canvas.height = Math.round((this.height ?? LABEL + LINE) * ratio);
    this.pen = canvas.getContext("2d");
    this.pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.draw();
  }

  start() {
    this.stop();
    const frame = () => {
      this.draw();
      this.timer = setTimeout(frame, this.calm.matches ? CALM_FRAME_MS : FRAME_MS);
    };
    frame();
  }

  stop() {
    clearTimeout(this.timer);
  }

  // Where a slice stands: [left, width] in px.
  span(each, now) {
    const scale = this.width / this.windowMs;
    const first = now - this.windowMs;
    const left = Math.max(0, ((each.begins_ms || first) - first) * scale);
    const right = Math.min(this.width, ((each.ends_ms ?? now) - first) * scale);
    return [left, Math.max(1, right - left)];
  }

  draw() {
    const { pen } = this;
    const now = this.now();
    pen.clearRect(0, 0, this.width, this.height ?? 0);
    pen.font = "12px system-ui, sans-serif";
    pen.textBaseline = "top";
    const tops = new Map();
    for (const { worker, lane, top } of this.lines) {
      tops.set(`${worker} ${lane}`, top);
      pen.fillStyle = this.text;
      if (lane === 0) pen.fillText(worker, 0, top - LABEL + 1);
      pen.fillStyle = this.faint;
      pen.fillRect(0, top + LINE - GAP, this.width, 1);
    }
    for (const each of this.slices.values()) this.bar(each, now, tops);
    // Said when it is chosen and when it ends, not at each frame: a screen reader reads it out.
    const chosen = this.slices.get(this.chosen);
    if (this.chosen !== null && chosen?.ends_ms !== this.told) this.tell(now);
  }

  bar(each, now, tops) {
    const { pen } = this;
    const [left, width] = this.span(each, now);
    const tone = hue(`${each.tenant} ${each.agent} ${each.program}`);
    for (const lane of each.lanes) {
      const top = tops.get(`${each.worker} ${lane}`);
      if (top === undefined) continue;
      const high = LINE - GAP - 1;
      pen.fillStyle = `hsl(${tone} 60% ${this.dark.matches ? 45 : 65}%)`;
      pen.beginPath();
      const notch = width > 3 * NOTCH ? NOTCH : 0;
      const before = each.goes_on ? notch : 0;
      const behind = PUT_BACK.has(each.ended_by) ? notch : 0;
      pen.moveTo(left, top);
      pen.lineTo(left + width, top);
      pen.lineTo(left + width - behind, top + high / 2);
      pen.lineTo(left + width, top + high);
      pen.lineTo(left, top + high);
      pen.lineTo(left + before, top + high / 2);
      pen.closePath();
      pen.fill();
      if (BAD.has(each.ended_by)) {
        pen.fillStyle = this.bad;
        pen.fillRect(left + width - 3, top, 3, high);
      }
      if (width > 60) {
        pen.save();
        pen.clip();
        pen.fillStyle = this.dark.matches ? "#fff" : "#000";
        pen.fillText(`${each.tenant}/${each.agent} ${each.program}`, left + before + 4, top + 2);
        pen.restore();
      }
      if (each.number === this.chosen) {
        pen.strokeStyle = this.text;
        pen.lineWidth = 2;
        pen.strokeRect(left + 1, top + 1, Math.max(1, width - 2), high - 2);
      }
    }
  }

  choose(number) {
    this.chosen = number;
    if (number === null) this.say("");
    else this.tell(this.now());
    this.draw();
  }

  tell(now) {
    const each = this.slices.get(this.chosen);
    if (!each) {
      this.chosen = null;
      this.say("");
      return;
    }
    this.told = each.ends_ms;
    const lasted = (each.ends_ms ?? now) - (each.begins_ms || now);
    const ended = each.ends_ms === null ? "runs" : (HOW[each.ended_by] ?? each.ended_by);
    const time = each.begins_ms ? `, ${seconds(lasted)}` : "";
    this.say(
      `${each.tenant}/${each.agent} ${each.program}: ${each.kind} ${each.job_id.slice(0, 8)} ${ended}${time}` +
        (each.tokens ? `, ${each.tokens} tokens` : "") +
        ` on ${each.worker}${each.core ? `, core ${each.core}` : ""}` +
        (each.goes_on ? ", it went on from an earlier slice" : ""),
    );
  }

  at(x, y) {
    const now = this.now();
    const line = this.lines.find(({ top }) => y >= top && y < top + LINE);
    if (!line) return null;
    for (const each of [...this.slices.values()].reverse()) {
      const [left, width] = this.span(each, now);
      if (each.worker === line.worker && each.lanes.includes(line.lane) && x >= left - 2 && x <= left + width + 2)
        return each.number;
    }
    return null;
  }

  point({ offsetX, offsetY }) {
    const found = this.at(offsetX, offsetY);
    if (found !== this.chosen) this.choose(found);
  }

  // The slices of a line, in time.
  of({ worker, lane }) {
    return [...this.slices.values()]
      .filter((each) => each.worker === worker && each.lanes.includes(lane))
      .sort((one, other) => one.begins_ms - other.begins_ms);
  }

  key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Enter") this.open();
    else if (event.key === "Escape") this.choose(null);
    else if (step) this.step(...step);
    else return;
    event.preventDefault();
  }

  step(along, across) {
    const chosen = this.slices.get(this.chosen);
    const lines = this.lines.filter((line) => this.of(line).length);
    if (!lines.length) return;
    if (!chosen) {
      this.choose(this.of(lines[0]).at(-1).number);
      return;
    }
    const at = lines.findIndex(({ worker, lane }) => worker === chosen.worker && chosen.lanes.includes(lane));
    if (across) {
      const line = lines[Math.min(lines.length - 1, Math.max(0, at + across))];
      const near = (each) => Math.abs(each.begins_ms - chosen.begins_ms);
      this.choose(this.of(line).reduce((one, other) => (near(other) < near(one) ? other : one)).number);
      return;
    }
    const its = this.of(lines[at]);
    const place = its.findIndex(({ number }) => number === chosen.number) + along;
    this.choose(its[Math.min(its.length - 1, Math.max(0, place))].number);
  }

  open() {
    const each = this.slices.get(this.chosen);
    if (!each) return;
    const names = { tenant: each.tenant, agent: each.agent, program: each.program, view: "timeline" };
    location.assign(`/program?${new URLSearchParams(names)}`);
  }
}
