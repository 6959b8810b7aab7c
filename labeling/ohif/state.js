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
  busy: '',
  stop: null,
  since: 0,
  said: '',
  problem: null,
};

const bus = new EventTarget();
export const changed = () => bus.dispatchEvent(new Event('change'));
export const onChange = listener => {
  bus.addEventListener('change', listener);
  return () => bus.removeEventListener('change', listener);
};

export function say(message) {
  Object.assign(state, { said: message, problem: null });
  changed();
}

// What is remembered of each segmentation in the viewer: where it came from, what was said of its structures, the digest of its
// voxels when it came or was submitted, and the id under which it was last sent, with what.
const drawings = new Map();
export function drawing(segmentationId) {
  if (!drawings.has(segmentationId)) {
    drawings.set(segmentationId, { states: {}, parent: null, suggestion: null, suggestedBy: null, kept: null, labelId: null, sent: '' });
  }
  return drawings.get(segmentationId);
}
export const drawn = () => [...drawings];
export const forget = segmentationId => (segmentationId ? drawings.delete(segmentationId) : drawings.clear());
