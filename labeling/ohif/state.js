// What the panel shows. It is kept outside of the panel: OHIF takes a hidden tab out of the page.
export const state = {
  author: localStorage.getItem('voxloop.author') ?? '',
  authorKnown: false,
  projects: [],
  misread: [],
  project: null,
  strategy: '',
  offer: null,
  remaining: null,
  skipped: [],
  history: [],
  series: null,
  present: new Set(),
  digest: 0,
  busy: '',
  stop: null,
  since: 0,
  said: '',
  done: false,
  problem: null,
};

const bus = new EventTarget();
export const changed = () => bus.dispatchEvent(new Event('change'));
export const onChange = listener => {
  bus.addEventListener('change', listener);
  return () => bus.removeEventListener('change', listener);
};

// `done`: it is good news, and shown as such.
export function say(message, { done = false } = {}) {
  Object.assign(state, { said: message, done, problem: null });
  changed();
}

// What is remembered of each segmentation in the viewer: where it came from, what was said of its structures and whether that
// is since it came or was submitted, the digest of its voxels then, and the id under which it was last sent, with what.
const FRESH = { parent: null, suggestion: null, suggestedBy: null, stated: false, kept: null, labelId: null, sent: '' };
const drawings = new Map();
export function drawing(segmentationId) {
  if (!drawings.has(segmentationId)) {
    drawings.set(segmentationId, { ...FRESH, states: {} });
  }
  return drawings.get(segmentationId);
}
export const drawn = () => [...drawings];
export const forget = segmentationId => (segmentationId ? drawings.delete(segmentationId) : drawings.clear());
