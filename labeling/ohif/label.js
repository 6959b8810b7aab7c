// What the panel's buttons do with labels.
import * as api from './api.js';
import * as clock from './clock.js';
import * as mask from './mask.js';
import { active, host, imageOf, service, source, until } from './host.js';
import { changed, drawing, drawn, forget, say, state } from './state.js';

const key = () => state.project.key;

export async function begin() {
  const { author, projects, misread } = await api.projects();
  Object.assign(state, { projects, misread, authorKnown: Boolean(author), author: author || state.author });
  if (!projects.length) {
    throw new api.Problem({ title: 'There is no project', remedy: 'put a project file into the home’s projects folder, then reload this page' });
  }
  const kept = localStorage.getItem('voxloop.project');
  await choose(projects.some(project => project.key === kept) ? kept : projects[0].key);
}

// Another project has other structures: what is drawn belongs to the one that it was drawn for, and goes with it.
export async function choose(projectKey) {
  if (state.project && state.project.key !== projectKey) {
    warnOfUnsubmitted(`choose ${projectKey}`);
    for (const [id] of drawn()) takeAway(id);
  }
  localStorage.setItem('voxloop.project', projectKey);
  Object.assign(state, { project: await api.project(projectKey), offer: null, remaining: null, strategy: '', series: null });
  await look();
}

// Follows what the active viewport shows: the labels of its series, and what is drawn on it.
export async function look() {
  const series = active().image?.SeriesInstanceUID ?? null;
  const moved = series !== state.series;
  state.series = series;
  if (moved) state.history = [];
  measure();
  if (moved && series && state.project) await refresh(series);
}

async function refresh(series) {
  const history = await api.labels(key(), series);
  if (series === state.series) state.history = history;
  changed();
}

// The segmentation that is drawn in, as OHIF's own panel has it selected.
export const current = () => service('segmentationService').getActiveSegmentation(active().viewportId)?.segmentationId ?? null;

// Which structures have voxels.
export function measure() {
  const segmentationId = current();
  Object.assign(state, { present: new Set(), digest: 0 });
  if (segmentationId) {
    try {
      const { values, digest } = mask.look(segmentationId);
      state.digest = digest;
      drawing(segmentationId).kept ??= digest;
      const { segments } = service('segmentationService').getSegmentation(segmentationId);
      for (const segment of Object.values(segments)) if (values.has(segment.segmentIndex)) state.present.add(segment.label);
    } catch (error) {
      console.warn('[voxloop]', error);
    }
  }
  changed();
}

export function stateOf(name) {
  if (state.present.has(name)) return 'present';
  const said = current() && drawing(current()).states[name];
  return said === 'absent' ? 'absent' : 'not_annotated';
}

export function setState(name, value) {
  const about = drawing(current());
  about.states[name] = value;
  about.stated = true;
  changed();
}

// The structure that is drawn, as OHIF's own panel has it selected.
export const brushed = () => service('segmentationService').getActiveSegment(active().viewportId)?.label;

export function take(name) {
  const { segments } = service('segmentationService').getSegmentation(current());
  const segment = Object.values(segments).find(({ label }) => label === name);
  if (!segment) return say(`This segmentation has no segment ${name}: add one of that name above, or start an empty label.`);
  service('segmentationService').setActiveSegment(current(), segment.segmentIndex);
  changed();
}

// Whether what is drawn is what the server has: `submitted`, `changed` since, or `new`; empty where nothing is drawn in.
export function standing() {
  if (!current()) return '';
  const { parent, kept, stated } = drawing(current());
  if (!parent) return 'new';
  return kept === state.digest && !stated ? 'submitted' : 'changed';
}

function opened() {
  const { image, viewportId } = active();
  if (!image) throw new api.Problem({ title: 'No image is open', remedy: 'open a series in the viewport that has the blue border' });
  return { image, viewportId, series: image.SeriesInstanceUID };
}

// The segmentations in the viewer that are not as they came or were submitted; or those that are.
// What was made by the viewer's own tools came with nothing: all of it is the reader's.
const inViewer = edited =>
  drawn().filter(
    ([id, { kept, stated }]) =>
      service('segmentationService').getSegmentation(id) && edited === (stated || kept === null || kept !== mask.look(id).digest)
  );

// Says once, before an action ("press Next sample") takes drawings out of the viewer, that one is not submitted.
let warned = '';
export function warnOfUnsubmitted(action) {
  const unsubmitted = inViewer(true).map(([id]) => id);
  const about = [action, ...unsubmitted].join(' ');
  if (!unsubmitted.length || warned === about) return;
  warned = about;
  throw new api.Problem({ title: 'Your drawing is not submitted', remedy: `submit it, or ${action} again to leave it` });
}

function takeAway(segmentationId) {
  mask.remove(segmentationId);
  forget(segmentationId);
}

// Adds a drawing to the viewer; what was added before and not touched makes room for it.
export async function put(make, about) {
  const before = inViewer(false);
  const segmentationId = await make();
  Object.assign(drawing(segmentationId), about, { kept: mask.look(segmentationId).digest });
  for (const [id] of before) takeAway(id);
  measure();
  await mask.reveal(segmentationId);
  return segmentationId;
}

export async function startEmpty() {
  const { image } = opened();
  await put(() => mask.create(image, state.project.segments, 'Label'), {});
  say('An empty label: choose a structure, then draw with a tool above.');
}

export async function suggest(signal) {
  const { image, series } = opened();
  const told = await api.suggestion(key(), series, signal);
  const shown = imageOf(series);
  if (!shown || state.series !== series) return say('The suggestion is for a series that is no longer open.');
  const by = `${told.model}/${told.version}`;
  await put(() => mask.show(told.mask, image, `Suggestion of ${by}`), { suggestion: told.mask.mask, suggestedBy: by });
  const doubt = told.entropy === null ? '' : `, mean entropy ${told.entropy.toFixed(3)}`;
  say(`Suggested by ${told.model} version ${told.version} in ${told.elapsed.toFixed(1)} s${doubt}. Correct it, then submit.`);
}

// Revisions of a series are counted from its first.
export const numberOf = revision => state.history.length - state.history.indexOf(revision);

export async function load(revision) {
  const image = imageOf(revision.series_uid);
  if (!image) throw new api.Problem({ title: 'Its series is not open', about: revision.series_uid, remedy: 'open its study' });
  const told = await api.labelMask(revision.label_id);
  await put(() => mask.show(told, image, `Label of ${revision.author}`), {
    parent: revision.label_id,
    states: { ...revision.states },
  });
  say(`Loaded revision ${numberOf(revision)}, by ${revision.author}. What you submit becomes a revision of it.`);
}

export async function submit() {
  const segmentationId = current();
  if (!segmentationId) throw new api.Problem({ title: 'There is no drawing', remedy: 'start an empty label, or auto-segment' });
  if (!state.author.trim()) throw new api.Problem({ title: 'Nobody says who labelled', about: 'Reader', remedy: 'enter your name' });
  measure();
  const series = mask.seriesOf(segmentationId);
  const about = drawing(segmentationId);
  const { slices, voxels } = mask.read(segmentationId);
  const { segments } = service('segmentationService').getSegmentation(segmentationId);
  const states = Object.fromEntries(state.project.segments.map(({ name }) => [name, stateOf(name)]));
  const said = JSON.stringify(about.states);
  const { digest } = mask.look(segmentationId); // what is drawn while it is on its way is not submitted
  const told = {
    series,
    states,
    author: state.author.trim(),
    parent: about.parent,
    suggestion: about.suggestion,
    suggested_by: about.suggestedBy,
  };
  const sent = `${digest} ${JSON.stringify(told)}`;
  if (about.sent !== sent) Object.assign(about, { sent, labelId: crypto.randomUUID() }); // the same again is no second label
  const stored = await api.submit(
    key(),
    {
      ...told,
      label_id: about.labelId,
      seconds: clock.elapsed(),
      slices,
      segments: Object.values(segments).map(({ segmentIndex, label }) => ({ value: segmentIndex, name: label })),
    },
    voxels
  );
  const stated = JSON.stringify(about.states) !== said; // while it was on its way
  Object.assign(about, { parent: stored.label_id, suggestion: null, suggestedBy: null, kept: digest, stated, sent: '' });
  clock.restart();
  forgetStudy(stored.study_uid);
  Object.assign(state, { offer: null, remaining: null });
  await refresh(series);
  const drew = stored.added_path_length === null ? '' : `, ${stored.added_path_length} voxels of contour added`;
  say(`Submitted in ${stored.seconds.toFixed(0)} s${drew}. It is revision ${state.history.length} of this series.`, { done: true });
}

// OHIF keeps what it was told of a study as long as the page lives: a label that was stored since would stay unseen.
export function forgetStudy(study) {
  const data = source();
  data.deleteStudyMetadataPromise(`${data.getConfig().name}:${study}`);
}

export async function next() {
  warnOfUnsubmitted('press Next sample');
  const wanted = { strategy: state.strategy, skip: state.skipped, author: state.author.trim() };
  const told = await api.next(key(), wanted);
  Object.assign(state, { offer: told.next, remaining: told.remaining });
  if (!told.next) {
    const passed = state.skipped.length > 0;
    state.skipped = [];
    return say(passed ? 'No other is left; press Next sample to see those again that you passed over.' : 'None is left to label.');
  }
  state.skipped = [...state.skipped, told.next.series].slice(-10000);
  forgetStudy(told.next.study);
  say(`${told.next.patient || told.next.study}: ${told.next.reason}.`);
  const { study, series } = told.next;
  if (active().image?.StudyInstanceUID !== study)
    host.commandsManager.runCommand('navigateHistory', { to: `/label?StudyInstanceUIDs=${study}` });
  await show(study, series);
}

// The series in the viewport that is worked in. OHIF first opens one of its own choice, and stumbles if that is taken from it early.
async function show(study, series) {
  await until(() => {
    const { image, viewportId } = active();
    const wanted = imageOf(series);
    if (!wanted || image?.StudyInstanceUID !== study) return false;
    if (image === wanted) return true;
    if (!service('cornerstoneViewportService').getCornerstoneViewport(viewportId)?.getImageData?.()) return false;
    const displaySetInstanceUIDs = [wanted.displaySetInstanceUID];
    service('viewportGridService').setDisplaySetsForViewports([{ viewportId, displaySetInstanceUIDs }]);
    return false;
  }, `series ${series}`);
}
