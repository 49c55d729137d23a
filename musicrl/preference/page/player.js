// One clip on the page: its waveform, its playback, and the stretches of it that were really played,
// which the server is told of as they happen. Knows nothing of choices.

const BARS = 96;
const REPORT_SECONDS = 0.5;

export class Player {
  // card: the filled template; report(started, ended): seconds of a stretch that was played.
  constructor(card, name, { report, onPlay }) {
    this.card = card;
    this.name = name;
    this.report = report;
    this.audio = new Audio();
    this.audio.preload = "auto";
    this.peaks = [];
    this.seconds = 0;
    this.from = 0; // where the stretch began that is not yet reported
    this.last = 0; // how far playback was seen to come
    this.button = card.querySelector(".play");
    this.slider = card.querySelector("input");
    this.canvas = card.querySelector("canvas");
    this.slider.setAttribute("aria-label", `Position in ${name}`);
    this.button.addEventListener("click", () => this.toggle());
    this.slider.addEventListener("input", () => this.seek(this.slider.value / 1000 * this.seconds));
    this.audio.addEventListener("play", () => { onPlay(this); this.follow(); });
    this.audio.addEventListener("playing", () => this.begin());
    this.audio.addEventListener("timeupdate", () => this.advance());
    this.audio.addEventListener("pause", () => this.stop());
    this.audio.addEventListener("ended", () => this.stop());
    this.audio.addEventListener("seeking", () => this.flush());
    this.audio.addEventListener("seeked", () => this.begin());
    this.resize = new ResizeObserver(() => this.draw());
    this.resize.observe(this.canvas);
    this.show();
  }

  async load(bytes, seconds) {
    this.seconds = seconds;
    this.audio.src = URL.createObjectURL(new Blob([bytes], { type: "audio/wav" }));
    const context = new OfflineAudioContext(1, 1, 44100);
    const decoded = await context.decodeAudioData(bytes.slice(0));
    this.peaks = peaksOf(decoded.getChannelData(0));
    this.show();
  }

  toggle() {
    if (this.audio.paused) this.audio.play().catch(() => {});
    else this.audio.pause();
  }

  pause() { this.audio.pause(); }

  seek(seconds) {
    this.audio.currentTime = Math.min(seconds, this.seconds);
    this.show();
  }

  begin() { this.from = this.last = this.audio.currentTime; }

  advance() {
    if (this.audio.paused || this.audio.seeking) return;
    this.last = this.audio.currentTime;
    if (this.last - this.from >= REPORT_SECONDS) this.flush();
  }

  stop() {
    if (!this.audio.seeking) this.last = Math.max(this.last, this.audio.currentTime);
    this.flush();
    this.show();
  }

  flush() {
    const ended = Math.min(this.last, this.seconds);
    if (ended - this.from > 0.02) this.report(this.from, ended);
    this.from = this.last;
  }

  follow() {
    this.show();
    if (!this.audio.paused) requestAnimationFrame(() => this.follow());
  }

  show() {
    const isPlaying = !this.audio.paused && !this.audio.ended;
    const now = Math.min(this.audio.currentTime, this.seconds);
    this.card.classList.toggle("playing", isPlaying);
    this.button.querySelector("span").textContent = isPlaying ? "Pause" : "Play";
    this.button.setAttribute("aria-label", `${isPlaying ? "Pause" : "Play"} ${this.name}`);
    this.slider.value = this.seconds ? Math.round(now / this.seconds * 1000) : 0;
    this.slider.setAttribute("aria-valuetext", `${now.toFixed(0)} of ${this.seconds.toFixed(0)} seconds`);
    this.card.querySelector(".time").textContent = `${now.toFixed(1)} / ${this.seconds.toFixed(1)} s`;
    this.draw();
  }

  draw() {
    const scale = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const pen = this.canvas.getContext("2d");
    const colour = (name) => getComputedStyle(this.card).getPropertyValue(name);
    const played = this.seconds ? this.audio.currentTime / this.seconds : 0;
    pen.scale(scale, scale);
    const step = width / BARS;
    this.peaks.forEach((peak, i) => {
      const tall = Math.max(3, peak * height * 0.94);
      pen.fillStyle = colour((i + 0.5) / BARS <= played ? "--accent" : "--wave");
      pen.beginPath();
      pen.roundRect(i * step + step * 0.2, (height - tall) / 2, step * 0.6, tall, step * 0.3);
      pen.fill();
    });
  }

  remove() {
    this.pause();
    this.resize.disconnect();
    URL.revokeObjectURL(this.audio.src);
  }
}

function peaksOf(samples) {
  const size = Math.max(1, Math.floor(samples.length / BARS));
  const peaks = [];
  for (let bar = 0; bar < BARS; bar += 1) {
    let peak = 0;
    for (const value of samples.subarray(bar * size, (bar + 1) * size)) peak = Math.max(peak, Math.abs(value));
    peaks.push(peak);
  }
  const loudest = Math.max(...peaks, 1e-6);
  return peaks.map((peak) => Math.sqrt(peak / loudest));
}
