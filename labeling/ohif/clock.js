// The reader's time: seconds in which the page is seen and something was done in the last minute.
const IDLE = 60000;
let seconds = 0;
let last = performance.now();
let acted = last;

const act = () => (acted = performance.now());
for (const kind of ['pointerdown', 'pointermove', 'keydown', 'wheel']) {
  window.addEventListener(kind, act, { capture: true, passive: true });
}
setInterval(() => {
  const now = performance.now();
  if (document.visibilityState === 'visible' && now - acted < IDLE) seconds += (now - last) / 1000;
  last = now;
}, 1000);

export const elapsed = () => Math.round(seconds * 10) / 10;
export function restart() {
  seconds = 0;
  last = performance.now();
  act();
}
